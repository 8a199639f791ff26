"""Code generation for the reference back end: the IR interpreter runs entries kernel by kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from forerun.codegen.planned import PlannedStep
from forerun.codegen.program import NUMBER
from forerun.codegen.reference_step import ReferenceProgram, State
from forerun.codegen.regions import block_size
from forerun.codegen.stream_reads import stream_reads
from forerun.errors import InvalidOptionError, UnsupportedOperationError
from forerun.ir import (
    Environment,
    Exchange,
    Kernel,
    ModuleOp,
    SpecOperation,
    WeightProduct,
    called,
    entries,
    evaluate,
    functions,
    new_states,
    numbers_read,
    run_body,
    states,
    tensor_type,
    walk,
    with_derived,
)
from forerun.ir import weights as weights_of
from forerun.ir.structure import PER
from forerun.signature import STEP


class Evaluator:
    """Evaluates a module's entries with its own copy of the weights: the original model may be trained further."""

    def __init__(self, module: ModuleOp, weights: Callable[[str], torch.Tensor]) -> None:
        self.module = module
        given = weights_of(module)
        stored = {each.source or name for name, each in given.items() if each.derived is None} - {
            name for name, each in given.items() if each.derived is not None
        }
        self.weights = with_derived(module, {name: weights(name).detach().clone() for name in stored}.__getitem__)
        self.function = functions(module)[STEP]
        self.reads = stream_reads(self.function)
        marked = (each for each in self.function.body if isinstance(each, Kernel) and each.stream is not None)
        self.stream = {int(each.stream or 0): each.results[0] for each in marked}

    def entry(self, name: str, inputs: Sequence[torch.Tensor], state: State) -> Sequence[torch.Tensor]:
        return evaluate(self.module, name, inputs, Environment(self.weights, state))

    def step(
        self,
        inputs: Sequence[torch.Tensor],
        state: State,
        evaluated: Sequence[int],
        earlier: Mapping[int, int],
        stream: torch.Tensor | None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Kernels of a skipped branch pass the stream through unchanged (`EvaluateStep`)."""
        values, environment = called(self.module, self.function, inputs, Environment(self.weights, state))
        late = stream is not None
        found = torch.zeros(0) if stream is None else stream
        for operation in self.function.body:
            marked = isinstance(operation, Kernel)
            branch, number = (operation.branch, operation.stream) if marked else (None, None)
            left_out = branch not in evaluated if branch is not None else number == 0 and late
            if operation.ends_body or (left_out and number is None):
                continue
            if left_out:
                sizes = tensor_type(operation.results[0]).sizes(environment.bindings)
                values[operation.results[0]] = found.reshape(sizes)
            else:
                seen = dict(values)
                if branch is not None and branch in earlier and not self._adds(operation, branch):
                    own = self.stream[branch]
                    seen[own] = values[self.stream[earlier[branch]]].reshape(values[own].shape)
                run_body([operation], seen, environment, keep=set(operation.results))
                values.update((each, seen[each]) for each in operation.results)
            if number is not None:
                found = values[operation.results[0]]
        return [values[each] for each in self.function.returned], found

    def _adds(self, kernel: SpecOperation, branch: int) -> bool:
        """Whether a kernel reads the stream only as an addend of its branch's sum."""
        if self.stream[branch] not in kernel.operands:
            return True
        if kernel not in self.reads:
            raise InvalidOptionError(
                f"a kernel of branch {branch} reads the residual stream both as the branch's input and as what it adds "
                "to: evaluate its layers one after another (parallel layers: 1)"
            )
        return self.reads[kernel]

    def weight_bytes(self, branch: int | None) -> int:
        """The bytes of weights that the linears of a residual branch read, or, for None, those outside all branches."""
        own = (each for each in self.function.body if (each.branch if isinstance(each, Kernel) else None) == branch)
        read = [each for each in walk(list(own)) if isinstance(each, WeightProduct)]
        return sum(map(numbers_read, read)) * NUMBER


def emit(planned: PlannedStep) -> ReferenceProgram:
    """Generates the program of a planned `@step`."""
    module = planned.module
    evaluator = Evaluator(module, planned.weights)
    step = evaluator.function
    if any(isinstance(each, Exchange) for each in step.body):
        raise UnsupportedOperationError(
            "the reference target runs whole steps, and this is a part of one: compile it for the cpu target."
        )
    logits, candidates, _ = (tensor_type(each).dims for each in step.returned)
    declared = states(module)
    record_bytes = {
        per: sum(math.prod(each.shape) * NUMBER for each in declared.values() if each.per == per) for per in PER
    }
    return ReferenceProgram(
        entries={name: each.signature for name, each in entries(module).items()},
        new_states=partial(new_states, module),
        step=evaluator.step,
        evaluate=evaluator.entry,
        record_bytes=record_bytes,
        of_positions=frozenset(name for name, each in declared.items() if each.per == "position"),
        of_rows=frozenset(name for name, each in declared.items() if each.per == "row"),
        branches=tuple((layer, kind, evaluator.weight_bytes(i)) for i, (layer, kind) in enumerate(step.branches)),
        head_bytes=evaluator.weight_bytes(None),
        width=int(tensor_type(evaluator.stream[0]).dims[-1]) if evaluator.stream else 0,
        vocabulary=int(logits[-1]),
        candidates=int(candidates[-1]),
        block=block_size(module) or 1,
        **planned.limits,
    )
