"""Where an element goes: to a value in memory, to its slot of a state, or among the candidates of a tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forerun import ir
from forerun.codegen.triton.expressions import LARGE, Expressions, Slot, Stored, Term, kind_of, slot_text
from forerun.codegen.triton.index import Index, Lane
from forerun.codegen.triton.step import StateShape
from forerun.codegen.triton.topk import Choice, emit_tile


def state_shape(state: ir.State, number: str) -> StateShape:
    """How a state's records lie: numbers per position as `number`, all others as float32.

    A record without axes is one number.
    """
    *lead, last = state.shape or (1,)
    element = number if state.per == "position" else "f32"
    return StateShape(state.per, tuple(lead), last, element if kind_of(state.dtype) == "number" else "i32")


def state_place(symbol: str, known: Any) -> Stored:
    """The records of a state, at slots [blocks, *lead, P, last] or of requests [requests, *lead, last]."""
    state: ir.State = known.states[symbol]
    shape = state_shape(state, known.number)
    dims = (LARGE, *shape.lead, *([known.block] if shape.lies_at_slots else []), shape.last)
    return Stored(Slot("state", symbol), dims, state.dtype, shape.element)


def record_index(symbol: str, slot: Term, guards: frozenset[str], index: Sequence[Index], known: Any) -> list[Index]:
    """Where a number of the record at a slot lies among a state's records (`state_place`)."""
    *lead, last = index or [Index()]
    text = slot_text(slot)
    if known.states[symbol].per == "request":
        return [Index.of(Lane(text, None, guards, slot.depth)), *lead, last]
    block = Index.of(Lane(f"({text} // {known.block})", None, guards, slot.depth))
    lane = Index.of(Lane(f"({text} % {known.block})", known.block, guards, slot.depth))
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
    row, *within = index
    slot = context.element(write.slots, [row])
    context.write(state_place(write.symbol, known), record_index(write.symbol, slot, row.guards, within, known), value)
