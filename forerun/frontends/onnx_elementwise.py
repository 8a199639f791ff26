"""ONNX's elementwise operators, running sums and reductions. Those that mean what an ATen operator means are data."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from forerun.frontends.onnx_rules import DTYPES, MICROSOFT, RULES, Call, Rule, Value, aten, dtype_of, known_rule, rule
from forerun.frontends.onnx_values import NUMPY, Array, Known
from forerun.ir import SSAValue, tensor_type

SAME = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Neg": "neg", "Abs": "abs", "Sign": "sign", "Floor": "floor",
    "Ceil": "ceil", "Round": "round", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal",
    "Sin": "sin", "Cos": "cos", "Tanh": "tanh", "Erf": "erf", "Sigmoid": "sigmoid", "Relu": "relu",
    "Softplus": "softplus", "Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge",
    "And": "logical_and", "Or": "logical_or", "Not": "logical_not", "BitwiseAnd": "bitwise_and",
    "BitwiseOr": "bitwise_or", "BitwiseXor": "__xor__", "BitwiseNot": "bitwise_not", "Xor": "__xor__", "Where": "where",
}  # fmt: skip
"""Operators whose operands are exactly those of an ATen operator."""


def _same(name: str) -> Rule:
    return lambda call: aten(name)(call.build, *call.tensors())


RULES.update({("", operator): _same(name) for operator, name in SAME.items()})


@rule("Div")
def _div(call: Call) -> SSAValue:
    """The quotient of integers is rounded towards zero."""
    left, right = call.tensors()
    whole = tensor_type(left).dtype.startswith("i")
    return aten("div")(call.build, left, right, rounding_mode="trunc" if whole else None)


@rule("Mod")
def _mod(call: Call) -> SSAValue:
    call.require(fmod=0)
    return aten("remainder")(call.build, *call.tensors())


@rule("Pow")
def _pow(call: Call) -> SSAValue:
    """The result has the dtype of the base."""
    base, exponent = call.tensors()
    return aten("pow")(call.build, base, call.build.cast(exponent, tensor_type(base).dtype))


@rule("Max", "Min")
def _extremum(call: Call) -> SSAValue:
    name = "maximum" if call.operator == "Max" else "minimum"
    return reduce(lambda x, y: aten(name)(call.build, x, y), call.tensors())


@rule("Sum")
def _sum(call: Call) -> SSAValue:
    return reduce(lambda x, y: aten("add")(call.build, x, y), call.tensors())


@rule("Clip")
def _clip(call: Call) -> SSAValue:
    return aten("clamp")(call.build, call.tensor(0), call.optional(1), call.optional(2))


@rule("IsNaN")
def _isnan(call: Call) -> SSAValue:
    x = call.tensor(0)
    return call.build.map("ne", x, x)


@rule("LeakyRelu")
def _leaky_relu(call: Call) -> SSAValue:
    return aten("leaky_relu")(call.build, call.tensor(0), call.attribute("alpha", 0.01))


@rule("Gelu")
def _gelu(call: Call) -> SSAValue:
    return aten("gelu")(call.build, call.tensor(0), approximate=call.attribute("approximate", "none"))


RULES[MICROSOFT, "Gelu"] = lambda call: aten("gelu")(call.build, call.tensor(0))


@rule("Swish")
def _swish(call: Call) -> SSAValue:
    return sigmoid_gated(call, call.tensor(0), float(call.attribute("alpha", 1.0)))


@rule("QuickGelu", domain=MICROSOFT)
def _quick_gelu(call: Call) -> SSAValue:
    return sigmoid_gated(call, call.tensor(0), float(call.attribute("alpha", 1.702)))


def sigmoid_gated(call: Call, x: SSAValue, alpha: float) -> SSAValue:
    """x * sigmoid(alpha * x)."""
    if alpha == 1.0:
        return call.build.map("silu", x)
    scaled = aten("mul")(call.build, x, alpha)
    return call.build.map("mul", x, call.build.map("sigmoid", scaled))


@rule("FastGelu", domain=MICROSOFT)
def _fast_gelu(call: Call) -> SSAValue:
    """The tanh form, after adding the bias, if there is one."""
    return aten("gelu")(call.build, _biased(call), approximate="tanh")


@rule("BiasGelu", domain=MICROSOFT)
def _bias_gelu(call: Call) -> SSAValue:
    return aten("gelu")(call.build, _biased(call))


def _biased(call: Call) -> SSAValue:
    bias = call.optional(1)
    return call.tensor(0) if bias is None else aten("add")(call.build, call.tensor(0), bias)


@known_rule("Cast")
def _known_cast(call: Call) -> Known | None:
    x = call.known(0)
    target = _target(call)
    if x.symbolic:
        if target == "i1":
            raise ValueError("a size as a truth value")
        return Known(x.array, target)
    return Known(x.array.astype(NUMPY[target], copy=False), target, x.name)


@rule("Cast")
def _cast(call: Call) -> SSAValue:
    return call.build.cast(call.tensor(0), _target(call))


def _target(call: Call) -> str:
    number = int(call.attribute("to"))
    if number not in DTYPES:
        raise ValueError(f"a cast to data type {number}")
    return DTYPES[number]


@rule("CastLike")
def _cast_like(call: Call) -> SSAValue:
    return call.build.cast(call.tensor(0), dtype_of(call.value(1)))


@rule("Constant")
def _constant(call: Call) -> Known:
    for name, value in call.attributes.items():
        if isinstance(value, np.ndarray):
            return Known.of(value)
        if name in ("value_int", "value_ints"):
            return Known.of(_numbers(value, "i64"))
        if name in ("value_float", "value_floats"):
            return Known.of(_numbers(value, "f32"))
    raise ValueError(f"a constant given as {', '.join(call.attributes) or 'nothing'}")


def _numbers(value: Any, dtype: str) -> Array:
    return np.asarray(value, NUMPY[dtype])


@rule("CumSum")
def _cumsum(call: Call) -> SSAValue:
    call.require(reverse=0)
    x = call.tensor(0)
    total = call.build.cast(aten("cumsum")(call.build, x, int(call.known(1).number())), tensor_type(x).dtype)
    return call.build.map("sub", total, x) if call.attribute("exclusive", 0) else total


REDUCED = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"}


def _reduction(function: str) -> Rule:
    def reduced(call: Call) -> Value:
        x, over = call.tensor(0), call.integers("axes", 1)
        if not over and call.attribute("noop_with_empty_axes", 0):
            return x
        rank = tensor_type(x).rank
        dims = [each % rank for each in over] if over else list(range(rank))
        return call.build.reduce(function, x, dims, bool(call.attribute("keepdims", 1)))

    return reduced


RULES.update({("", operator): _reduction(function) for operator, function in REDUCED.items()})


@rule("ReduceSumSquare", "ReduceL2")
def _reduce_square(call: Call) -> SSAValue:
    x, over = call.tensor(0), call.integers("axes", 1)
    rank = tensor_type(x).rank
    dims = [each % rank for each in over] if over else list(range(rank))
    total = call.build.reduce("sum", call.build.map("mul", x, x), dims, bool(call.attribute("keepdims", 1)))
    return call.build.map("sqrt", total) if call.operator == "ReduceL2" else total
