"""Functions of scalars: those of each kind, and how they are composed.

A back end supplies the leaves: `add sub mul div fma max min abs floor ceil round sqrt sin cos log pow`, comparisons,
`where`, casts, the integer and bit operations. Every other function is a formula here, so that its coefficients are in
one place; a back end may still supply one itself (`exp`, if the hardware has an instruction). Results are bit-exact
only within a back end: they depend on its leaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from forerun.codegen.loops.buffer import Kind
from forerun.codegen.loops.expr import Expr, apply, fma, integer, where
from forerun.ir import FunctionTable, each_of, refused

Formula = Callable[..., Expr]

COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
ARITHMETIC = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
BITS = {"and": "&", "or": "|", "xor": "^"}
"""The functions that languages write as operators."""

LOG2_E = 1.4426950408889634


def leaf(name: str) -> Formula:
    return lambda *operands: apply(name, *operands)


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Evaluates a polynomial, highest coefficient first."""
    total = fma(x, coefficients[0], coefficients[1])
    for coefficient in coefficients[2:]:
        total = fma(total, x, coefficient)
    return total


def absolute(x: Expr) -> Expr:
    return apply("abs", x)


# --- formulas on numbers

SMALLEST, LARGEST = -87.33654, 88.72283
"""Below, exp is 0 in float32 (or less than its smallest normal number); above, infinite."""
ROUNDING = 1.5 * 2**23
"""Adding this to a small number and subtracting it again rounds to an integer."""
EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4


def exp(x: Expr) -> Expr:
    """e^x; exactly 0 below -87.34 (-inf included), inf above 88.72, NaN of NaN.

    After Cephes' expf: a polynomial on [-ln2/2, ln2/2] after a two-step reduction, within 2 units in the last place.
    """
    bounded = apply("max", apply("min", x, LARGEST), SMALLEST)
    n = fma(bounded, LOG2_E, ROUNDING) - ROUNDING
    r = fma(n, -LN2_LOW, fma(n, -LN2_HIGH, bounded))
    p = fma(r * r, horner(r, EXP_COEFFICIENTS), r) + 1.0
    value = p * apply("power_of_two", apply("min", n, 127.0))
    value = where(n > 127.0, value * 2.0, value)
    value = where(x < SMALLEST, 0.0, value)
    value = where(x > LARGEST, math.inf, value)
    return where(apply("ne", x, x), x, value)


def expm1(x: Expr) -> Expr:
    """e^x - 1, through a series near 0."""
    series = horner(x, [1 / math.factorial(k) for k in range(9, 0, -1)])
    return where(absolute(x) < 0.3, series * x, apply("exp", x) - 1.0)


def sigmoid(x: Expr) -> Expr:
    return 1.0 / (1.0 + apply("exp", 0.0 - x))


def silu(x: Expr) -> Expr:
    return x / (1.0 + apply("exp", 0.0 - x))


def tanh(x: Expr) -> Expr:
    """Through expm1(-2|x|), which is accurate near 0."""
    e = apply("expm1", absolute(x) * -2.0)
    magnitude = (0.0 - e) / (e + 2.0)
    return where(x < 0.0, 0.0 - magnitude, magnitude)


def erf(x: Expr) -> Expr:
    """The error function: an odd polynomial inside 475/512, 1 - exp(polynomial) outside (after N. Juffa)."""
    t, s = absolute(x), x * x
    outer = fma(fma(t, -1.72853470e-5, 3.83197126e-4), s, fma(t, -3.88396438e-3, 2.42546219e-2))
    for coefficient in (-1.06777877e-1, -6.34846687e-1, -1.28717512e-1):
        outer = fma(outer, t, coefficient)
    outer = 1.0 - apply("exp", fma(outer, t, 0.0 - t))
    outer = where(x < 0.0, 0.0 - outer, outer)
    inner = horner(s, (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1))
    return where(t > 0.927734375, outer, fma(inner, x, x))


def gelu(x: Expr) -> Expr:
    """x/2 (1 + erf(x / sqrt 2))."""
    return x * 0.5 * (1.0 + apply("erf", x * math.sqrt(0.5)))


def gelu_tanh(x: Expr) -> Expr:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return x * 0.5 * (1.0 + apply("tanh", fma(x * x * 0.044715, x, x) * math.sqrt(2 / math.pi)))


def log1p(x: Expr) -> Expr:
    """log(1 + x) with the rounding of 1 + x divided out (W. Kahan)."""
    u = 1.0 + x
    d = u - 1.0
    none = apply("eq", d, 0.0)
    return where(none, x, apply("log", u) * (x / where(none, 1.0, d)))


