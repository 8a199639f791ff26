"""Cloning operations with other operands and other sizes for named dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forerun.ir import Builder, Dim, SpecOperation, SSAValue
from forerun.ir import dims as dimensions

SIZES = ("shape", "size", "start", "stop")
"""The parameters that hold dimensions."""


def clone_with(
    operation: SpecOperation, values: dict[SSAValue, SSAValue], names: Mapping[str, Dim], build: Builder
) -> SpecOperation:
    """Clone an operation: operands through `values` (which learns the results), dimension names through `names`.

    The result types follow from the shape rule.
    """
    parameters = {key: substituted(each, names) if key in SIZES else each for key, each in operation.parameters.items()}
    build.location = operation.location
    clone = build.emit(type(operation).make(*(values[each] for each in operation.operands), **parameters))
    for old, new in zip(operation.results, clone.results, strict=True):
        new.name_hint = old.name_hint
        values[old] = new
    return clone


def substituted(value: Any, names: Mapping[str, Dim]) -> Any:
    """A dimension, or a tuple of them, with names replaced."""
    if isinstance(value, tuple):
        return tuple(substituted(each, names) for each in value)
    for name, dim in names.items():
        value = dimensions.substitute(value, name, dim)
    return value
