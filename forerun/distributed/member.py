"""What a rank does in a step, and the other ranks' loop: they do what the first one orders until it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.codegen.program import NUMBER
from forerun.distributed.in_flight import Flight, run_together
from forerun.distributed.orders import Attend, Feed, Kind
from forerun.distributed.schedule import Payload
from forerun.distributed.wire import Wire
from forerun.errors import DeviceMemoryError
from forerun.execute.tvm.executable import TvmExecutable
from forerun.runtime.executable import Exchange, Int32, StepResult
from forerun.runtime.rows import taken

RESULTS = ("logits", "candidates", "candidate_logits", "hidden")
"""The arrays of a `StepResult` that a rank gives the first one."""
ROOM, SLOTS, PLACES = "room", "slots", "places"
"""Other payloads: whether a rank has room for a state, and records that one gives another."""


class Member:
    """A rank's part of the model, and its states."""

    def __init__(self, executable: TvmExecutable, wire: Wire) -> None:
        self.executable, self.wire = executable, wire
        self.states: dict[int, Any] = {}
        self.last: Sequence[Flight] = ()
        """The groups of the last step."""

    def serve(self) -> None:
        """Follows orders until there are no more."""
        follow: dict[Kind, Callable[..., None]] = {
            Kind.STATE: self._state,
            Kind.ATTEND: self._attend,
            Kind.FEED: self._feed,
            Kind.COPY: self._copy,
            Kind.MARKS: self._marks,
            Kind.ECHO: self._echo,
            Kind.GIVE: self._give,
            Kind.TAKE: self._take,
            Kind.FORGET: self._forget,
        }
        while True:
            kind, arrays = self.wire.next_order()
            if kind == Kind.END:
                return
            follow[Kind(kind)](*arrays)

    # --- what a rank does, the first one too

    def attend(self, order: Attend) -> StepResult:
        """Runs the attention part of rows, group by group."""
        rows, at = self.executable.placed(order.rows), 0
        groups: list[Flight] = []
        chosen: list[NDArray[np.intp]] = []
        wanted: list[NDArray[np.intp]] = []
        for number, count in enumerate(order.groups):
            chosen.append(np.arange(at, at + count))
            own, outputs = taken(rows, chosen[-1])
            wanted.append(outputs)
            hidden = None if order.hidden is None else order.hidden[at : at + count]
            running = self.executable.running(order.part, self.states[order.state], own, hidden, number)
            groups.append(Flight(running, self.wire.layout.ffn_ranks, number + 1))
            at += count
        self.last = groups
        return joined(run_together(self.wire, groups), chosen, wanted)

    def copy(self, state: int, source: Int32, destination: Int32, with_places: bool) -> None:
        """Copies records of slots; `with_places`: states per row, which are numbered as slots are, as well."""
        self.states[state].rows_at_slots = with_places
        self.executable.copy_slots(self.states[state], source, destination)

    def give_records(self, state: int, rank: int, slots: Int32, places: Int32) -> None:
        """Gives another rank the records of slots, and the states per row at places."""
        found = self.executable.read_records(self.states[state], slots, places)
        for name, part in self._payloads(*found):
            self.wire.send(rank, name, part, 1)
        self.wire.flush()

    def take_records(self, state: int, rank: int, slots: Int32, places: Int32) -> None:
        """Takes the records that another rank gives."""
        found = self.executable.read_records(self.states[state], slots, places)
        for name, part in self._payloads(*found):
            self.wire.expect(rank, Exchange(name, part, True), part, 1).wait()
        self.executable.write_records(self.states[state], slots, places, *found)

    def _payloads(self, *records: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
        """Views of records that are small enough to be sent."""
        for name, array in zip((SLOTS, PLACES), records, strict=True):
            for part in np.array_split(array, max(1, -(-array.nbytes // self.wire.largest))):
                yield name, part

    # --- the other ranks' answers to orders

    def _state(self, told: Int32) -> None:
        number, *sizes = told.tolist()
        try:
            self.states[number] = self.executable.new_state(*sizes)
        except DeviceMemoryError:
            self._tell(ROOM, np.zeros(1, np.int32))
        else:
            self._tell(ROOM, np.ones(1, np.int32))

    def _forget(self, told: Int32) -> None:
        self.states.pop(int(told[0]), None)

    def _attend(self, *arrays: NDArray[Any]) -> None:
        result = self.attend(Attend.of(list(arrays)))
        for name in RESULTS:
            self._tell(name, getattr(result, name))

    def _feed(self, *arrays: NDArray[Any]) -> None:
        """Runs the feed-forward part of groups, in turn."""
        order = Feed.of(list(arrays))
        peers, groups = self.wire.layout.ffn_ranks, list[Flight]()
        for lane, (rank, number, rows, outputs) in enumerate(order.groups):
            running = self.executable.answering(order.part, self._stateless, {"N": rows, "M": outputs}, lane)
            groups.append(Flight(running, [rank], number + 1, peers))
        self.last = groups
        run_together(self.wire, groups)

    @cached_property
    def _stateless(self) -> Any:
        """What a feed-forward part runs on, which has no states."""
        return self.executable.new_state(1)

    def _copy(self, told: Int32, source: Int32, destination: Int32) -> None:
        state, with_places = told.tolist()
        self.copy(state, source, destination, bool(with_places))

    def _give(self, told: Int32, slots: Int32, places: Int32) -> None:
        state, rank = told.tolist()
        self.give_records(state, rank, slots, places)

    def _take(self, told: Int32, slots: Int32, places: Int32) -> None:
        state, rank = told.tolist()
        self.take_records(state, rank, slots, places)

    def _marks(self, told: Int32) -> None:
        self._tell("marks", np.array(self.last[int(told[0])].marks))

    def _echo(self, told: Int32) -> None:
        size, times = told.tolist()
        payload = np.zeros(size, np.uint8)
        for _ in range(times):
            self.wire.expect(0, Exchange("echo", payload, True), payload, 1).wait()
            self._tell("echo", payload)

    def _tell(self, name: str, array: NDArray[Any]) -> None:
        """Gives the first rank an array."""
        self.wire.send(0, name, array, 1)
        self.wire.flush()


def joined(
    results: Sequence[StepResult], chosen: Sequence[NDArray[np.integer[Any]]], wanted: Sequence[NDArray[np.intp]]
) -> StepResult:
    """One result of several groups: of the rows chosen for each, in any order, and the outputs wanted of it."""
    if len(results) == 1 and (np.diff(chosen[0]) > 0).all():
        return results[0]
    outputs, rows = np.concatenate(wanted).argsort(), np.concatenate(chosen).argsort()

    def together(name: str) -> NDArray[Any]:
        values = np.concatenate([getattr(each, name) for each in results])
        return values[rows if name == "hidden" else outputs]

    return StepResult(*map(together, RESULTS))


def expected_result(wire: Wire, rank: int, rows: int, outputs: int, sizes: tuple[int, int, int]) -> StepResult:
    """Receives what another attention rank gives the first one, of a step of so many rows and outputs."""
    vocabulary, candidates, width = sizes
    made = StepResult(
        np.empty((outputs, vocabulary), np.float32),
        np.empty((outputs, candidates), np.int32),
        np.empty((outputs, candidates), np.float32),
        np.empty((rows, width), np.float32),
    )
    for name in RESULTS:
        array = getattr(made, name)
        wire.expect(rank, Exchange(name, array, True), array, 1).wait()
    return made


def payloads(executable: TvmExecutable) -> list[Payload]:
    """The messages of a step in order, with their bytes for each row if each row's logits are wanted."""
    found = [each.message for each in executable.step.kernels if each.message is not None]
    one = {"N": 1, "M": 1}
    return [Payload(each.received, each.peers, NUMBER * prod(each.value.sizes(one))) for each in found]


def largest_payload(executable: TvmExecutable) -> int:
    """The bytes of the largest message of a step, or of its results, or of the times of its messages."""
    step, messages = executable.step, payloads(executable)
    results = step.max_outputs * step.vocabulary * NUMBER, step.max_rows * step.width * NUMBER
    times = 2 * (len(messages) + 1) * np.dtype(np.float64).itemsize
    return int(max(*results, times, *(each.row_bytes * step.max_rows for each in messages)))
