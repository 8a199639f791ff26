"""ATen's operators that write at places chosen by an index, or compare with a list of bounds.

An index along a dimension of a fixed size is compared with every place of it: places that are written are found without
a loop over the writes. What is written at a place several times is added up, or is any of the values, as in torch.
"""

from __future__ import annotations

from forerun.frontends.aten_rules import Operand, Scalar, axis, promoted, rule
from forerun.frontends.aten_views import transposed_back, unsqueeze
from forerun.ir import Builder, Iota, SSAValue, tensor_type


def _hits(build: Builder, x: SSAValue, dim: int, index: SSAValue) -> tuple[SSAValue, list[int]]:
    """Returns which of k writes hit which of n places, [..., k, n], and the order of dimensions with `dim` last."""
    kind, at = tensor_type(x), axis(x, dim)
    size = kind.dims[at]
    if isinstance(size, str):
        raise ValueError(f"places of the named dimension {size}")
    places, written = (
        [each for place, each in enumerate(tensor_type(value).dims) if place != at] for value in (x, index)
    )
    if places != written:
        raise ValueError("an index that is smaller than the tensor in other dimensions")
    order = [*(place for place in range(kind.rank) if place != at), at]
    numbers = build.cast(build.add(Iota, size=size), tensor_type(index).dtype)
    return build.map("eq", unsqueeze(build, build.transpose(index, order), -1), numbers), order


@rule("scatter")
def _scatter(
    build: Builder, x: SSAValue, dim: int, index: SSAValue, value: Operand, *, reduce: str | None = None
) -> SSAValue:
    if reduce is not None:
        raise ValueError(f"a scatter that reduces by {reduce}")
    hits, order = _hits(build, x, dim, index)
    written = transposed_back(build, build.reduce("any", hits, (tensor_type(hits).rank - 2,)), order)
    dtype = tensor_type(x).dtype
    if not isinstance(value, SSAValue):
        return build.map("where", written, build.constant(value, dtype), x)
    if tensor_type(value).rank == 0:
        return build.map("where", written, build.cast(value, dtype), x)
    each = unsqueeze(build, build.transpose(_first(build, value, index), order), -1)
    total = build.reduce("argmax", build.cast(hits, "i64"), (tensor_type(hits).rank - 2,), keep=True)
    chosen = build.map("eq", total, _counted(build, hits))
    found = build.map("where", build.map("and", hits, chosen), *promoted(build, each, build.constant(0, dtype)))
    summed = build.reduce("sum", found, (tensor_type(hits).rank - 2,))
    return build.map("where", written, transposed_back(build, build.cast(summed, dtype), order), x)


def _counted(build: Builder, hits: SSAValue) -> SSAValue:
    """The number of each write, [k, 1]."""
    size = tensor_type(hits).dims[-2]
    return build.reshape(build.add(Iota, size=size), (size, 1))


def _first(build: Builder, value: SSAValue, index: SSAValue) -> SSAValue:
    """The values that the index writes: those at the front of each dimension."""
    for at, size in enumerate(tensor_type(index).dims):
        value = build.slice(value, at, 0, size)
    return value


@rule("scatter_add")
def _scatter_add(build: Builder, x: SSAValue, dim: int, index: SSAValue, source: SSAValue) -> SSAValue:
    hits, order = _hits(build, x, dim, index)
    each = unsqueeze(build, build.transpose(_first(build, source, index), order), -1)
    found = build.map("where", hits, each, build.constant(0, tensor_type(x).dtype))
    added = build.reduce("sum", found, (tensor_type(hits).rank - 2,))
    return build.map("add", x, transposed_back(build, added, order))


@rule("index_add")
def _index_add(
    build: Builder, x: SSAValue, dim: int, index: SSAValue, source: SSAValue, *, alpha: Scalar = 1
) -> SSAValue:
    """Rows of x, each with all rows of the source added whose place it is."""
    if axis(x, dim) != 0 or alpha != 1:
        raise ValueError("a sum at places along another dimension than the first, or of multiples")
    (size, *rest), (count,) = tensor_type(x).dims, tensor_type(index).dims
    places = build.cast(build.add(Iota, size=size), tensor_type(index).dtype)
    hits = build.map("eq", build.reshape(index, (1, count)), build.reshape(places, (size, 1)))
    hits = build.reshape(hits, (size, count, *(1 for _ in rest)))
    dtype = tensor_type(x).dtype
    found = build.map("where", hits, build.reshape(source, (1, count, *rest)), build.constant(0, dtype))
    return build.map("add", x, build.reduce("sum", found, (1,)))


@rule("one_hot")
def _one_hot(build: Builder, index: SSAValue, num_classes: int = -1) -> SSAValue:
    if num_classes < 0:
        raise ValueError("one-hot vectors of as many classes as occur")
    places = build.cast(build.add(Iota, size=num_classes), tensor_type(index).dtype)
    return build.cast(build.map("eq", unsqueeze(build, index, -1), places), "i64")


@rule("bucketize")
def _bucketize(
    build: Builder, x: SSAValue, boundaries: SSAValue, *, out_int32: bool = False, right: bool = False
) -> SSAValue:
    """How many of the boundaries lie below each number, or at it if `right`."""
    below = build.map("le" if right else "lt", *promoted(build, boundaries, unsqueeze(build, x, -1)))
    count = build.reduce("sum", build.cast(below, "i64"), (tensor_type(below).rank - 1,))
    return build.cast(count, "i32") if out_int32 else count


@rule("searchsorted")
def _searchsorted(
    build: Builder, boundaries: SSAValue, x: SSAValue, *, out_int32: bool = False, right: bool = False
) -> SSAValue:
    if tensor_type(boundaries).rank != 1:
        raise ValueError("boundaries of several dimensions")
    return _bucketize(build, x, boundaries, out_int32=out_int32, right=right)
