"""exp and what is made of it, as polynomials with explicit fma: the same bits in every lane, loop and launch.

Each takes and gives float32 expressions of any number of lanes. exp follows Cephes' expf (a polynomial on
[-ln2/2, ln2/2] after a two-step reduction); its error stays below 2 units in the last place.
"""

import math
from collections.abc import Callable, Sequence

from forerun.codegen.tvm.builder import Expr, fma, integer, integers_like, lanes_of, let, like, multiply
from forerun.codegen.tvm.untyped import tirx
from forerun.ir import COMPARISONS, FunctionTable, each_of, refused

LOG2_E = 1.4426950408889634
LN2_HIGH = 0.693359375
LN2_LOW = -2.12194440e-4
EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
ROUNDING = 1.5 * 2**23
"""Added to a small number and taken away again, it rounds to an integer."""
SMALLEST, LARGEST = -87.33654, 88.72283


def _integer_dtype(x: Expr) -> str:
    lanes = lanes_of(x)
    return "int32" if lanes == 1 else f"int32x{lanes}"


def _power_of_two(n: Expr) -> Expr:
    """2^n for integer-valued n in [-126, 127]."""
    bits = (n.astype(_integer_dtype(n)) + integers_like(127, n)) * integers_like(1 << 23, n)
    return tirx.reinterpret(n.ty.dtype, bits)


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """A polynomial, highest coefficient first."""
    total = like(coefficients[0], x)
    for coefficient in coefficients[1:]:
        total = fma(total, x, like(coefficient, x))
    return total


def exp(x: Expr) -> Expr:
    """e^x; exactly 0 below -87.34 (-inf included), inf above 88.72, NaN of NaN."""
    bounded = let(tirx.max(tirx.min(x, like(LARGEST, x)), like(SMALLEST, x)))
    n = let(fma(bounded, like(LOG2_E, x), like(ROUNDING, x)) - like(ROUNDING, x))
    r = let(fma(n, like(-LN2_LOW, x), fma(n, like(-LN2_HIGH, x), bounded)))
    p = fma(multiply(r, r), horner(r, EXP_COEFFICIENTS), r) + like(1.0, x)
    value = multiply(p, _power_of_two(tirx.min(n, like(127.0, x))))
    value = tirx.Select(n > like(127.0, x), multiply(value, like(2.0, x)), value)
    value = tirx.Select(x < like(SMALLEST, x), like(0.0, x), value)
    value = tirx.Select(x > like(LARGEST, x), like(math.inf, x), value)
    return let(tirx.Select(tirx.NE(x, x), x, value))


def expm1(x: Expr) -> Expr:
    """e^x - 1, through a series near 0."""
    x = let(x)
    series = horner(x, [1 / math.factorial(k) for k in range(9, 0, -1)])
    return let(tirx.Select(tirx.abs(x) < like(0.3, x), multiply(series, x), exp(x) - like(1.0, x)))


def sigmoid(x: Expr) -> Expr:
    return let(like(1.0, x) / (like(1.0, x) + exp(like(0.0, x) - x)))


def silu(x: Expr) -> Expr:
    x = let(x)
    return let(x / (like(1.0, x) + exp(like(0.0, x) - x)))


def tanh(x: Expr) -> Expr:
    """Through expm1(-2|x|), which is accurate near 0."""
    x = let(x)
    e = expm1(multiply(tirx.abs(x), like(-2.0, x)))
    magnitude = let((like(0.0, x) - e) / (e + like(2.0, x)))
    return let(tirx.Select(x < like(0.0, x), like(0.0, x) - magnitude, magnitude))


def erf(x: Expr) -> Expr:
    """The error function: an odd polynomial inside 475/512, 1 - exp(polynomial) outside (after N. Juffa)."""
    x = let(x)
    t, s = let(tirx.abs(x)), let(multiply(x, x))
    outer = fma(
        fma(like(-1.72853470e-5, x), t, like(3.83197126e-4, x)),
        s,
        fma(like(-3.88396438e-3, x), t, like(2.42546219e-2, x)),
    )
    for coefficient in (-1.06777877e-1, -6.34846687e-1, -1.28717512e-1):
        outer = fma(outer, t, like(coefficient, x))
    outer = let(like(1.0, x) - exp(fma(outer, t, like(0.0, x) - t)))
    outer = tirx.Select(x < like(0.0, x), like(0.0, x) - outer, outer)
    inner = horner(s, (-5.96761703e-4, 4.99119423e-3, -2.67681349e-2, 1.12819925e-1, -3.76125336e-1, 1.28379166e-1))
    return let(tirx.Select(t > like(0.927734375, x), outer, fma(inner, x, x)))


