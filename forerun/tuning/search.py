"""Measures versions of a kernel against each other, and searches among schedules for faster ones.

Versions take turns, so that a machine that becomes slower or faster meanwhile does so for all of them; a gain is the
ratio of two times of one turn. A version is kept if it wins by more than the noise: a quarter of the turns may not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from forerun.runtime.executable import Rows
from forerun.runtime.kernel_versions import GENERATED, Versions

TURNS = 7
"""Turns of a race between candidates."""
LONG = 21
"""Turns of a race that decides."""
TOGETHER = 4
"""Candidates of a race."""
STEP = 1.01
"""The gain over the best so far that a search goes on from."""
MARGIN = 1.02
"""The least gain that is kept."""
LOST = 0.98
"""The least gain for each row count: a version that is slower for some is not kept."""


@dataclass(frozen=True)
class Race:
    """The times of versions that took turns."""

    seconds: Mapping[int, Sequence[Sequence[float]]]  # by row count: for each turn, of every version

    def median(self, rows: int, version: int) -> float:
        """The median seconds of a version."""
        return median(turn[version] for turn in self.seconds[rows])

    def gains(self, rows: int, version: int) -> list[float]:
        """How many times as fast as the first version another one was, in each turn, ascending."""
        return sorted(max(turn[GENERATED], 1e-9) / max(turn[version], 1e-9) for turn in self.seconds[rows])

    def gain(self, version: int) -> float:
        """The geometric mean over row counts of the median gain."""
        return _mean([median(self.gains(rows, version)) for rows in self.seconds])

    def sure(self, version: int) -> float:
        """The gain that three quarters of the turns reach."""
        return _mean([_quarter(self.gains(rows, version)) for rows in self.seconds])

    def wins(self, version: int) -> bool:
        """Whether a version is faster by more than the noise, and slower for no row count."""
        least = min(median(self.gains(rows, version)) for rows in self.seconds)
        return self.sure(version) >= MARGIN and least >= LOST


def _quarter(ascending: Sequence[float]) -> float:
    return ascending[len(ascending) // 4]


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def race(
    versions: Versions,
    count: int,
    state: Any,
    steps: Mapping[int, Rows],
    turns: int,
    progress: Callable[[int, int], None] | None = None,
) -> Race:
    """Times `count` versions for each row count, in an order that changes from turn to turn."""
    found: dict[int, list[list[float]]] = {rows: [] for rows in steps}
    done = 0
    for rows, step in steps.items():
        timers = [versions.timer(version, state, step) for version in range(count)]
        for each in timers:
            each()  # what runs first may find nothing in caches
        for turn in range(turns):
            taken = [0.0] * count
            for place in range(count):
                version = (place + turn) % count
                taken[version] = timers[version]()
            found[rows].append(taken)
            done += 1
            if progress:
                progress(done, turns * len(steps))
    return Race(found)


@dataclass(frozen=True)
class Found:
    """A faster version of a kernel."""

    text: str
    gain: float  # how many times as fast as the generated one


def search(
    opened: Callable[[Sequence[str]], Versions],
    candidates: Callable[[str], Sequence[str]],
    state: Any,
    steps: Mapping[int, Rows],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Found | None:
    """Returns the fastest version found in some seconds; None if none is faster than the generated one beyond noise.

    From the best so far on, it tries the versions that differ in one field. The last race may take it a little longer.

    opened      compiles versions of these texts; `""` is the generated one
    candidates  the texts that differ from one in a field
    """
    best, gain, seen, until = "", 1.0, {""}, clock() + seconds
    while True:
        tried = [each for each in candidates(best) if each not in seen]
        seen.update(tried)
        before = best
        for start in range(0, len(tried), TOGETHER):
            if clock() >= until:
                break
            texts = tried[start : start + TOGETHER]
            raced = race(opened(["", *texts]), len(texts) + 1, state, steps, TURNS)
            for version, text in enumerate(texts, 1):
                if raced.gain(version) > gain * STEP:
                    best, gain = text, raced.gain(version)
        if best == before or clock() >= until:
            break
    if not best:
        return None
    raced = race(opened(["", best]), 2, state, steps, LONG)
    return Found(best, raced.gain(1)) if raced.wins(1) else None
