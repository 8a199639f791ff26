"""Helpers of patterns: what defines a value, which constant it is, whether it is used once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from forerun import dims as dimensions
from forerun.ir import Broadcast, Constant, Map, Reshape, SpecOperation, SSAValue, tensor_type

HIDDEN = -1e4
"""A number this low, put where a score would be, hides the key (models write -1e4, -1e9, the dtype's least, -inf)."""

SEQUENCE = "T"
"""The name of the sequence dimension in `@forward`."""

Op = TypeVar("Op", bound=SpecOperation)


def defined_by(value: SSAValue, kind: type[Op]) -> Op | None:
    """Returns the operation of that class that defines the value, or None."""
    return value.owner if isinstance(value.owner, kind) else None


def mapped(value: SSAValue, function: str) -> Map | None:
    """Returns the `spec.map` of that function that defines the value, or None."""
    operation = defined_by(value, Map)
    return operation if operation is not None and operation.function == function else None


def number(value: SSAValue) -> bool | int | float | None:
    """Returns the number that every element of a value equals, or None."""
    while isinstance(view := value.owner, Broadcast | Reshape):
        value = view.x
    constant = defined_by(value, Constant)
    return None if constant is None else constant.value


def either_order(operation: Map) -> Iterator[tuple[SSAValue, SSAValue]]:
    """Both orders of a commutative operation's operands."""
    left, right = operation.inputs
    yield left, right
    yield right, left


def used_once(value: SSAValue) -> bool:
    return value.has_one_use()


def symbols(value: SSAValue) -> set[str]:
    """The names in a value's dimensions."""
    return {dimensions.symbol(dim) for dim in tensor_type(value).dims} - {""}


def is_vector(value: SSAValue, size: int | str, beside: SSAValue) -> bool:
    """Whether a value is one number per feature for all tokens: its last dimension is `size`, all others are 1.

    Where what it is combined with does not run along a sequence, as in a cached step, it must be a constant.
    """
    dims = tensor_type(value).dims
    vector = dims[-1:] == (size,) and all(dim == 1 for dim in dims[:-1])
    return vector and (bool(symbols(beside)) or is_constant(value))


def is_constant(value: SSAValue) -> bool:
    """Whether a value is computed from weights and numbers alone."""
    pending, seen = [value], {value}
    while pending:
        owner = pending.pop().owner
        if not isinstance(owner, SpecOperation):
            return False
        pending += [each for each in owner.operands if each not in seen]
        seen.update(owner.operands)
    return True
