"""What operations do beside giving results, by their traits."""

from __future__ import annotations

from xdsl.ir import Operation
from xdsl.traits import MemoryEffectKind, get_effects


def is_pure(operation: Operation) -> bool:
    """Whether the results are a function of operands and parameters, and nothing else happens."""
    effects = get_effects(operation)
    return effects is not None and not effects


def only_reads(operation: Operation) -> bool:
    """Whether nothing changes but the results; an operation whose effects are not known is taken to change things."""
    effects = get_effects(operation)
    return effects is not None and all(each.kind is MemoryEffectKind.READ for each in effects)
