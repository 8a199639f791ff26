"""Cloning operations with other operands and other sizes for named dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from forerun import dims as dimensions
from forerun.ir import Builder, Dim, SpecOperation, SSAValue


def clone_with(
    operation: SpecOperation, values: dict[SSAValue, SSAValue], names: Mapping[str, Dim], build: Builder
) -> SpecOperation:
    """Clone an operation: operands through `values` (which learns the results), dimension names through `names`.

    The result types follow from the shape rule.
    """
    build.location = operation.location
    sizes = {name: substituted(each, names) for name, each in operation.sizes().items()} if names else {}
    clone = build.emit(operation.remade([values[each] for each in operation.operands], **sizes))
    for old, new in zip(operation.results, clone.results, strict=True):
        new.name_hint = old.name_hint
        values[old] = new
    return clone


def substituted(value: Dim | tuple[Dim, ...], names: Mapping[str, Dim]) -> Dim | tuple[Dim, ...]:
    """A dimension, or several, with names replaced."""
    if isinstance(value, tuple):
        return tuple(_replaced(each, names) for each in value)
    return _replaced(value, names)


def _replaced(dim: Dim, names: Mapping[str, Dim]) -> Dim:
    for name, other in names.items():
        dim = dimensions.substitute(dim, name, other)
    return dim
