"""The nest of a recurrence: for each row in order, its record and what is read of it; and what workers may divide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.elements import Elements
from forerun.codegen.loops.expr import Expr, Load, loads
from forerun.codegen.loops.index import Computed, Index, Lane
from forerun.codegen.loops.nest import Axis, RecurrenceNest, Store
from forerun.codegen.loops.placing import WRITTEN
from forerun.codegen.loops.rows import RowSchedule


class RecurrenceSchedule(RowSchedule):
    """Plans the nests of recurrences."""

    def _recurrence(self, operation: ir.TreeRecurrence, results: Sequence[Buffer]) -> RecurrenceNest:
        """Sums and norms of the body are stored before they are used, in the order of the body."""
        for inner in operation.body:
            if isinstance(inner, ir.Parameter):
                self._weight(inner.result, inner)
        step = Lane("step")
        row = Lane("row", None, Computed(self.context.element(operation.order, [Index.of(step)])))
        body = _Body(self, operation, row)
        places = dict(zip(operation.read, results, strict=True))
        stores: list[Store] = []
        for value in [*operation.region.block.args, *(value for inner in operation.body for value in inner.results)]:
            if value is operation.after:
                stores.append(body.record(value))
            elif isinstance(value.owner, WRITTEN) and not isinstance(value.owner, ir.Concat):
                stores.append(body.stored(value, places.pop(value, None) or self._rows_of(value, operation.rows)))
        stores.extend(body.stored(value, place) for value, place in places.items())
        return RecurrenceNest(operation.rows, step, tuple(stores), tuple(_divisible(stores)))

    def _rows_of(self, value: ir.SSAValue, rows: ir.Dim) -> Buffer:
        """Memory of the region's own for a value of each row."""
        place = self._place(value)
        return replace(place, dims=(rows, *place.dims))


class _Body:
    """The elements of a recurrence's body at one row."""

    def __init__(self, schedule: RecurrenceSchedule, operation: ir.TreeRecurrence, row: Lane) -> None:
        self.schedule, self.operation, self.row = schedule, operation, row
        outer = schedule.context
        self.layout = schedule.facts.states[operation.symbol]
        self.context = Elements(
            schedule.buffers, schedule.constants, schedule.facts.states, lambda value: False, inline_products=True
        )
        parent = self._place(operation.parents)

        def before(index: Sequence[Index]) -> Expr:
            return Load(self.layout.buffer, tuple(self.layout.index(parent, index)))

        def given(value: ir.SSAValue, by_row: bool) -> Callable[[Sequence[Index]], Expr]:
            lead = [Index.of(row)] if by_row else []
            return lambda index: outer.element(value, [*lead, *index])

        self.context.computed[operation.before] = before
        for inner, (value, by_row) in operation.of_rows().items():
            self.context.computed[inner] = given(value, by_row)

    def _place(self, places: ir.SSAValue) -> Index:
        """Where a record lies: place -1 is that of zeros, with which memory begins."""
        return Index.computed(self.schedule.context.element(places, [Index.of(self.row)]) + 1)

    def record(self, value: ir.SSAValue) -> Store:
        """The store of the row's record, from where later stores read it."""
        axes, index = self.schedule.axes_of(value)
        element = self.context.element(value, index)
        own, layout = self._place(self.operation.records), self.layout

        def stored(index: Sequence[Index]) -> Expr:
            return Load(layout.buffer, tuple(layout.index(own, index)))

        self.context.computed[value] = stored
        return Store(axes, element, layout.buffer, tuple(layout.index(own, index)))

    def stored(self, value: ir.SSAValue, buffer: Buffer) -> Store:
        """The store of another value, from where later stores read it."""
        axes, index = self.schedule.axes_of(value)
        element = self.context.element(value, index)
        self.context.computed[value] = lambda index: Load(buffer, (Index.of(self.row), *index))
        return Store(axes, element, buffer, (Index.of(self.row), *index))


def _divisible(stores: Sequence[Store]) -> list[tuple[Axis, ...]]:
    """The dimensions that workers may divide, each as an axis of every store: along those, what a store reads of this
    nest's stores, and of the parent's record, is at its own index."""
    first = next(each for each in stores if each.buffer.of_state)
    found = (_axes_along(stores, first, axis) for axis in first.axes)
    return [each for each in found if each is not None]


def _axes_along(stores: Sequence[Store], first: Store, axis: Axis) -> tuple[Axis, ...] | None:
    """The axis of each store that a worker's share of an axis of the first one decides, or None if it cannot."""
    known: dict[int, Lane] = {id(first): axis.lane}
    writers = {(each.buffer.space, each.buffer.key): each for each in stores}
    reads = [
        (reader, writers[each.buffer.space, each.buffer.key], each)
        for reader in stores
        for each in loads(reader.value)
        if (each.buffer.space, each.buffer.key) in writers
    ]
    changed = True
    while changed:
        changed = False
        for reader, writer, load in reads:
            if id(writer) in known and id(reader) not in known:
                changed |= _relate(known, reader, load.index[_at(writer.index, known[id(writer)])])
            elif id(reader) in known and id(writer) not in known:
                at = [place for place, each in enumerate(load.index) if each == Index.of(known[id(reader)])]
                changed |= len(at) == 1 and _relate(known, writer, writer.index[at[0]])
    if len(known) < len(stores):
        return None
    for reader, writer, load in reads:
        if load.index[_at(writer.index, known[id(writer)])] != Index.of(known[id(reader)]):
            return None
    return tuple(next(each for each in store.axes if each.lane == known[id(store)]) for store in stores)


def _at(index: Sequence[Index], lane: Lane) -> int:
    """The place of a lane in an index."""
    return next(place for place, each in enumerate(index) if lane in each.variables)


def _relate(known: dict[int, Lane], store: Store, index: Index) -> bool:
    """Notes that an index is the axis of a store; returns whether it is one."""
    lane = next((each.lane for each in store.axes if index == Index.of(each.lane)), None)
    if lane is not None:
        known[id(store)] = lane
    return lane is not None
