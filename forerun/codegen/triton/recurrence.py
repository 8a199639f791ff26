"""A recurrence: one program goes through the rows of a step, parents first, its lanes over the record.

A row's record is computed number by number from its parent's, which lies where the row's history has the position
before its own, and is written to the row's slot. A barrier between two rows makes a record visible to the program's
other lanes. Nothing depends on where a row stands among the others, but for the order that parents come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from forerun import ir
from forerun.codegen.triton.expressions import Expressions, NeedsMemoryError, Stored, Term
from forerun.codegen.triton.index import Index, Lane, unflat
from forerun.codegen.triton.storing import record_index, state_place
from forerun.errors import UnsupportedOperationError

WIDEST = 1024
"""Numbers of a record that are computed side by side."""


class NumberByNumber(Expressions):
    """The text of a recurrence, whose body has no sums: a loop over numbers would stand in front of all rows."""

    def statistic(self, key: Any, *_: Any, **__: Any) -> Term:
        raise NeedsMemoryError(key if isinstance(key, ir.SSAValue) else key[0])

    serial = statistic


@dataclass
class RecurrenceLaunch:
    """One recurrence; `result` [N, *shape] is what its rows leave."""

    operation: ir.Recurrence
    result: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one record."""
        return tuple(int(dim) for dim in ir.tensor_type(self.operation.before).dims)

    @property
    def block(self) -> int:
        """Lanes."""
        return min(WIDEST, 1 << (prod(self.shape) - 1).bit_length())

    def describe(self) -> str:
        return f"a recurrence over records of {list(self.shape)}, row after row"

    def emit(self, context: Expressions, known: Any) -> None:
        """Grid (1)."""
        operation, numbers = self.operation, prod(self.shape)
        context.size("N")
        with context.block("for number in range(0, N):") as inside:
            context.line("at = number + tl.full([1, 1], 0, tl.int32)")
            order = context.element(operation.order, [Index.of(Lane("at", None, frozenset(), inside))])
            row = Index.of(Lane(order.text, None, frozenset(), order.depth))
            slot = context.element(operation.slots, [row])
            self._parent(context, row, known)
            for inner, (outer, by_row) in operation.of_rows().items():
                context.computed[inner] = _Input(context, outer, [row] if by_row else [])
            parent = Term("parent", inside)
            context.computed[operation.before] = _Parent(context, operation.symbol, parent, known)
            with context.block(f"for start in range(0, {numbers}, BLOCK):") as deeper:
                context.line("lane = start + tl.arange(0, BLOCK)[None, :]")
                context.line(f"lane_in = lane < {numbers}")
                index = unflat(self.shape, Index.of(Lane("lane", numbers, frozenset({"lane_in"}), deeper, True)))
                value = context.element(operation.after, index)
                at = record_index(operation.symbol, slot, frozenset(), index, known)
                context.write(state_place(operation.symbol, known), at, value)
                context.write(self.result, [row, *index], value)
            context.line("tl.debug_barrier()")

    def _parent(self, context: Expressions, row: Index, known: Any) -> None:
        """The slot of the position before a row's own: in its sequence's blocks below its base, then in its path."""
        operation = self.operation
        of_rows = (operation.positions, operation.sequences, operation.bases)
        position, sequence, base = (context.element(each, [row]).text for each in of_rows)
        tables, paths = (_history(context, each) for each in (operation.block_tables, operation.paths))
        context.line(f"before = {position} - 1")
        context.line("has_parent = before >= 0")
        context.line(f"in_blocks = before < {base}")
        context.line(
            f"block = tl.load({tables} + {sequence} * {known.tables} + before // {known.block}, "
            "mask=has_parent & in_blocks, other=0)"
        )
        context.line(
            f"in_path = tl.load({paths} + {row.text} * {known.path} + before - {base}, "
            "mask=has_parent & (in_blocks == 0), other=0)"
        )
        context.line(f"parent = tl.where(in_blocks, block * {known.block} + before % {known.block}, in_path)")


@dataclass(frozen=True)
class _Input:
    """An input of the body at an index: a row's own numbers, or those of a whole value."""

    context: Expressions
    value: ir.SSAValue
    row: list[Index]

    def __call__(self, index: Sequence[Index]) -> Term:
        return self.context.element(self.value, [*self.row, *index])


@dataclass(frozen=True)
class _Parent:
    """A number of the parent's record; zero where there is no parent."""

    context: Expressions
    symbol: str
    slot: Term
    known: Any

    def __call__(self, index: Sequence[Index]) -> Term:
        place = state_place(self.symbol, self.known)
        return self.context.read(
            place, record_index(self.symbol, self.slot, frozenset({"has_parent"}), index, self.known)
        )


def _history(context: Expressions, value: ir.SSAValue) -> str:
    """The argument that is the block tables or the paths, whose rows are as wide as a step's may be."""
    stored = context.stored.get(value)
    if stored is None or stored.slot.kind != "input":
        raise UnsupportedOperationError(
            "the cuda target has spec.recurrence over the paths and block tables that a step is given; compile for the "
            "reference target."
        )
    return context.argument(stored.slot, stored.element)
