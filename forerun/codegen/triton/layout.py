"""Conventions shared by the GPU code generator and the code that runs its kernels. Plain data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from forerun.codegen.program import Program

LEAST_BLOCK = 32
"""The smallest tile of a head that may be chosen: more columns have no more tiles than that."""
SIZES = 64
"""Numbers before the inputs: N, M, whether a row samples, and padding to the next aligned place."""
DRAWING = 2
"""The index of the number that says whether any row of the step samples."""
WORDS = 6
"""int32 words of an output row's sampling: seed, identifier, temperature (float64), the lower half of each first."""
STEP_SIZES = ("N", "M")
"""The dimensions whose sizes precede a step's inputs."""
ALIGNMENT = 64
"""Every place is a multiple of this many numbers: 256 bytes."""


@dataclass(frozen=True)
class TritonProgram:
    """The output of code generation for a step, and the weights that it reads."""

    program: Program
    weights: Callable[[str], torch.Tensor]  # each is read once


def function_name(shared: int) -> str:
    """Returns the name of a kernel's function; an attention has one for each number of tiles that share a load."""
    return "kernel" if shared == 1 else f"kernel_{shared}"
