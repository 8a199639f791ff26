"""Times a step and its kernels on a GPU by the device's own clock, replayed from CUDA graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from forerun.execute.triton.executable import TritonExecutable
from forerun.execute.triton.memory import State
from forerun.runtime.executable import Rows

COLD = 1 << 28
"""Bytes written between two repetitions, more than any L2 cache holds."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel of a step."""

    kernel: str
    launches: int
    weight_bytes: int
    seconds: float  # the median, with its inputs not in the cache


def graph_of(work: Callable[[], None]) -> Any:
    """Returns the launches of `work` as a CUDA graph; they run once before, so that everything is compiled."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def seconds_of(work: Callable[[], Any], rounds: int = 30, cold: bool = False) -> float:
    """Returns the median time of device work, by events around it."""
    spoiler = torch.empty(COLD if cold else 1, dtype=torch.uint8, device="cuda")
    times: list[float] = []
    for _ in range(rounds + 3):
        spoiler.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return median(times[3:])


def step_seconds(executable: TritonExecutable, state: State, rows: Rows, rounds: int = 30) -> float:
    """Returns the time of a whole step on the device: its graph, without the copy of the inputs."""
    work = executable.launches(state, rows, [each.name for each in executable.step.kernels])
    return seconds_of(graph_of(work).replay, rounds)


def times(executable: TritonExecutable, state: State, rows: Rows) -> list[float]:
    """Returns the seconds of every kernel of a step, in order; kernels of one structure are measured once."""
    measured: dict[tuple[str, ...], float] = {}
    found: list[float] = []
    for kernel in executable.step.kernels:
        key = tuple(launch.source for launch in kernel.launches)
        if key not in measured:
            measured[key] = timer(executable, executable.chosen_launches(state, rows, [kernel]))()
        found.append(measured[key])
    return found


def timer(executable: TritonExecutable, work: Callable[[], None]) -> Callable[[], float]:
    """Returns what runs launches and gives the seconds they took: by a GPU's clock, from a CUDA graph, with nothing in
    its cache; in Triton's interpreter by the host's clock."""
    if not executable.launcher.interpreted:
        graph = graph_of(work)
        return lambda: seconds_of(graph.replay, rounds=1, cold=True)

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def kernel_seconds(executable: TritonExecutable, state: State, rows: Rows, rounds: int = 20) -> list[KernelTime]:
    """Times each kernel of a step by itself; kernels of one structure are measured once."""
    found: list[KernelTime] = []
    measured: dict[tuple[str, ...], float] = {}
    for kernel in executable.step.kernels:
        key = tuple(launch.source for launch in kernel.launches)
        if key not in measured:
            measured[key] = seconds_of(graph_of(executable.launches(state, rows, [kernel.name])).replay, rounds, True)
        found.append(KernelTime(kernel.name, len(key), executable.step.weight_bytes(kernel.matrices), measured[key]))
    return found
