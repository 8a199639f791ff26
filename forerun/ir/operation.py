"""The base of every `spec` operation: uniform text, typed parameters, one shape rule, one reference semantics.

    operation ::= results? `spec.` name symbol? `(` operands `)` attributes? (`->` types)?

An operation class gives, beside its definition,
  infer     the result types from the operand types and the parameters; builder and verifier share it;
  evaluate  what it means, in torch; the reference interpreter calls it;
  effects   `WRITES = True` where it changes a cache, so that dead-code elimination keeps it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from xdsl.dialects.builtin import ArrayAttr, BoolAttr, Float64Type, FloatAttr, IntegerAttr, IntegerType, StringAttr
from xdsl.dialects.builtin import SymbolRefAttr as _SymbolRefAttr
from xdsl.ir import Attribute, Region, SSAValue
from xdsl.irdl import IRDLOperation, var_operand_def, var_region_def, var_result_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import IsTerminator
from xdsl.utils.exceptions import VerifyException

from forerun.ir.types import TensorType

Tensors = torch.Tensor | tuple[torch.Tensor, ...]
Parameters = Mapping[str, Any]

_I64, _F64 = IntegerType(64), Float64Type()


class Symbol(str):
    """The name of a weight, a cache or a function: printed `@name`."""


def encode(value: Any) -> Attribute:
    """A Python parameter as an attribute."""
    match value:
        case Attribute():
            return value
        case Symbol():
            return _SymbolRefAttr(value)
        case bool():
            return BoolAttr.from_bool(value)
        case int():
            return IntegerAttr(value, _I64)
        case float():
            return FloatAttr(value, _F64)
        case str():
            return StringAttr(value)
        case tuple() | list():
            return ArrayAttr([encode(item) for item in value])
        case _:
            raise TypeError(f"no attribute for {value!r}")


def decode(attribute: Attribute) -> Any:
    """The Python parameter of an attribute; the inverse of `encode`."""
    match attribute:
        case _SymbolRefAttr():
            return Symbol(attribute.root_reference.data)
        case IntegerAttr():
            value = attribute.value.data
            return bool(value) if attribute.type == IntegerType(1) else value
        case FloatAttr():
            return attribute.value.data
        case StringAttr():
            return attribute.data
        case ArrayAttr():
            return tuple(decode(item) for item in attribute.data)
        case _:
            return attribute


def parameter_text(attributes: Mapping[str, Attribute]) -> str:
    """`{name = value, ...}`, with the types of numbers left out: 1 is i64 and 1.0 is f64 to the parser."""
    return "{" + ", ".join(f"{name} = {_attribute_text(each)}" for name, each in attributes.items()) + "}"


def _attribute_text(attribute: Attribute) -> str:
    match attribute:
        case ArrayAttr():
            return "[" + ", ".join(_attribute_text(item) for item in attribute.data) + "]"
        case IntegerAttr() if attribute.type == _I64:
            return str(attribute.value.data)
        case FloatAttr() if attribute.type == _F64 and math.isfinite(attribute.value.data):
            return _float_text(attribute.value.data)
        case _:
            return str(attribute)


def _float_text(value: float) -> str:
    """The shortest text that gives the same bits, with the point MLIR wants: 1.0e-06 for Python's 1e-06."""
    mantissa, e, exponent = repr(value).partition("e")
    return mantissa + ("" if "." in mantissa else ".0") + e + exponent


@dataclass
class Environment:
    """What evaluation may look at besides operands: weights, caches, and the values of dimension names."""

    weights: Callable[[str], torch.Tensor]
    caches: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict[str, tuple[torch.Tensor, torch.Tensor]]
    )
    bindings: dict[str, int] = field(default_factory=dict[str, int])


