"""Complex tensors, which rotary embeddings use: pairs of real tensors, with the operators that take or give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forerun.frontends.aten_rules import RULES, Rule, promoted
from forerun.frontends.aten_views import unsqueeze
from forerun.ir import Builder, SSAValue, tensor_type


@dataclass(frozen=True)
class Pair:
    """A complex tensor: two tensors of its shape."""

    real: SSAValue
    imaginary: SSAValue


def _polar(build: Builder, radius: SSAValue, angle: SSAValue) -> Pair:
    return Pair(*(build.map("mul", radius, build.map(each, angle)) for each in ("cos", "sin")))


def _complex(build: Builder, real: SSAValue, imaginary: SSAValue) -> Pair:
    return Pair(real, imaginary)


def _view_as_complex(build: Builder, x: SSAValue) -> Pair:
    last = tensor_type(x).rank - 1
    return Pair(*(RULES["select"](build, x, last, each) for each in (0, 1)))


def _view_as_real(build: Builder, x: Pair) -> SSAValue:
    return build.concat([unsqueeze(build, each, -1) for each in (x.real, x.imaginary)], tensor_type(x.real).rank)


def _multiply(build: Builder, x: Any, y: Any) -> Pair:
    x, y = (each if isinstance(each, Pair) else Pair(each, build.constant(0, "f32")) for each in (x, y))

    def times(a: SSAValue, b: SSAValue) -> SSAValue:
        return build.map("mul", *promoted(build, a, b))

    real = build.map("sub", times(x.real, y.real), times(x.imaginary, y.imaginary))
    return Pair(real, build.map("add", times(x.real, y.imaginary), times(x.imaginary, y.real)))


def _each(rule: Rule) -> Rule:
    return lambda build, x, *arguments, **keywords: Pair(
        *(rule(build, part, *arguments, **keywords) for part in (x.real, x.imaginary))
    )


COMPLEX: dict[str, Callable[..., Any]] = {
    "polar": _polar,
    "complex": _complex,
    "view_as_complex": _view_as_complex,
    "view_as_real": _view_as_real,
    "mul": _multiply,
    "to": lambda build, x, *arguments, **keywords: x,
    "real": lambda build, x: x.real,
    "imag": lambda build, x: x.imaginary,
    "conj": lambda build, x: Pair(x.real, build.map("neg", x.imaginary)),
}
PARTWISE: Sequence[str] = (
    "view", "reshape", "unsqueeze", "squeeze", "transpose", "permute", "expand", "slice", "select", "index",
    "index_select", "contiguous", "clone", "detach", "alias", "repeat", "repeat_interleave", "flatten", "neg",
)  # fmt: skip
"""Operators that do the same with both parts."""


def complex_rule(name: str) -> Rule | None:
    """The rule of an operator for complex operands, or that makes them; None if there is none."""
    return COMPLEX.get(name) or (_each(RULES[name]) if name in PARTWISE else None)
