"""ATen's operators that select by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forerun.frontends.aten_rules import axes, axis, rule
from forerun.ir import Builder, Gather, Iota, SSAValue, TakeAlong, tensor_type


@rule("embedding")
def _embedding(build: Builder, table: SSAValue, indices: SSAValue, *arguments: Any, **keywords: Any) -> SSAValue:
    return build.add(Gather, table, indices)


@rule("index_select")
def _index_select(build: Builder, x: SSAValue, dim: int, index: SSAValue) -> SSAValue:
    return _index(build, x, [None] * axis(x, dim) + [index])


@rule("index")
def _index(build: Builder, x: SSAValue, indices: Sequence[SSAValue | None]) -> SSAValue:
    """Advanced indexing by integers; the indexed dimensions must be adjacent."""
    at = [place for place, each in enumerate(indices) if each is not None]
    chosen = [each for each in indices if each is not None]
    if any(tensor_type(each).dtype == "i1" for each in chosen):
        raise ValueError("indexing by a mask")
    if at != list(range(at[0], at[0] + len(at))):
        raise ValueError("indexing dimensions that stand apart")
    rank = tensor_type(x).rank
    front = [*at, *(each for each in range(rank) if each not in at)]
    result = build.add(Gather, build.transpose(x, front), *chosen)
    indexed = tensor_type(result).rank - (rank - len(at))
    places = list(range(tensor_type(result).rank))
    return build.transpose(result, [*places[indexed : indexed + at[0]], *places[:indexed], *places[indexed + at[0] :]])


@rule("gather")
def _take_along(build: Builder, x: SSAValue, dim: int, index: SSAValue, **keywords: Any) -> SSAValue:
    dims, at = tensor_type(x).dims, axis(x, dim)
    if len(dims) == len(tensor_type(index).dims) and all(each == 1 for each in (*dims[:at], *dims[at + 1 :])):
        return build.add(Gather, build.reshape(x, (dims[at],)), index)  # a list: each row takes its element by number
    return build.add(TakeAlong, x, index, dim=axis(x, dim))


@rule("flip")
def _flip(build: Builder, x: SSAValue, dims: Sequence[int]) -> SSAValue:
    for dim in axes(x, dims):
        size = tensor_type(x).dims[dim]
        if isinstance(size, str):
            raise ValueError("a flip of a named dimension")
        backwards = build.map("sub", build.constant(size - 1, "i64"), build.add(Iota, size=size))
        x = _index_select(build, x, dim, backwards)
    return x