class SpecOperation(IRDLOperation):
    """An operation on tensors. `spec.name @symbol(%operands) {parameters} -> types`."""

    inputs = var_operand_def(TensorType)
    outputs = var_result_def(TensorType)
    bodies = var_region_def()

    WRITES: ClassVar[bool] = False
    """Whether it changes a cache."""

    @classmethod
    def make(cls, *inputs: SSAValue, **parameters: Any) -> Self:
        """Build the operation; its result types follow from the shape rule. `None` parameters are left out."""
        given = {name: value for name, value in parameters.items() if value is not None}
        types = cls.infer([tensor_type(value) for value in inputs], given)
        return cls.raw(inputs, types, given)

    @classmethod
    def raw(
        cls, inputs: Sequence[SSAValue], types: Sequence[TensorType], parameters: Parameters, body: Region | None = None
    ) -> Self:
        """Build the operation with result types as given."""
        return cls.create(
            operands=inputs,
            result_types=types,
            attributes={name: encode(value) for name, value in parameters.items()},
            regions=[] if body is None else [body],
        )

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        """The shape rule; VerifyException where the operands do not fit."""
        raise NotImplementedError

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        """The reference semantics."""
        raise NotImplementedError

    @property
    def parameters(self) -> dict[str, Any]:
        return {name: decode(attribute) for name, attribute in self.attributes.items()}

    def parameter(self, name: str, default: Any = None) -> Any:
        attribute = self.attributes.get(name)
        return default if attribute is None else decode(attribute)

    @property
    def result(self) -> SSAValue:
        """The only result."""
        (result,) = self.results
        return result

    @property
    def ends_body(self) -> bool:
        return self.has_trait(IsTerminator)

    @property
    def mnemonic(self) -> str:
        return self.name.removeprefix("spec.")

    def verify_(self) -> None:
        expected = self._expected()
        actual = [value.type for value in self.outputs]
        if expected != actual:
            shown = ", ".join(str(each) for each in expected)
            raise VerifyException(f"gives ({shown}), not ({', '.join(str(each) for each in actual)})")

    def _expected(self) -> list[TensorType]:
        """The result types by the shape rule; what text of any kind can make it stumble over, in words."""
        given = self.parameters
        try:
            return list(self.infer([tensor_type(value) for value in self.inputs], given))
        except KeyError as error:
            raise VerifyException(f"needs the parameter {error.args[0]!r}") from error
        except (ArithmeticError, AttributeError, IndexError, TypeError, ValueError) as error:
            shown = ", ".join(str(value.type) for value in self.inputs)
            raise VerifyException(
                f"does not take the operands ({shown}) with the parameters {given} ({error})"
            ) from error

    def print(self, printer: Printer) -> None:
        attributes = dict(self.attributes)
        symbol = attributes.get("symbol")
        if isinstance(symbol, _SymbolRefAttr):
            printer.print_string(f" @{symbol.root_reference.data}")
            del attributes["symbol"]
        printer.print_string("(")
        printer.print_list(self.inputs, printer.print_ssa_value)
        printer.print_string(")")
        if attributes or self.regions:
            printer.print_string(f" {parameter_text(attributes)}")
        for region in self.regions:
            printer.print_string(" ")
            printer.print_region(region)
        if self.outputs:
            printer.print_string(" -> ")
            printer.print_list(self.outputs, lambda value: printer.print_attribute(value.type))

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        symbol = parser.parse_optional_symbol_name()
        inputs = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: _parse_defined(parser))
        attributes = dict(parser.parse_optional_attr_dict())
        if symbol is not None:
            attributes = {"symbol": _SymbolRefAttr(symbol.data), **attributes}
        regions = [] if (body := parser.parse_optional_region()) is None else [body]
        types = (
            parser.parse_comma_separated_list(parser.Delimiter.NONE, parser.parse_type)
            if parser.parse_optional_punctuation("->") is not None
            else []
        )
        return cls.create(operands=inputs, result_types=types, attributes=attributes, regions=regions)


def _parse_defined(parser: Parser) -> SSAValue:
    """An operand whose definition stands above it, so that its type need not be repeated."""
    operand = parser.parse_unresolved_operand()
    values = parser.ssa_values.get(operand.operand_name, ())
    if operand.index >= len(values):
        parser.raise_error(f"%{operand.operand_name} is used before its definition", operand.span)
    return values[operand.index]


def tensor_type(value: SSAValue) -> TensorType:
    """The type of a value; every value of the dialect is a tensor."""
    if not isinstance(value.type, TensorType):
        raise VerifyException(f"a spec.tensor is expected, not {value.type}")
    return value.type


def require_dim(dim: Any, *types: TensorType) -> None:
    """`dim` is an axis of all these tensors, counted from the front."""
    for each in types:
        require(isinstance(dim, int) and 0 <= dim < each.rank, f"has no dimension {dim} in {each}")


def require_parameters(parameters: Parameters, *names: str) -> None:
    """These parameters are given; KeyError, which the verifier puts into words, names the first that is not."""
    for name in names:
        parameters[name]


def require(condition: bool, message: str) -> None:
    """A condition of a shape rule."""
    if not condition:
        raise VerifyException(message)
