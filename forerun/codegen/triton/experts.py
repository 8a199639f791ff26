"""The rows of experts: a launch before the products sorts rows by expert, so that tiles have rows of one expert.

    order   [rows]   the rows of expert 0, then those of expert 1, ..., each in order
    begins  [E + 1]  where the rows of each expert begin in `order`, and after them the number of rows

A row's place is the number of rows before it: of a lower expert, or of its own with a lower number. Counting all rows
for each row costs nothing beside reading an expert, and needs no order among programs.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.index import Index, Lane, volume
from forerun.codegen.loops.nest import Experts, ProductNest
from forerun.codegen.triton.text import Text

ROWS = 16
"""Rows of a tile: experts rarely have more."""
LANES = 128
"""Rows that are counted side by side."""


def order_of(nest: ProductNest) -> Buffer:
    return Buffer("scratch", "order", nest.rows, "i32", "i32")


def begins_of(experts: Experts) -> Buffer:
    return Buffer("scratch", "begins", (experts.count + 1,), "i32", "i32")


def emit_grouped(text: Text, nest: ProductNest) -> None:
    """Writes the kernel that sorts the rows. Grid (tiles of rows); the first program also counts for experts."""
    experts = nest.experts
    assert experts is not None
    count = text.index(volume(nest.rows))
    text.line("row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]")
    text.line(f"row_in = row < {count}")
    text.bind(nest.row, "row", "row_in")
    own = text.render(experts.chosen)
    text.line("place = tl.full([ROWS, 1], 0, tl.int32)")
    with _others(text, nest, count) as other:
        text.line(f"before = ({other} < {own}) | (({other} == {own}) & (other < row))")
        text.line("place += tl.sum(tl.where(other_in & before, 1, 0), axis=1, keep_dims=True)")
    text.line(f"tl.store({text.argument(order_of(nest))} + place, row, mask=row_in)")
    size = 1 << experts.count.bit_length()
    with text.block("if tl.program_id(0) == 0:"):
        text.line(f"expert = tl.arange(0, {size})[:, None]")
        text.line(f"begin = tl.full([{size}, 1], 0, tl.int32)")
        with _others(text, nest, count) as other:
            text.line(f"lower = other_in & ({other} < expert)")
            text.line("begin += tl.sum(tl.where(lower, 1, 0), axis=1, keep_dims=True)")
        text.line(f"tl.store({text.argument(begins_of(experts))} + expert, begin, mask=expert <= {experts.count})")


@contextmanager
def _others(text: Text, nest: ProductNest, count: str) -> Generator[str]:
    """Opens a loop over all rows, `other`, some side by side; yields the experts that they chose."""
    assert nest.experts is not None
    lane = Lane(text.fresh("other"))
    chosen = nest.experts.chosen.substitute({nest.row: Index.of(lane)}.get)
    with text.block(f"for start in range(0, {count}, {LANES}):") as inside:
        text.line(f"other = start + tl.arange(0, {LANES})[None, :]")
        text.line(f"other_in = other < {count}")
        text.bind(lane, "other", "other_in", depth=inside, wide=True)
        yield text.render(chosen)
