"""A compiled step with its code and weights: one call runs all its kernels, for any number of rows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.available import require_memory
from forerun.codegen.program import NUMBER, Program, has_rows
from forerun.codegen.tvm.layout import ENTRY, TvmProgram, needed_bytes, state_places, weight_places, zeros
from forerun.cores import thread_count
from forerun.execute.branches import check_hidden, read_bytes
from forerun.execute.host_memory import HostMemory
from forerun.execute.runner import EntryRunner, EntryState
from forerun.execute.tvm.calls import Calls, PartCalls
from forerun.execute.tvm.code import compiled_code
from forerun.execute.tvm.library import Arguments, Module, Tensor
from forerun.execute.tvm.team import Team
from forerun.execute.tvm.timing import KernelTime, value_bytes
from forerun.runtime.executable import Draw, Float32, Int32, KernelOutput, Part, Rows, StepResult
from forerun.signature import Signature

PARTS_KEPT = 1024
"""The most programs of parts that are cached."""

INPUTS, FIRST, LAST, TEAM = 8, 9, 10, 11
"""Places among the arguments of the compiled code (`codegen.tvm.program`)."""


@dataclass
class State(EntryState):
    """Holds a record of `record` float32 numbers for each block, and one of `request` for each row and request."""

    numbers: Float32  # [blocks * record]
    requests: Float32  # [max(requests, rows + 1) * request]: the first of rows' records is zero
    arguments: Arguments  # of the compiled code, with this memory among them

    @property
    def bytes(self) -> int:
        return self.numbers.nbytes + self.requests.nbytes


class TvmExecutable(EntryRunner[State]):
    """A compiled `@step` that runs (`forerun.runtime.executable.Executable`).

    step        what was compiled
    code        the module of its kernels
    weights     packed as `Lowering.pack` writes them; read in place
    threads     how many threads share a step; by default, one for each core (`cores.thread_count`)
    """

    draws = False

    def __init__(self, step: Program, code: Module, weights: Float32, threads: int | None = None) -> None:
        self.step = step
        self.entries: Mapping[str, Signature] = step.signatures
        self.block = step.block
        self.max_rows, self.max_outputs = step.max_rows, step.max_outputs
        self.max_path, self.max_length = step.max_path, step.max_length
        self.vocabulary, self.candidates = step.vocabulary, step.candidates
        self.code = code  # the entry lives as long as its module
        self._run = code.entry(ENTRY)
        self.weights = weights
        self.team = Team(code, thread_count(threads))
        self._arena = zeros(max(1, step.arena))
        self.memory = HostMemory(step, self._arena)
        self._states = state_places(step)
        self.slot_bytes = -(-self._states.record * NUMBER // step.block)
        self.row_bytes = self._states.request * NUMBER if has_rows(step) else 0
        self.calls = Calls(step, weight_places(step)[0], self._states)
        self._parts: dict[Part, tuple[PartCalls, Tensor]] = {}
        self.branches, self.head_bytes = read_bytes(step)
        self.width = step.width
        arrays = (self.memory.sizes, weights, weights.view(np.int32), self._arena, self._arena.view(np.int32))
        self._memories = [Tensor(each) for each in arrays]
        self._program, self._inputs = Tensor(self.calls.array), Tensor(self.memory.inputs)

    @property
    def weight_bytes(self) -> int:
        """The bytes of the packed weights."""
        return self.weights.nbytes

    def make_state(self, blocks: int, requests: int, rows: int) -> State:
        count, more = blocks * self._states.record, max(1, max(requests, rows + 1) * self._states.request)
        require_memory({f"a cache of {blocks * self.block} positions": (count + more) * NUMBER})
        numbers, constants = zeros(count), zeros(more)
        state = (Tensor(numbers), Tensor(constants))
        given = Arguments(self._program, *self._memories, *state, self._inputs, 0, 0, 0)
        return State(numbers, constants, given)

    def run_entry(
        self, name: str, state: State, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        """Runs another entry. The returned arrays are views, valid until the next run."""
        entry = self.step.entry(name)
        names = (each.name for each in entry.signature.arguments)
        self.memory.fill(entry, dict(zip(names, given, strict=True)))
        self._call(state, *self.calls.of_entry(name))
        return tuple(self.memory.view(value) for value in entry.returned)

    def run_part(
        self,
        part: Part,
        state: State,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        """Runs a part of the step. The result's arrays are views, valid until the next run."""
        program, shared = self._part(part)
        check_hidden(part, hidden is not None)
        self.memory.load(rows)
        if hidden is not None and program.given is not None:
            self.memory.stream(program.given, len(rows.tokens))[:] = hidden
        self._call(state, 0, len(program.calls), shared)
        values = [self.memory.view(value) for value in self.step.returned]
        empty = np.zeros((len(rows.outputs), 0))
        ids: Any = values[1] if len(values) > 1 else empty.astype(np.int32)
        chosen: Any = values[2] if len(values) > 2 else empty.astype(np.float32)
        if len(values) > 2 and ids.dtype != np.int32:
            ids, chosen = chosen, ids
        return StepResult(values[0], ids, chosen, self.memory.stream(program.left or 0, len(rows.tokens)))

    def _part(self, part: Part) -> tuple[PartCalls, Tensor]:
        if part not in self._parts:
            if len(self._parts) >= PARTS_KEPT:
                del self._parts[next(iter(self._parts))]
            program = self.calls.part(part)
            self._parts[part] = program, Tensor(program.calls)
        return self._parts[part]

    def trace(self, state: State, rows: Rows) -> list[KernelOutput]:
        """Runs one step kernel by kernel; returns a copy of every kernel's results, in order."""
        self.memory.load(self.placed(rows))
        entries: list[KernelOutput] = []
        for kernel, span in zip(self.step.kernels, self.calls.spans[self.step.step.name], strict=True):
            self._call(state, *span)
            entries += self.memory.outputs(kernel)
        return entries

    def time_kernels(self, state: State, rows: Rows, rounds: int = 5) -> list[KernelTime]:
        """Returns the kernels of a step in order, each timed by itself in `rounds` whole steps.

        Each thus finds its weights where a step leaves them, in memory. The time of an empty launch is subtracted.
        """
        self.memory.load(self.placed(rows))
        kernels, spans = self.step.kernels, self.calls.spans[self.step.step.name]
        times: list[list[float]] = [[] for _ in kernels]
        launches: list[float] = []
        for _ in range(rounds):
            for kernel_times, span in zip(times, spans, strict=True):
                start = time.perf_counter()
                self._call(state, *span)
                middle = time.perf_counter()
                self._call(state, 0, 0)
                launches.append(time.perf_counter() - middle)
                kernel_times.append(middle - start)
        launch = median(launches)
        structures: dict[tuple[str, ...], int] = {}
        found: list[KernelTime] = []
        for kernel, kernel_times in zip(kernels, times, strict=True):
            read = self.step.weight_bytes(kernel.matrices)
            sources = tuple(each.source for each in kernel.launches)
            structure = structures.setdefault(sources, len(structures))
            moved = value_bytes(kernel, self.memory.bindings, rows)
            seconds = max(0.0, median(kernel_times) - launch)
            found.append(KernelTime(kernel.name, structure, kernel.matrices, read, moved, seconds))
        return found

    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        """Copies the cached contents of each source slot to its destination; all reads precede all writes."""
        if len(source) == 0:
            return
        numbers = state.numbers
        numbers[self._places(destination)] = numbers[self._places(source)]
        if state.rows_at_slots:
            records, words = state.requests.reshape(-1, self._states.request), self._states.row_words
            records[destination[:, None] + 1, words] = records[source[:, None] + 1, words]

    def _places(self, slots: Int32) -> NDArray[np.int64]:
        """Returns [n, w] the places of the numbers cached at slots."""
        whole = np.asarray(slots).astype(np.int64)
        return (whole // self.block * self._states.record)[:, None] + self._states.words[whole % self.block]

    def _call(self, state: State, first: int, last: int, program: Tensor | None = None) -> None:
        if self._inputs.array is not self.memory.inputs:  # an entry's arguments needed a larger array
            self._inputs = Tensor(self.memory.inputs)
        chosen = program or self._program, self._inputs, first, last, self.team.memory()
        for index, argument in zip((0, INPUTS, FIRST, LAST, TEAM), chosen, strict=True):
            state.arguments.set(index, argument)
        self._run.call(state.arguments)


def bind(program: TvmProgram, threads: int | None = None, cache: bool = True) -> TvmExecutable:
    """Makes a program ready to run. Raises DeviceMemoryError, before packing, if there is not enough memory.

    threads     how many threads share a step; by default, one for each core
    cache       whether to cache compiled code on disk
    """
    require_memory(needed_bytes(program.program))
    weights = program.pack()
    return TvmExecutable(program.program, compiled_code(program, cache), weights, threads)
