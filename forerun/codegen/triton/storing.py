"""Stores an element: to a value in memory, to its slot of a state, or among the candidates of a tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forerun import ir
from forerun.codegen.triton.expressions import LARGE, Expressions, Slot, Stored, Term
from forerun.codegen.triton.index import Index, Lane
from forerun.codegen.triton.topk import Choice, emit_tile


def state_place(symbol: str, known: Any) -> Stored:
    """The records of a state: [requests, *shape], or [blocks, *lead, P, last]."""
    state: ir.State = known.states[symbol]
    dims = (LARGE, *state.shape) if state.per == "request" else (LARGE, *in_blocks(state.shape, known.block))
    element = known.position_element if state.per == "position" else "f32"
    return Stored(Slot("state", symbol), dims, "f32", element)


def in_blocks(shape: Sequence[int], block: int) -> tuple[int, ...]:
    """The records of a block of P slots: [*lead, P, last]."""
    return (*shape[:-1], block, shape[-1] if shape else 1)


def state_index(symbol: str, slot: Lane, index: Sequence[Index], known: Any) -> list[Index]:
    """Returns the index in `state_place` of a number of the record at a slot."""
    if known.states[symbol].per == "request":
        return [Index.of(slot), *index]
    block = Index.of(Lane(f"({slot.text} // {known.block})", None, slot.guards, slot.depth))
    lane = Index.of(Lane(f"({slot.text} % {known.block})", known.block, slot.guards, slot.depth))
    *lead, last = index or (Index(),)
    return [block, *lead, lane, last]


def store(context: Expressions, output: Any, index: Sequence[Index], value: Term, known: Any) -> None:
    """Write an output's element."""
    if isinstance(output.place, Stored):
        context.write(output.place, index, value)
        return
    if isinstance(output.place, Choice):
        emit_tile(context, output.place, index[-1], value)
        return
    write: ir.StateWrite = output.place
    row, *rest = index
    slot = context.element(write.slots, [row])
    lane = Lane(slot.text, None, row.guards, slot.depth)
    context.write(state_place(write.symbol, known), state_index(write.symbol, lane, rest, known), value)
