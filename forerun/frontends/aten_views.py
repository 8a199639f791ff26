"""ATen's views, joins and repetitions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from forerun import dims as dimensions
from forerun.frontends.aten_rules import RULES, axes, axis, promoted, rule
from forerun.ir import Builder, Dim, SSAValue, tensor_type


@rule("view", "reshape", "_unsafe_view")
def _view(build: Builder, x: SSAValue, shape: Sequence[Dim]) -> SSAValue:
    return build.reshape(x, shape)


@rule("view_as", "reshape_as")
def _view_as(build: Builder, x: SSAValue, other: SSAValue) -> SSAValue:
    return build.reshape(x, tensor_type(other).dims)


@rule("unsqueeze")
def unsqueeze(build: Builder, x: SSAValue, dim: int) -> SSAValue:
    dims, at = tensor_type(x).dims, axis(x, dim, extra=1)
    return build.reshape(x, (*dims[:at], 1, *dims[at:]))


@rule("squeeze")
def _squeeze(build: Builder, x: SSAValue, dim: int | Sequence[int] | None = None) -> SSAValue:
    chosen = axes(x, dim)
    return build.reshape(x, [each for at, each in enumerate(tensor_type(x).dims) if each != 1 or at not in chosen])


@rule("flatten")
def _flatten(build: Builder, x: SSAValue, start_dim: int = 0, end_dim: int = -1) -> SSAValue:
    dims, first, last = tensor_type(x).dims, axis(x, start_dim), axis(x, end_dim)
    return build.reshape(x, (*dims[:first], -1, *dims[last + 1 :]))


@rule("unflatten")
def _unflatten(build: Builder, x: SSAValue, dim: int, sizes: Sequence[Dim]) -> SSAValue:
    dims, at = tensor_type(x).dims, axis(x, dim)
    return build.reshape(x, (*dims[:at], *sizes, *dims[at + 1 :]))


@rule("transpose", "swapaxes", "swapdims")
def _transpose(build: Builder, x: SSAValue, first: int, second: int) -> SSAValue:
    permutation = list(range(tensor_type(x).rank))
    a, b = axis(x, first), axis(x, second)
    permutation[a], permutation[b] = b, a
    return build.transpose(x, permutation)


def transposed_back(build: Builder, x: SSAValue, order: Sequence[int]) -> SSAValue:
    """Returns the value whose transpose by an order is x."""
    return build.transpose(x, [order.index(each) for each in range(len(order))])


@rule("t", "numpy_T")
def _reverse(build: Builder, x: SSAValue) -> SSAValue:
    return build.transpose(x, range(tensor_type(x).rank)[::-1])


@rule("mT")
def _transposed_matrix(build: Builder, x: SSAValue) -> SSAValue:
    return _transpose(build, x, -2, -1)


@rule("permute")
def _permute(build: Builder, x: SSAValue, dims: Sequence[int]) -> SSAValue:
    return build.transpose(x, [axis(x, each) for each in dims])


@rule("expand", "broadcast_to")
def _expand(build: Builder, x: SSAValue, size: Sequence[Dim], *, implicit: bool = False) -> SSAValue:
    dims = tensor_type(x).dims
    missing = len(size) - len(dims)
    return build.broadcast(x, [dims[at - missing] if each == -1 else each for at, each in enumerate(size)])


@rule("expand_as")
def _expand_as(build: Builder, x: SSAValue, other: SSAValue) -> SSAValue:
    return build.broadcast(x, tensor_type(other).dims)


@rule("slice", "narrow")
def _slice(
    build: Builder, x: SSAValue, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1
) -> SSAValue:
    at = axis(x, dim)
    size = tensor_type(x).dims[at]
    return build.slice(
        x, at, bound(0 if start is None else start, size), bound(size if end is None else end, size), step
    )


def bound(given: Dim, size: Dim) -> Dim:
    """A slice's bound: from the end where negative, cut to the size (a named size is longer than any number)."""
    if isinstance(given, int) and given < 0:
        given = dimensions.add(size, given)
    if isinstance(given, int) and isinstance(size, int):
        return max(0, min(given, size))
    return size if isinstance(given, int) and given >= 2**31 else given


def narrowed_to(build: Builder, x: SSAValue, part: SSAValue, at: int, start: Dim, stop: Dim, step: int = 1) -> SSAValue:
    """Returns `x` with `part` in place of its elements start, start + step, ... below stop along `at`."""
    size = tensor_type(x).dims[at]
    if step == 1:
        before = [] if start == 0 else [build.slice(x, at, 0, start)]
        after = [] if stop == size else [build.slice(x, at, stop, size)]
        return build.concat([*before, part, *after], at)
    if not isinstance(size, int) or not isinstance(start, int) or not isinstance(stop, int):
        raise ValueError("a change of every other position of a named dimension")
    chosen = range(start, stop, step)
    rows = [
        build.slice(part, at, chosen.index(each), chosen.index(each) + 1)
        if each in chosen
        else build.slice(x, at, each, each + 1)
        for each in range(size)
    ]
    return build.concat(rows, at)


