"""ONNX's views, joins and repetitions, of values that are known and of values that are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forerun import dims as dimensions
from forerun.frontends.onnx_rules import DTYPES, Call, Value, aten, axis_of, dtype_of, rule
from forerun.frontends.onnx_sizes import SMALL, larger, smaller
from forerun.frontends.onnx_values import NUMPY, Array, Extent, Known
from forerun.ir import Dim, SSAValue, broadcast_dims, tensor_type


@rule("Shape")
def _shape(call: Call) -> Known:
    dims = call.shape(0)
    return Known.sizes(dims[call.attribute("start", 0) : call.attribute("end", len(dims))])


@rule("Size")
def _count(call: Call) -> Known:
    factor, symbols = dimensions.volume(call.shape(0))
    if len(symbols) > 1:
        raise ValueError(f"the size {factor} times {' times '.join(symbols)}")
    return Known.with_sizes(
        np.array(dimensions.multiply(symbols[0], factor) if symbols else factor, dtype=object), "i64"
    )


def reshaped(call: Call, value: Value, shape: Sequence[Dim]) -> Value:
    """A value under another shape, which may have one -1."""
    if not isinstance(value, Known):
        return call.build.reshape(value, shape)
    if any(isinstance(each, str) for each in shape):
        return call.build.reshape(call.emit(value), shape)
    return value.with_array(value.array.reshape([int(each) for each in shape]))


@rule("Reshape")
def _reshape(call: Call) -> Value:
    before, shape = call.shape(0), call.dims(1)
    if not call.attribute("allowzero", 0):
        shape = [before[at] if each == 0 else each for at, each in enumerate(shape)]
    return reshaped(call, call.value(0), shape)


@rule("Flatten")
def _flatten(call: Call) -> SSAValue:
    at = call.axis(1, len(call.shape(0)) + 1)
    front, symbols = dimensions.volume(call.shape(0)[:at])
    if len(symbols) > 1:
        raise ValueError("the sequence twice in one dimension")
    return call.build.reshape(call.tensor(0), (dimensions.multiply(symbols[0], front) if symbols else front, -1))


@rule("Unsqueeze")
def _unsqueeze(call: Call) -> Value:
    axes = call.integers("axes", 1) or []
    dims = list(call.shape(0))
    for at in sorted(axis_of(each, len(dims) + len(axes)) for each in axes):
        dims.insert(at, 1)
    return reshaped(call, call.value(0), dims)


@rule("Squeeze")
def _squeeze(call: Call) -> Value:
    dims = call.shape(0)
    axes = call.integers("axes", 1)
    chosen = {at for at, each in enumerate(dims) if each == 1}
    chosen = chosen if axes is None else {axis_of(each, len(dims)) for each in axes}
    kept = [each for at, each in enumerate(dims) if at not in chosen]
    return reshaped(call, call.value(0), kept)


@rule("Transpose")
def _transpose(call: Call) -> Value:
    value = call.value(0)
    permutation = call.attribute("perm") or list(range(len(call.shape(0))))[::-1]
    if isinstance(value, Known):
        return value.with_array(value.array.transpose(permutation))
    return aten("permute")(call.build, value, permutation)


@rule("Concat")
def _concat(call: Call) -> Value:
    """Empty tensors, such as the past of a model that starts, are left out."""
    axis = call.axis(0, len(call.shape(0)))
    full = [each for each in call.operands if each is not None and not (isinstance(each, Known) and each.empty)]
    known = [each for each in full if isinstance(each, Known)]
    if not full:
        return call.known(0)
    if len(full) == 1:
        return full[0]
    if len(known) == len(full):
        dtype = known[0].dtype
        if not any(each.symbolic for each in known):
            return Known(np.concatenate([each.array for each in known], axis), dtype)
        return Known.with_sizes(np.concatenate([each.array.astype(object) for each in known], axis), dtype)
    return aten("cat")(call.build, [call.emit(each) if isinstance(each, Known) else each for each in full], axis)


@rule("Split")
def _split(call: Call) -> tuple[Value, ...]:
    axis = call.axis(0, len(call.shape(0)))
    size = call.shape(0)[axis]
    if not isinstance(size, int):
        raise ValueError(f"a split of the dimension {size}")
    sizes = call.integers("split", 1)
    if sizes is None:
        count = int(call.attribute("num_outputs", call.outputs))
        each = -(-size // count)
        sizes = [each] * (count - 1) + [size - each * (count - 1)]
    value = call.value(0)
    if isinstance(value, Known):
        parts = np.split(value.array, np.cumsum(sizes)[:-1], axis)
        return tuple(value.with_array(part) for part in parts)
    return aten("split_with_sizes")(call.build, call.tensor(0), sizes, axis)


@rule("Slice")
def _slice(call: Call) -> Value:
    dims = call.shape(0)
    if "starts" in call.attributes:
        raise ValueError("bounds as attributes, which opset 10 has replaced")
    starts, ends = call.dims(1), call.dims(2)
    given = call.integers("axes", 3)
    axes = [axis_of(each, len(dims)) for each in (given if given is not None else range(len(starts)))]
    steps = call.integers("steps", 4) or [1] * len(starts)
    value: Value = call.value(0)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        value = sliced(call, value, axis, start, end, step)
    return value


def sliced(call: Call, value: Value, axis: int, start: Dim, end: Dim, step: int = 1) -> Value:
    """Elements `start` to `end` along an axis; bounds count from the end where they are negative, and are cut."""
    size = value.array.shape[axis] if isinstance(value, Known) else tensor_type(value).dims[axis]
    if isinstance(value, Known) and isinstance(start, int) and isinstance(end, int):
        at: list[slice] = [slice(None)] * value.array.ndim
        at[axis] = slice(start, None if step < 0 and end < -value.array.shape[axis] else end, step)
        return value.with_array(value.array[tuple(at)])
    tensor = call.emit(value) if isinstance(value, Known) else value
    if step < 0:
        if step != -1 or start not in (-1, less_one(size)) or not isinstance(end, int) or end > -(2**31):
            raise ValueError(f"a slice from {start} to {end} by {step}")
        return aten("flip")(call.build, tensor, [axis])
    first, last = (_bound(call.extent, each, size) for each in (start, end))
    return aten("slice")(call.build, tensor, axis, first, last, step)


def less_one(size: Dim) -> Dim:
    return dimensions.add(size, -1)


def _bound(extent: Extent, bound: Dim, size: Dim) -> Dim:
    """A bound counted from the front and cut to the size.

    A bound that moves with the sequence over a table of fixed size is not cut: the table must be long enough.
    """
    if isinstance(bound, int) and abs(bound) >= 2**31:
        return size if bound > 0 else 0
    if _from_the_end(extent, bound):
        bound = dimensions.add(size, bound)
    if isinstance(bound, str) and isinstance(size, int):
        return bound
    return larger(extent, 0, smaller(extent, bound, size))


def _from_the_end(extent: Extent, bound: Dim) -> bool:
    """Whether a bound is negative. Raises ValueError if that depends on the length."""
    ends = {dimensions.evaluate(bound, {dimensions.symbol(bound): length}) < 0 for length in extent}
    if len(ends) > 1:
        raise ValueError(f"a slice up to {bound}, which counts from either end")
    return ends.pop()


@rule("Expand")
def _expand(call: Call) -> Value:
    shape = broadcast_dims([call.shape(0), call.dims(1)])
    value = call.value(0)
    if isinstance(value, Known) and _fixed(shape) is not None:
        return value.with_array(np.broadcast_to(value.array, _fixed(shape) or ()))
    return aten("expand")(call.build, call.tensor(0), shape)


@rule("Tile")
def _tile(call: Call) -> Value:
    repeats = call.integers("repeats", 1) or []
    value = call.value(0)
    if isinstance(value, Known):
        return value.with_array(np.tile(value.array, repeats))
    return aten("repeat")(call.build, call.tensor(0), repeats)


@rule("ConstantOfShape")
def _constant_of_shape(call: Call) -> Value:
    filling: Array = call.attribute("value", np.zeros(1, np.float32))
    number = Known.of(filling.reshape(()))
    shape = call.dims(0)
    sizes = _fixed(shape)
    if sizes is not None:
        return Known(np.full(sizes, number.array), number.dtype)
    return call.build.full(tuple(shape), number.number(), number.dtype)


def _fixed(shape: Sequence[Dim]) -> list[int] | None:
    """A shape without names whose elements are few, or None."""
    sizes = [each for each in shape if isinstance(each, int)]
    return sizes if len(sizes) == len(shape) and int(np.prod(sizes)) <= SMALL else None


@rule("Range")
def _range(call: Call) -> SSAValue:
    """Whole numbers from a known bound to one that may be a size."""
    (start,), (limit,), (delta,) = (call.dims(at) for at in range(3))
    if isinstance(start, str) or isinstance(delta, str):
        raise ValueError(f"a range from {start} by {delta}")
    values = aten("arange")(call.build, start, limit, delta)
    return call.build.cast(values, call.known(0).dtype)


@rule("Trilu")
def _trilu(call: Call) -> SSAValue:
    diagonal = 0 if call.operand(1) is None else call.known(1).number()
    name = "triu" if call.attribute("upper", 1) else "tril"
    return aten(name)(call.build, call.tensor(0), int(diagonal))


@rule("Identity", "Dropout")
def _identity(call: Call) -> Value:
    """Dropout outside training, whose mask nothing may use."""
    if call.operator == "Dropout" and call.operand(2) is not None and call.known(2).number():
        raise ValueError("dropout in training mode")
    return call.value(0)


@rule("EyeLike")
def _eye(call: Call) -> Value:
    rows, columns = call.shape(0)
    if not isinstance(rows, int) or not isinstance(columns, int):
        raise ValueError(f"an identity matrix of {rows} rows")
    found = DTYPES[int(call.attribute("dtype"))] if "dtype" in call.attributes else dtype_of(call.value(0))
    return Known(np.eye(rows, columns, call.attribute("k", 0), NUMPY[found]), found)
