"""ATen's elementwise operators. Names that are exactly one function of `spec.map` are data."""

from __future__ import annotations

from forerun.frontends.aten_rules import RULES, Operand, Rule, Scalar, floating, promoted, rule
from forerun.ir import Builder, SSAValue, tensor_type

UNARY = {
    "neg", "abs", "sign", "floor", "ceil", "round", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt",
    "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid", "relu", "silu", "log_sigmoid",
}  # fmt: skip
BINARY = {
    "mul": "mul", "floor_divide": "floor_div", "remainder": "remainder", "pow": "pow",
    "maximum": "max", "minimum": "min",
    "__and__": "and", "__or__": "or", "__xor__": "xor", "bitwise_and": "and", "bitwise_or": "or",
    "logical_and": "and", "logical_or": "or", "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge",
    "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge",
}  # fmt: skip
IDENTITY = {"contiguous", "clone", "alias", "detach", "lift_fresh_copy", "lift_fresh", "detach_"}


def _unary(function: str) -> Rule:
    return lambda build, x: build.map(function, floating(build, x) if function not in ("neg", "abs", "sign") else x)


def _binary(function: str) -> Rule:
    return lambda build, x, y: build.map(function, *promoted(build, x, y))


RULES.update({name: _unary(name) for name in UNARY})
RULES.update({name: _binary(function) for name, function in BINARY.items()})
RULES.update(dict.fromkeys(IDENTITY, lambda build, x, *arguments, **keywords: x))


@rule("add", "sub", "rsub")
def _add(build: Builder, x: Operand, y: Operand, alpha: Scalar = 1, *, function: str = "add") -> SSAValue:
    left, right = promoted(build, x, y)
    if alpha != 1:
        right = build.map("mul", right, build.constant(alpha, tensor_type(right).dtype))
    return build.map(function, left, right)


RULES["sub"] = lambda build, x, y, alpha=1: _add(build, x, y, alpha=alpha, function="sub")
RULES["rsub"] = lambda build, x, y, alpha=1: _add(build, y, x, alpha=alpha, function="sub")


RULES["multiply"], RULES["subtract"] = RULES["mul"], RULES["sub"]


@rule("div", "true_divide", "divide")
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
