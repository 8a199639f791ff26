"""The reference target: entries by the IR interpreter. Slow; it shows what a step means, kernel by kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from forerun.available import require_memory
from forerun.errors import InvalidOptionError
from forerun.forking import with_live_threads
from forerun.ir import (
    Environment,
    Kernel,
    Linear,
    ModuleOp,
    Recurrence,
    TreeAttention,
    called,
    entries,
    evaluate,
    functions,
    new_states,
    run_body,
    states,
    tensor_type,
    walk,
    with_derived,
)
from forerun.ir import weights as weights_of
from forerun.runtime.executable import Branch, Draw, Float32, Inputs, Int32, Part, Rows, StepResult, bound
from forerun.signature import STEP, Signature

NUMBER = 4
"""Bytes of a float32."""

State = dict[str, torch.Tensor]


class ReferenceExecutable:
    """A step evaluated operation by operation. Its bits are torch's, so the exactness contract does not hold for it."""

    draws = False

    def __init__(
        self,
        module: ModuleOp,
        weights: Callable[[str], torch.Tensor],
        *,
        max_rows: int,
        max_outputs: int,
        max_path: int,
        max_length: int,
    ) -> None:
        step = functions(module)["step"]
        blocks = [each.block for each in walk(step.body) if isinstance(each, TreeAttention | Recurrence)]
        self.module = module
        # Copies: the model that they come from may be trained on.
        stored = [name for name, each in weights_of(module).items() if each.derived is None]
        self.weights = with_derived(module, {name: weights(name).detach().clone() for name in stored}.__getitem__)
        self._functions = entries(module)
        self.entries: Mapping[str, Signature] = {name: each.signature for name, each in self._functions.items()}
        self._states = states(module)
        self.block: int = blocks[0] if blocks else 1
        self.max_rows = max_rows
        self.max_outputs = max_outputs
        self.max_path = max_path
        self.max_length = max_length
        self.step = step
        marks = step.branches
        self.branches = tuple(Branch(layer, kind, self._weight_bytes(i)) for i, (layer, kind) in enumerate(marks))
        self.head_bytes = self._weight_bytes(None)
        kernels = [each for each in step.body if isinstance(each, Kernel)]
        streams = [each.results[0] for each in kernels if each.stream is not None]
        self.width = int(tensor_type(streams[0]).dims[-1]) if streams else 0
        logits, candidates, _ = (tensor_type(each).dims for each in step.returned)
        self.vocabulary = int(logits[-1])
        self.candidates = int(candidates[-1])

    @with_live_threads
    def new_state(self, blocks: int, requests: int = 1) -> State:
        """A cache of `blocks * P` slots; DeviceMemoryError where the machine has not the room."""
        slots = blocks * self.block
        needed = sum(
            math.prod(each.shape) * NUMBER * (requests if each.per == "request" else slots)
            for each in self._states.values()
        )
        require_memory({f"a cache of {slots} positions": needed})
        return new_states(self.module, slots, requests)

    @overload
    def run(
        self,
        entry: Part,
        state: State,
        inputs: Rows,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult: ...
    @overload
    def run(self, entry: str, state: State, inputs: Inputs) -> tuple[NDArray[Any], ...]: ...
    @with_live_threads
    def run(
        self,
        entry: Part | str,
        state: State,
        inputs: Rows | Inputs,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult | tuple[NDArray[Any], ...]:
        if isinstance(entry, str):
            assert not isinstance(inputs, Rows)
            given = bound(self.entries, entry, inputs)
            values = [torch.from_numpy(each.copy()) for each in given]
            found = evaluate(self.module, entry, values, Environment(self.weights, state))
            return tuple(each.numpy() for each in found)
        assert isinstance(inputs, Rows)
        return self._step(entry, state, inputs, hidden)

    def _step(self, part: Part, state: State, rows: Rows, hidden: Float32 | None) -> StepResult:
        evaluated = part.branches(len(self.branches))
        if (hidden is None) == (part.enter > 0):
            raise InvalidOptionError(f"a part that enters at branch {part.enter} and hidden {hidden is not None}")
        names = [each.name for each in self.entries[STEP].arguments]
        inputs = [torch.from_numpy(np.ascontiguousarray(getattr(rows, name))) for name in names]
        values, environment = called(self.module, self.step, inputs, Environment(self.weights, state))
        stream = torch.zeros(len(rows.tokens), 0) if hidden is None else torch.from_numpy(hidden.copy())
        for operation in self.step.body:
            marked = isinstance(operation, Kernel)
            branch, number = (operation.branch, operation.stream) if marked else (None, None)
            left_out = branch not in evaluated if branch is not None else number == 0 and part.enter > 0
            if operation.ends_body or (left_out and number is None):
                continue
            if left_out:
                sizes = tensor_type(operation.results[0]).sizes(environment.bindings)
                values[operation.results[0]] = stream.reshape(sizes)
            else:
                run_body([operation], values, environment, keep=set(operation.results))
            if number is not None:
                stream = values[operation.results[0]]
        logits, candidates, best = (values[each].numpy() for each in self.step.returned)
        return StepResult(logits, candidates, best, stream.reshape(len(rows.tokens), self.width).numpy())

    def _weight_bytes(self, branch: int | None) -> int:
        own = (each for each in self.step.body if (each.branch if isinstance(each, Kernel) else None) == branch)
        kernels = list(own)
        read = [each for each in walk(kernels) if isinstance(each, Linear)]
        return sum(math.prod(map(int, tensor_type(each.weight).dims)) * NUMBER for each in read)

    @with_live_threads
    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        for name, records in state.items():
            if self._states[name].per != "request":
                records[destination] = records[source]
