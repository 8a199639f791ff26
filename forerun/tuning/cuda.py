"""The peaks of a GPU, measured with one large read and with matrix products of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from forerun.codegen.backends import BFLOAT16, FLOAT32
from forerun.execute.triton.timing import seconds_of
from forerun.execute.work import ATTENTION

SIZE = 4096
"""Rows and columns of the matrices that are multiplied."""
ARRAY = 1 << 30
"""Bytes that are read, far above any cache."""
DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, "float16": torch.float16}


class CudaPeaks:
    """The read bandwidth of a GPU's memory, and operations per second for each weight dtype.

    float32 is multiplied as float32, without TF32, as kernels do.
    """

    def __init__(self, executable: Any) -> None:
        device = executable.launcher.device
        self._array = torch.ones(ARRAY // 4, device=device)
        self._matrices = {name: torch.ones(SIZE, SIZE, dtype=each, device=device) for name, each in DTYPES.items()}
        self._reads: list[float] = []
        self._products: dict[str, list[float]] = {name: [] for name in DTYPES}

    def measure(self) -> None:
        """Measures once more."""
        self._reads.append(seconds_of(self._array.sum, rounds=3))
        exact, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
        try:
            for name, each in self._matrices.items():
                self._products[name].append(seconds_of(lambda each=each: each @ each, rounds=3))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = exact

    @property
    def bandwidth(self) -> float:
        """Bytes read per second, the most of all measurements."""
        return self._array.nbytes / min(self._reads)

    @property
    def flops(self) -> Mapping[str, float]:
        """Operations per second by arithmetic, the most of all measurements; attentions have those of 16 bits."""
        found = {name: 2 * SIZE**3 / min(times) for name, times in self._products.items()}
        return {**found, ATTENTION: found[BFLOAT16]}
