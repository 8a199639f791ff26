"""The reference target: `@step` by the IR interpreter. Slow; it shows what a step means, kernel by kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from forerun.errors import InvalidOptionError
from forerun.ir import (
    Environment,
    Linear,
    ModuleOp,
    TreeAttention,
    called,
    functions,
    new_caches,
    run_body,
    tensor_type,
    walk,
)
from forerun.runtime.executable import Branch, Draw, Float32, Int32, Part, Rows, StepResult

NUMBER = 4
"""Bytes of a float32."""

State = dict[str, tuple[torch.Tensor, torch.Tensor]]

ARGUMENTS = ("tokens", "positions", "sequences", "slots", "bases", "paths", "block_tables", "outputs")


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
        attentions = [each for each in walk(step.body) if isinstance(each, TreeAttention)]
        self.module = module
        self.weights = weights
        self.block: int = attentions[0].parameter("block") if attentions else 1
        self.max_rows = max_rows
        self.max_outputs = max_outputs
        self.max_path = max_path
        self.max_length = max_length
        self.step = step
        marks: tuple[tuple[int, str], ...] = step.parameter("branches", ())
        self.branches = tuple(Branch(layer, kind, self._weight_bytes(i)) for i, (layer, kind) in enumerate(marks))
        self.head_bytes = self._weight_bytes(None)
        streams = [each.results[0] for each in step.body if "stream" in each.attributes]
        self.width = int(tensor_type(streams[0]).dims[-1]) if streams else 0
        logits, candidates, _ = (tensor_type(each).dims for each in step.returned)
        self.vocabulary = int(logits[-1])
        self.candidates = int(candidates[-1])

    def new_state(self, blocks: int, requests: int = 1) -> State:
        return new_caches(self.module, blocks * self.block)

    def run(
        self,
        part: Part,
        state: State,
        rows: Rows,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult:
        evaluated = part.branches(len(self.branches))
        if (hidden is None) == (part.enter > 0):
            raise InvalidOptionError(f"a part that enters at branch {part.enter} and hidden {hidden is not None}")
        inputs = [torch.from_numpy(np.ascontiguousarray(getattr(rows, name))) for name in ARGUMENTS]
        values, environment = called(self.module, self.step, inputs, Environment(self.weights, state))
        stream = torch.zeros(len(rows.tokens), 0) if hidden is None else torch.from_numpy(hidden.copy())
        for operation in self.step.body:
            branch, number = operation.parameter("branch"), operation.parameter("stream")
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
        kernels = [each for each in self.step.body if each.parameter("branch") == branch]
        read = [each for each in walk(kernels) if isinstance(each, Linear)]
        return sum(math.prod(map(int, tensor_type(each.inputs[1]).dims)) * NUMBER for each in read)

    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        for keys, values in state.values():
            keys[destination], values[destination] = keys[source], values[source]
