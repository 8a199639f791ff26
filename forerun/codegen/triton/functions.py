"""The leaf functions as Triton text; every other function is a formula (`loops.decompose`)."""

from __future__ import annotations

import math
from collections.abc import Callable

from forerun.codegen.loops.buffer import Kind
from forerun.codegen.loops.decompose import ARITHMETIC, BITS, COMPARED
from forerun.codegen.loops.expr import Const

Leaf = Callable[..., str]


def _infix(sign: str) -> Leaf:
    return lambda x, y: f"({x} {sign} {y})"


def _call(name: str) -> Leaf:
    return lambda *operands: f"{name}({', '.join(operands)})"


OF_BOTH: dict[str, Leaf] = {
    **{name: _infix(sign) for name, sign in (COMPARED | ARITHMETIC).items() if name != "div"},
    "max": _call("tl.maximum"),
    "min": _call("tl.minimum"),
    "abs": _call("tl.abs"),
    "where": _call("tl.where"),
    "to_truth": lambda x: f"({x} != 0)",
}
OF_NUMBERS: dict[str, Leaf] = {
    **OF_BOTH,
    **{name: _call(f"tl.{name}") for name in ("fma", "floor", "ceil", "sqrt", "exp", "log", "sin", "cos")},
    "div": _infix("/"),
    "round": _call("round_even"),
    "to_integer": lambda x: f"({x}).to(tl.int32)",
}
OF_INTEGERS: dict[str, Leaf] = {
    **OF_BOTH,
    "floor_div": _call("floor_divide"),
    "remainder": _call("floor_modulo"),
    **{name: _infix(sign) for name, sign in BITS.items()},
    "to_number": lambda x: f"({x}).to(tl.float32)",
}
OF_TRUTHS: dict[str, Leaf] = {
    "and": _infix("&"),
    "or": _infix("|"),
    "not": lambda x: f"({x} == 0)",
    "where": _call("tl.where"),
    "to_number": lambda x: f"tl.where({x}, 1.0, 0.0)",
    "to_integer": lambda x: f"tl.where({x}, 1, 0)",
}
LEAVES: dict[tuple[str, Kind], Leaf] = {
    **{(name, "number"): leaf for name, leaf in OF_NUMBERS.items()},
    **{(name, "integer"): leaf for name, leaf in OF_INTEGERS.items()},
    **{(name, "truth"): leaf for name, leaf in OF_TRUTHS.items()},
}
"""The leaves, by name and the kind of the last operand."""


def literal(value: Const) -> str:
    """Returns a number as a Triton literal."""
    if value.kind != "number":
        return value.text
    return value.text if math.isfinite(float(value.text)) else f'float("{float(value.text)}")'
