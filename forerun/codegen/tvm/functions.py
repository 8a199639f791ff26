"""The leaf functions in TVM; all others are composed from them (`loops.decompose`).

Each takes and returns float32, int32 or booleans, as scalars or vectors; `exp` and similar functions are formulas with
explicit fma, so they give the same bits in every lane, loop and launch. `log`, `sin`, `cos` and `pow` are libm's,
called for each lane.
"""

from collections.abc import Callable, Sequence
from functools import reduce

from forerun.codegen.tvm.builder import Expr, fma, integer, lanes_of, let, like, multiply, number
from forerun.codegen.tvm.untyped import tirx

Leaf = Callable[..., Expr]


def _intrinsic(name: str) -> Leaf:
    """A float function of LLVM: an instruction if there is one, else libm's, called for each lane."""
    return lambda *operands: tirx.call_llvm_pure_intrin(operands[0].ty.dtype, f"llvm.{name}", *operands)


def power_of_two(n: Expr) -> Expr:
    """2^n for integer-valued n in [-126, 127]."""
    lanes = lanes_of(n)
    bits = (n.astype("int32" if lanes == 1 else f"int32x{lanes}") + like(integer(127), n)) * like(integer(1 << 23), n)
    return tirx.reinterpret(n.ty.dtype, bits)


def _below_zero(rest: Expr, divisor: Expr) -> Expr:
    """Whether a truncated quotient is one above the floor: the remainder is not 0 and has the opposite sign."""
    zero = like(integer(0), rest)
    return tirx.Or(tirx.And(rest < zero, divisor > zero), tirx.And(rest > zero, divisor < zero))


def _floor_div(x: Expr, y: Expr) -> Expr:
    quotient, rest = let(tirx.truncdiv(x, y)), let(tirx.truncmod(x, y))
    return quotient - tirx.Select(_below_zero(rest, y), like(integer(1), x), like(integer(0), x))


def _remainder(x: Expr, y: Expr) -> Expr:
    rest = let(tirx.truncmod(x, y))
    return rest + tirx.Select(_below_zero(rest, y), y, like(integer(0), x))


def _to_number(x: Expr) -> Expr:
    if str(x.ty.dtype).startswith("bool"):
        return tirx.Select(x, number(1.0), number(0.0))
    lanes = lanes_of(x)
    return x.astype("float32" if lanes == 1 else f"float32x{lanes}")


def _to_integer(x: Expr) -> Expr:
    return tirx.Select(x, integer(1), integer(0)) if str(x.ty.dtype).startswith("bool") else x.astype("int32")


def _unordered(*operands: Expr) -> Expr:
    """Whether a number is NaN, asked of its bits: TVM takes x == x to hold, and x <= y to be not (y < x)."""

    def nan(x: Expr) -> Expr:
        lanes = lanes_of(x)
        bits = tirx.reinterpret("int32" if lanes == 1 else f"int32x{lanes}", x)
        return tirx.bitwise_and(bits, like(integer(0x7FFFFFFF), x)) > like(integer(0x7F800000), x)

    distinct = [each for at, each in enumerate(operands) if not any(each is other for other in operands[:at])]
    return reduce(tirx.Or, map(nan, distinct))


def _ordered(compare: Leaf) -> Leaf:
    """A comparison that does not hold if a number is NaN."""

    def leaf(x: Expr, y: Expr) -> Expr:
        found = compare(x, y)
        return tirx.And(found, tirx.Not(_unordered(x, y))) if _is_number(x) else found

    return leaf


def _ne(x: Expr, y: Expr) -> Expr:
    return tirx.Or(tirx.NE(x, y), _unordered(x, y)) if _is_number(x) else tirx.NE(x, y)


def _is_number(x: Expr) -> bool:
    return str(x.ty.dtype).startswith("float")


def _to_truth(x: Expr) -> Expr:
    return _ne(x, number(0.0) if _is_number(x) else integer(0))


LEAVES: dict[str, Leaf] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": multiply,
    "div": lambda x, y: x / y,
    "fma": fma,
    "max": tirx.max,
    "min": tirx.min,
    "abs": tirx.abs,
    "eq": _ordered(lambda x, y: tirx.EQ(x, y)),
    "ne": _ne,
    "lt": lambda x, y: x < y,
    "le": _ordered(lambda x, y: x <= y),
    "gt": lambda x, y: x > y,
    "ge": _ordered(lambda x, y: x >= y),
    "where": tirx.Select,
    **{name: _intrinsic(name) for name in ("floor", "ceil", "sqrt", "log", "sin", "cos", "pow")},
    "round": _intrinsic("nearbyint"),
    "power_of_two": power_of_two,
    "to_number": _to_number,
    "to_integer": _to_integer,
    "to_truth": _to_truth,
}
INTEGER_LEAVES: dict[str, Leaf] = {
    **{name: LEAVES[name] for name in ("add", "sub", "mul", "max", "min", "abs", "where", "to_integer")},
    "floor_div": _floor_div,
    "remainder": _remainder,
    "and": tirx.bitwise_and,
    "or": tirx.bitwise_or,
    "xor": tirx.bitwise_xor,
}
TRUTH_LEAVES: dict[str, Leaf] = {
    **{name: LEAVES[name] for name in ("eq", "ne", "lt", "le", "gt", "ge", "to_truth")},
    "and": tirx.And,
    "or": tirx.Or,
    "not": tirx.Not,
}
BY_KIND = {"number": LEAVES, "integer": INTEGER_LEAVES, "truth": TRUTH_LEAVES}
"""The leaves, by the kind that they return."""


def alike(operands: Sequence[Expr]) -> list[Expr]:
    """Broadcasts scalars to the lanes of the vectors among the operands."""
    lanes = max(map(lanes_of, operands))
    return [each if lanes_of(each) == lanes else tirx.Broadcast(each, lanes) for each in operands]
