"""The table from ATen names to `spec` operations, shared by every frontend that speaks ATen.

A rule is `rule(build, *arguments, **keywords)`: tensors are IR values, sizes are dimensions, the rest Python values.
It returns a value, or a tuple of values where the operator returns several. Names that are exactly one elementwise
function are data (`UNARY`, `BINARY`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch

from forerun.ir import (
    INTEGER_DTYPES,
    Attention,
    Builder,
    Dim,
    Gather,
    Iota,
    LayerNorm,
    Linear,
    MatMul,
    RMSNorm,
    Scan,
    Softmax,
    SSAValue,
    TakeAlong,
    TopK,
    dtype_name,
    tensor_type,
    torch_dtype,
)
from forerun.ir import dims as dimensions

Scalar = bool | int | float
Operand = SSAValue | Scalar
Rule = Callable[..., Any]
"""Gives a value, or a tuple of values."""

RuleType = TypeVar("RuleType", bound=Rule)

RULES: dict[str, Rule] = {}
VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "transpose", "permute", "t",
    "numpy_T", "mT", "swapaxes", "swapdims", "expand", "expand_as", "broadcast_to", "slice", "select", "narrow",
    "chunk", "split", "split_with_sizes", "unbind", "view_as", "reshape_as",
    "alias", "detach", "contiguous", "dropout", "lift_fresh", "to", "type_as",
})  # fmt: skip
"""Operators whose result may share memory with their operand."""

UNARY = {
    "neg", "abs", "sign", "floor", "ceil", "round", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt",
    "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid", "relu", "silu", "log_sigmoid",
}  # fmt: skip
BINARY = {
    "mul": "mul", "floor_divide": "floor_div", "remainder": "remainder", "pow": "pow",
    "maximum": "max", "minimum": "min",
    "__and__": "and", "__or__": "or", "__xor__": "xor", "bitwise_and": "and", "bitwise_or": "or",
    "logical_and": "and", "logical_or": "or", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge",
}  # fmt: skip
IDENTITY = {"contiguous", "clone", "alias", "detach", "lift_fresh_copy", "lift_fresh", "detach_"}


def rule(*names: str) -> Callable[[RuleType], RuleType]:
    def register(function: RuleType) -> RuleType:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# --- operands ---------------------------------------------------------------------------------------------------------


def _witness(operand: Operand) -> torch.Tensor | Scalar:
    """A stand-in with the dtype and rank that torch's promotion looks at."""
    if not isinstance(operand, SSAValue):
        return operand
    kind = tensor_type(operand)
    return torch.empty((1,) * kind.rank, dtype=torch_dtype(kind.dtype))


def promoted(build: Builder, *operands: Operand, least: str | None = None) -> list[SSAValue]:
    """Operands in the dtype torch would compute in; numbers become constants."""
    dtype = torch.bool
    if len(operands) == 1:
        dtype = torch.result_type(_witness(operands[0]), _witness(operands[0]))
    for left, right in pairwise(operands):
        dtype = torch.promote_types(dtype, torch.result_type(_witness(left), _witness(right)))
    if least is not None and not dtype.is_floating_point:
        dtype = torch_dtype(least)
    name = dtype_name(dtype)
    return [build.cast(each, name) if isinstance(each, SSAValue) else build.constant(each, name) for each in operands]


def floating(build: Builder, value: SSAValue) -> SSAValue:
    """The operand of a function that integers are converted for."""
    return promoted(build, value, least="f32")[0]


def axis(value: SSAValue, dim: int, extra: int = 0) -> int:
    """A dimension counted from the front."""
    return dim % max(1, tensor_type(value).rank + extra)


def axes(value: SSAValue, dims: int | Sequence[int] | None) -> tuple[int, ...]:
    """Dimensions counted from the front; all of them for None or an empty list."""
    if dims is None or dims == []:
        return tuple(range(tensor_type(value).rank))
    return tuple(axis(value, each) for each in ([dims] if isinstance(dims, int) else dims))


