"""How long a kernel took and how many bytes it moved: the pieces of `TvmExecutable.time_kernels`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a step."""

    kernel: str
    structure: int  # kernels of one structure run the same code on different weights
    weights: tuple[str, ...]  # of its linears: read in full, however many rows there are
    weight_bytes: int
    value_bytes: int  # of its inputs and results for all rows, and of the cached keys and values it reads
    seconds: float  # the median
