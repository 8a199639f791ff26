"""Operations of MLIR's torch dialect as calls of ATen operators: names, constants, sizes, and arguments by schema."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import FunctionSchema

from forerun import dims as dimensions
from forerun.ir import Dim, TensorType, torch_dtype

_TENSOR = re.compile(r"!torch\.v?tensor<\[([^\]]*)\],(\w+)>")
_DTYPES = {"si8": "i8", "si16": "i16", "si32": "i32", "si64": "i64"}
_LIBRARIES = ("aten", "prim", "prims")

SCALAR_TYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.qint8, torch.quint8, torch.qint32),
    torch.bfloat16,
)
"""torch's dtypes by their codes."""


class DeclaredTensor(NamedTuple):
    """A tensor's type as the torch dialect declares it: None for a dynamic size."""

    sizes: tuple[int | None, ...]
    dtype: str

    def fits(self, kind: TensorType) -> bool:
        """Whether a value of the IR is such a tensor."""
        same_rank = len(self.sizes) == kind.rank
        return same_rank and self.dtype == kind.dtype and all(map(_fits, self.sizes, kind.dims))


def dtype_of(declared: DeclaredTensor) -> torch.dtype:
    """torch's dtype of a tensor. Raises ValueError if it has none that the IR knows."""
    return torch.uint8 if declared.dtype == "ui8" else torch_dtype(declared.dtype)


def _fits(declared: int | None, dim: Dim) -> bool:
    return declared is None or declared == dim


class Callee(NamedTuple):
    """An operator by library, name and overload: `aten`, `add`, `Tensor`."""

    library: str
    name: str
    overload: str

    @property
    def schema(self) -> FunctionSchema | None:
        """The operator's arguments, None if torch does not know it."""
        schemas = torch._C._jit_get_schemas_for_operator  # pyright: ignore[reportPrivateUsage]
        found: Sequence[FunctionSchema] = schemas(f"{self.library}::{self.name}")
        return next((each for each in found if each.overload_name == self.overload), None)


def callee(name: str) -> Callee | None:
    """The operator of `torch.aten.add.Tensor`; None for an operation of the dialect's own."""
    dialect, _, rest = name.partition(".")
    library, _, rest = rest.partition(".")
    if dialect != "torch" or library not in _LIBRARIES:
        return None
    called, _, overload = rest.partition(".")
    return Callee(library, called, overload)


def declared_tensor(text: str) -> DeclaredTensor | None:
    """The tensor type of a text such as `!torch.vtensor<[1,?],si64>`; None for another type."""
    found = _TENSOR.fullmatch(text)
    if found is None:
        return None
    sizes = [each.strip() for each in found[1].split(",") if each.strip()]
    return DeclaredTensor(tuple(None if each == "?" else int(each) for each in sizes), _DTYPES.get(found[2], found[2]))


def arguments(schema: FunctionSchema, given: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """An operation's operands, in the order of the schema, as arguments by position and by keyword."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for argument, value in zip(schema.arguments, given, strict=True):
        if value is not None and "ScalarType" in str(argument.real_type):
            value = SCALAR_TYPES[value]
        if argument.kwarg_only:
            keywords[argument.name] = value
        else:
            positional.append(value)
    return positional, keywords


def _number(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers, which needs the value of each size."""

    def apply(*given: Any) -> Any:
        named = [each for each in given if isinstance(each, str)]
        if named:
            raise ValueError(f"the value of a size {named[0]}, which no number is known for")
        return function(*given)

    return apply


def _sum(left: Any, right: Any) -> Any:
    return dimensions.add(left, right) if isinstance(left, str) or isinstance(right, str) else left + right


def _product(left: Any, right: Any) -> Any:
    if isinstance(left, str) and isinstance(right, int):
        return dimensions.multiply(left, right)
    if isinstance(right, str) and isinstance(left, int):
        return dimensions.multiply(right, left)
    return _number(operator.mul)(left, right)


def _difference(left: Any, right: Any) -> Any:
    return _sum(left, _product(right, -1))


SCALARS: Mapping[str, Callable[..., Any]] = {
    "add": _sum,
    "sub": _difference,
    "mul": _product,
    "neg": lambda value: _product(value, -1),
    "Int": lambda value: value if isinstance(value, str) else int(value),
    **{name: _number(getattr(operator, name)) for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    "floordiv": _number(operator.floordiv),
    "remainder": _number(operator.mod),
    "div": _number(operator.truediv),
    "sqrt": _number(math.sqrt),
    "Float": _number(float),
    "Bool": _number(bool),
    "max": _number(max),
    "min": _number(min),
}
"""Operators on numbers and sizes, by name."""
