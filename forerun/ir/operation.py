"""The base of every `spec` operation: named operands and parameters, one shape rule, one reference semantics.

    operation ::= results? `spec.` name symbol? `(` operands `)` parameters? (`->` types)?

An operation class gives, besides its operands (`operand_def`), results and parameters (`forerun.ir.properties`),
  infer     the result types from the operands' types and the parameters, by name; builder and verifier share it;
  evaluate  its meaning, in torch; the reference interpreter calls it;
  traits    its effects: `Pure()`, or what it reads and writes, so that dead-code elimination knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    OptOperandDef,
    OptPropertyDef,
    VarOperandDef,
    irdl_op_definition,
    result_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import IsTerminator
from xdsl.utils.exceptions import VerifyException

from forerun.dims import Dim
from forerun.errors import UnsupportedOperationError
from forerun.ir import form
from forerun.ir.declared import SEGMENTS, DeclaredOperation
from forerun.ir.faults import misfit
from forerun.ir.form import segments
from forerun.ir.properties import Accessor, Kind
from forerun.ir.types import TensorType

Tensors = torch.Tensor | tuple[torch.Tensor, ...]
Types = Sequence[TensorType]
"""The types of an operation's results."""

STUMBLED = (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What a shape rule raises on operands and parameters that no rule was written for."""

T = TypeVar("T")
Defined = TypeVar("Defined", bound="SpecOperation")


class Channel(Protocol):
    """The way between parts of a step that are evaluated side by side; with `peers`, between those that share one."""

    def send(self, payload: str, value: torch.Tensor, peers: bool = False) -> None: ...

    def receive(self, payload: str, peers: bool = False) -> torch.Tensor: ...


class NoChannel:
    """What a function has that is evaluated by itself."""

    def send(self, payload: str, value: torch.Tensor, peers: bool = False) -> None:
        raise UnsupportedOperationError(f"The payload {payload} needs another part; evaluate both parts together.")

    def receive(self, payload: str, peers: bool = False) -> torch.Tensor:
        raise UnsupportedOperationError(f"The payload {payload} needs another part; evaluate both parts together.")


@dataclass
class Environment:
    """The data that evaluation may use besides operands: weights, states, the values of dimension names, and the way to
    another part."""

    weights: Callable[[str], torch.Tensor]
    states: dict[str, torch.Tensor] = field(default_factory=dict[str, torch.Tensor])  # [slots, *shape]
    bindings: dict[str, int] = field(default_factory=dict[str, int])
    channel: Channel = field(default_factory=NoChannel)


class SpecOperation(DeclaredOperation):
    """An operation on tensors. `spec.name @symbol(%operands) {parameters} -> types`."""

    @classmethod
    def make(cls, *inputs: SSAValue | None, **given: Any) -> Self:
        """Build the operation from its operands, by position or name, and its parameters.

        A value of None is left out. The result types follow from the shape rule; VerifyException if it refuses.
        """
        placed = [*inputs]
        parameters: dict[str, Any] = {}
        properties: dict[str, Attribute] = {}
        for name, value in given.items():
            if value is None:
                continue
            if name in cls.PARAMETERS:
                properties[name] = cls.encoded(name, value)
                parameters[name] = value
            elif name in cls.OPERANDS:
                place = cls.OPERANDS.index(name)
                placed.extend([None] * (place + 1 - len(placed)))
                placed[place] = value
                properties.setdefault(SEGMENTS, _NO_SEGMENTS)
            else:
                raise VerifyException(cls.unknown(name))
        if cls.SEGMENTED:
            placed.extend([None] * (len(cls.OPERANDS) - len(placed)))
            properties[SEGMENTS] = segments([each is not None for each in placed])
        else:
            properties.pop(SEGMENTS, None)
        types = cls.inferred([None if each is None else tensor_type(each) for each in placed], parameters)
        operands = [each for each in placed if each is not None]
        return cls.create(operands=operands, result_types=types, properties=properties)

    def remade(self, operands: Sequence[SSAValue], **changes: Any) -> Self:
        """Returns the operation on other operands, one for each of its own, with some parameters changed."""
        properties = dict(self.properties)
        for name, value in changes.items():
            properties[name] = self.encoded(name, value)
        parameters = self.decoded() | changes if changes else self.decoded()
        types = self.inferred(self.placed([tensor_type(each) for each in operands]), parameters)
        return self.create(operands=operands, result_types=types, properties=properties)

    @classmethod
    def infer(cls, *types: Any, **parameters: Any) -> Types:
        """The shape rule: operands' types by position, None for those left out, and parameters by name.

        Raises VerifyException if they do not fit.
        """
        raise UnsupportedOperationError(f"{cls.name} has no shape rule; give its class an `infer` method.")

    def evaluate(self, environment: Environment, *inputs: Any, **unused: Any) -> Tensors:
        """The reference semantics: operands by position, None for those left out."""
        raise UnsupportedOperationError(f"{self.name} cannot be evaluated by itself.")

    def placed(self, values: Sequence[T]) -> list[T | None]:
        """The given items by operand, with None for an optional operand that is left out."""
        if not self.OPTIONAL:
            return [*values]
        if not self.SEGMENTED:
            return [*values, *[None] * (len(self.OPERANDS) - len(values))]
        rest = iter(values)
        return [next(rest) if there else None for there in self.there()]

    def replace_operand(self, name: str, value: SSAValue) -> None:
        """Replace a named operand by another value."""
        there = self.there() if self.SEGMENTED else [1] * len(self.operands)
        self.operands[sum(there[: self.OPERANDS.index(name)])] = value

    @property
    def reads(self) -> tuple[str, ...]:
        """The states whose records it reads."""
        return ()

    @property
    def writes(self) -> tuple[str, ...]:
        """The states whose records it writes."""
        return ()

    @property
    def ends_body(self) -> bool:
        return self.has_trait(IsTerminator)

    @property
    def mnemonic(self) -> str:
        return self.name.removeprefix("spec.")

    # --- parameters ---------------------------------------------------------------------------------------------------

    @classmethod
    def encoded(cls, name: str, value: Any) -> Attribute:
        try:
            return cls.PARAMETERS[name].encode(value)
        except VerifyException as error:
            raise VerifyException(f"the parameter {name!r} {error}") from error

    def decoded(self) -> dict[str, Any]:
        """The parameters that are given, as Python values."""
        kinds = self.PARAMETERS
        return {name: kinds[name].to_value(each) for name, each in self.properties.items() if name != SEGMENTS}

    def sizes(self) -> dict[str, Dim | tuple[Dim, ...]]:
        """The parameters that hold dimensions."""
        kinds = self.PARAMETERS
        sized = [name for name in self.properties if name != SEGMENTS and kinds[name].of_dims]
        return {name: kinds[name].to_value(self.properties[name]) for name in sized}

    # --- verification -------------------------------------------------------------------------------------------------

    @classmethod
    def inferred(cls, types: Sequence[TensorType | None], parameters: Mapping[str, Any]) -> Types:
        """The result types by the shape rule; whatever the operands and parameters, a failure of it is put in words."""
        try:
            return cls.infer(*types, **parameters)
        except STUMBLED as error:
            for name in cls.PARAMETERS:
                if name in cls.REQUIRED and name not in parameters:
                    raise VerifyException(f"needs the parameter {name!r}") from error
            shown = ", ".join(str(each) for each in types if each is not None)
            raise VerifyException(
                f"does not take the operands ({shown}) with the parameters {dict(parameters)} ({error})"
            ) from error

    def check(self) -> None:
        """The results are those that the shape rule gives."""
        types = [tensor_type(value) for value in self.operands]
        expected = self.inferred(self.placed(types), self.decoded())
        actual = [value.type for value in self.results]
        if list(expected) != actual:
            shown = ", ".join(str(each) for each in expected)
            raise VerifyException(f"gives ({shown}), not ({', '.join(str(each) for each in actual)})")

    def verify_all(self, declared: Callable[[Any], None]) -> None:
        """xDSL's verifier of the declarations, then the shape rule."""
        try:
            declared(self)
            if self.attributes:
                raise VerifyException(self.unknown(next(iter(self.attributes))))
        except VerifyException as error:
            raise VerifyException(misfit(self, error)) from error
        self.check()

    def print(self, printer: Printer) -> None:
        form.print_operation(self, printer)

    @classmethod
    def parse(cls, parser: Parser) -> Self:
        return form.parse_operation(cls, parser)


class ValueOperation(SpecOperation):
    """An operation with one result."""

    result = result_def(TensorType)


def operation(cls: type[Defined]) -> type[Defined]:
    """Decorates the class of an operation: xDSL's definition, with parameters read as Python values."""
    cls = irdl_op_definition(cls)
    definition = cls.get_irdl_definition()
    kinds: dict[str, Kind[Any]] = {}
    for name, each in definition.properties.items():
        constraint: Any = each.constr
        if isinstance(constraint, Kind):
            kinds[name] = cast(Kind[Any], constraint)
            setattr(cls, name, Accessor(name, kinds[name], not isinstance(each, OptPropertyDef), each.default_value))
    cls.PARAMETERS = kinds
    cls.REQUIRED = frozenset(name for name in kinds if not isinstance(definition.properties[name], OptPropertyDef))
    cls.OPERANDS = tuple(name for name, _ in definition.operands)
    cls.OPTIONAL = tuple(name for name, each in definition.operands if isinstance(each, OptOperandDef))
    cls.VARIADIC = any(
        isinstance(each, VarOperandDef) and not isinstance(each, OptOperandDef) for _, each in definition.operands
    )
    cls.SEGMENTED = SEGMENTS in definition.properties
    declared = cls.verify_

    def verify_(self: SpecOperation) -> None:
        self.verify_all(declared)

    cls.verify_ = verify_
    return cls


_NO_SEGMENTS = segments([])
"""Keeps the place of the sizes among the properties, until they are known."""


def tensor_type(value: SSAValue) -> TensorType:
    """The type of a value; every value of the dialect is a tensor."""
    if not isinstance(value.type, TensorType):
        raise VerifyException(f"a spec.tensor is expected, not {value.type}")
    return value.type


def require(condition: bool, message: str) -> None:
    """A condition of a shape rule."""
    if not condition:
        raise VerifyException(message)


def require_dim(dim: int, *types: TensorType) -> None:
    """`dim` is an axis of all these tensors, counted from the front."""
    for each in types:
        require(0 <= dim < each.rank, f"has no dimension {dim} in {each}")
