"""What must hold of the machine before anything is allocated: a GPU, new enough, with room; one sentence otherwise."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from math import prod

import torch

from forerun import ir
from forerun.codegen.triton.memory import TORCH, buffer_bytes, state_bytes
from forerun.codegen.triton.step import TritonStep
from forerun.errors import DeviceError, DeviceMemoryError
from forerun.forking import gpu_of_parent
from forerun.runtime.cache import REQUESTS

CAPABILITY = (8, 0)
"""The oldest GPUs that have mma units for bfloat16, and what the kernels are checked for."""
GIGABYTE = 1e9
RESERVE = 0.5e9
"""Bytes for the CUDA context, compiled kernels and graphs."""


def usable() -> bool:
    """Whether `target="auto"` may choose the GPU."""
    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= CAPABILITY


def require_gpu() -> None:
    """DeviceError where there is no GPU, or one that is too old, or no Triton; ForkError where a parent uses it."""
    if getattr(torch.cuda, "_is_in_bad_fork", bool)():
        raise gpu_of_parent()
    if not torch.cuda.is_available():
        raise DeviceError(
            'target="cuda" needs an NVIDIA GPU, and torch finds none; use target="cpu", or install torch with CUDA and '
            "Triton (the extra cuda)."
        )
    capability, name = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
    if capability < CAPABILITY:
        raise DeviceError(
            f'The GPU {name} has compute capability {capability[0]}.{capability[1]}, and target="cuda" needs '
            f'{CAPABILITY[0]}.{CAPABILITY[1]} or later (Ampere); use target="cpu".'
        )
    require_triton()


def require_triton() -> None:
    """DeviceError where Triton is not installed; what is compiled ahead of time needs nothing else."""
    if importlib.util.find_spec("triton") is None:
        raise DeviceError(
            'target="cuda" needs Triton, which is not installed; run pip install "forerun[cuda]", or pip install '
            '".[cuda]" in a clone.'
        )


def needed_bytes(step: TritonStep, declared: Mapping[str, ir.Weight], blocks: int) -> dict[str, int]:
    """What a compiled model takes on the GPU: weights, the cache of one sequence, the records of requests, buffers."""
    weights = sum(
        prod(int(dim) for dim in declared[name].type.dims) * TORCH[element].itemsize
        for name, element in step.weights.items()
    )
    return {"weights": weights, "cache": state_bytes(step, blocks, REQUESTS), "buffers": buffer_bytes(step)}


def require_memory(needed: Mapping[str, int], free: int | None = None) -> None:
    """DeviceMemoryError where the GPU has not the room."""
    free = torch.cuda.mem_get_info()[0] if free is None else free
    total = sum(needed.values()) + RESERVE
    if total <= free:
        return
    parts = ", ".join(f"{name} {count / GIGABYTE:.2f}" for name, count in needed.items())
    raise DeviceMemoryError(
        f"The model needs {total / GIGABYTE:.2f} GB on the GPU ({parts}), and {free / GIGABYTE:.2f} GB are free; use a "
        'smaller max_length, dtype="bfloat16" or target="cpu".'
    )


def cache_blocks(step: TritonStep) -> int:
    """Blocks of the cache of one sequence of `max_length`, and a step's spare slots (`runtime.engine.Engine`)."""
    return -(-step.max_length // step.block) + -(-step.max_rows // step.block)
