"""The reference target: `@step` by the IR interpreter. Slow; it shows what a step means, kernel by kernel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from forerun.ir import Environment, ModuleOp, TreeAttention, evaluate, functions, new_caches, tensor_type, walk
from forerun.runtime.executable import Int32, Rows, StepResult

State = dict[str, tuple[torch.Tensor, torch.Tensor]]

ARGUMENTS = ("tokens", "positions", "sequences", "slots", "bases", "paths", "block_tables", "outputs")


class ReferenceExecutable:
    """A step evaluated operation by operation. Its bits are torch's, so the exactness contract does not hold for it."""

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
        logits, candidates, _ = (tensor_type(each).dims for each in step.returned)
        self.vocabulary = int(logits[-1])
        self.candidates = int(candidates[-1])

    def new_state(self, blocks: int) -> State:
        return new_caches(self.module, blocks * self.block)

    def run(self, state: State, rows: Rows) -> StepResult:
        inputs = [torch.from_numpy(np.ascontiguousarray(getattr(rows, name))) for name in ARGUMENTS]
        logits, candidates, best = evaluate(self.module, "step", inputs, Environment(self.weights, state))
        return StepResult(logits.numpy(), candidates.numpy(), best.numpy())

    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        for keys, values in state.values():
            keys[destination], values[destination] = keys[source], values[source]
