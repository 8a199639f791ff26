"""ATen's reductions, running sums, softmax and the choice of the largest."""

from __future__ import annotations

import math
from typing import Any

import torch

from forerun import dims as dimensions
from forerun.frontends.aten_rules import RULES, Rule, Scalar, axes, axis, promoted, rule
from forerun.ir import INTEGER_DTYPES, Builder, Scan, Softmax, SSAValue, TopK, dtype_name, tensor_type


def _reduction(function: str) -> Rule:
    def reduce(
        build: Builder, x: SSAValue, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
    ) -> SSAValue:
        if function in ("any", "all"):
            x = build.cast(x, "i1")
        if function == "sum" and tensor_type(x).dtype == "i1":
            x = build.cast(x, "i64")
        x = x if dtype is None else build.cast(x, dtype_name(dtype))
        return build.reduce(function, x, axes(x, dim), keepdim)

    return reduce


RULES.update({name: _reduction(name) for name in ("sum", "mean", "any", "all")})
RULES.update({"amax": _reduction("max"), "amin": _reduction("min")})


@rule("argmax")
def _argmax(build: Builder, x: SSAValue, dim: int | None = None, keepdim: bool = False) -> SSAValue:
    if dim is not None:
        return build.reduce("argmax", x, (axis(x, dim),), keepdim)
    place = build.reduce("argmax", build.reshape(x, (-1,)), (0,))
    return build.reshape(place, (1,) * tensor_type(x).rank) if keepdim else place


def _extreme(function: str) -> Rule:
    """`max` and `min`: of all elements, of two tensors, or along a dimension with its index."""

    def extreme(build: Builder, x: SSAValue, other: SSAValue | int | None = None, keepdim: bool = False) -> Any:
        if other is None:
            return build.reduce(function, x, axes(x, None))
        if isinstance(other, SSAValue):
            return build.map(function, *promoted(build, x, other))
        along = axes(x, other)
        signed = x if function == "max" else build.map("neg", x)
        return build.reduce(function, x, along, keepdim), build.reduce("argmax", signed, along, keepdim)

    return extreme


RULES.update({"max": _extreme("max"), "min": _extreme("min")})


@rule("var")
def _var(
    build: Builder,
    x: SSAValue,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: Scalar | None = None,
) -> SSAValue:
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    over = axes(x, dim)
    count = math.prod(_size(x, each) for each in over)
    centred = build.map("sub", x, build.reduce("mean", x, over, keep=True))
    total = build.reduce("sum", build.map("mul", centred, centred), over, keepdim)
    less = int(unbiased) if correction is None else correction
    return build.map("div", *promoted(build, total, float(count - less)))


@rule("var_mean")
def _var_mean(
    build: Builder,
    x: SSAValue,
    dim: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: Scalar | None = None,
) -> tuple[SSAValue, SSAValue]:
    variance = _var(build, x, dim, unbiased, keepdim, correction=correction)
    over = axes(x, None if isinstance(dim, bool) else dim)
    return variance, build.reduce("mean", x, over, keepdim)


def _size(x: SSAValue, dim: int) -> int:
    size = tensor_type(x).dims[dim]
    if isinstance(size, str):
        raise ValueError(f"a reduction that counts the named dimension {size}")
    return size


@rule("linalg_vector_norm", "norm")
def _norm(
    build: Builder, x: SSAValue, order: Scalar = 2, dim: Any = None, keepdim: bool = False, **keywords: Any
) -> SSAValue:
    if order == 1:
        return build.reduce("sum", build.map("abs", x), axes(x, dim), keepdim)
    if order != 2:
        raise ValueError(f"a norm of order {order}")
    return build.map("sqrt", build.reduce("sum", build.map("mul", x, x), axes(x, dim), keepdim))


@rule("cumsum")
def _cumsum(build: Builder, x: SSAValue, dim: int, *, dtype: torch.dtype | None = None) -> SSAValue:
    kind = tensor_type(x).dtype
    target = dtype_name(dtype) if dtype is not None else "i64" if kind in INTEGER_DTYPES else kind
    return build.add(Scan, build.cast(x, target), dim=axis(x, dim))


@rule("diff")
def _diff(build: Builder, x: SSAValue, n: int = 1, dim: int = -1, prepend: SSAValue | None = None) -> SSAValue:
    if n != 1:
        raise ValueError("a difference of order above 1")
    at = axis(x, dim)
    whole = x if prepend is None else build.concat(promoted(build, prepend, x), at)
    size = tensor_type(whole).dims[at]
    return build.map("sub", build.slice(whole, at, 1, size), build.slice(whole, at, 0, dimensions.add(size, -1)))


@rule("softmax", "_softmax")
def _softmax(build: Builder, x: SSAValue, dim: int, dtype: torch.dtype | bool | None = None) -> SSAValue:
    x = build.cast(x, dtype_name(dtype)) if isinstance(dtype, torch.dtype) else x
    return build.add(Softmax, x, dim=axis(x, dim))


@rule("log_softmax", "_log_softmax")
def _log_softmax(build: Builder, x: SSAValue, dim: int, dtype: torch.dtype | bool | None = None) -> SSAValue:
    x = build.cast(x, dtype_name(dtype)) if isinstance(dtype, torch.dtype) else x
    return build.map("sub", x, _logsumexp(build, x, dim, keepdim=True))


@rule("logsumexp")
def _logsumexp(build: Builder, x: SSAValue, dim: Any, keepdim: bool = False) -> SSAValue:
    over = axes(x, dim)
    top = build.reduce("max", x, over, keep=True)
    total = build.reduce("sum", build.map("exp", build.map("sub", x, top)), over, keep=True)
    value = build.map("add", build.map("log", total), top)
    dims = [each for at, each in enumerate(tensor_type(x).dims) if at not in over]
    return value if keepdim else build.reshape(value, dims)


@rule("topk")
def _topk(
    build: Builder, x: SSAValue, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[SSAValue, ...]:
    if axis(x, dim) != tensor_type(x).rank - 1 or not largest:
        raise ValueError("a topk of the smallest, or along an inner dimension")
    return tuple(build.emit(TopK.make(x, k=k)).results)