def softplus(x: Expr) -> Expr:
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|)."""
    return apply("max", x, 0.0) + apply("log1p", apply("exp", 0.0 - absolute(x)))


def within(at: Expr, size: Expr) -> Expr:
    """An index of an axis: a negative one counts from the end, and what lies outside then is moved to the rim."""
    at = where(at < 0, at + size, at)
    return apply("min", apply("max", at, 0), size - 1)


FORMULAS: dict[str, Formula] = {
    each.__name__: each for each in (exp, expm1, sigmoid, silu, tanh, erf, gelu, gelu_tanh, log1p, softplus, within)
}
"""The formulas that a back end without such a function computes instead, by the function's name."""


# --- the functions of `spec.map`

Functions = FunctionTable[Formula]


def _same(x: Expr) -> Expr:
    return x


NO_NUMBERS, NO_INTEGERS, NO_TRUTHS = (
    refused(f"kernels have no elementwise function {{name}} on {kind}") for kind in ("f32", "integers", "i1")
)
_COMPARED = {name: leaf(name) for name in COMPARED}

NUMBERS: Functions = FunctionTable(
    "functions of numbers",
    {
        **_COMPARED,
        **{name: leaf(name) for name in ("add", "sub", "mul", "div", "pow", "max", "min", "where", "abs", "floor")},
        **{name: leaf(name) for name in ("ceil", "round", "sqrt", "sin", "cos", "log", "exp", "expm1", "sigmoid")},
        **{name: leaf(name) for name in ("silu", "tanh", "erf", "gelu", "gelu_tanh", "log1p", "softplus")},
        "floor_div": lambda x, y: apply("floor", x / y),
        "remainder": lambda x, y: fma(0.0 - apply("floor", x / y), y, x),
        "neg": lambda x: x * -1.0,
        "sign": lambda x: where(x > 0.0, 1.0, where(x < 0.0, -1.0, 0.0)),
        "exp2": lambda x: apply("exp", x * math.log(2)),
        "log2": lambda x: apply("log", x) * LOG2_E,
        "rsqrt": lambda x: 1.0 / apply("sqrt", x),
        "reciprocal": lambda x: 1.0 / x,
        "relu": lambda x: apply("max", x, 0.0),
        "log_sigmoid": lambda x: 0.0 - apply("softplus", 0.0 - x),
        **each_of(NO_NUMBERS, "and", "or", "xor", "not"),
    },
)

INTEGERS: Functions = FunctionTable(
    "functions of integers",
    {
        **_COMPARED,
        **{name: leaf(name) for name in ("add", "sub", "mul", "floor_div", "remainder", "max", "min", "where", "abs")},
        **{name: leaf(name) for name in ("and", "or", "xor")},
        "not": lambda x: -1 - x,
        "neg": lambda x: 0 - x,
        "sign": lambda x: where(x > 0, integer(1), where(x < 0, integer(-1), integer(0))),
        "relu": lambda x: apply("max", x, 0),
        **each_of(_same, "floor", "ceil", "round"),
        **each_of(NO_INTEGERS, "div", "pow", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt"),
        **each_of(NO_INTEGERS, "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh"),
        **each_of(NO_INTEGERS, "softplus", "log_sigmoid"),
    },
)


def _of_bits(function: str) -> Formula:
    return lambda x, y: apply(function, apply("to_integer", x), apply("to_integer", y))


TRUTHS: Functions = FunctionTable(
    "functions of truth values",
    {
        **each_of(leaf("and"), "and", "mul", "min"),
        **each_of(leaf("or"), "or", "add", "max"),
        "not": leaf("not"),
        "xor": _of_bits("ne"),
        **{name: _of_bits(name) for name in COMPARED},
        "where": lambda c, x, y: apply("or", apply("and", c, x), apply("and", apply("not", c), y)),
        **each_of(NO_TRUTHS, "sub", "div", "floor_div", "remainder", "pow", "neg", "abs", "sign", "floor", "ceil"),
        **each_of(NO_TRUTHS, "round", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal"),
        **each_of(NO_TRUTHS, "sin", "cos", "tanh", "erf", "sigmoid", "relu", "silu", "gelu", "gelu_tanh", "softplus"),
        "log_sigmoid": NO_TRUTHS,
    },
)

BY_KIND: dict[Kind, Functions] = {"number": NUMBERS, "integer": INTEGERS, "truth": TRUTHS}
"""The functions of `spec.map`, by the kind of their operands."""