RULES["narrow"] = lambda build, x, dim, start, length: _slice(build, x, dim, start, dimensions.add(start, length))


@rule("select")
def _select(build: Builder, x: SSAValue, dim: int, index: int) -> SSAValue:
    at = axis(x, dim)
    dims = tensor_type(x).dims
    start = bound(index, dims[at])
    return build.reshape(build.slice(x, at, start, dimensions.add(start, 1)), (*dims[:at], *dims[at + 1 :]))


@rule("slice_scatter")
def _slice_scatter(
    build: Builder,
    x: SSAValue,
    part: SSAValue,
    dim: int = 0,
    start: Dim | None = None,
    end: Dim | None = None,
    step: int = 1,
) -> SSAValue:
    at = axis(x, dim)
    size = tensor_type(x).dims[at]
    return narrowed_to(build, x, part, at, bound(start or 0, size), bound(size if end is None else end, size), step)


@rule("select_scatter")
def _select_scatter(build: Builder, x: SSAValue, part: SSAValue, dim: int, index: int) -> SSAValue:
    at = axis(x, dim)
    start = bound(index, tensor_type(x).dims[at])
    return narrowed_to(build, x, unsqueeze(build, part, at), at, start, dimensions.add(start, 1))


@rule("narrow_scatter")
def _narrow_scatter(build: Builder, x: SSAValue, part: SSAValue, dim: int, start: Dim, length: Dim) -> SSAValue:
    return _slice_scatter(build, x, part, dim, start, dimensions.add(start, length))


@rule("split", "split_with_sizes")
def _split(build: Builder, x: SSAValue, sizes: int | Sequence[int], dim: int = 0) -> tuple[SSAValue, ...]:
    at = axis(x, dim)
    size = tensor_type(x).dims[at]
    if isinstance(sizes, int):
        if isinstance(size, str):
            raise ValueError("a split of a named dimension")
        sizes = [min(sizes, size - start) for start in range(0, size, sizes)]
    starts = [sum(sizes[:count]) for count in range(len(sizes))]
    return tuple(build.slice(x, at, start, start + each) for start, each in zip(starts, sizes, strict=True))


@rule("chunk")
def _chunk(build: Builder, x: SSAValue, chunks: int, dim: int = 0) -> tuple[SSAValue, ...]:
    size = tensor_type(x).dims[axis(x, dim)]
    if isinstance(size, str):
        raise ValueError("a chunk of a named dimension")
    return _split(build, x, math.ceil(size / chunks), dim)


@rule("unbind")
def _unbind(build: Builder, x: SSAValue, dim: int = 0) -> tuple[SSAValue, ...]:
    size = tensor_type(x).dims[axis(x, dim)]
    if isinstance(size, str):
        raise ValueError("an unbind of a named dimension")
    return tuple(_select(build, x, dim, index) for index in range(size))


@rule("cat", "concat", "concatenate")
def _cat(build: Builder, values: Sequence[SSAValue], dim: int = 0) -> SSAValue:
    """Empty vectors count for nothing, whatever the dimensions of the others."""
    values = [each for each in values if tensor_type(each).dims != (0,)] or values[:1]
    return build.concat(promoted(build, *values), axis(values[0], dim))


@rule("stack")
def _stack(build: Builder, values: Sequence[SSAValue], dim: int = 0) -> SSAValue:
    at = axis(values[0], dim, extra=1)
    return build.concat([unsqueeze(build, each, at) for each in promoted(build, *values)], at)


@rule("repeat")
def _repeat(build: Builder, x: SSAValue, repeats: Sequence[int]) -> SSAValue:
    dims = (1,) * (len(repeats) - tensor_type(x).rank) + tensor_type(x).dims
    apart = build.reshape(x, [each for dim in dims for each in (1, dim)])
    wide = build.broadcast(apart, [each for count, dim in zip(repeats, dims, strict=True) for each in (count, dim)])
    return build.reshape(wide, [dimensions.multiply(dim, count) for count, dim in zip(repeats, dims, strict=True)])


@rule("repeat_interleave")
def _repeat_interleave(build: Builder, x: SSAValue, repeats: int, dim: int | None = None, **keywords: Any) -> SSAValue:
    if dim is None:
        x, dim = build.reshape(x, (-1,)), 0
    dims, at = tensor_type(x).dims, axis(x, dim)
    apart = build.reshape(x, (*dims[: at + 1], 1, *dims[at + 1 :]))
    wide = build.broadcast(apart, (*dims[: at + 1], repeats, *dims[at + 1 :]))
    return build.reshape(wide, (*dims[:at], dimensions.multiply(dims[at], repeats), *dims[at + 1 :]))
