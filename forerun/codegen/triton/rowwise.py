"""Rows of values: embedding lookups, norms, softmax, elementwise code and writes to states that no product takes along.

An item runs over units and lanes: the rows and all their numbers, or, where a reduction goes over the last axis of
several (a norm of each head), everything but the last axis and the last axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.triton.expressions import Expressions, NeedsMemoryError
from forerun.codegen.triton.index import Index, Lane, size_of, unflat
from forerun.codegen.triton.storing import store

WIDEST = 1024
"""Lanes of one program."""


@dataclass(frozen=True)
class Item:
    """An output with its division: the axes in `units` are taken one by one, the others side by side."""

    output: Any  # planning.Output
    units: tuple[int, ...]

    @property
    def dims(self) -> tuple[ir.Dim, ...]:
        return ir.tensor_type(self.output.value).dims

    @property
    def unit_dims(self) -> tuple[ir.Dim, ...]:
        return tuple(self.dims[axis] for axis in self.units)

    @property
    def rows(self) -> tuple[str, bool]:
        """What items of one launch share: the name of the rows, and whether the whole row lies side by side."""
        names = [dimensions.symbol(dim) for dim in self.unit_dims if dimensions.symbol(dim)]
        return (names[0] if names else "", len(self.units) == 1)

    @property
    def lanes(self) -> int:
        total = 1
        for axis, dim in enumerate(self.dims):
            total *= 1 if axis in self.units else int(dim)
        return total

    def index(self, unit: Index, lane: Index) -> list[Index]:
        """The index of a unit's lane."""
        units = unflat(self.unit_dims, unit)
        others = [axis for axis in range(len(self.dims)) if axis not in self.units]
        lanes = unflat([self.dims[axis] for axis in others], lane)
        found = dict(zip((*self.units, *others), (*units, *lanes), strict=True))
        return [found[axis] for axis in range(len(self.dims))]


@dataclass
class RowsLaunch:
    """Items whose rows have one name, in one launch."""

    items: list[Item]

    @property
    def block(self) -> int:
        widest = max(each.lanes for each in self.items)
        return min(WIDEST, 1 << (widest - 1).bit_length())

    def describe(self) -> str:
        parts = [f"{list(each.dims)}" for each in self.items]
        return f"rows of {', '.join(parts)}"

    def emit(self, context: Expressions, known: Any) -> None:
        """One row and `BLOCK` lanes a program: grid (units, lanes)."""
        context.line("unit = tl.program_id(0) + tl.full([ROWS, 1], 0, tl.int32)")
        context.line("lane = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]")
        for number, item in enumerate(self.items):
            _emit_item(context, item, number, known)


def _emit_item(context: Expressions, item: Item, number: int, known: Any) -> None:
    for dim in item.unit_dims:
        context.size(dim)
    total = Index(constant=1)
    for dim in item.unit_dims:
        size = size_of(dim)
        total = size.times(total.constant) if not total.terms else total.times(size.constant)
    context.line(f"unit_in{number} = unit < {total.text}")
    context.line(f"lane_in{number} = lane < {item.lanes}")
    unit = Index.of(Lane("unit", None, frozenset({f"unit_in{number}"})))
    lane = Index.of(Lane("lane", item.lanes, frozenset({f"lane_in{number}"}), 0, True))
    index = item.index(unit if total.text != "1" else Index(), lane if item.lanes > 1 else Index())
    value = context.element(item.output.value, index)
    store(context, item.output, index, value, known)


def row_item(
    stored: Mapping[ir.SSAValue, Any], constants: Mapping[ir.SSAValue, ir.Constant], output: Any, known: Any
) -> Item:
    """How an output is divided; NeedsMemoryError where a value must be written first."""
    dims = ir.tensor_type(output.value).dims
    row = next((axis for axis, dim in enumerate(dims) if dimensions.symbol(dim)), None)
    flat_item = Item(output, () if row is None else (row,))
    last = Item(output, tuple(range(len(dims) - 1)))
    for item in (flat_item, last):
        try:
            _emit_item(Expressions(dict(stored), dict(constants)), item, 0, known)
        except NeedsMemoryError:
            if item is last or row == len(dims) - 1 or not dims:
                raise
        else:
            return item
    raise AssertionError("unreachable")
