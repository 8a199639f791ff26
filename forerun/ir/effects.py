"""The effects of operations besides their results, by their traits."""

from __future__ import annotations

from xdsl.ir import Operation
from xdsl.traits import MemoryEffectKind, get_effects


def is_pure(operation: Operation) -> bool:
    """Whether the results depend only on operands and parameters, and the operation has no other effect."""
    effects = get_effects(operation)
    return effects is not None and not effects


def only_reads(operation: Operation) -> bool:
    """Whether the operation changes nothing besides its results; one with unknown effects counts as changing state."""
    effects = get_effects(operation)
    return effects is not None and all(each.kind is MemoryEffectKind.READ for each in effects)
