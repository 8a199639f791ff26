"""Checks before anything is allocated: a GPU that is new enough and has room; otherwise a one-sentence error."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

import torch

from forerun.codegen.program import Program
from forerun.errors import DeviceError, DeviceMemoryError
from forerun.execute.triton.memory import buffer_bytes, state_bytes
from forerun.forking import gpu_of_parent

CAPABILITY = (8, 0)
"""The oldest GPUs with mma units for bfloat16, for which the kernels are checked."""
GIGABYTE = 1e9
RESERVE = 0.5e9
"""Bytes for the CUDA context, compiled kernels and graphs."""


def require_gpu() -> None:
    """Raises DeviceError without a new enough GPU or without Triton, and ForkError if a parent process uses the GPU."""
    if getattr(torch.cuda, "_is_in_bad_fork", bool)():
        raise gpu_of_parent()
    if not torch.cuda.is_available():
        raise DeviceError(
            'target="cuda" needs an NVIDIA GPU, but torch finds none; use target="cpu", or install torch with CUDA and '
            "Triton (the extra cuda)."
        )
    capability = torch.cuda.get_device_capability()
    if capability < CAPABILITY:
        raise DeviceError(
            f"The GPU {torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}, but "
            f'target="cuda" needs {CAPABILITY[0]}.{CAPABILITY[1]} or later (Ampere); use target="cpu".'
        )
    require_triton()


def require_triton() -> None:
    """Raises DeviceError if Triton is not installed; ahead-of-time compilation needs nothing else."""
    if importlib.util.find_spec("triton") is None:
        raise DeviceError(
            'target="cuda" needs Triton, which is not installed; run pip install "forerun[cuda]", or pip install '
            '".[cuda]" in a clone.'
        )


def machine() -> str:
    """Returns the name of the GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter"


def needed_bytes(step: Program) -> dict[str, int]:
    """Returns the bytes of a compiled model on the GPU: weights, the cache of one sequence, buffers."""
    weights = sum(each.bytes for each in step.weights.values())
    return {"weights": weights, "cache": state_bytes(step, cache_blocks(step)), "buffers": buffer_bytes(step)}


def require_memory(needed: Mapping[str, int], free: int | None = None) -> None:
    """Raises DeviceMemoryError if the GPU does not have enough memory."""
    free = torch.cuda.mem_get_info()[0] if free is None else free
    total = sum(needed.values()) + RESERVE
    if total <= free:
        return
    parts = ", ".join(f"{name} {count / GIGABYTE:.2f}" for name, count in needed.items())
    raise DeviceMemoryError(
        f"The model needs {total / GIGABYTE:.2f} GB on the GPU ({parts}), but {free / GIGABYTE:.2f} GB are free; use a "
        'smaller max_length, dtype="bfloat16" or target="cpu".'
    )


def cache_blocks(step: Program) -> int:
    """Returns the cache blocks of one sequence of `max_length` and a step's spare slots (`runtime.engine.Engine`)."""
    return -(-step.max_length // step.block) + -(-step.max_rows // step.block)
