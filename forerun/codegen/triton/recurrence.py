"""A recurrence: one program goes through the rows in order, parents first, with the numbers of a record side by side.

The plain form. Before the next row, what a row has left is seen by all of the program.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from forerun import ir
from forerun.codegen.triton.expressions import Expressions, Slot, Term
from forerun.codegen.triton.index import Index, Lane, unflat
from forerun.codegen.triton.storing import state_index, state_place


def width_of(operation: ir.Recurrence) -> int:
    """Lanes of the program: a power of two."""
    count = prod(int(dim) for dim in ir.tensor_type(operation.before).dims)
    return 1 << max(0, count - 1).bit_length()


def emit_recurrence(context: Expressions, launch: Any, known: Any) -> None:
    """Grid (1). `ROWS` is 1 and `BLOCK` the lanes."""
    operation: ir.Recurrence = launch.operation
    shape = [int(dim) for dim in ir.tensor_type(operation.before).dims]
    context.size("N")
    context.line("lane = tl.arange(0, BLOCK)[None, :]")
    context.line(f"lane_in = lane < {prod(shape)}")
    with context.block("for step in range(0, N):") as depth:
        order, positions, slots = (_input(context, operation, name) for name in ("order", "positions", "slots"))
        context.line(f"row = tl.load({order} + step + tl.full([1, 1], 0, tl.int32))")
        context.line(f"position = tl.load({positions} + row)")
        context.line("has_parent = position > 0")
        context.line("before = tl.maximum(position - 1, 0)")
        _parent(context, operation, known)
        context.line(f"own = tl.load({slots} + row)")
        row = Index.of(Lane("row", None, frozenset(), depth))
        lane = Index.of(Lane("lane", prod(shape), frozenset({"lane_in"}), depth, True))
        place = state_place(operation.symbol, known)
        parent = Lane("parent", None, frozenset({"has_parent"}), depth)

        def record(index: Sequence[Index]) -> Term:
            return context.read(place, state_index(operation.symbol, parent, index, known))

        context.computed[operation.before] = record
        for inner, (outer, by_row) in operation.of_rows().items():
            lead = [row] if by_row else []
            context.computed[inner] = lambda index, outer=outer, lead=lead: context.element(outer, [*lead, *index])
        index = unflat(shape, lane) if shape else []
        value = context.element(operation.after, index)
        context.write(launch.result, [row, *index], value)
        own = Lane("own", None, frozenset(), depth)
        context.write(place, state_index(operation.symbol, own, index, known), value)
        context.line("tl.debug_barrier()")


def _input(context: Expressions, operation: ir.Recurrence, name: str) -> str:
    stored = context.stored[getattr(operation, name)]
    assert stored.slot == Slot("input", name)
    return context.argument(stored.slot, "i32")


def _parent(context: Expressions, operation: ir.Recurrence, known: Any) -> None:
    """The slot of the position before the row's own in its history."""
    names = ("bases", "sequences", "block_tables", "paths")
    bases, sequences, tables, paths = (_input(context, operation, name) for name in names)
    context.line(f"base = tl.load({bases} + row)")
    context.line(f"sequence = tl.load({sequences} + row)")
    context.line("committed = before < base")
    block = f"tl.load({tables} + sequence * {known.tables} + before // {known.block}, mask=committed, other=0)"
    context.line(f"home = {block} * {known.block} + before % {known.block}")
    path = f"tl.load({paths} + row * {known.path} + before - base, mask=before >= base, other=0)"
    context.line(f"parent = tl.where(committed, home, {path})")
