"""An exported step on ONNX Runtime: the cache lies in this process, and enters and leaves as ordinary tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.available import require_memory
from forerun.codegen.onnx.program import DRAFT, NEW, OnnxProgram
from forerun.errors import InvalidOptionError
from forerun.execute.arguments import require_size
from forerun.execute.onnx.history import history
from forerun.execute.onnx.library import session
from forerun.execute.runner import EntryRunner, EntryState
from forerun.forking import with_live_threads
from forerun.runtime.executable import WHOLE, Branch, Draw, Float32, Int32, Part, Rows, StepResult
from forerun.signature import STEP, STEP_ARGUMENTS, Signature, StateRecord

NUMBER = 4
"""Bytes of a number."""


class State(dict[str, NDArray[Any]], EntryState):
    """The records of each state [slots or requests, *shape], by its name."""


class OnnxExecutable(EntryRunner[State]):
    """Runs graphs of `codegen.onnx` (`forerun.runtime.executable.Executable`).

    ONNX Runtime's products depend on the number of rows, so a row's bits do too: the contract does not hold here.
    """

    draws = False
    enters = False
    width = 0

    def __init__(self, program: OnnxProgram, sessions: Mapping[str, Any]) -> None:
        self.program, self.sessions = program, sessions
        self.entries = {name: _arguments(each, program.states) for name, each in program.entries.items()}
        self.block = program.block
        self.max_rows, self.max_outputs = program.max_rows, program.max_outputs
        self.max_path, self.max_length = program.max_path, program.max_length
        self.vocabulary, self.candidates = program.vocabulary, program.candidates
        self.branches, self.head_bytes = tuple(Branch(*each) for each in program.branches), program.head_bytes
        self._graph_of = {WHOLE: STEP}
        if program.draft is not None:
            part = Part(leave=program.draft.leave, skipped=frozenset(program.draft.skipped))
            self._graph_of[part] = DRAFT
        self._inputs = {name: [each.name for each in found.get_inputs()] for name, found in sessions.items()}

    @with_live_threads
    def make_state(self, blocks: int, requests: int, rows: int) -> State:
        slots = blocks * self.block
        counts = {name: requests if each.per == "request" else slots for name, each in self.program.states.items()}
        shapes = {name: (counts[name], *each.shape) for name, each in self.program.states.items()}
        require_memory({f"a cache of {slots} positions": NUMBER * sum(map(prod, shapes.values()))})
        return State({name: np.zeros(shape, np.float32) for name, shape in shapes.items()})

    @with_live_threads
    def run_part(
        self,
        part: Part,
        state: State,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        graph = self._graph_of.get(part)
        if graph is None:
            raise InvalidOptionError(
                "the bundle does not hold the part of the model that this strategy drafts with: export the model with "
                "the strategy, or choose one that drafts without the model"
            )
        require_size(rows, self)
        seen = history(rows, self.block, len(next(iter(state.values()), np.zeros(0))))
        wanted = rows.outputs if len(rows.outputs) else np.zeros(1, np.int32)  # a graph takes at least one
        given: dict[str, Any] = {
            "visible": seen.visible, "cached_positions": seen.positions, "outputs": wanted,
            "requests": rows.requests, "sequences": rows.sequences,
        }  # fmt: skip
        for name in self._inputs[graph]:
            if name in state:
                own = self.program.states[name].per == "request"
                given[name] = state[name] if own else np.ascontiguousarray(state[name][seen.slots])
            elif name not in given:
                given[name] = getattr(rows, name)
        results = self._run(graph, {name: given[name] for name in self._inputs[graph]})
        for name, records in state.items():
            if name + NEW in results:
                records[rows.slots] = results[name + NEW]
        logits, ids, best = (
            results[name][: len(rows.outputs)] for name in ("logits", "candidates", "candidate_logits")
        )
        return StepResult(logits, ids, best)

    def run_entry(
        self, name: str, state: State, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        named = dict(zip((each.name for each in self.entries[name].arguments), given, strict=True))
        results = self._run(name, {each: named[each] for each in self._inputs[name]})
        for symbol, records in state.items():
            if symbol + NEW in results:
                records[named["requests"]] = results.pop(symbol + NEW)
        return tuple(results.values())

    def _run(self, entry: str, given: dict[str, Any]) -> dict[str, Any]:
        found = self.sessions[entry]
        return dict(zip((each.name for each in found.get_outputs()), found.run(None, given), strict=True))

    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        for name, records in state.items():
            if self.program.states[name].per != "request":
                records[destination] = records[source]


def _arguments(signature: Signature, states: Mapping[str, StateRecord]) -> Signature:
    """What the runtime passes to an entry: a step takes rows, any other entry what its graph takes besides states."""
    if signature.name == STEP:
        return Signature(STEP, tuple(STEP_ARGUMENTS.values()), signature.results)
    own = tuple(each for each in signature.arguments if each.name not in states)
    results = tuple(each for each in signature.results if each.name.removesuffix(NEW) not in states)
    where = (STEP_ARGUMENTS["requests"],) if len(results) < len(signature.results) else ()  # the records it leaves
    return Signature(signature.name, own + where, results)


def bind(program: OnnxProgram, threads: int | None = None) -> OnnxExecutable:
    """Opens the graphs on ONNX Runtime; their files are on disk only meanwhile."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        program.write(folder)
        return OnnxExecutable(
            program, {each: session(str(folder / f"{each}.onnx"), threads) for each in program.graphs}
        )
