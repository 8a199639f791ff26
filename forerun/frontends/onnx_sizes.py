"""The arithmetic of shapes: operators whose operands are all known are evaluated when the graph is imported.

A size that depends on the length of the sequence is a dimension (`forerun.dims`). A comparison of sizes must have one
answer for all lengths of the extent; one that does not is refused, since only one branch of a graph is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from forerun import dims as dimensions
from forerun.frontends.onnx_rules import Call, known_rule, less
from forerun.frontends.onnx_values import NUMPY, Array, Extent, Known
from forerun.ir import Dim

SMALL = 4096
"""Elements of a result up to which numbers are computed at import; larger ones are left to the passes."""


def _plain(call: Call) -> list[Known]:
    return [call.known(at) for at in range(len(call.operands))]


def _small(*operands: Known) -> bool:
    return math.prod(np.broadcast_shapes(*(each.array.shape for each in operands))) <= SMALL


def _elementwise(
    numbers: Callable[..., Any], sizes: Callable[[Extent, Any, Any], Any], dtype: str | None = None
) -> Callable[[Call], Known | None]:
    """A function of two operands, on numbers and on sizes; the result has the dtype, or that of the operands."""

    def evaluate(call: Call) -> Known | None:
        left, right = _plain(call)
        if not _small(left, right):
            return None
        target = dtype or left.dtype
        if not left.symbolic and not right.symbolic:
            with np.errstate(all="ignore"):
                return Known(np.asarray(numbers(left.array, right.array)).astype(NUMPY[target]), target)
        pairs = np.frompyfunc(lambda x, y: sizes(call.extent, _size(x), _size(y)), 2, 1)
        return Known.with_sizes(pairs(left.array, right.array), target)

    return evaluate


def _size(value: Any) -> Dim:
    """A number beside sizes: a fraction is none."""
    if isinstance(value, str) or int(value) == value:
        return value if isinstance(value, str) else int(value)
    raise ValueError(f"a size beside the fraction {value}")


def _product(extent: Extent, x: Dim, y: Dim) -> Dim:
    if isinstance(x, str) and isinstance(y, str):
        raise ValueError(f"the product of the sizes {x} and {y}")
    return dimensions.multiply(x, y) if isinstance(y, int) else dimensions.multiply(y, int(x))


def _quotient(extent: Extent, x: Dim, y: Dim) -> Dim:
    scale, name, offset = dimensions.affine(x)
    if isinstance(y, str) or y == 0 or scale % y or offset % y:
        raise ValueError(f"the size {x} divided by {y}")
    return dimensions.Affine(scale // y, name, offset // y).dim()


def _remainder(extent: Extent, x: Dim, y: Dim) -> Dim:
    scale, _, offset = dimensions.affine(x)
    if isinstance(y, str) or y == 0 or scale % y:
        raise ValueError(f"the size {x} modulo {y}")
    return offset % y


def _divided(x: Array, y: Array) -> Array:
    """ONNX's quotient: integers are rounded towards zero."""
    return x / y if x.dtype.kind == "f" else np.trunc(x / np.where(y == 0, 1, y))


def compared(holds: Callable[[int], bool]) -> Callable[[Extent, Dim, Dim], bool]:
    """Whether a condition on the sign of a difference holds at every length."""

    def compare(extent: Extent, x: Dim, y: Dim) -> bool:
        return holds(extent.sign(less(x, y), f"a comparison of the sizes {x} and {y}"))

    return compare


