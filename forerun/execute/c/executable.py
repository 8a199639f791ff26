"""A step compiled from C: its kernels are called one after another, on one thread.

It is what kernels are read and checked with, and takes its time: every product is a plain loop.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.available import require_memory
from forerun.codegen.c.program import CProgram
from forerun.codegen.program import NUMBER, Entry, Kernel, Operand, Program
from forerun.errors import ForerunError
from forerun.execute.branches import StepPart, check_hidden, read_bytes, require_whole
from forerun.execute.compilers import c_compiler
from forerun.execute.host_memory import HostMemory
from forerun.execute.runner import EntryRunner, EntryState
from forerun.forking import with_live_threads
from forerun.runtime.executable import Draw, Float32, Int32, KernelOutput, Part, Rows, StepResult

FLAGS = ("-std=c11", "-O2", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared")
"""No contraction: every operation rounds by itself, in every loop."""


def compiler() -> str:
    """The C compiler: `$CC`, or cc. Raises `ForerunError` where there is none."""
    found = c_compiler()
    if found is None:
        raise ForerunError("the c target needs a C compiler: install gcc or clang, or name one with $CC.")
    return found


def require_compiler() -> None:
    """Raises `ForerunError` where there is no C compiler."""
    compiler()


@dataclass
class State(EntryState):
    """The records of each state: float32 [blocks, *dims], or [requests or 1 + rows, *shape]."""

    records: dict[str, Float32]

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for each in self.records.values())


class CExecutable(EntryRunner[State]):
    """A compiled `@step` that runs (`forerun.runtime.executable.Executable`)."""

    draws = False

    def __init__(self, program: Program, library: ctypes.CDLL, weights: Mapping[str, NDArray[Any]]) -> None:
        self.program = program
        self.entries = program.signatures
        self.block = program.block
        self.max_rows, self.max_outputs = program.max_rows, program.max_outputs
        self.max_path, self.max_length = program.max_path, program.max_length
        self.vocabulary, self.candidates, self.width = program.vocabulary, program.candidates, program.width
        self._library = library
        self._weights = dict(weights)
        self.memory = HostMemory(program, np.zeros(max(1, program.memory), np.float32))
        self.branches, self.head_bytes = read_bytes(program)
        self.row_bytes = sum(each.words * NUMBER for each in program.states.values() if each.per == "row")

    @property
    def weight_bytes(self) -> int:
        """The bytes of the weights that a step's products read."""
        return sum(self.program.weight_bytes(each.matrices) for each in self.program.kernels)

    def make_state(self, blocks: int, requests: int, rows: int) -> State:
        room = {"position": blocks, "request": requests, "row": rows + 1}
        counts = {name: room[each.per] for name, each in self.program.states.items()}
        states = self.program.states
        needed = sum(states[name].words * count for name, count in counts.items()) * NUMBER
        require_memory({f"a cache of {blocks * self.block} positions": needed})
        return State({name: np.zeros((count, *states[name].dims), np.float32) for name, count in counts.items()})

    @with_live_threads
    def run_entry(
        self, name: str, state: State, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        """Runs another entry. The returned arrays are views, valid until the next run."""
        entry = self.program.entry(name)
        self.memory.fill(entry, dict(zip((each.name for each in entry.signature.arguments), given, strict=True)))
        self._call(entry, state, entry.kernels)
        return tuple(self.memory.view(value) for value in entry.returned)

    @with_live_threads
    def run_part(
        self,
        part: Part,
        state: State,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        """Runs a part of the step. The result's arrays are views, valid until the next run."""
        found, count = StepPart(self.program, part), len(rows.tokens)
        check_hidden(part, hidden is not None)
        self.memory.load(rows)
        if hidden is not None and found.given is not None:
            self.memory.stream(found.given, count)[:] = hidden
        self._call(self.program.step, state, found.kernels, found)
        logits, *chosen = (self.memory.view(value) for value in self.program.returned)
        none = np.zeros((len(logits), 0))
        ids, best = chosen if len(chosen) == 2 else (none.astype(np.int32), none.astype(np.float32))
        return StepResult(logits, ids, best, self.memory.stream(found.left or 0, count))

    def trace(self, state: State, rows: Rows) -> list[KernelOutput]:
        """Runs one step kernel by kernel; returns a copy of every kernel's results, in order."""
        self.memory.load(self.placed(rows))
        found: list[KernelOutput] = []
        whole = StepPart(self.program)
        for kernel in self.program.kernels:
            self._call(self.program.step, state, [kernel], whole)
            found += self.memory.outputs(kernel)
        return found

    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        """Copies the records of each source slot to its destination; all reads precede all writes."""
        for name, each in self.program.states.items():
            if each.per == "row" and state.rows_at_slots:
                state.records[name][destination + 1] = state.records[name][source + 1]
            if each.per != "position":
                continue
            lanes = np.moveaxis(state.records[name], -1 if each.side_by_side else -2, 1)
            block = self.block
            lanes[destination // block, destination % block] = lanes[source // block, source % block]

    # --- one run

    def _call(self, entry: Entry, state: State, kernels: Sequence[Kernel], part: StepPart | None = None) -> None:
        """Runs kernels of an entry; of the step, those of a part."""
        for kernel in kernels:
            for launch in kernel.launches:
                addresses = (self._address(entry, state, kernel, each, part) for each in launch.operands)
                pointers = map(ctypes.c_void_p, (self.memory.sizes.ctypes.data, *addresses))
                self._library[launch.source](*pointers)

    def _address(self, entry: Entry, state: State, kernel: Kernel, operand: Operand, part: StepPart | None) -> int:
        match operand.kind:
            case "input":
                memory = self.memory.arena if operand.element == "f32" else self.memory.inputs
                return memory.ctypes.data + entry.places[str(operand.key)] * NUMBER
            case "weight":
                return self._weights[str(operand.key)].ctypes.data
            case "state":
                return state.records[str(operand.key)].ctypes.data
            case _:
                place = int(operand.key)
                if operand.stream is not None and part is not None:
                    place = part.place(kernel, operand.stream)
                return self.memory.arena.ctypes.data + place * NUMBER


def build(text: str) -> ctypes.CDLL:
    """Compiles a file and loads it. Raises `ForerunError` with the compiler's words where it refuses."""
    with tempfile.TemporaryDirectory(prefix="forerun-c-") as folder:
        source, library = Path(folder) / "step.c", Path(folder) / "step.so"
        source.write_text(text, encoding="utf-8")
        command = [compiler(), *FLAGS, "-o", str(library), str(source), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ForerunError(f"{command[0]} refuses the generated C: {done.stderr.strip().splitlines()[:3]}")
        return ctypes.CDLL(str(library))  # it stays loaded when its file is gone


def bind(program: CProgram) -> CExecutable:
    """Makes a program ready to run."""
    require_whole(program.program)
    needed = sum(each.bytes for each in program.program.weights.values())
    require_memory({"weights": needed, "buffers": program.program.memory * NUMBER})
    return CExecutable(program.program, build(program.text), program.packed())