def named(dtype: torch.dtype | None, default: torch.dtype) -> str:
    return dtype_name(dtype or default)


# --- elementwise ------------------------------------------------------------------------------------------------------


def _unary(function: str) -> Rule:
    return lambda build, x: build.map(function, floating(build, x) if function not in ("neg", "abs", "sign") else x)


def _binary(function: str) -> Rule:
    return lambda build, x, y: build.map(function, *promoted(build, x, y))


RULES.update({name: _unary(name) for name in UNARY})
RULES.update({name: _binary(function) for name, function in BINARY.items()})
RULES.update(dict.fromkeys(IDENTITY, lambda build, x, *arguments, **keywords: x))


@rule("add", "sub", "rsub")
def _add(build: Builder, x: Operand, y: Operand, *, alpha: Scalar = 1, function: str = "add") -> SSAValue:
    left, right = promoted(build, x, y)
    if alpha != 1:
        right = build.map("mul", right, build.constant(alpha, tensor_type(right).dtype))
    return build.map(function, left, right)


RULES["sub"] = lambda build, x, y, *, alpha=1: _add(build, x, y, alpha=alpha, function="sub")
RULES["rsub"] = lambda build, x, y, *, alpha=1: _add(build, y, x, alpha=alpha, function="sub")


@rule("div", "true_divide")
def _div(build: Builder, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> SSAValue:
    if rounding_mode == "floor":
        return build.map("floor_div", *promoted(build, x, y))
    quotient = build.map("div", *promoted(build, x, y, least="f32"))
    if rounding_mode == "trunc":
        zero = build.constant(0.0, tensor_type(quotient).dtype)
        truncated = build.map(
            "where", build.map("lt", quotient, zero), build.map("ceil", quotient), build.map("floor", quotient)
        )
        return build.cast(truncated, tensor_type(promoted(build, x, y)[0]).dtype)
    return quotient


@rule("dropout")
def _dropout(build: Builder, x: SSAValue, p: float = 0.5, train: bool = False) -> SSAValue:
    if train and p > 0.0:
        raise ValueError("dropout while training: call eval() first")
    return x


@rule("square")
def _square(build: Builder, x: SSAValue) -> SSAValue:
    return build.map("mul", x, x)


@rule("bitwise_not", "logical_not")
def _not(build: Builder, x: SSAValue) -> SSAValue:
    return build.map("not", x)


@rule("gelu")
def _gelu(build: Builder, x: SSAValue, *, approximate: str = "none") -> SSAValue:
    return build.map("gelu" if approximate == "none" else "gelu_tanh", x)


@rule("softplus")
def _softplus(build: Builder, x: SSAValue, beta: Scalar = 1, threshold: Scalar = 20) -> SSAValue:
    if beta == 1 and threshold == 20:
        return build.map("softplus", x)
    scaled = build.map("mul", *promoted(build, x, float(beta)))
    soft = build.map("div", *promoted(build, build.map("log1p", build.map("exp", scaled)), float(beta)))
    return build.map("where", build.map("gt", *promoted(build, scaled, float(threshold))), x, soft)


@rule("clamp", "clip")
def _clamp(build: Builder, x: SSAValue, min: Operand | None = None, max: Operand | None = None) -> SSAValue:
    if min is not None:
        x = build.map("max", *promoted(build, x, min))
    return x if max is None else build.map("min", *promoted(build, x, max))


RULES["clamp_min"] = lambda build, x, min: _clamp(build, x, min=min)
RULES["clamp_max"] = lambda build, x, max: _clamp(build, x, max=max)
RULES["hardtanh"] = lambda build, x, min_val=-1.0, max_val=1.0: _clamp(build, x, min_val, max_val)


@rule("leaky_relu")
def _leaky_relu(build: Builder, x: SSAValue, negative_slope: float = 0.01) -> SSAValue:
    zero, slope = (build.constant(each, tensor_type(x).dtype) for each in (0.0, negative_slope))
    return build.map("where", build.map("gt", x, zero), x, build.map("mul", x, slope))


@rule("where")
def _where(build: Builder, condition: SSAValue, x: Operand, y: Operand) -> SSAValue:
    return build.map("where", condition, *promoted(build, x, y))


@rule("masked_fill")
def _masked_fill(build: Builder, x: SSAValue, mask: SSAValue, value: Operand) -> SSAValue:
    dtype = tensor_type(x).dtype
    filling = build.cast(value, dtype) if isinstance(value, SSAValue) else build.constant(value, dtype)
    return build.map("where", mask, filling, x)


# --- types and filled tensors -----------------------------------------------------------------------------------------


@rule("to", "_to_copy", "type_as", "float", "half", "bfloat16", "int", "long", "bool")
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
    if whole and step == 1:
        size = dimensions.add(end, dimensions.multiply(start, -1))
    elif isinstance(start, str) or isinstance(end, str) or isinstance(step, str):
        raise ValueError("arange with a step over a named dimension")
    else:
        size = math.ceil((end - start) / step)
    values = build.add(Iota, size=size)
    target = named(dtype, torch.int64 if whole else torch.get_default_dtype())
    if step != 1:
        values = build.map("mul", *promoted(build, values, step))
    if isinstance(start, str):
        raise ValueError("arange that starts at a named dimension")
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
RULES.update(
    {"zeros_like": _filled_like(0, False), "ones_like": _filled_like(1, False), "empty_like": _filled_like(0, False)}
)
RULES.update(
    {"new_zeros": _filled_like(0, True), "new_ones": _filled_like(1, True), "new_empty": _filled_like(0, True)}
)
RULES.update({"full_like": _filled_like(None, False), "new_full": _filled_like(None, True)})


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

# --- views ------------------------------------------------------------------------------------------------------------


@rule("view", "reshape", "_unsafe_view")
def _view(build: Builder, x: SSAValue, shape: Sequence[Dim]) -> SSAValue:
    return build.reshape(x, shape)


@rule("view_as", "reshape_as")
def _view_as(build: Builder, x: SSAValue, other: SSAValue) -> SSAValue:
    return build.reshape(x, tensor_type(other).dims)


@rule("unsqueeze")
def _unsqueeze(build: Builder, x: SSAValue, dim: int) -> SSAValue:
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
        x, at, _bound(0 if start is None else start, size), _bound(size if end is None else end, size), step
    )


