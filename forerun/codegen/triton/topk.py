"""The k largest logits of each row: of every chunk of the vocabulary, then of the chunks' candidates.

Largest first, the lower id first among equals. A maximum and a minimum are exact in any order.
"""

from __future__ import annotations

from forerun import ir
from forerun.codegen.triton.expressions import Expressions, Stored

CHUNK = 1024
"""Ids of one program."""
NONE = 2147483647
"""The id of no candidate."""


def chunks_of(vocabulary: int) -> int:
    return -(-vocabulary // CHUNK)


def emit_chunks(context: Expressions, logits: Stored, scratch: tuple[Stored, Stored], k: int) -> None:
    """A chunk's k largest and their ids [M, chunks, k]. Grid (rows, chunks)."""
    size, rows = int(logits.dims[-1]), _rows(context, logits)
    name = context.argument(logits.slot, logits.element)
    context.line("row = tl.program_id(0)")
    context.line(f"ids = tl.program_id(1) * {CHUNK} + tl.arange(0, {CHUNK})")
    with context.block(f"if row < {rows}:"):
        context.line(f"free = ids < {size}")
        context.line(f'values = tl.load({name} + row.to(tl.int64) * {size} + ids, mask=free, other=float("-inf"))')
        context.line(f"place = (row * {chunks_of(size)} + tl.program_id(1)) * {k}")
        _choices(context, scratch, k)


def emit_choice(
    context: Expressions, logits: Stored, scratch: tuple[Stored, Stored], places: tuple[Stored, Stored], k: int
) -> None:
    """The k largest of all chunks' candidates. Grid (rows)."""
    count, rows = chunks_of(int(logits.dims[-1])) * k, _rows(context, logits)
    values, ids = (context.argument(each.slot, each.element) for each in scratch)
    context.line("row = tl.program_id(0)")
    context.line(f"candidate = tl.arange(0, {1 << (count - 1).bit_length()})")
    with context.block(f"if row < {rows}:"):
        context.line(f"inside = candidate < {count}")
        context.line(f'values = tl.load({values} + row * {count} + candidate, mask=inside, other=float("-inf"))')
        context.line(f"ids = tl.load({ids} + row * {count} + candidate, mask=inside, other={NONE})")
        context.line(f"free = ids < {NONE}")
        context.line(f"place = row * {k}")
        _choices(context, places, k)


def _rows(context: Expressions, logits: Stored) -> str:
    parts = [context.size(dim).text for dim in logits.dims[:-1] if dim != 1]
    return " * ".join(parts) or "1"


def _choices(context: Expressions, places: tuple[Stored, Stored], k: int) -> None:
    """One after another: the largest that is left, and of its equals the lowest id."""
    values, ids = (context.argument(each.slot, each.element) for each in places)
    with context.block(f"for choice in range({k}):"):
        context.line('best = tl.max(tl.where(free, values, float("-inf")), axis=0)')
        context.line(f"chosen = tl.min(tl.where(free & (values == best), ids, {NONE}), axis=0)")
        context.line(f"tl.store({values} + place + choice, best)")
        context.line(f"tl.store({ids} + place + choice, chosen)")
        context.line("free = free & (ids != chosen)")


def scratch_dims(logits: Stored, k: int) -> tuple[ir.Dim, ...]:
    return (*logits.dims[:-1], chunks_of(int(logits.dims[-1])), k)
