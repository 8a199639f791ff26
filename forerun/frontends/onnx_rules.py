"""The table from ONNX operators to rules that the `onnx_*` files fill, and what a rule is given.

A rule is `rule(call)`: it returns a value (a value of the IR, or one that is known), or a tuple of them, one for each
output. Where an operator means what one of ATen's means, its rule is ATen's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from forerun import dims as dimensions
from forerun.frontends.aten import RULES as ATEN
from forerun.frontends.onnx_values import Extent, Known
from forerun.ir import Builder, Dim, SSAValue, tensor_type

Value = SSAValue | Known
Rule = Callable[["Call"], Any]
RuleType = TypeVar("RuleType", bound=Rule)

MICROSOFT = "com.microsoft"
"""The domain of onnxruntime's own operators; the standard's is ""."""

DTYPES = {1: "f32", 3: "i8", 5: "i16", 6: "i32", 7: "i64", 9: "i1", 10: "f32", 11: "f64", 16: "f32"}
"""The element types that a cast may name; half precision is widened."""

RULES: dict[tuple[str, str], Rule] = {}
"""By domain and operator."""
KNOWN_RULES: dict[str, Rule] = {}
"""Rules of the standard's operators for operands that are all known; None where the other rule is to be used."""


@dataclass(frozen=True)
class Call:
    """A node with its operands, None for those that are left out."""

    build: Builder
    operator: str
    operands: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    outputs: int
    """The number of outputs that the node has."""
    extent: Extent
    emit: Callable[[Known], SSAValue]

    def operand(self, at: int) -> Value | None:
        return self.operands[at] if at < len(self.operands) else None

    def value(self, at: int) -> Value:
        """An operand, known or not. Raises ValueError if it is left out."""
        found = self.operand(at)
        if found is None:
            raise ValueError(f"operand {at} is left out")
        return found

    def optional(self, at: int) -> SSAValue | None:
        """An operand as a value of the IR, or None."""
        value = self.operand(at)
        return self.emit(value) if isinstance(value, Known) else value

    def tensor(self, at: int) -> SSAValue:
        """An operand as a value of the IR. Raises ValueError if it is left out."""
        value = self.value(at)
        return self.emit(value) if isinstance(value, Known) else value

    def tensors(self) -> list[SSAValue]:
        return [self.tensor(at) for at in range(len(self.operands))]

    def known(self, at: int) -> Known:
        """An operand that must be known. Raises ValueError."""
        value = self.value(at)
        if not isinstance(value, Known):
            raise ValueError(f"operand {at} depends on the tokens")
        return value

    def dims(self, at: int) -> list[Dim]:
        return self.known(at).dims()

    def shape(self, at: int) -> tuple[Dim, ...]:
        """The dimensions of an operand."""
        value = self.value(at)
        return tuple(value.array.shape) if isinstance(value, Known) else tensor_type(value).dims

    def integers(self, name: str, at: int) -> list[int] | None:
        """Integers that older opsets have as an attribute and newer ones as an operand; None if left out."""
        if name in self.attributes:
            return [int(each) for each in self.attributes[name]]
        if self.operand(at) is None:
            return None
        found = self.dims(at)
        if any(isinstance(each, str) for each in found):
            raise ValueError(f"{name} {found}, which depend on the sequence")
        return [int(each) for each in found]

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def axis(self, default: int, rank: int, name: str = "axis") -> int:
        """The axis that an attribute names, counted from the front."""
        return axis_of(int(self.attribute(name, default)), rank)

    def require(self, **allowed: Any) -> None:
        """Raises ValueError unless each attribute is left out or has the value."""
        for name, value in allowed.items():
            if self.attribute(name, value) != value:
                raise ValueError(f"{name} = {self.attribute(name)}")


def rule(*operators: str, domain: str = "") -> Callable[[RuleType], RuleType]:
    def register(function: RuleType) -> RuleType:
        RULES.update(dict.fromkeys(((domain, each) for each in operators), function))
        return function

    return register


def known_rule(*operators: str) -> Callable[[RuleType], RuleType]:
    def register(function: RuleType) -> RuleType:
        KNOWN_RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def aten(name: str) -> Callable[..., Any]:
    """The rule of an ATen operator."""
    return ATEN[name]


def axis_of(dim: int, rank: int) -> int:
    """An axis counted from the front. Raises ValueError if there is none."""
    if not -rank <= dim < max(rank, 1):
        raise ValueError(f"axis {dim} of {rank} dimensions")
    return dim % max(rank, 1)


def dtype_of(value: Value) -> str:
    return value.dtype if isinstance(value, Known) else tensor_type(value).dtype


def less(left: Dim, right: Dim) -> Dim:
    """left - right."""
    return dimensions.add(left, dimensions.multiply(right, -1))
