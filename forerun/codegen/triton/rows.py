"""Rows of values: embedding lookups, norms, softmax, elementwise code and writes to states outside product kernels.

A store runs over units and lanes: the rows and all their numbers, or, if a reduction runs over the last of several
axes (a norm of each head), all axes but the last, and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from forerun import ir
from forerun.codegen.loops.index import Index, Lane, size_of, unflat, volume
from forerun.codegen.loops.nest import Axis, RecurrenceNest, RowNest, Store
from forerun.codegen.triton.text import Text
from forerun.errors import UnsupportedOperationError

WIDEST = 1024
"""Lanes of one program."""
LARGEST_RECORD = 1 << 14
"""The most numbers of a record that one program computes, if they depend on one another."""
LEAST_LANES = 128
"""A program of a recurrence has as many lanes, if the record has."""


def placed(axes: Sequence[Axis], place: Index) -> dict[Lane, Index]:
    """The lanes of axes at a row-major place."""
    return dict(zip((each.lane for each in axes), unflat([each.dim for each in axes], place), strict=True))


@dataclass(frozen=True)
class Item:
    """A store with its division: the axes in `units` are iterated one by one, the others side by side."""

    store: Store
    units: tuple[Axis, ...]

    @property
    def unit_dims(self) -> tuple[ir.Dim, ...]:
        return tuple(axis.dim for axis in self.units)

    @property
    def others(self) -> tuple[Axis, ...]:
        return tuple(axis for axis in self.store.axes if axis not in self.units)

    @property
    def lanes(self) -> int:
        return prod(int(axis.dim) for axis in self.others)

    def emit(self, text: Text, number: int) -> None:
        total = volume(self.unit_dims)
        units, lanes = text.index(total), self.lanes
        text.line(f"unit_in{number} = unit < {units}")
        text.line(f"lane_in{number} = lane < {lanes}")
        unit = text.bind(Lane(f"unit{number}"), "unit", f"unit_in{number}")
        lane = text.bind(Lane(f"lane{number}", lanes), "lane", f"lane_in{number}", wide=True)
        unit = unit if total.known != 1 else Index()
        lane = lane if lanes > 1 else Index()
        text.store(self.store.at(placed(self.units, unit) | placed(self.others, lane)))


def items(nest: RowNest) -> list[Item]:
    """The stores of a nest, all divided in the same way."""
    found: list[Item] = []
    for store in nest.stores:
        row = (store.row,) if store.row else ()
        found.append(Item(store, row if store.is_flat else store.axes[:-1]))
    return found


def block_of(found: list[Item]) -> int:
    """The lanes of one program."""
    return min(WIDEST, 1 << (max(each.lanes for each in found) - 1).bit_length())


def emit_rows(text: Text, nest: RowNest) -> None:
    """Writes rows, one unit and `BLOCK` lanes per program: grid (units, tiles of lanes)."""
    text.line("unit = tl.program_id(0) + tl.full([ROWS, 1], 0, tl.int32)")
    text.line("lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]")
    for number, item in enumerate(items(nest)):
        item.emit(text, number)


@dataclass(frozen=True)
class Division:
    """How programs divide a recurrence: `share` indices of a dimension each, given as an axis of every store.

    numbers   the most numbers of a store for each index, all side by side in one program
    size      of the dimension; 1 if there is none to divide
    """

    axes: tuple[Axis | None, ...]
    size: int
    numbers: int
    share: int

    @property
    def lanes(self) -> int:
        """The lanes of one program."""
        return 1 << (self.numbers * self.share - 1).bit_length()


def division(nest: RecurrenceNest) -> Division:
    """Returns how programs divide a recurrence. Raises UnsupportedOperationError if one would have too much to do."""
    divided = nest.divided
    axes: tuple[Axis | None, ...] = (None,) * len(nest.stores) if divided is None else divided
    size = 1 if divided is None else int(divided[0].dim)
    volumes = (prod(int(axis.dim) for axis in store.axes) for store in nest.stores)
    numbers = max(volume // size for volume in volumes)
    if numbers > LARGEST_RECORD:
        raise UnsupportedOperationError(
            f"the cuda target has no Triton template for a recurrence over records of {numbers} numbers that depend on "
            "one another; compile for the cpu or the reference target."
        )
    return Division(axes, size, numbers, max(1, min(size, LEAST_LANES // numbers)))


def emit_recurrence(text: Text, nest: RecurrenceNest) -> None:
    """Writes rows in order, a program's part of a record side by side: grid (shares of the dimension); `ROWS` is 1.

    A store is visible to the whole program before the next one.
    """
    own = division(nest)
    text.line("lane = tl.arange(0, BLOCK)[None, :]")
    for number, (store, axis) in enumerate(zip(nest.stores, own.axes, strict=True)):
        lanes = prod(int(each.dim) for each in store.axes if each is not axis)
        text.line(f"share{number} = tl.program_id(0) * {own.share} + lane // {lanes}")
        text.line(f"place{number} = lane % {lanes}")
        text.line(f"in{number} = (lane < {lanes * own.share}) & (share{number} < {own.size})")
    with text.block(f"for step in range(0, {text.index(size_of(nest.rows))}):") as depth:
        text.line("step_at = step + tl.full([1, 1], 0, tl.int32)")
        text.bind(nest.step, "step_at", depth=depth)
        for number, (store, axis) in enumerate(zip(nest.stores, own.axes, strict=True)):
            others = [each for each in store.axes if each is not axis]
            lanes = prod(int(each.dim) for each in others)
            places: dict[Lane, Index] = {}
            if axis is not None:
                at = text.bind(Lane(f"share{number}", own.size), f"share{number}", f"in{number}", wide=True)
                places[axis.lane] = at
            here = text.bind(Lane(f"place{number}", lanes), f"place{number}", f"in{number}", wide=True)
            places |= placed(others, here if lanes > 1 else Index())
            text.store(store.at(places))
            text.line("tl.debug_barrier()")
