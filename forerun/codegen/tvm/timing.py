"""What a kernel took, and what it had to move: the pieces of `TvmExecutable.time_kernels`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from forerun import ir
from forerun.codegen.tvm.attention import padded
from forerun.codegen.tvm.memory import NUMBER
from forerun.codegen.tvm.planning import AttentionPhase, Plan, ProductPhase
from forerun.runtime.executable import Rows


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a step."""

    kernel: str
    structure: int  # kernels of one structure run the same code on other weights
    weights: tuple[str, ...]  # of its linears: read whole, whatever the rows
    weight_bytes: int
    value_bytes: int  # its inputs and results for all rows, and the cached keys and values that it reads
    seconds: float  # the median


def linear_weights(plan: Plan) -> tuple[str, ...]:
    """The weights of a kernel's linears."""
    bundles = [bundle for phase in plan.phases if isinstance(phase, ProductPhase) for bundle in phase.bundles]
    slots = [product.weight.slot for bundle in bundles for product in bundle.products]
    return tuple(dict.fromkeys(plan.slots[slot].key for slot in slots))


def value_bytes(plan: Plan, bindings: Mapping[str, int], rows: Rows) -> int:
    """Bytes of a kernel's inputs and results, each counted once, and of the histories that its attention reads."""
    values = [ir.tensor_type(slot.key) for slot in plan.slots if slot.kind == "value"]
    total = sum(math.prod(kind.sizes(bindings)) for kind in values)
    for phase in plan.phases:
        if isinstance(phase, AttentionPhase):
            layer = phase.attention.layer
            total += _history(rows) * layer.heads * (layer.key_dim + padded(layer.value_dim))
    return total * NUMBER


def _history(rows: Rows) -> int:
    """Positions of all sequences of a step; rows of one sequence share them."""
    longest: dict[int, int] = {}
    for sequence, position in zip(rows.sequences.tolist(), rows.positions.tolist(), strict=True):
        longest[sequence] = max(longest.get(sequence, 0), position + 1)
    return sum(longest.values())
