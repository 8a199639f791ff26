"""The dialect: all its operations, collected from the files that define them."""

from __future__ import annotations

import inspect

from xdsl.context import Context
from xdsl.dialects.builtin import Builtin
from xdsl.ir import Dialect

from forerun.ir import decoder, elementwise, exchange, products, recurrences, reductions, states, structure, views
from forerun.ir.operation import SpecOperation
from forerun.ir.types import TensorType

OPERATIONS: tuple[type[SpecOperation], ...] = tuple(
    each
    for source in (structure, elementwise, reductions, views, products, decoder, states, recurrences, exchange)
    for _, each in inspect.getmembers(source, inspect.isclass)
    if issubclass(each, SpecOperation) and each.__module__ == source.__name__ and hasattr(each, "name")
)
"""The class of every operation."""

SPEC = Dialect("spec", list(OPERATIONS), [TensorType])


def load_dialects(context: Context) -> None:
    """Register `builtin` and `spec` in an xDSL context."""
    context.load_dialect(Builtin)
    context.load_dialect(SPEC)


def context() -> Context:
    """Returns an xDSL context with `builtin` and `spec`."""
    known = Context()
    load_dialects(known)
    return known
