"""ATen's casts, ranges and filled tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from forerun import dims as dimensions
from forerun.frontends.aten_rules import RULES, Operand, Rule, Scalar, named, promoted, rule
from forerun.ir import Builder, Dim, Iota, SSAValue, dtype_name, tensor_type, torch_dtype


@rule("to", "_to_copy", "convert_element_type", "type_as", "float", "half", "bfloat16", "int", "long", "bool")
def _to(build: Builder, x: SSAValue, *arguments: Any, dtype: torch.dtype | None = None, **keywords: Any) -> SSAValue:
    for each in arguments:
        if isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, SSAValue):
            return build.cast(x, tensor_type(each).dtype)
    return x if dtype is None else build.cast(x, dtype_name(dtype))


@rule("arange")
def _arange(build: Builder, *bounds: Any, dtype: torch.dtype | None = None, **keywords: Any) -> SSAValue:
    start, end, step = {1: (0, *bounds, 1), 2: (*bounds, 1), 3: bounds}[len(bounds)]
    whole = not any(isinstance(each, float) for each in (start, end, step))
    target = named(dtype, torch.int64 if whole else torch.get_default_dtype())
    if whole and step == 1:
        if isinstance(start, str):
            return build.cast(build.slice(build.add(Iota, size=end), 0, start, end), target)
        size = dimensions.add(end, dimensions.multiply(start, -1))
    elif isinstance(start, str) or isinstance(end, str) or isinstance(step, str):
        raise ValueError("arange with a step over a named dimension")
    else:
        size = math.ceil((end - start) / step)
    values = build.add(Iota, size=size)
    if step != 1:
        values = build.map("mul", *promoted(build, values, step))
    if start != 0:
        values = build.map("add", *promoted(build, values, start))
    return build.cast(values, target)


@rule("full")
def _full(
    build: Builder, size: Sequence[Dim], value: Operand, *, dtype: torch.dtype | None = None, **keywords: Any
) -> SSAValue:
    if isinstance(value, SSAValue):
        return build.broadcast(build.cast(value, named(dtype, torch_dtype(tensor_type(value).dtype))), tuple(size))
    kinds = {bool: torch.bool, int: torch.int64, float: torch.get_default_dtype()}
    return build.full(tuple(size), value, named(dtype, kinds[type(value)]))


def _filled(value: Scalar) -> Rule:
    def fill(build: Builder, size: Sequence[Dim], *, dtype: torch.dtype | None = None, **keywords: Any) -> SSAValue:
        return build.full(tuple(size), value, named(dtype, torch.get_default_dtype()))

    return fill


def _filled_like(value: Scalar | None, shaped: bool) -> Rule:
    """`new_*` (shaped: a size follows) and `*_like`; the value is an argument where None."""

    def fill(
        build: Builder, x: SSAValue, *arguments: Any, dtype: torch.dtype | None = None, **keywords: Any
    ) -> SSAValue:
        kind = tensor_type(x)
        shape = tuple(arguments[0]) if shaped else kind.dims
        number = arguments[-1] if value is None else value
        return build.full(shape, number, kind.dtype if dtype is None else dtype_name(dtype))

    return fill


RULES.update({"zeros": _filled(0), "ones": _filled(1), "empty": _filled(0)})
RULES["empty_strided"] = lambda build, size, stride, **keywords: _filled(0)(build, size, **keywords)
RULES.update(
    {"zeros_like": _filled_like(0, False), "ones_like": _filled_like(1, False), "empty_like": _filled_like(0, False)}
)
RULES.update(
    {"new_zeros": _filled_like(0, True), "new_ones": _filled_like(1, True), "new_empty": _filled_like(0, True)}
)
RULES.update({"full_like": _filled_like(None, False), "new_full": _filled_like(None, True)})


@rule("copy")
def _copy(build: Builder, x: SSAValue, source: SSAValue, non_blocking: bool = False) -> SSAValue:
    kind = tensor_type(x)
    return build.broadcast(build.cast(source, kind.dtype), kind.dims)


@rule("fill")
def _fill(build: Builder, x: SSAValue, value: Operand) -> SSAValue:
    kind = tensor_type(x)
    filling = build.cast(value, kind.dtype) if isinstance(value, SSAValue) else build.constant(value, kind.dtype)
    return build.broadcast(filling, kind.dims)


RULES["zero"] = lambda build, x: _fill(build, x, 0)


@rule("scalar_tensor")
def _scalar_tensor(build: Builder, value: Scalar, *, dtype: torch.dtype | None = None, **keywords: Any) -> SSAValue:
    return build.constant(value, named(dtype, torch.get_default_dtype()))


def _triangle(upper: bool) -> Rule:
    def triangle(build: Builder, x: SSAValue, diagonal: int = 0) -> SSAValue:
        *_, rows, columns = tensor_type(x).dims
        i = build.reshape(build.add(Iota, size=rows), (rows, 1))
        j = build.add(Iota, size=columns)
        shifted = build.map("add", *promoted(build, i, diagonal))
        kept = build.map("ge" if upper else "le", j, shifted)
        return build.map("where", kept, *promoted(build, x, build.constant(0, tensor_type(x).dtype)))

    return triangle


RULES.update({"tril": _triangle(upper=False), "triu": _triangle(upper=True)})
