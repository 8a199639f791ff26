"""Where an element goes: to a value in memory, to its slot of the cache, or among the candidates of a tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forerun import ir
from forerun.codegen.triton.expressions import Expressions, Slot, Stored, Term
from forerun.codegen.triton.index import Index, Lane
from forerun.codegen.triton.topk import Choice, emit_tile

LARGE = 1 << 40
"""Blocks of a cache: more than 32 bits count, so that places are computed in 64."""


def cache_place(symbol: str, half: str, known: Any) -> Stored:
    """The keys [blocks, Hkv, P, D] of a cache, or its values [blocks, Hkv, P, Dv]."""
    cache: ir.Cache = known.caches[symbol]
    dim = cache.key_dim if half == "keys" else cache.value_dim
    return Stored(Slot(half, symbol), (LARGE, cache.heads, known.block, dim), "f32", known.cache_element)


def store(context: Expressions, output: Any, index: Sequence[Index], value: Term, known: Any) -> None:
    """Write an output's element."""
    if isinstance(output.place, Stored):
        context.write(output.place, index, value)
        return
    if isinstance(output.place, Choice):
        emit_tile(context, output.place, index[-1], value)
        return
    row, head, dim = index
    write: ir.CacheWrite = output.place.write
    slots = write.slots
    slot = context.element(slots, [row])
    place = cache_place(write.symbol, output.place.half, known)
    guards, depth = row.guards, slot.depth
    block = Index.of(Lane(f"({slot.text} // {known.block})", None, guards, depth))
    lane = Index.of(Lane(f"({slot.text} % {known.block})", known.block, guards, depth))
    context.write(place, [block, head, lane, dim], value)
