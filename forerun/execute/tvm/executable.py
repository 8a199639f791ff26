"""A compiled step with its code and weights: one call runs all its kernels, for any number of rows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from forerun.available import require_memory
from forerun.codegen.program import NUMBER, Program, has_rows
from forerun.codegen.tvm.layout import ENTRY, TvmProgram, needed_bytes, state_places, weight_places, zeros
from forerun.cores import thread_count
from forerun.errors import InvalidOptionError
from forerun.execute.branches import check_hidden, read_bytes
from forerun.execute.host_memory import HostMemory
from forerun.execute.runner import EntryRunner, EntryState
from forerun.execute.tvm.calls import Calls, PartCalls
from forerun.execute.tvm.code import compiled_code
from forerun.execute.tvm.lane import Lane
from forerun.execute.tvm.library import Arguments, Module, Tensor
from forerun.execute.tvm.team import Team
from forerun.execute.tvm.timing import KernelTime
from forerun.execute.work import value_bytes
from forerun.runtime.executable import (
    Draw,
    Exchange,
    Float32,
    Int32,
    KernelOutput,
    Part,
    Rows,
    Running,
    StepResult,
)
from forerun.signature import Signature

PARTS_KEPT = 1024
"""The most programs of parts that are cached."""

FIRST, LAST, TEAM = 9, 10, 11
"""Places among the arguments of the compiled code (`codegen.tvm.program`)."""


@dataclass
class State(EntryState):
    """Holds a record of `record` float32 numbers for each block, and one of `request` for each row and request."""

    numbers: Float32  # [blocks * record]
    requests: Float32  # [max(requests, rows + 1) * request]: the first of rows' records is zero
    arguments: Arguments  # of the compiled code, with this memory among them
    inputs: Tensor  # of the lane whose memory is among them too

    @property
    def bytes(self) -> int:
        return self.numbers.nbytes + self.requests.nbytes


class Runner:
    """Compiled code that runs calls, and the threads that share them."""

    def __init__(self, code: Module, threads: int) -> None:
        self.code, self.threads = code, threads  # the entry lives as long as its module
        self.run = code.entry(ENTRY)
        self.team = Team(code, threads)


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
        self.overrides = step.overrides
        self.block = step.block
        self.max_rows, self.max_outputs = step.max_rows, step.max_outputs
        self.max_path, self.max_length = step.max_path, step.max_length
        self.vocabulary, self.candidates = step.vocabulary, step.candidates
        self.code = code  # the entry lives as long as its module
        self.weights = weights
        self.runner = Runner(code, thread_count(threads))
        self.lanes = [Lane(step)]
        self._states = state_places(step)
        self.slot_bytes = -(-self._states.record * NUMBER // step.block)
        self.row_bytes = self._states.request * NUMBER if has_rows(step) else 0
        self.calls = Calls(step, weight_places(step)[0], self._states)
        self._parts: dict[Part, tuple[PartCalls, Tensor]] = {}
        self.branches, self.head_bytes = read_bytes(step)
        self.width = step.width
        self._program = Tensor(self.calls.array)
        self._weights = Tensor(weights), Tensor(weights.view(np.int32))

    @property
    def memory(self) -> HostMemory:
        """The memory of the first lane."""
        return self.lanes[0].memory

    @property
    def weight_bytes(self) -> int:
        """The bytes of the packed weights."""
        return self.weights.nbytes

    def make_state(self, blocks: int, requests: int, rows: int) -> State:
        count, more = blocks * self._states.record, max(1, max(requests, rows + 1) * self._states.request)
        require_memory({f"a cache of {blocks * self.block} positions": (count + more) * NUMBER})
        numbers, constants = zeros(count), zeros(more)
        state, lane = (Tensor(numbers), Tensor(constants)), self.lanes[0]
        own = lane.numbers, lane.indices
        given = Arguments(self._program, lane.sizes, *self._weights, *own, *state, lane.inputs, 0, 0, 0)
        return State(numbers, constants, given, lane.inputs)

    def run_entry(
        self, name: str, state: State, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        """Runs another entry. The returned arrays are views, valid until the next run."""
        entry = self.step.entry(name)
        names = (each.name for each in entry.signature.arguments)
        self.memory.fill(entry, dict(zip(names, given, strict=True)))
        self.call(state, *self.calls.of_entry(name))
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
        running = self.running(part, state, rows, hidden)
        try:
            exchange = next(running)
        except StopIteration as ended:
            return cast(StepResult, ended.value)
        raise InvalidOptionError(
            f"this step is a part of one, which exchanges {exchange.payload} with the other: run both by "
            "forerun.distributed"
        )

    def running(
        self, part: Part, state: State, rows: Rows, hidden: Float32 | None = None, lane: int = 0
    ) -> Running[StepResult]:
        """Runs a part of the step in a lane's memory; the result's arrays are valid until the lane's next run."""
        check_hidden(part, hidden is not None)
        program, calls = self.part(part)
        memory = self._lane(lane, program.copies).memory
        memory.load(rows)
        if hidden is not None and program.given is not None:
            memory.stream(program.given, len(rows.tokens))[:] = hidden
        yield from self._messages(program, calls, state, lane)
        values = [memory.view(value) for value in self.step.returned]
        empty = np.zeros((len(rows.outputs), 0))
        ids: Any = values[1] if len(values) > 1 else empty.astype(np.int32)
        chosen: Any = values[2] if len(values) > 2 else empty.astype(np.float32)
        if len(values) > 2 and ids.dtype != np.int32:
            ids, chosen = chosen, ids
        return StepResult(values[0], ids, chosen, memory.stream(program.left or 0, len(rows.tokens)))

    def answering(self, part: Part, state: State, sizes: Mapping[str, int], lane: int = 0) -> Running[None]:
        """Runs a part of a step that has no arguments, for named dimensions of these sizes."""
        self._lane(lane).memory.bind(self.step.step, sizes)
        yield from self._messages(*self.part(part), state, lane)

    def _messages(self, program: PartCalls, calls: Tensor, state: State, lane: int) -> Running[None]:
        """Runs the calls of a part; at each message, the caller sends or fills the array."""
        own, at = self._lane(lane), 0
        for stop, message in program.messages:
            self.call(state, at, stop, calls, own)
            at = stop
            yield Exchange(message.payload, own.memory.view(message.value), message.received, message.peers)
        self.call(state, at, len(program.calls), calls, own)

    def _lane(self, number: int, copies: int = 1) -> Lane:
        while len(self.lanes) <= number:
            self.lanes.append(Lane(self.step))
        if self.lanes[number].copies < copies:
            require_memory({"values of layers side by side": copies * self.step.memory * NUMBER})
            self.lanes[number] = Lane(self.step, copies)
        return self.lanes[number]

    def part(self, part: Part) -> tuple[PartCalls, Tensor]:
        """Returns the calls of a part. Raises `InvalidOptionError` if the step has no such part."""
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
            self.call(state, *span)
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
                self.call(state, *span)
                middle = time.perf_counter()
                self.call(state, 0, 0)
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
        none = source[:0]
        moved = (source, destination) if state.rows_at_slots else (none, none)
        self.write_records(state, destination, moved[1], *self.read_records(state, source, moved[0]))

    def read_records(self, state: State, slots: Int32, places: Int32) -> tuple[Float32, Float32]:
        """Returns [n, w] what is cached at slots, and [p, v] the states per row at places."""
        return state.numbers[self._places(slots)], self._row_records(state)[self._row_words(places)]

    def write_records(self, state: State, slots: Int32, places: Int32, cached: Float32, rows: Float32) -> None:
        """Puts records where `read_records` finds them."""
        state.numbers[self._places(slots)] = cached
        self._row_records(state)[self._row_words(places)] = rows

    def _row_records(self, state: State) -> Float32:
        return state.requests.reshape(-1, max(1, self._states.request))

    def _row_words(self, places: Int32) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return places[:, None].astype(np.int64) + 1, self._states.row_words

    def _places(self, slots: Int32) -> NDArray[np.int64]:
        """Returns [n, w] the places of the numbers cached at slots."""
        whole = np.asarray(slots).astype(np.int64)
        return (whole // self.block * self._states.record)[:, None] + self._states.words[whole % self.block]

    def call(
        self,
        state: State,
        first: int,
        last: int,
        program: Tensor | None = None,
        lane: Lane | None = None,
        runner: Runner | None = None,
    ) -> None:
        """Runs calls `first` to `last` - 1 of a program, by default of this one's; `runner` has other functions."""
        lane, runner = lane or self.lanes[0], runner or self.runner
        if state.inputs is not lane.inputs or lane.moved:
            lane.put(state.arguments)
            state.inputs = lane.inputs
        chosen = program or self._program, first, last, runner.team.memory()
        for index, argument in zip((0, FIRST, LAST, TEAM), chosen, strict=True):
            state.arguments.set(index, argument)
        runner.run.call(state.arguments)


def bind(program: TvmProgram, threads: int | None = None, cache: bool = True) -> TvmExecutable:
    """Makes a program ready to run. Raises DeviceMemoryError, before packing, if there is not enough memory.

    threads     how many threads share a step; by default, one for each core
    cache       whether to cache compiled code on disk
    """
    require_memory(needed_bytes(program.program))
    weights = program.pack()
    return TvmExecutable(program.program, compiled_code(program, cache), weights, threads)
