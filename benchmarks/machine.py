"""The number of threads of a measurement."""

from __future__ import annotations

import os

import torch


def pin_threads(threads: int) -> None:
    """Sets the same number for forerun, torch, OpenMP and TVM's pool, which reads it once, at its first launch."""
    os.environ["FORERUN_THREADS"] = str(threads)
    os.environ["TVM_NUM_THREADS"] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
