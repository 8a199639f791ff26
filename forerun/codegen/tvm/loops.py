"""Loops over the axes of a value, and reductions of a row in one fixed order.

Sums over the last axis go into 16 partial sums (feature i into partial sum i mod 16), which are then added as a tree;
that order depends on the axis alone.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.tvm.builder import Expr, across, integer, local, splat, store
from forerun.codegen.tvm.expressions import Expressions, Index
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import tirx

UNROLLED = 8
"""Vectors of a row that are written out one by one, so that their indices are constants."""


def row_axis(dims: Sequence[ir.Dim]) -> int | None:
    """The first axis with a name: the one that is divided among threads."""
    return next((axis for axis, dim in enumerate(dims) if dimensions.symbol(dim)), None)


def each_vector(context: Expressions, size: ir.Dim, body: Callable[[Index], None]) -> None:
    """Call `body` with every index of an axis, 16 lanes at a time and the rest one by one."""
    if not isinstance(size, int):
        with context.frame.serial(0, context.size(size)) as at:
            body(at)
        return
    chunks, rest = divmod(size, LANES)
    if chunks <= UNROLLED:
        for chunk in range(chunks):
            with context.frame.vectorized() as lane:
                body(lane + integer(chunk * LANES))
    else:
        with context.frame.serial(0, chunks) as chunk, context.frame.vectorized() as lane:
            body(chunk * LANES + lane)
    if rest:
        with context.frame.serial(0, rest) as at:
            body(at + integer(chunks * LANES))


@contextmanager
def outer_loops(context: Expressions, dims: Sequence[ir.Dim], row: dict[int, Expr]) -> Generator[list[Index]]:
    """Serial loops over the axes, but those whose index `row` gives."""
    index: list[Index] = []
    stack: list[Any] = []
    for axis, dim in enumerate(dims):
        if axis in row:
            index.append(row[axis])
        elif dim == 1:
            index.append(0)
        else:
            loop = context.frame.serial(0, context.size(dim))
            index.append(loop.__enter__())
            stack.append(loop)
    yield index
    while stack:
        stack.pop().__exit__(None, None, None)


def reduce_last(
    context: Expressions,
    size: ir.Dim,
    start: float,
    term: Callable[[Expr, Index], Expr],
    combine: Callable[[Expr, Expr], Expr],
) -> Expr:
    """16 partial results over an axis, then a tree. `term(partial, index)` is the next partial result."""
    partial = local(LANES)
    store(partial, splat(start), 0)
    if not isinstance(size, int):
        with context.frame.serial(0, context.size(size)) as at:
            lane = tirx.truncmod(at, integer(LANES))
            store(partial, term(partial[lane], at), lane, 1)
        return across(partial, combine)
    chunks, rest = divmod(size, LANES)
    if chunks:
        with context.frame.serial(0, chunks) as chunk, context.frame.vectorized() as lane:
            store(partial, term(partial[lane], chunk * LANES + lane), lane, 1)
    for at in range(rest):
        store(partial, term(partial[integer(at)], integer(chunks * LANES + at)), integer(at), 1)
    return across(partial, combine)
