"""The functions of `spec.map` as text of a Triton kernel, by the kind of their operands."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from forerun.ir import FunctionTable, each_of, refused

Text = Callable[..., str]


def _infix(sign: str) -> Text:
    return lambda x, y: f"({x} {sign} {y})"


def _call(name: str) -> Text:
    return lambda *operands: f"{name}({', '.join(operands)})"


_COMPARISONS: dict[str, Text] = {
    "eq": _infix("=="),
    "ne": _infix("!="),
    "lt": _infix("<"),
    "le": _infix("<="),
    "gt": _infix(">"),
    "ge": _infix(">="),
}

NO_BITS, NO_INTEGERS, NO_TRUTHS = (
    refused(f"the cuda target has no elementwise function {{name}} on {kind}") for kind in ("f32", "integers", "i1")
)

NUMBERS: FunctionTable[Text] = FunctionTable(
    "functions of numbers of the cuda target",
    {
        **_COMPARISONS,
        "add": _infix("+"),
        "sub": _infix("-"),
        "mul": _infix("*"),
        "div": _infix("/"),
        "floor_div": lambda x, y: f"tl.floor({x} / {y})",
        "remainder": lambda x, y: f"({x} - tl.floor({x} / {y}) * {y})",
        "max": _call("tl.maximum"),
        "min": _call("tl.minimum"),
        "where": _call("tl.where"),
        "neg": lambda x: f"({x} * -1.0)",
        "abs": _call("tl.abs"),
        "sign": lambda x: f"tl.where({x} > 0.0, 1.0, tl.where({x} < 0.0, -1.0, 0.0))",
        "floor": _call("tl.floor"),
        "ceil": _call("tl.ceil"),
        "round": _call("round_even"),
        "exp": _call("tl.exp"),
        "expm1": _call("expm1"),
        "exp2": lambda x: f"tl.exp({x} * 0.6931471805599453)",
        "log": _call("tl.log"),
        "log1p": _call("log1p"),
        "log2": lambda x: f"(tl.log({x}) * 1.4426950408889634)",
        "sqrt": _call("tl.sqrt"),
        "rsqrt": lambda x: f"(1.0 / tl.sqrt({x}))",
        "reciprocal": lambda x: f"(1.0 / {x})",
        "sin": _call("tl.sin"),
        "cos": _call("tl.cos"),
        "tanh": _call("tanh"),
        "erf": _call("erf"),
        "sigmoid": _call("sigmoid"),
        "relu": lambda x: f"tl.maximum({x}, 0.0)",
        "silu": _call("silu"),
        "gelu": _call("gelu"),
        "gelu_tanh": _call("gelu_tanh"),
        "softplus": _call("softplus"),
        "log_sigmoid": lambda x: f"(0.0 - softplus(0.0 - {x}))",
        **each_of(NO_BITS, "and", "or", "xor", "not"),
        "pow": NO_BITS,
    },
)

INTEGERS: FunctionTable[Text] = FunctionTable(
    "functions of integers of the cuda target",
    {
        **_COMPARISONS,
        "add": _infix("+"),
        "sub": _infix("-"),
        "mul": _infix("*"),
        "floor_div": _call("floor_divide"),
        "remainder": _call("floor_modulo"),
        "max": _call("tl.maximum"),
        "min": _call("tl.minimum"),
        "and": _infix("&"),
        "or": _infix("|"),
        "xor": _infix("^"),
        "not": lambda x: f"(-1 - {x})",
        "where": _call("tl.where"),
        "neg": lambda x: f"(0 - {x})",
        "abs": _call("tl.abs"),
        "sign": lambda x: f"tl.where({x} > 0, 1, tl.where({x} < 0, -1, 0))",
        "relu": lambda x: f"tl.maximum({x}, 0)",
        **dict.fromkeys(("floor", "ceil", "round"), lambda x: x),
        **each_of(NO_INTEGERS, "div", "pow", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt"),
        **each_of(NO_INTEGERS, "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid", "silu", "gelu", "gelu_tanh"),
        **each_of(NO_INTEGERS, "softplus", "log_sigmoid"),
    },
)

TRUTHS: FunctionTable[Text] = FunctionTable(
    "functions of truth values of the cuda target",
    {
        **_COMPARISONS,
        **dict.fromkeys(("and", "mul", "min"), _infix("&")),
        **dict.fromkeys(("or", "add", "max"), _infix("|")),
        "xor": _infix("!="),
        "not": lambda x: f"({x} == 0)",
        "where": lambda c, x, y: f"(({c} & {x}) | (({c} == 0) & {y}))",
        **each_of(NO_TRUTHS, "sub", "div", "floor_div", "remainder", "pow", "neg", "abs", "sign", "floor", "ceil"),
        **each_of(NO_TRUTHS, "round", "exp", "expm1", "exp2", "log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal"),
        **each_of(NO_TRUTHS, "sin", "cos", "tanh", "erf", "sigmoid", "relu", "silu", "gelu", "gelu_tanh", "softplus"),
        "log_sigmoid": NO_TRUTHS,
    },
)

BY_KIND = {"number": NUMBERS, "integer": INTEGERS, "truth": TRUTHS}


@cache
def device_functions() -> dict[str, str]:
    """The source of every function of `device.py`, by name, in the file's order."""
    text = Path(__file__).with_name("device.py").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for part in text.split("\n\n\n@triton.jit\n")[1:]:
        name = part.removeprefix("def ").partition("(")[0]
        found[name] = "@triton.jit\n" + part.rstrip() + "\n"
    return found


def used_functions(body: str) -> list[str]:
    """The sources of the device functions that a text calls, and of those that they call, callees first."""
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