def _bound(bound: Dim, size: Dim) -> Dim:
    """A slice's bound: from the end where negative, cut to the size (a named size is longer than any number)."""
    if isinstance(bound, int) and bound < 0:
        bound = dimensions.add(size, bound)
    if isinstance(bound, int) and isinstance(size, int):
        return max(0, min(bound, size))
    return size if isinstance(bound, int) and bound >= 2**31 else bound


RULES["narrow"] = lambda build, x, dim, start, length: _slice(build, x, dim, start, dimensions.add(start, length))


@rule("select")
def _select(build: Builder, x: SSAValue, dim: int, index: int) -> SSAValue:
    at = axis(x, dim)
    dims = tensor_type(x).dims
    start = _bound(index, dims[at])
    return build.reshape(build.slice(x, at, start, dimensions.add(start, 1)), (*dims[:at], *dims[at + 1 :]))


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
    return build.concat(promoted(build, *values), axis(values[0], dim))


@rule("stack")
def _stack(build: Builder, values: Sequence[SSAValue], dim: int = 0) -> SSAValue:
    at = axis(values[0], dim, extra=1)
    return build.concat([_unsqueeze(build, each, at) for each in promoted(build, *values)], at)


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


# --- indices ----------------------------------------------------------------------------------------------------------


@rule("embedding")
def _embedding(build: Builder, table: SSAValue, indices: SSAValue, *arguments: Any, **keywords: Any) -> SSAValue:
    return build.add(Gather, table, indices)


@rule("index_select")
def _index_select(build: Builder, x: SSAValue, dim: int, index: SSAValue) -> SSAValue:
    return _index(build, x, [None] * axis(x, dim) + [index])


