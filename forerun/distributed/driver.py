"""The first rank's executable: it decides which rank attends to which sequence, and orders the steps."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter
from typing import Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from forerun.distributed.member import ROOM, Member, expected_result, joined
from forerun.distributed.orders import Attend, Feed, Kind
from forerun.distributed.owners import Move, Owners
from forerun.distributed.schedule import Costs, Group, Payload, Schedule, best, divided, known_sizes, predicted
from forerun.errors import DeviceMemoryError, DistributedError, InvalidOptionError
from forerun.execute.arguments import require_size
from forerun.execute.branches import check_hidden
from forerun.execute.runner import EntryRunner, EntryState
from forerun.runtime.executable import Draw, Exchange, Float32, Int32, Part, Rows, StepResult
from forerun.runtime.rows import taken


class DriverState(EntryState):
    """The number under which all attention ranks know a state, and which of them has which record."""

    def __init__(self, number: int, owners: Owners) -> None:
        self.number, self.owners = number, owners


class Driver(EntryRunner[DriverState]):
    """An executable whose steps run on all ranks (`forerun.runtime.executable.Executable`)."""

    draws = False

    def __init__(self, member: Member, payloads: Sequence[Sequence[Payload]]) -> None:
        """`payloads`: the messages of each rank's part of a step."""
        own = member.executable
        self.member, self.wire, self.layout = member, member.wire, member.wire.layout
        self.entries, self.block = own.entries, own.block
        self.max_rows, self.max_outputs = own.max_rows, own.max_outputs
        self.max_path, self.max_length = own.max_path, own.max_length
        self.vocabulary, self.candidates = own.vocabulary, own.candidates
        self.branches, self.head_bytes, self.width = own.branches, own.head_bytes, own.width
        self.slot_bytes, self.row_bytes = own.slot_bytes, own.row_bytes
        self.payloads = payloads
        self.measured: Costs | None = None
        """What the number of groups is chosen by; None if it is given."""
        self.last: list[int] = []
        """The rows of the last step, of each attention rank that had some."""
        self._dropped: list[int] = []
        self._states = 0
        self._broken = False

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *raised: object) -> None:
        """Ends the other ranks. After a failure they end when this process does, and its connections with it."""
        if not self._broken:
            self.wire.order(range(1, self.layout.world), Kind.END, [])

    @contextmanager
    def _together(self) -> Generator[None]:
        """Something that several ranks do. After a failure they disagree on what comes next: nothing more is done."""
        if self._broken:
            raise DistributedError("the ranks were interrupted in a step; start all of them again.")
        self._broken = True
        yield
        self._broken = False

    @property
    def _others(self) -> range:
        """The attention ranks besides this one."""
        return range(1, self.layout.attention)

    def groups(self, rows: Sequence[int]) -> Sequence[Group]:
        """The groups of rows [ranks that have some], in turn."""
        return divided(rows, self.layout.groups or best(self.costs, known_sizes(self.costs, rows)))

    def schedule(self, rows: Sequence[int]) -> Schedule:
        """The predicted schedule of a step of rows [ranks that have some]."""
        return predicted(self.costs, self.groups(rows))

    @property
    def costs(self) -> Costs:
        """What the number of groups is chosen by. Raises `InvalidOptionError` if nothing was measured."""
        if self.measured is None:
            raise InvalidOptionError("times were not measured: join with groups chosen by them (groups=AUTO).")
        return self.measured

    @contextmanager
    def grouped(self, count: int) -> Generator[None]:
        """Meanwhile, each rank's rows are divided into so many groups."""
        layout, self.layout = self.layout, replace(self.layout, groups=count)
        try:
            yield
        finally:
            self.layout = layout

    def make_state(self, blocks: int, requests: int, rows: int) -> DriverState:
        """A state on all attention ranks. Raises `DeviceMemoryError` if one of them has no room."""
        self._forget()
        own = self.member.executable.new_state(blocks, requests, rows)
        self._states += 1
        number, room = self._states, np.ones(1, np.int32)
        lacking: list[int] = []
        with self._together():
            self.wire.order(self._others, Kind.STATE, [np.array([number, blocks, requests, rows], np.int32)])
            for rank in self._others:
                self.wire.expect(rank, Exchange(ROOM, room, True), room, 1).wait()
                lacking += [] if room[0] else [rank]
            if lacking:
                self.wire.order(self._others, Kind.FORGET, [np.array([number], np.int32)])
        if lacking:
            raise DeviceMemoryError(
                f"{self.layout.named(lacking[0])} has no room for a cache of {blocks * self.block} positions: choose a "
                "smaller max_length, or more attention ranks."
            )
        self.member.states[number] = own
        found = DriverState(number, Owners(self.layout.attention, blocks * self.block, rows, self.block))
        finalize(found, self._dropped.append, number)
        return found

    def _forget(self) -> None:
        """Gives up the states that nobody has any more."""
        while self._dropped:
            number = self._dropped.pop()
            with self._together():
                self.wire.order(self._others, Kind.FORGET, [np.array([number], np.int32)])
            self.member.states.pop(number, None)

    def run_part(
        self,
        part: Part,
        state: DriverState,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        """Gives each attention rank the rows of its sequences; all begin at once."""
        if part.parallel != 1:
            raise InvalidOptionError(
                "layers that share an input do not run on several ranks: evaluate them one after another (parallel "
                "layers: 1), or compile the draft for one process"
            )
        own = self.member.executable
        check_hidden(part, hidden is not None)
        require_size(rows, own.step)
        own.part(part)  # refuses one that the step does not have, before other ranks are told
        self._forget()
        ranks, moves = state.owners.of(rows)
        parents_first = rows.order  # so that no group reads what a later one writes
        chosen = {rank: parents_first[ranks[parents_first] == rank] for rank in np.unique(ranks).tolist()}
        self.last = [len(each) for each in chosen.values()]
        groups = self.groups(self.last)
        orders: dict[int, Attend] = {}
        wanted: dict[int, NDArray[np.intp]] = {}
        for number, (rank, each) in enumerate(chosen.items()):
            its, wanted[rank] = taken(rows, each)
            sizes = [group.rows for group in groups if group.rank == number]
            orders[rank] = Attend(part, state.number, sizes, its, None if hidden is None else hidden[each])
        found: dict[int, StepResult] = {}
        sizes_of = self.vocabulary, self.candidates, self.width
        with self._together():
            for move in moves:
                self._move(state.number, move)
            self.wire.order(self.layout.ffn_ranks, Kind.FEED, Feed(part, _groups(orders)).arrays())
            for rank, order in orders.items():
                if rank:
                    self.wire.order([rank], Kind.ATTEND, order.arrays())
            if 0 in orders:
                found[0] = self.member.attend(orders[0])
            for rank in orders:
                if rank:
                    found[rank] = expected_result(self.wire, rank, len(chosen[rank]), len(wanted[rank]), sizes_of)
        return joined([found[each] for each in orders], list(chosen.values()), list(wanted.values()))

    def run_entry(
        self, name: str, state: DriverState, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        raise InvalidOptionError(f"@{name} does not run on several ranks: compile the model for one process.")

    def marks(self, rank: int, group: int = 0) -> NDArray[np.float64]:
        """[messages + 1, 2] when a rank worked on a group of its last whole step, by that rank's clock."""
        if rank == 0:
            return np.array(self.member.last[group].marks)
        found = np.empty((len(self.payloads[rank]) + 1, 2))
        with self._together():
            self.wire.order([rank], Kind.MARKS, [np.array([group], np.int32)])
            self.wire.expect(rank, Exchange("marks", found, True), found, 1).wait()
        return found

    def echoes(self, rank: int, size: int, times: int) -> list[float]:
        """The seconds that so many bytes take to a rank and back, each time."""
        payload, found = np.zeros(size, np.uint8), list[float]()
        with self._together():
            self.wire.order([rank], Kind.ECHO, [np.array([size, times], np.int32)])
            for _ in range(times):
                began = perf_counter()
                self.wire.send(rank, "echo", payload, 1)
                self.wire.expect(rank, Exchange("echo", payload, True), payload, 1).wait()
                found.append(perf_counter() - began)
                self.wire.flush()
        return found

    def copy_slots(self, state: DriverState, source: Int32, destination: Int32) -> None:
        """Copies the records of each source slot to its destination, on every attention rank."""
        if len(source) == 0:
            return
        with_places = state.rows_at_slots
        state.owners.copied(source, destination, with_places)
        told = np.array([state.number, with_places], np.int32)
        with self._together():
            self.wire.order(self._others, Kind.COPY, [told, source.astype(np.int32), destination.astype(np.int32)])
            self.member.copy(state.number, source, destination, with_places)

    def _move(self, state: int, move: Move) -> None:
        """Has one attention rank give records to another one."""
        for kind, rank, other in (
            (Kind.TAKE, move.destination, move.source),
            (Kind.GIVE, move.source, move.destination),
        ):
            if rank:
                self.wire.order([rank], kind, [np.array([state, other], np.int32), move.slots, move.places])
        if move.source == 0:
            self.member.give_records(state, move.destination, move.slots, move.places)
        if move.destination == 0:
            self.member.take_records(state, move.source, move.slots, move.places)


def _groups(orders: Mapping[int, Attend]) -> list[tuple[int, int, int, int]]:
    """The groups of all ranks, in turn: the first of each, then the second."""
    found: list[tuple[int, int, int, int]] = []
    for number in range(max(len(each.groups) for each in orders.values())):
        for rank, order in orders.items():
            if number < len(order.groups):
                begin, rows = sum(order.groups[:number]), order.groups[number]
                outputs = np.count_nonzero((order.rows.outputs >= begin) & (order.rows.outputs < begin + rows))
                found.append((rank, number, rows, int(outputs)))
    return found