def gelu(x: Expr) -> Expr:
    """x/2 (1 + erf(x / sqrt 2))."""
    x = let(x)
    return let(multiply(multiply(x, like(0.5, x)), like(1.0, x) + erf(multiply(x, like(math.sqrt(0.5), x)))))


def gelu_tanh(x: Expr) -> Expr:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    x = let(x)
    cubic = multiply(fma(multiply(multiply(x, x), like(0.044715, x)), x, x), like(math.sqrt(2 / math.pi), x))
    return let(multiply(multiply(x, like(0.5, x)), like(1.0, x) + tanh(cubic)))


def log(x: Expr) -> Expr:
    """The natural logarithm, through libm: one call a lane, the same for every launch."""
    return _intrinsic("log")(x)


def log1p(x: Expr) -> Expr:
    """log(1 + x) with the rounding of 1 + x divided out (W. Kahan)."""
    x = let(x)
    u = let(like(1.0, x) + x)
    d = let(u - like(1.0, x))
    safe = tirx.Select(tirx.EQ(d, like(0.0, x)), like(1.0, x), d)
    return let(tirx.Select(tirx.EQ(d, like(0.0, x)), x, multiply(log(u), x / safe)))


def softplus(x: Expr) -> Expr:
    """log(1 + e^x) = max(x, 0) + log1p(e^-|x|)."""
    x = let(x)
    return let(tirx.max(x, like(0.0, x)) + log1p(exp(like(0.0, x) - tirx.abs(x))))


def _intrinsic(name: str) -> Callable[..., Expr]:
    """A float function of LLVM: an instruction where there is one, else libm's, called for each lane."""
    return lambda *operands: let(tirx.call_llvm_pure_intrin(operands[0].ty.dtype, f"llvm.{name}", *operands))


def _sign(x: Expr) -> Expr:
    x = let(x)
    one, zero = (integers_like(1, x), integers_like(0, x)) if _is_integer(x) else (like(1.0, x), like(0.0, x))
    return tirx.Select(x > zero, one, tirx.Select(x < zero, zero - one, zero))


def _is_integer(x: Expr) -> bool:
    return str(x.ty.dtype).startswith("int")


def _below_zero(rest: Expr, divisor: Expr) -> Expr:
    """Whether a truncated quotient is one above the floor: the rest is not 0 and of the other sign."""
    zero = integers_like(0, rest)
    return tirx.Or(tirx.And(rest < zero, divisor > zero), tirx.And(rest > zero, divisor < zero))


def _floor_div(x: Expr, y: Expr) -> Expr:
    if not _is_integer(x):
        return FLOOR(x / y)
    x, y = let(x), let(y)
    quotient, rest = let(tirx.truncdiv(x, y)), let(tirx.truncmod(x, y))
    return quotient - tirx.Select(_below_zero(rest, y), integers_like(1, x), integers_like(0, x))


def _remainder(x: Expr, y: Expr) -> Expr:
    if _is_integer(x):
        x, y = let(x), let(y)
        rest = let(tirx.truncmod(x, y))
        return rest + tirx.Select(_below_zero(rest, y), y, integers_like(0, x))
    x, y = let(x), let(y)
    return fma(like(0.0, x) - FLOOR(x / y), y, x)


def _negate(x: Expr) -> Expr:
    return (integers_like(0, x) - x) if _is_integer(x) else multiply(x, like(-1.0, x))


FLOOR = _intrinsic("floor")

NO_BITS = refused("the cpu target has no elementwise function {name} on f32")

