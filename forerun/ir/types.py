"""`!spec.tensor<[N, 576], f32>`: the one type of the dialect, with dimensions that are integers or names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from xdsl.dialects.builtin import (
    ArrayAttr,
    BFloat16Type,
    Float16Type,
    Float32Type,
    Float64Type,
    IntAttr,
    IntegerType,
    StringAttr,
)
from xdsl.ir import Attribute, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from forerun import dims as dimensions
from forerun.dims import Dim

_ELEMENTS: dict[str, tuple[Attribute, torch.dtype]] = {
    "f64": (Float64Type(), torch.float64),
    "f32": (Float32Type(), torch.float32),
    "bf16": (BFloat16Type(), torch.bfloat16),
    "f16": (Float16Type(), torch.float16),
    "i64": (IntegerType(64), torch.int64),
    "i32": (IntegerType(32), torch.int32),
    "i16": (IntegerType(16), torch.int16),
    "i8": (IntegerType(8), torch.int8),
    "i1": (IntegerType(1), torch.bool),
}
_NAME_OF_ELEMENT = {element: name for name, (element, _) in _ELEMENTS.items()}
_NAME_OF_TORCH = {dtype: name for name, (_, dtype) in _ELEMENTS.items()}

LARGEST_DIM = 2**63 - 1
"""What an index can count to."""
INTEGER_DTYPES = frozenset({"i64", "i32", "i16", "i8", "i1"})


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of an element type's name."""
    return _ELEMENTS[name][1]


def dtype_name(dtype: torch.dtype) -> str:
    """The element type's name of a torch dtype; ValueError if the dialect has none."""
    if dtype not in _NAME_OF_TORCH:
        raise ValueError(f"there is no element type for {dtype}, only {', '.join(_ELEMENTS)}")
    return _NAME_OF_TORCH[dtype]


def holds(dtype: str, value: bool | int | float) -> bool:
    """Whether a number is one of the dtype's: any number for floating-point ones, which round it."""
    if dtype not in INTEGER_DTYPES:
        return True
    low, high = (0, 1) if dtype == "i1" else (torch.iinfo(torch_dtype(dtype)).min, torch.iinfo(torch_dtype(dtype)).max)
    return low <= value <= high and value == int(value)


@irdl_attr_definition
class TensorType(ParametrizedAttribute, TypeAttribute):
    """A tensor: `dims` are integers or names (`forerun.dims`), `dtype` one of f64 f32 bf16 f16 i64 i32 i16 i8 i1."""

    name = "spec.tensor"
    shape: ArrayAttr[IntAttr | StringAttr]
    element: Attribute

    @staticmethod
    def of(dims: Sequence[Dim], dtype: str) -> TensorType:
        """The type; ValueError for an unknown dtype, a text that is not a dimension, or a number that is not a size."""
        for dim in dims:
            _require_size(dim)
        if dtype not in _ELEMENTS:
            raise ValueError(f"there is no element type {dtype!r}, only {', '.join(_ELEMENTS)}")
        shape = [IntAttr(dim) if isinstance(dim, int) else StringAttr(dim) for dim in dims]
        return TensorType(ArrayAttr(shape), _ELEMENTS[dtype][0])

    @property
    def dims(self) -> tuple[Dim, ...]:
        return tuple(dim.data for dim in self.shape)

    @property
    def dtype(self) -> str:
        return _NAME_OF_ELEMENT[self.element]

    @property
    def rank(self) -> int:
        return len(self.dims)

    def with_dims(self, dims: Sequence[Dim]) -> TensorType:
        return TensorType.of(dims, self.dtype)

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType.of(self.dims, dtype)

    def substitute(self, name: str, value: Dim) -> TensorType:
        """The type with the dimension name `name` replaced."""
        return self.with_dims([dimensions.substitute(dim, name, value) for dim in self.dims])

    def sizes(self, bindings: Mapping[str, int]) -> tuple[int, ...]:
        """The actual sizes, given values for the names."""
        return tuple(dimensions.evaluate(dim, bindings) for dim in self.dims)

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            dims = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: _parse_dim(parser))
            parser.parse_punctuation(",")
            element = parser.parse_type()
        if element not in _NAME_OF_ELEMENT:
            parser.raise_error(f"{element} is not an element type of a spec.tensor")
        try:
            tensor = TensorType.of(dims, _NAME_OF_ELEMENT[element])
        except ValueError as error:
            parser.raise_error(str(error))
        return (tensor.shape, tensor.element)

    def print_parameters(self, printer: Printer) -> None:
        printer.print_string(f"<[{', '.join(str(dim) for dim in self.dims)}], {self.dtype}>")


@lru_cache(maxsize=4096)
def _require_size(dim: Dim) -> None:
    """Raises ValueError unless an index can count to the dimension, and it can be above 0."""
    scale, name, offset = dimensions.affine(dim)
    if not name and not 0 <= offset <= LARGEST_DIM:
        raise ValueError(f"{dim} is not a size of a dimension; use one from 0 to {LARGEST_DIM}")
    if max(abs(scale), abs(offset)) > LARGEST_DIM or (name and scale <= 0 and offset <= 0):
        raise ValueError(
            f"{dim} is not a size of a dimension; use a multiple of {name} above 0, plus or minus a number"
        )


def _parse_dim(parser: AttrParser) -> Dim:
    scale = parser.parse_optional_integer(allow_boolean=False)
    if scale is not None and parser.parse_optional_punctuation("*") is None:
        return scale
    name = parser.parse_identifier(" as the name of a dimension")
    if scale == 0:
        parser.raise_error(f"0*{name} is not a size of a dimension; use a multiple of {name} above 0")
    offset = 0
    if parser.parse_optional_punctuation("+") is not None:
        offset = parser.parse_integer()
    elif (negative := parser.parse_optional_integer(allow_boolean=False, allow_negative=True)) is not None:
        offset = negative
    return dimensions.Affine(1 if scale is None else scale, name, offset).dim()
