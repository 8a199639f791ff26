"""Measuring what a schedule is predicted from: the times of both parts, and the connection between them.

Steps of one group are timed as they run. Then one part works at a time, so what is left of a step without the work of
both parts is the time of its payloads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from forerun.distributed.driver import Driver
from forerun.distributed.schedule import Costs, Link, PartTimes, Payload
from forerun.progress import Progress
from forerun.runtime.calibration import TREES, trial_steps
from forerun.runtime.engine import Engine

SIZES = (1, 2, 4, 8, 16, 32, 64)
SECONDS = 1.0
"""For how long steps are timed, unless each size has been timed once only."""
ECHOES = 21
LARGE = 1 << 20
"""Bytes of a payload that takes the time of its bytes."""


@dataclass(frozen=True)
class Run:
    """A step of one group: its seconds, and when each part worked, [messages + 1, 2] by its own clock."""

    seconds: float
    attention: NDArray[np.float64]
    ffn: NDArray[np.float64]


def measure(driver: Driver, engine: Engine, progress: Progress, seconds: float = SECONDS) -> Costs:
    """Times steps of one group, of several sizes in turn, on the first rank of each part."""
    first = driver.layout.attention  # the first rank of the feed-forward part
    sizes = [each for each in SIZES if each <= min(driver.max_rows, driver.max_outputs)]
    runs: dict[int, list[Run]] = {size: [] for size in sizes}
    with (
        progress.stage("measure the parts"),
        engine.serving,
        driver.grouped(1),
        trial_steps(engine, [*sizes] * TREES) as steps,
    ):
        began, turn = engine.clock(), 0
        while turn < 2 or engine.clock() - began < seconds:
            for number, size in enumerate(sizes):
                start = engine.clock()
                engine.run(steps[turn % TREES * len(sizes) + number])
                took = engine.clock() - start
                runs[size].append(Run(took, driver.marks(0), driver.marks(first)))
            turn += 1
        bandwidth = measured_bandwidth(driver, first)
    counted = {size: each[1:] for size, each in runs.items()}  # the first step of a size may allocate
    return costs_of(counted, driver.payloads[0], driver.payloads[first], bandwidth)


def measured_bandwidth(driver: Driver, rank: int) -> float:
    """Bytes per second to a rank and back: those of a large payload, less what one byte takes if that is less."""
    large = min(LARGE, driver.wire.largest)
    small, big = (min(driver.echoes(rank, size, ECHOES)) / 2 for size in (1, large))
    return large / (big - small if big > small else big)


def costs_of(
    runs: Mapping[int, Sequence[Run]], attention: Sequence[Payload], ffn: Sequence[Payload], bandwidth: float
) -> Costs:
    """What steps of one group, by their rows, say of the parts that have these messages and of the link."""
    parts = (
        _part_times(attention, {size: [run.attention for run in each] for size, each in runs.items()}),
        _part_times(ffn, {size: [run.ffn for run in each] for size, each in runs.items()}),
    )
    every = [(size, run) for size, each in runs.items() for run in each]
    waits = [*attention, *(each for each in ffn if each.peers and each.received)]
    overhead = median(
        gap
        for _, run in every
        for payloads, marks in ((attention, run.attention), (ffn, run.ffn))
        for payload, gap in zip(payloads, (marks[1:, 0] - marks[:-1, 1]).tolist(), strict=True)
        if not payload.received
    )
    latency = median(
        (_idle(run) - sum(size * each.row_bytes for each in waits) / bandwidth) / len(waits) for size, run in every
    )
    around = median(run.seconds - (run.attention[-1, 1] - run.attention[0, 0]) for _, run in every)
    return Costs(*parts, Link(max(0.0, latency - 2 * overhead), bandwidth, overhead), float(around))


def _idle(run: Run) -> float:
    """The seconds between the beginning and the end of the attention part in which neither part works."""
    works = sum(float(np.diff(marks)[:, 0].sum()) for marks in (run.attention, run.ffn))
    return float(run.attention[-1, 1] - run.attention[0, 0]) - works


def _part_times(payloads: Sequence[Payload], marks: Mapping[int, Sequence[NDArray[np.float64]]]) -> PartTimes:
    works = [np.stack([np.diff(each)[:, 0] for each in found]) for found in marks.values()]
    medians = tuple(tuple(np.median(each, axis=0).tolist()) for each in works)
    return PartTimes(tuple(payloads), tuple(marks), medians)