@rule("index")
def _index(build: Builder, x: SSAValue, indices: Sequence[SSAValue | None]) -> SSAValue:
    """Advanced indexing by integers; the indexed dimensions stand side by side."""
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


# --- reductions -------------------------------------------------------------------------------------------------------


def _reduction(function: str) -> Rule:
    def reduce(
        build: Builder, x: SSAValue, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
    ) -> SSAValue:
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


def _size(x: SSAValue, dim: int) -> int:
    size = tensor_type(x).dims[dim]
    if isinstance(size, str):
        raise ValueError(f"a reduction that counts the named dimension {size}")
    return size


@rule("linalg_vector_norm", "norm")
def _norm(
    build: Builder, x: SSAValue, order: Scalar = 2, dim: Any = None, keepdim: bool = False, **keywords: Any
) -> SSAValue:
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


# --- products, norms, attention ---------------------------------------------------------------------------------------


@rule("linear")
def _linear(build: Builder, x: SSAValue, weight: SSAValue, bias: SSAValue | None = None) -> SSAValue:
    return build.add(Linear, x, weight, bias)


@rule("matmul", "bmm", "mm")
def _matmul(build: Builder, a: SSAValue, b: SSAValue) -> SSAValue:
    kind_a, kind_b = tensor_type(a), tensor_type(b)
    if kind_b.rank == 1:
        product = build.add(MatMul, a, build.reshape(b, (*kind_b.dims, 1)))
        return build.reshape(product, tensor_type(product).dims[:-1])
    if kind_a.rank == 1:
        product = build.add(MatMul, build.reshape(a, (1, *kind_a.dims)), b)
        return build.reshape(product, (*tensor_type(product).dims[:-2], tensor_type(product).dims[-1]))
    return build.add(MatMul, a, b)


@rule("addmm", "baddbmm")
def _addmm(build: Builder, c: SSAValue, a: SSAValue, b: SSAValue, *, beta: Scalar = 1, alpha: Scalar = 1) -> SSAValue:
    product = _matmul(build, a, b)
    if alpha != 1:
        product = build.map("mul", *promoted(build, product, float(alpha)))
    if beta == 0:
        return product
    return build.map("add", build.map("mul", *promoted(build, c, float(beta))) if beta != 1 else c, product)


@rule("outer")
def _outer(build: Builder, a: SSAValue, b: SSAValue) -> SSAValue:
    return build.map("mul", *promoted(build, _unsqueeze(build, a, 1), b))


@rule("layer_norm")
def _layer_norm(
    build: Builder,
    x: SSAValue,
    shape: Sequence[int],
    weight: SSAValue | None = None,
    bias: SSAValue | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> SSAValue:
    if len(shape) != 1:
        raise ValueError("a layer norm over several dimensions")
    dtype = tensor_type(x).dtype
    if weight is None and bias is not None:
        weight = build.full(tuple(shape), 1.0, dtype)
    return build.add(LayerNorm, x, weight, bias, eps=eps)


@rule("rms_norm")
def _rms_norm(
    build: Builder, x: SSAValue, shape: Sequence[int], weight: SSAValue | None = None, eps: float | None = None
) -> SSAValue:
    if len(shape) != 1:
        raise ValueError("an rms norm over several dimensions")
    eps = torch.finfo(torch_dtype(tensor_type(x).dtype)).eps if eps is None else eps
    return build.add(RMSNorm, x, weight, eps=eps)


@rule("scaled_dot_product_attention")
def _attention(
    build: Builder,
    query: SSAValue,
    key: SSAValue,
    value: SSAValue,
    mask: SSAValue | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    attn_mask: SSAValue | None = None,
) -> SSAValue:
    if dropout > 0.0:
        raise ValueError("attention dropout")
    mask = attn_mask if mask is None else mask
    width = tensor_type(query).dims[-1]
    scale = 1 / math.sqrt(int(width)) if scale is None else float(scale)
    return build.add(Attention, query, key, value, scale=scale, causal=is_causal or None, mask=mask)
