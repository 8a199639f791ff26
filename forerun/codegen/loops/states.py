"""The memory layout of states' records, and the index of a number of a record.

The records of a state per position lie in blocks of P slots, [blocks, *lead, P, last], with a slot's last
axis innermost, or, if a back end prefers it for keys, [blocks, *lead, last, P], with the slots innermost. The records
of a state per row or per request lie one after another; those of rows begin with one of zeros, for rows without parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forerun import ir
from forerun.codegen.loops.buffer import MANY, Buffer
from forerun.codegen.loops.index import Index


@dataclass(frozen=True)
class StateLayout:
    """The records of one state, all in `buffer`; `block` is P, or 1 for a state per row or request."""

    buffer: Buffer
    shape: tuple[int, ...]
    block: int
    side_by_side: bool = False

    def index(self, slot: Index, index: Sequence[Index]) -> list[Index]:
        """Returns the index in `buffer` of a number of the record at a slot."""
        if self.buffer.space == "request":
            return [slot, *index]
        block, lane = slot.divided(self.block)
        *lead, last = index or (Index(),)
        return [block, *lead, last, lane] if self.side_by_side else [block, *lead, lane, last]


def state_layout(
    state: ir.State, block: int, element: str, padding: int = 1, side_by_side: bool = False
) -> StateLayout:
    """Returns the layout of a declared state; the last axis is padded to a multiple of `padding` numbers."""
    symbol = str(state.symbol)
    if state.per != "position":
        return StateLayout(Buffer("request", symbol, (MANY, *state.shape), "f32", element), state.shape, 1)
    last = state.shape[-1] if state.shape else 1
    tail = (last, block) if side_by_side else (block, -(-last // padding) * padding)
    dims = (MANY, *state.shape[:-1], *tail)
    return StateLayout(Buffer("state", symbol, dims, "f32", element), state.shape, block, side_by_side)