NUMBERS: FunctionTable[Callable[..., Expr]] = FunctionTable(
    "functions of numbers of the cpu target",
    {
        **each_of(NO_BITS, "and", "or", "xor", "not"),
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": multiply,
        "div": lambda x, y: x / y,
        "floor_div": _floor_div,
        "remainder": _remainder,
        "pow": _intrinsic("pow"),
        "max": tirx.max,
        "min": tirx.min,
        "eq": lambda x, y: tirx.EQ(x, y),
        "ne": lambda x, y: tirx.NE(x, y),
        "lt": lambda x, y: x < y,
        "le": lambda x, y: x <= y,
        "gt": lambda x, y: x > y,
        "ge": lambda x, y: x >= y,
        "where": tirx.Select,
        "neg": _negate,
        "abs": tirx.abs,
        "sign": _sign,
        "floor": _intrinsic("floor"),
        "ceil": _intrinsic("ceil"),
        "round": _intrinsic("nearbyint"),
        "exp": exp,
        "expm1": expm1,
        "exp2": lambda x: exp(multiply(x, like(math.log(2), x))),
        "log": log,
        "log1p": log1p,
        "log2": lambda x: multiply(log(x), like(LOG2_E, x)),
        "sqrt": _intrinsic("sqrt"),
        "rsqrt": lambda x: let(like(1.0, x) / tirx.op.sqrt(x)),
        "reciprocal": lambda x: like(1.0, x) / x,
        "sin": _intrinsic("sin"),
        "cos": _intrinsic("cos"),
        "tanh": tanh,
        "erf": erf,
        "sigmoid": sigmoid,
        "relu": lambda x: tirx.max(x, like(0.0, x)),
        "silu": silu,
        "gelu": gelu,
        "gelu_tanh": gelu_tanh,
        "softplus": softplus,
        "log_sigmoid": lambda x: like(0.0, x) - softplus(like(0.0, x) - x),
    },
)
"""The functions of `spec.map` on numbers."""


def bit(x: Expr) -> Expr:
    """A truth value as 0 or 1."""
    return tirx.Select(x, integer(1), integer(0))


def _of_bits(function: Callable[..., Expr]) -> Callable[..., Expr]:
    return lambda x, y: function(bit(x), bit(y))


def _same(x: Expr) -> Expr:
    return x


NO_TRUTHS = refused("the cpu target has no elementwise function {name} on i1")
NO_INTEGERS = refused("the cpu target has no elementwise function {name} on integers")

TRUTHS: FunctionTable[Callable[..., Expr]] = FunctionTable(
    "functions of truth values of the cpu target",
    {
        **each_of(tirx.And, "and", "mul", "min"),
        **each_of(tirx.Or, "or", "add", "max"),
        "not": tirx.Not,
        "xor": lambda x, y: tirx.NE(bit(x), bit(y)),
        **{name: _of_bits(NUMBERS[name]) for name in sorted(COMPARISONS)},
        "where": lambda condition, x, y: tirx.Or(tirx.And(condition, x), tirx.And(tirx.Not(condition), y)),
        **each_of(NO_TRUTHS, "sub", "div", "floor_div", "remainder", "pow", "neg", "abs", "sign", "floor", "ceil"),
        **each_of(NO_TRUTHS, "round", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal"),
        **each_of(NO_TRUTHS, "sin", "cos", "tanh", "erf", "sigmoid", "relu", "silu", "gelu", "gelu_tanh", "softplus"),
        "log_sigmoid": NO_TRUTHS,
    },
)
INTEGERS: FunctionTable[Callable[..., Expr]] = FunctionTable(
    "functions of integers of the cpu target",
    {
        **{name: NUMBERS[name] for name in ("add", "sub", "mul", "floor_div", "remainder", "max", "min", "where")},
        **{name: NUMBERS[name] for name in ("neg", "abs", "sign", *sorted(COMPARISONS))},
        "and": tirx.bitwise_and,
        "or": tirx.bitwise_or,
        "xor": tirx.bitwise_xor,
        "not": tirx.bitwise_not,
        "relu": lambda x: tirx.max(x, integer(0)),
        **each_of(_same, "floor", "ceil", "round"),
        **each_of(NO_INTEGERS, "div", "pow", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt"),
        **each_of(NO_INTEGERS, "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh"),
        **each_of(NO_INTEGERS, "softplus", "log_sigmoid"),
    },
)