def _equal(extent: Extent, x: Dim, y: Dim) -> bool:
    scale, name, offset = dimensions.affine(less(x, y))
    if name and (offset % scale or not extent.low <= -offset // scale <= extent.high):
        return False  # no length makes them equal
    return compared(lambda sign: sign == 0)(extent, x, y)


def larger(extent: Extent, x: Dim, y: Dim) -> Dim:
    """The larger of two sizes. Raises ValueError if that depends on the length."""
    return x if _no_less(extent, x, y) else y


def smaller(extent: Extent, x: Dim, y: Dim) -> Dim:
    """The smaller of two sizes; ValueError likewise."""
    return y if _no_less(extent, x, y) else x


def _no_less(extent: Extent, x: Dim, y: Dim) -> bool:
    """x >= y at all lengths, or else x <= y at all."""
    ends = [dimensions.evaluate(less(x, y), {dimensions.symbol(less(x, y)): end}) for end in extent]
    if min(ends) < 0 < max(ends):
        raise ValueError(f"an extremum of the sizes {x} and {y}, which depends on the length of the sequence")
    return min(ends) >= 0


for _operator, _evaluate in {
    "Add": _elementwise(np.add, lambda extent, x, y: dimensions.add(x, y)),
    "Sub": _elementwise(np.subtract, lambda extent, x, y: less(x, y)),
    "Mul": _elementwise(np.multiply, _product),
    "Div": _elementwise(_divided, _quotient),
    "Mod": _elementwise(lambda x, y: np.mod(x, np.where(y == 0, 1, y)), _remainder),
    "Equal": _elementwise(np.equal, _equal, "i1"),
    "Less": _elementwise(np.less, compared(lambda sign: sign < 0), "i1"),
    "LessOrEqual": _elementwise(np.less_equal, compared(lambda sign: sign <= 0), "i1"),
    "Greater": _elementwise(np.greater, compared(lambda sign: sign > 0), "i1"),
    "GreaterOrEqual": _elementwise(np.greater_equal, compared(lambda sign: sign >= 0), "i1"),
}.items():
    known_rule(_operator)(_evaluate)


def _logical(function: Callable[..., Any]) -> Callable[[Call], Known | None]:
    def evaluate(call: Call) -> Known | None:
        operands = _plain(call)
        return Known(function(*(each.array for each in operands)), "i1") if _small(*operands) else None

    return evaluate


for _operator, _evaluate in {
    "And": _logical(np.logical_and),
    "Or": _logical(np.logical_or),
    "Xor": _logical(np.logical_xor),
    "Not": _logical(np.logical_not),
}.items():
    known_rule(_operator)(_evaluate)


@known_rule("Max", "Min")
def _extremum(call: Call) -> Known | None:
    operands = _plain(call)
    if not _small(*operands):
        return None
    found = operands[0]
    numbers, sizes = (np.maximum, larger) if call.operator == "Max" else (np.minimum, smaller)
    for each in operands[1:]:
        if found.symbolic or each.symbolic:
            pairs = np.frompyfunc(lambda x, y: sizes(call.extent, _size(x), _size(y)), 2, 1)
            found = Known.with_sizes(pairs(found.array, each.array), found.dtype)
        else:
            found = Known(numbers(found.array, each.array), found.dtype)
    return found


def _of_numbers(function: Callable[[Array], Any]) -> Callable[[Call], Known | None]:
    """A function of one operand, which is a fixed number."""

    def evaluate(call: Call) -> Known | None:
        (x,) = _plain(call)
        if x.symbolic or not _small(x) or x.dtype not in NUMPY:
            return None
        with np.errstate(all="ignore"):
            return Known(np.asarray(function(x.array)).astype(x.array.dtype), x.dtype)

    return evaluate


for _operator, _evaluate in {
    "Sqrt": _of_numbers(np.sqrt),
    "Reciprocal": _of_numbers(lambda x: 1 / x),
    "Abs": _of_numbers(np.abs),
}.items():
    known_rule(_operator)(_evaluate)


@known_rule("Neg")
def _negated(call: Call) -> Known | None:
    (x,) = _plain(call)
    if not _small(x):
        return None
    if not x.symbolic:
        return Known(-x.array, x.dtype)
    negative = np.frompyfunc(lambda each: dimensions.multiply(each, -1), 1, 1)
    return Known.with_sizes(negative(x.array), x.dtype)


@known_rule("Floor", "Ceil", "Round")
def _whole(call: Call) -> Known | None:
    (x,) = _plain(call)
    function = {"Floor": np.floor, "Ceil": np.ceil, "Round": np.round}[call.operator]
    return x if x.symbolic else Known(function(x.array), x.dtype) if _small(x) else None


@known_rule("Pow")
def _power(call: Call) -> Known | None:
    base, exponent = _plain(call)
    if base.symbolic or exponent.symbolic or not _small(base, exponent):
        return None
    return Known(np.power(base.array, exponent.array).astype(base.array.dtype), base.dtype)


@known_rule("Where")
def _chosen(call: Call) -> Known | None:
    condition, left, right = _plain(call)
    if not _small(condition, left, right):
        return None
    chosen = np.where(condition.array, left.array, right.array)
    return Known.with_sizes(chosen, left.dtype) if chosen.dtype == object else Known(chosen, left.dtype)


@known_rule("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduced(call: Call) -> Known | None:
    x = call.known(0)
    over = call.integers("axes", 1)
    keep = bool(call.attribute("keepdims", 1))
    dims = tuple(over) if over else None
    if not over and call.attribute("noop_with_empty_axes", 0):
        return x
    if not x.symbolic:
        names = {"ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min}
        found = names[call.operator](x.array, axis=dims, keepdims=keep)
        return Known(np.asarray(found).astype(x.array.dtype), x.dtype)
    if call.operator not in ("ReduceProd", "ReduceSum") or (dims is not None and len(dims) != x.array.ndim):
        raise ValueError("a reduction of sizes")
    total: Dim = 1 if call.operator == "ReduceProd" else 0
    for each in x.dims():
        total = _product(call.extent, total, each) if call.operator == "ReduceProd" else dimensions.add(total, each)
    shape = (1,) * x.array.ndim if keep else ()
    return Known.with_sizes(np.array([total], dtype=object).reshape(shape), x.dtype)


@known_rule("Range")
def _range(call: Call) -> Known | None:
    bounds = _plain(call)
    if any(each.symbolic for each in bounds):
        return None
    start, limit, delta = (each.number() for each in bounds)
    if delta == 0 or (limit - start) / delta > SMALL:
        return None
    return Known(np.arange(start, limit, delta, dtype=bounds[0].array.dtype), bounds[0].dtype)


@known_rule("CumSum")
def _cumulated(call: Call) -> Known | None:
    x, along = _plain(call)
    if x.symbolic or not _small(x) or call.attribute("exclusive", 0) or call.attribute("reverse", 0):
        return None
    return Known(np.cumsum(x.array, int(along.number()), dtype=x.array.dtype), x.dtype)


@known_rule("ScatterND")
def _scattered(call: Call) -> Known | None:
    x, indices, updates = _plain(call)
    if call.attribute("reduction", "none") not in ("none", b"none") or not _small(x) or indices.symbolic:
        return None
    result = x.array.astype(object) if updates.symbolic else x.array.copy()
    for place in np.ndindex(indices.array.shape[:-1]):
        result[tuple(indices.array[place])] = updates.array[place]
    return Known.with_sizes(result, x.dtype) if result.dtype == object else Known(result, x.dtype)
