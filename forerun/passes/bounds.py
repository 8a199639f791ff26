"""Bounds of elementwise functions: bounds of the result, computed from those of the operands and safe under rounding.

The operation itself evaluates the corners of a box, in its own dtype. Rounding is monotone, so the least and the
largest corner bound every element between them. Where that argument fails (NaN, integer overflow, functions that are
not monotone) nothing is known: None.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping

import torch

from forerun.ir import COMPARISONS, FUNCTIONS, FunctionTable, refused

Bounds = tuple[torch.Tensor, torch.Tensor]
"""The least and the largest value, elementwise."""
Rule = Callable[..., Bounds | None]
"""Bounds of the result from the function's name and the operands' bounds."""


def known(low: torch.Tensor, high: torch.Tensor) -> Bounds | None:
    """Returns the bounds, or None if the values may include a NaN."""
    if low.dtype.is_floating_point and bool((low.isnan() | high.isnan()).any()):
        return None
    return low, high


def undecided(shape: list[int]) -> Bounds:
    return torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)


def bound_map(function: str, inputs: list[Bounds | None]) -> Bounds | None:
    """Returns the bounds of an elementwise function, or None if nothing is known."""
    if function == "where":
        return _where(*inputs)
    given = [each for each in inputs if each is not None]
    if len(given) < len(inputs):
        return None
    of_truths = all(each[0].dtype == torch.bool for each in given)
    return (TRUTHS if of_truths else NUMBERS)[function](function, *given)


def bound_cast(given: Bounds | None, dtype: torch.dtype) -> Bounds | None:
    """Bounds of a cast; for a cast to a truth value, whether zero is excluded and whether all values are zero."""
    if given is None:
        return None
    low, high = given
    if dtype == torch.bool:
        return (low > 0) | (high < 0), (low != 0) | (high != 0)
    if not dtype.is_floating_point and low.dtype != torch.bool:
        most = torch.iinfo(dtype).max // 2
        if bool((low.double() < -most).any()) or bool((high.double() > most).any()):
            return None
    return low.to(dtype), high.to(dtype)


def _where(condition: Bounds | None, x: Bounds | None, y: Bounds | None) -> Bounds | None:
    if condition is None:
        return None
    certain, possible = condition
    if bool(certain.all()):
        return x
    if not bool(possible.any()):
        return y
    if x is None or y is None:
        return None
    low = torch.where(certain, x[0], torch.where(possible, torch.minimum(x[0], y[0]), y[0]))
    return low, torch.where(certain, x[1], torch.where(possible, torch.maximum(x[1], y[1]), y[1]))


def _ends(function: str, *inputs: Bounds) -> Bounds | None:
    """Bounds of a function of truth values that no operand's truth makes false."""
    meaning = FUNCTIONS[function][1]
    return meaning(*(low for low, _ in inputs)), meaning(*(high for _, high in inputs))


def _not(function: str, a: Bounds) -> Bounds | None:
    return ~a[1], ~a[0]


def _where_certain(function: str, a: Bounds, b: Bounds) -> Bounds | None:
    """The function's truth value where both operands have one, in doubt elsewhere."""
    value, doubt = FUNCTIONS[function][1](a[0], b[0]), (a[0] ^ a[1]) | (b[0] ^ b[1])
    return value & ~doubt, value | doubt


def _increasing(function: str, a: Bounds) -> Bounds | None:
    return known(*(FUNCTIONS[function][1](each) for each in a))


def _neg(function: str, a: Bounds) -> Bounds | None:
    return -a[1], -a[0]


def unknown(function: str, *inputs: Bounds) -> Bounds | None:
    """Nothing is known about the result, whatever the operands are."""
    return None


def _compare(function: str, a: Bounds, b: Bounds) -> Bounds:
    """(certainly, possibly)."""
    if function == "eq":
        return (a[0] == b[1]) & (a[1] == b[0]), (a[0] <= b[1]) & (b[0] <= a[1])
    if function == "ne":
        certain, possible = _compare("eq", a, b)
        return ~possible, ~certain
    meaning = FUNCTIONS[function][1]
    near, far = (1, 0) if function in ("le", "lt") else (0, 1)
    return meaning(a[near], b[far]), meaning(a[far], b[near])


def _corners(function: str, a: Bounds, b: Bounds) -> Bounds | None:
    """Bounds of a function that is monotone in each operand, where a divisor keeps its sign."""
    if function in ("div", "floor_div") and bool(((b[0] <= 0) & (b[1] >= 0)).any()):
        return None
    if not a[0].dtype.is_floating_point:
        most = torch.iinfo(a[0].dtype).max // 2
        exact = [FUNCTIONS[function][1](x.double(), y.double()) for x, y in itertools.product(a, b)]
        if any(bool((each.abs() > most).any()) for each in exact):
            return None
    elif function == "floor_div" or (function in ("mul", "div") and (_infinite(a) or _infinite(b)) and _mixed(a, b)):
        return None
    corners = torch.stack([FUNCTIONS[function][1](*each) for each in itertools.product(a, b)])
    return known(corners.amin(0), corners.amax(0))


def _infinite(given: Bounds) -> bool:
    return bool(given[0].isinf().any() or given[1].isinf().any())


def _mixed(*inputs: Bounds) -> bool:
    """Whether the values may include a zero: zero times infinity is not a number."""
    return any(bool(((low <= 0) & (high >= 0)).any()) for low, high in inputs)


def _rules(given: Mapping[Rule, Iterable[str]]) -> dict[str, Rule]:
    return {name: rule for rule, names in given.items() for name in names}


NO_BOUNDS = (
    "remainder", "pow", "abs", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal", "sin",
    "cos", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh", "softplus", "log_sigmoid",
)  # fmt: skip
"""Functions whose results are evaluated one by one: masks are seldom made of them."""
CHOICE = {"where": refused("the function {name} is bounded by its condition")}

NUMBERS: FunctionTable[Rule] = FunctionTable(
    "bounds of functions of numbers",
    CHOICE
    | _rules(
        {
            _corners: ("add", "sub", "mul", "div", "floor_div", "max", "min"),
            _compare: COMPARISONS,
            _increasing: ("floor", "ceil", "round", "relu", "sign"),
            _neg: ("neg",),
            unknown: ("and", "or", "xor", "not", *NO_BOUNDS),
        }
    ),
)
TRUTHS: FunctionTable[Rule] = FunctionTable(
    "bounds of functions of truth values",
    CHOICE
    | _rules({
        _ends: ("and", "or"),
        _not: ("not",),
        _where_certain: ("xor", "eq", "ne"),
        unknown: (
            "add", "sub", "mul", "div", "floor_div", "max", "min", "lt", "le", "gt", "ge", "neg", "sign", "floor",
            "ceil", "round", "relu", *NO_BOUNDS,
        ),
    }),
)  # fmt: skip
