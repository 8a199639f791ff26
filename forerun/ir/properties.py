"""Parameters of operations: Python values, each of one declared kind, kept as xDSL properties.

An operation declares `scale: float = parameter(NUMBER)`; `operation.scale` is then the Python number, and xDSL's
verifier refuses a property of another kind. A kind is the constraint on the attribute and the way there and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from xdsl.dialects.builtin import (
    ArrayAttr,
    BoolAttr,
    Float64Type,
    FloatAttr,
    IntegerAttr,
    IntegerType,
    StringAttr,
    SymbolRefAttr,
)
from xdsl.ir import Attribute
from xdsl.irdl import AttrConstraint, IRDLOperation, VerificationContext, opt_prop_def, prop_def
from xdsl.utils.exceptions import VerifyException

from forerun.dims import Dim

_I64, _I1, _F64 = IntegerType(64), IntegerType(1), Float64Type()

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


class Symbol(str):
    """The name of a weight, a state or a function: printed `@name`."""


@dataclass(frozen=True, eq=False)
class Kind(AttrConstraint[Attribute], Generic[T]):
    """How parameters of one Python type are stored.

    `holds` says whether an attribute is one, `accepts` whether a Python value is; `of_dims` marks the kinds that hold
    dimensions, which change where a name of a dimension is replaced.
    """

    what: str
    holds: Callable[[Attribute], bool]
    accepts: Callable[[Any], bool]
    to_attribute: Callable[[T], Attribute]
    to_value: Callable[[Any], T]
    of_dims: bool = False

    def encode(self, value: T) -> Attribute:
        """The attribute of a value; VerifyException if the value is of another kind."""
        if not self.accepts(value):
            raise VerifyException(f"must be {self.what}, not {value!r}")
        return self.to_attribute(value)

    def verify(self, attr: Attribute, constraint_context: VerificationContext) -> None:
        if not self.holds(attr):
            raise VerifyException(f"must be {self.what}, not {attribute_text(attr)}")

    def mapping_type_vars(self, type_var_mapping: Mapping[Any, Any]) -> Kind[T]:
        return self


def _is_integer(attribute: Attribute) -> bool:
    return isinstance(attribute, IntegerAttr) and cast(IntegerAttr[Any], attribute).type == _I64


def _is_flag(attribute: Attribute) -> bool:
    return isinstance(attribute, IntegerAttr) and cast(IntegerAttr[Any], attribute).type == _I1


def _is_number(attribute: Attribute) -> bool:
    return isinstance(attribute, FloatAttr) and cast(FloatAttr[Any], attribute).type == _F64


def _is_text(attribute: Attribute) -> bool:
    return isinstance(attribute, StringAttr)


def _is_symbol(attribute: Attribute) -> bool:
    if not isinstance(attribute, SymbolRefAttr):
        return False
    return attribute.root_reference.data != "" and not attribute.nested_references.data


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(value: int) -> Attribute:
    return IntegerAttr(value, _I64)


def _dimension(value: Dim) -> Attribute:
    return IntegerAttr(value, _I64) if isinstance(value, int) else StringAttr(value)


def _dimension_of(attribute: IntegerAttr[Any] | StringAttr) -> Dim:
    return attribute.data if isinstance(attribute, StringAttr) else attribute.value.data


def _scalar_of(attribute: FloatAttr[Any] | IntegerAttr[Any]) -> bool | int | float:
    return bool(attribute.value.data) if _is_flag(attribute) else attribute.value.data


def _scalar(value: bool | int | float) -> Attribute:
    return BoolAttr.from_bool(value) if isinstance(value, bool) else encode(value)


FLAG: Kind[bool] = Kind(
    "true or false",
    _is_flag,
    lambda value: isinstance(value, bool),
    BoolAttr.from_bool,
    lambda each: bool(each.value.data),
)
INTEGER: Kind[int] = Kind("an integer", _is_integer, _whole, _integer, lambda each: each.value.data)
NUMBER: Kind[float] = Kind(
    "a floating-point number",
    _is_number,
    lambda value: isinstance(value, float) or _whole(value),
    lambda value: FloatAttr(float(value), _F64),
    lambda each: each.value.data,
)
SCALAR: Kind[bool | int | float] = Kind(
    "a number",
    lambda each: _is_flag(each) or _is_integer(each) or _is_number(each),
    lambda value: isinstance(value, bool | int | float),
    _scalar,
    _scalar_of,
)
TEXT: Kind[str] = Kind("a string", _is_text, lambda value: isinstance(value, str), StringAttr, lambda each: each.data)
SYMBOL: Kind[Symbol] = Kind(
    "a nonempty symbol",
    _is_symbol,
    lambda value: isinstance(value, str) and value != "",
    SymbolRefAttr,
    lambda each: Symbol(each.root_reference.data),
)
DIMENSION: Kind[Dim] = Kind(
    "a dimension",
    lambda each: _is_text(each) or _is_integer(each),
    lambda value: isinstance(value, str) or _whole(value),
    _dimension,
    _dimension_of,
    of_dims=True,
)


def items_of(attribute: Attribute) -> Sequence[Attribute]:
    """The attributes of an array; empty for any other attribute."""
    return cast(ArrayAttr[Attribute], attribute).data if isinstance(attribute, ArrayAttr) else ()


def several(kind: Kind[T], what: str) -> Kind[tuple[T, ...]]:
    """Values of one kind, in order."""
    return Kind(
        what,
        lambda each: isinstance(each, ArrayAttr) and all(map(kind.holds, items_of(cast(Attribute, each)))),
        lambda value: type(value) in (list, tuple) and all(map(kind.accepts, value)),
        lambda value: ArrayAttr([kind.to_attribute(each) for each in value]),
        lambda each: tuple(map(kind.to_value, items_of(each))),
        kind.of_dims,
    )


def pair(first: Kind[A], second: Kind[B], what: str) -> Kind[tuple[A, B]]:
    """Two values of their kinds."""

    def holds(attribute: Attribute) -> bool:
        items = items_of(attribute)
        return len(items) == 2 and first.holds(items[0]) and second.holds(items[1])

    return Kind(
        what,
        holds,
        lambda value: len(value) == 2 and first.accepts(value[0]) and second.accepts(value[1]),
        lambda value: ArrayAttr([first.to_attribute(value[0]), second.to_attribute(value[1])]),
        lambda each: (first.to_value(items_of(each)[0]), second.to_value(items_of(each)[1])),
    )


INTEGERS = several(INTEGER, "integers")
DIMENSIONS = several(DIMENSION, "dimensions")


def parameter(kind: Kind[T]) -> T:
    """A parameter that every such operation has."""
    return cast(Any, prop_def(kind))


def optional(kind: Kind[T]) -> T | None:
    """A parameter that may be left out: None."""
    return cast(Any, opt_prop_def(kind))


def default(kind: Kind[T], value: T) -> T:
    """A parameter that has this value if it is left out."""
    return cast(Any, opt_prop_def(kind, kind.encode(value)))


class Accessor(Generic[T]):
    """Reads and writes a property as the Python value that it stands for; setting None leaves it out."""

    def __init__(self, name: str, kind: Kind[T], required: bool, absent: Attribute | None) -> None:
        self.name = name
        self.kind = kind
        self.required = required
        self.absent = None if absent is None else kind.to_value(absent)

    def __get__(self, operation: IRDLOperation, owner: Any = None) -> T | None:
        attribute = operation.properties.get(self.name)
        if attribute is not None:
            return self.kind.to_value(attribute)
        if self.required:
            raise AttributeError(f"this {operation.name} lacks its parameter {self.name!r}")
        return self.absent

    def __set__(self, operation: IRDLOperation, value: T | None) -> None:
        if value is None:
            operation.properties.pop(self.name, None)
        else:
            operation.properties[self.name] = self.kind.encode(value)


# --- attributes of any kind -------------------------------------------------------------------------------------------


def encode(value: Any) -> Attribute:
    """A Python value as an attribute."""
    match value:
        case Symbol():
            return SymbolRefAttr(value)
        case bool():
            return BoolAttr.from_bool(value)
        case int():
            return IntegerAttr(value, _I64)
        case float():
            return FloatAttr(value, _F64)
        case str():
            return StringAttr(value)
        case tuple() | list():
            return ArrayAttr([encode(item) for item in cast(Sequence[Any], value)])
        case _:
            raise TypeError(f"there is no attribute for {value!r}")


def parameter_text(attributes: Mapping[str, Attribute]) -> str:
    """`{name = value, ...}`, with the types of numbers left out: 1 is i64 and 1.0 is f64 to the parser."""
    return "{" + ", ".join(f"{name} = {attribute_text(each)}" for name, each in attributes.items()) + "}"


def attribute_text(attribute: Attribute) -> str:
    match attribute:
        case ArrayAttr():
            return "[" + ", ".join(map(attribute_text, items_of(attribute))) + "]"
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
