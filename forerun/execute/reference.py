"""The reference back end: evaluates entries operation by operation. It is slow, and defines what a step means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forerun.available import require_memory
from forerun.codegen.reference_step import ReferenceProgram
from forerun.execute.branches import check_hidden
from forerun.execute.runner import EntryRunner, EntryState
from forerun.forking import with_live_threads
from forerun.runtime.executable import Branch, Draw, Float32, Int32, Part, Rows, StepResult
from forerun.signature import STEP


class State(dict[str, torch.Tensor], EntryState):
    """The records of each state, by its name."""


class ReferenceExecutable(EntryRunner[State]):
    """Evaluates a step operation by operation. Its bits are torch's, so the exactness contract does not hold here."""

    draws = False

    def __init__(self, program: ReferenceProgram) -> None:
        self.program = program
        self.entries = program.entries
        self.block = program.block
        self.max_rows, self.max_outputs = program.max_rows, program.max_outputs
        self.max_path, self.max_length = program.max_path, program.max_length
        self.vocabulary, self.candidates = program.vocabulary, program.candidates
        self.branches = tuple(Branch(*each) for each in program.branches)
        self.head_bytes, self.width = program.head_bytes, program.width
        self.row_bytes = program.record_bytes["row"]

    @with_live_threads
    def make_state(self, blocks: int, requests: int, rows: int) -> State:
        counts = {"position": blocks * self.block, "request": requests, "row": rows}
        needed = sum(size * counts[per] for per, size in self.program.record_bytes.items())
        require_memory({f"a cache of {counts['position']} positions": needed})
        return State(self.program.new_states(counts["position"], requests, rows))

    @with_live_threads
    def run_entry(
        self, name: str, state: State, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        found = self.program.evaluate(name, [torch.from_numpy(each) for each in given], state)
        return tuple(each.numpy() for each in found)

    @with_live_threads
    def run_part(
        self,
        part: Part,
        state: State,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        evaluated = part.branches(len(self.branches))
        earlier = part.inputs([(each.layer, each.kind) for each in self.branches])
        check_hidden(part, hidden is not None)
        names = [each.name for each in self.entries[STEP].arguments]
        inputs = [torch.from_numpy(np.ascontiguousarray(getattr(rows, name))) for name in names]
        stream = None if hidden is None else torch.from_numpy(hidden.copy())
        values, left = self.program.step(inputs, state, evaluated, earlier, stream)
        logits, candidates, best = (each.numpy() for each in values)
        return StepResult(logits, candidates, best, left.reshape(len(rows.tokens), self.width).numpy())

    @with_live_threads
    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        for name, records in state.items():
            if name in self.program.of_positions or (state.rows_at_slots and name in self.program.of_rows):
                records[destination] = records[source]
