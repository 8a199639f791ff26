"""ATen's operators that select by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forerun.frontends.aten_rules import Scalar, axes, axis, promoted, rule
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


@rule("one_hot")
def _one_hot(build: Builder, index: SSAValue, classes: int = -1) -> SSAValue:
    if classes < 0:
        raise ValueError("a one_hot whose number of classes depends on the values")
    dims = tensor_type(index).dims
    found = build.map("eq", *promoted(build, build.reshape(index, (*dims, 1)), build.add(Iota, size=classes)))
    return build.cast(found, "i64")


@rule("scatter")
def _scatter(
    build: Builder, x: SSAValue, dim: int, index: SSAValue, source: SSAValue | Scalar, **keywords: Any
) -> SSAValue:
    """Each place takes the number whose index names it; among several, torch may take any."""
    if keywords.get("reduce") is not None:
        raise ValueError("a scatter that reduces")
    dtype = tensor_type(x).dtype
    placed, numbers, at = _placed(build, x, dim, index, source)
    named = build.reduce("any", placed, (at + 1,))
    if isinstance(source, SSAValue):
        return build.map("where", named, build.reduce("sum", numbers, (at + 1,)), x)
    return build.map("where", named, build.constant(source, dtype), x)


@rule("scatter_add")
def _scatter_add(build: Builder, x: SSAValue, dim: int, index: SSAValue, source: SSAValue) -> SSAValue:
    _, numbers, at = _placed(build, x, dim, index, source)
    return build.map("add", x, build.reduce("sum", numbers, (at + 1,)))


def _placed(
    build: Builder, x: SSAValue, dim: int, index: SSAValue, source: SSAValue | Scalar
) -> tuple[SSAValue, SSAValue, int]:
    """[.., size, count, ..]: for each place along `dim`, which of the indices name it; the same with their numbers, and
    zeros; the axis of the places."""
    at, dims, own = axis(x, dim), tensor_type(x).dims, tensor_type(index).dims
    size, count = dims[at], own[at]
    if isinstance(size, str) or isinstance(count, str):
        raise ValueError("a scatter along a named dimension")
    if (*own[:at], *own[at + 1 :]) != (*dims[:at], *dims[at + 1 :]):
        raise ValueError("a scatter to a part of the other dimensions")
    apart = (*own[:at], 1, *own[at:])
    places = build.reshape(build.add(Iota, size=size), (size, *(1 for _ in own[at:])))
    placed = build.map("eq", *promoted(build, build.reshape(index, apart), places))
    if not isinstance(source, SSAValue):
        return placed, placed, at
    if tensor_type(source).dims != own:
        raise ValueError("a scatter of a part of its numbers")
    zero = build.constant(0, tensor_type(source).dtype)
    return placed, build.map("where", placed, build.reshape(source, apart), zero), at
