"""ATen's sorting and counting, and products of sorted rows with experts, as comparisons of all elements.

Few of these can run as they are: along the sequence they would need all of it. Passes know them by what they compute.
"""

from __future__ import annotations

from typing import Any

from forerun.frontends.aten_rules import Scalar, axis, promoted, rule
from forerun.frontends.aten_views import transposed_back
from forerun.ir import INTEGER_DTYPES, Builder, Gather, Iota, MatMul, SSAValue, TopK, tensor_type


@rule("sort")
def _sort(
    build: Builder, x: SSAValue, dim: int | None = -1, descending: bool = False, **keywords: Any
) -> tuple[SSAValue, SSAValue]:
    """Equal elements keep their order; NaN is the least, and becomes -inf."""
    at, dims = axis(x, -1 if dim is None else dim), tensor_type(x).dims
    size = dims[at]
    if isinstance(size, int) and tensor_type(x).dtype not in INTEGER_DTYPES:
        order = [*(each for each in range(len(dims)) if each != at), at]
        chosen = build.transpose(x if descending else build.map("neg", x), order)
        found = build.emit(TopK.make(chosen, k=size)).results
        values, places = (transposed_back(build, each, order) for each in found)
        return values if descending else build.map("neg", values), places
    if len(dims) != 1:
        raise ValueError(f"a sort of integers, or of the named dimension {size}")
    return _ranked(build, x, descending)


def _ranked(build: Builder, x: SSAValue, descending: bool) -> tuple[SSAValue, SSAValue]:
    """A vector sorted by how many elements stand before each."""
    (size,) = tensor_type(x).dims
    row, column = build.reshape(x, (1, size)), build.reshape(x, (size, 1))
    places = build.add(Iota, size=size)
    first = build.map("lt", build.reshape(places, (1, size)), build.reshape(places, (size, 1)))
    before = build.map("gt" if descending else "lt", row, column)
    before = build.map("or", before, build.map("and", build.map("eq", row, column), first))
    rank = build.reduce("sum", build.cast(before, "i64"), (1,))
    order = _first(build, _equal(build, rank, places))
    return build.add(Gather, x, order), order


@rule("argsort")
def _argsort(build: Builder, x: SSAValue, *arguments: Any, **keywords: Any) -> SSAValue:
    return _sort(build, x, *arguments, **keywords)[1]


def _equal(build: Builder, numbers: SSAValue, places: SSAValue) -> SSAValue:
    """[places, numbers]: whether a number is that place."""
    (count,), (size,) = tensor_type(numbers).dims, tensor_type(places).dims
    return build.map("eq", *promoted(build, build.reshape(numbers, (1, count)), build.reshape(places, (size, 1))))


def _first(build: Builder, found: SSAValue) -> SSAValue:
    """The first true column of each row."""
    return build.reduce("argmax", build.cast(found, "i64"), (1,))


@rule("histc")
def _histc(build: Builder, x: SSAValue, bins: int = 100, min: Scalar = 0, max: Scalar = 0) -> SSAValue:
    if min >= max:
        raise ValueError("a histogram whose range depends on the values")
    flat = build.reshape(x, (-1,))
    (count,), dtype = tensor_type(flat).dims, tensor_type(x).dtype
    low, high = (build.constant(each, dtype) for each in (min, max))
    scaled = build.map("mul", build.map("sub", flat, low), build.constant(bins / (max - min), dtype))
    place = build.map("min", build.map("floor", scaled), build.constant(bins - 1, dtype))
    inside = build.map("and", build.map("ge", flat, low), build.map("le", flat, high))
    found = build.map("and", _equal(build, place, build.add(Iota, size=bins)), build.reshape(inside, (1, count)))
    return build.reduce("sum", build.cast(found, dtype), (1,))


@rule("index_put")
def _index_put(
    build: Builder, x: SSAValue, indices: list[SSAValue | None], values: SSAValue, accumulate: bool = False
) -> SSAValue:
    """A value in place of what a mask over the first dimensions covers, or numbers at places of a vector.

    If a place occurs twice, torch may take either number.
    """
    (index, *others), (size, *rest) = indices, tensor_type(x).dims
    if index is None or others or accumulate:
        raise ValueError("an assignment by several indices, or one that adds up")
    if tensor_type(index).dtype == "i1":
        inner = tensor_type(x).rank - tensor_type(index).rank
        if tensor_type(values).rank > inner:
            raise ValueError("an assignment of a list of values by a mask")
        mask = build.reshape(index, (*tensor_type(index).dims, *(1,) * inner))
        return build.map("where", mask, build.cast(values, tensor_type(x).dtype), x)
    if rest:
        raise ValueError("an assignment by indices other than to numbers of a vector")
    given = build.broadcast(values, tensor_type(index).dims)
    found = _equal(build, index, build.add(Iota, size=size))
    taken = build.add(Gather, given, _first(build, found))
    return build.map("where", build.reduce("any", found, (1,)), taken, x)


@rule("_grouped_mm", "grouped_mm_fallback")
def _grouped_mm(
    build: Builder, x: SSAValue, weight: SSAValue, offs: SSAValue | None = None, bias: None = None, **keywords: Any
) -> SSAValue:
    """Rows x [S, in] times the matrix [in, out] of their group; those of group g end before the place offs[g].

    Rows behind the last group have no result; here it is that of the last group.
    """
    if offs is None or bias is not None or tensor_type(x).rank != 2 or tensor_type(weight).rank != 3:
        raise ValueError("a grouped product of other operands than rows, matrices and offsets")
    (size, width), (groups, _, outputs) = tensor_type(x).dims, tensor_type(weight).dims
    if not isinstance(groups, int):
        raise ValueError("a grouped product of a named number of groups")
    ends = build.reshape(build.cast(offs, "i64"), (1, groups))
    behind = build.map("le", ends, build.reshape(build.add(Iota, size=size), (size, 1)))
    chosen = build.reduce("sum", build.cast(behind, "i64"), (1,))
    chosen = build.map("min", chosen, build.constant(groups - 1, "i64"))
    product = build.add(MatMul, build.reshape(x, (size, 1, width)), build.add(Gather, weight, chosen))
    return build.reshape(product, (size, outputs))
