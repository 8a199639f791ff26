"""The leaf functions as Triton text, and the functions that kernels call, as source.

Every other function is a formula (`loops.decompose`): a kernel's file gets a function of that name, made from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

from forerun.codegen.loops.buffer import Kind
from forerun.codegen.loops.decompose import ARITHMETIC, BITS, COMPARED, FORMULAS
from forerun.codegen.loops.expr import Apply, Const, Expr, Partial
from forerun.codegen.loops.index import Lane

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


@cache
def formula_source(name: str) -> str:
    """Returns the source of a formula's function."""
    formula = FORMULAS[name]
    kind: Kind = "integer" if name == "within" else "number"
    names = ("index", "size") if name == "within" else ("x",)
    known: dict[Expr, str] = {Partial(Lane(each), kind): each for each in names}
    lines: list[str] = []

    def render(expr: Expr) -> str:
        if expr in known:
            return known[expr]
        if isinstance(expr, Const):
            return literal(expr)
        assert isinstance(expr, Apply)
        given = [render(each) for each in expr.args]
        leaf = LEAVES.get((expr.function, expr.args[-1].kind))
        known[expr] = f"x{len(lines) + 1}"
        lines.append(f"    {known[expr]} = {leaf(*given) if leaf else _call(expr.function)(*given)}")
        return known[expr]

    result = render(formula(*known))
    document = (formula.__doc__ or "").strip().split("\n")[0]
    said = f'    """{document}"""\n' if document else ""
    body = "\n".join(lines)
    return f"@triton.jit\ndef {name}({', '.join(names)}):\n{said}{body}\n    return {result}\n"


@cache
def device_functions() -> dict[str, str]:
    """Returns the source of every function that a kernel may call, by name: those of `device.py`, and the formulas."""
    text = Path(__file__).with_name("device.py").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for part in text.split("\n\n\n@triton.jit\n")[1:]:
        name = part.removeprefix("def ").partition("(")[0]
        found[name] = "@triton.jit\n" + part.rstrip() + "\n"
    formulas = {name: formula_source(name) for name in FORMULAS if name != "exp"}  # exp is a hardware instruction
    return found | formulas


def used_functions(body: str) -> list[str]:
    """Returns the sources of the device functions that a text calls, directly or not, callees first."""
    sources = device_functions()
    needed: set[str] = set()
    pending = [body]
    while pending:
        text = pending.pop()
        for name, source in sources.items():
            if name not in needed and _calls(text, name):
                needed.add(name)
                pending.append(source.partition("):\n")[2])
    return [source for name, source in sources.items() if name in needed]


def _calls(text: str, name: str) -> bool:
    """Whether a text calls a function by its bare name."""
    at = text.find(name + "(")
    while at >= 0:
        before = text[at - 1] if at else " "
        if not (before.isalnum() or before in "._"):
            return True
        at = text.find(name + "(", at + 1)
    return False
