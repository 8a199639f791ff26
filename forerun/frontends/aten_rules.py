"""The table of rules that the `aten_*` files fill, and helpers for their operands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch

from forerun import dims as dimensions
from forerun.ir import Builder, Dim, Iota, SSAValue, dtype_name, tensor_type, torch_dtype

Scalar = bool | int | float
Operand = SSAValue | Scalar
Rule = Callable[..., Any]
"""Gives a value, or a tuple of values."""

RuleType = TypeVar("RuleType", bound=Rule)

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[RuleType], RuleType]:
    def register(function: RuleType) -> RuleType:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def size_value(build: Builder, size: Dim) -> SSAValue:
    """Returns a size as a number: the last of those from 0 to it."""
    counted = build.add(Iota, size=dimensions.add(size, 1))
    return build.reshape(build.slice(counted, 0, size, dimensions.add(size, 1)), ())


def _witness(operand: SSAValue | Scalar) -> torch.Tensor | Scalar:
    """A stand-in with the dtype and rank that torch's promotion looks at."""
    if not isinstance(operand, SSAValue):
        return operand
    kind = tensor_type(operand)
    return torch.empty((1,) * kind.rank, dtype=torch_dtype(kind.dtype))


def promoted(build: Builder, *given: Operand | str, least: str | None = None) -> list[SSAValue]:
    """The operands in the dtype that torch would compute in; numbers become constants, and named sizes numbers."""
    operands = [size_value(build, each) if isinstance(each, str) else each for each in given]
    dtype = torch.bool
    if len(operands) == 1:
        dtype = torch.result_type(_witness(operands[0]), _witness(operands[0]))
    for left, right in pairwise(operands):
        dtype = torch.promote_types(dtype, torch.result_type(_witness(left), _witness(right)))
    if least is not None and not dtype.is_floating_point:
        dtype = torch_dtype(least)
    name = dtype_name(dtype)
    return [build.cast(each, name) if isinstance(each, SSAValue) else build.constant(each, name) for each in operands]


def floating(build: Builder, value: SSAValue) -> SSAValue:
    """The operand of a function that integers are converted for."""
    return promoted(build, value, least="f32")[0]


def axis(value: SSAValue, dim: int, extra: int = 0) -> int:
    """A dimension counted from the front."""
    return dim % max(1, tensor_type(value).rank + extra)


def axes(value: SSAValue, dims: int | Sequence[int] | None) -> tuple[int, ...]:
    """Dimensions counted from the front; all of them for None or an empty list."""
    if dims is None or dims == []:
        return tuple(range(tensor_type(value).rank))
    return tuple(axis(value, each) for each in ([dims] if isinstance(dims, int) else dims))


def named(dtype: torch.dtype | None, default: torch.dtype) -> str:
    return dtype_name(dtype or default)
