"""How long a kernel took and how many bytes it moved: the pieces of `TvmExecutable.time_kernels`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from forerun import dims as dimensions
from forerun.codegen.program import NUMBER, Kernel
from forerun.runtime.executable import Rows


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a step."""

    kernel: str
    structure: int  # kernels of one structure run the same code on different weights
    weights: tuple[str, ...]  # of its linears: read in full, however many rows there are
    weight_bytes: int
    value_bytes: int  # of its inputs and results for all rows, and of the cached keys and values it reads
    seconds: float  # the median


def value_bytes(kernel: Kernel, bindings: Mapping[str, int], rows: Rows) -> int:
    """Returns the bytes of a kernel's inputs and results, and of the histories that its attention reads."""
    total = sum(math.prod(dimensions.evaluate(dim, bindings) for dim in dims) for dims in kernel.moved)
    return (total + kernel.history * _history(rows)) * NUMBER


def _history(rows: Rows) -> int:
    """Returns the number of positions of all sequences of a step; rows of one sequence share them."""
    longest: dict[int, int] = {}
    for sequence, position in zip(rows.sequences.tolist(), rows.positions.tolist(), strict=True):
        longest[sequence] = max(longest.get(sequence, 0), position + 1)
    return sum(longest.values())
