"""The roofline: the least time of a kernel, by its bytes at the memory's bandwidth and its operations at the peak.

Williams, Waterman, Patterson: Roofline, an insightful visual performance model for multicore architectures (2009).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol

from forerun.codegen.backends import Tuning, named
from forerun.codegen.kernel_places import alike
from forerun.codegen.program import Kernel, Program
from forerun.execute.work import Work, work_of
from forerun.progress import Progress
from forerun.runtime.executable import Rows


class Peaks(Protocol):
    """What a machine reaches at most, measured between other measurements, so that both see it in the same state."""

    def measure(self) -> None:
        """Measures once more."""
        ...

    @property
    def bandwidth(self) -> float:
        """Bytes read per second."""
        ...

    @property
    def flops(self) -> Mapping[str, float]:
        """Operations per second, by arithmetic."""
        ...


@dataclass(frozen=True)
class Line:
    """All kernels of a step that run the same code, for one row count."""

    rows: int
    kernel: str
    kernels: int  # in a step
    seconds: float  # of one, the median
    bytes: int  # of one
    flops: int  # of one
    bound: float  # seconds that one takes at least
    limit: str  # "bytes" or "flops": which of them bounds it

    @property
    def achieved(self) -> float:
        """The fraction of the bound's speed that is reached."""
        return self.bound / max(self.seconds, 1e-9)

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.bytes / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rate": self.rate, "achieved": self.achieved}


@dataclass(frozen=True)
class Group:
    """Kernels of a step that run the same code: alike layers have one."""

    name: str
    sources: tuple[str, ...]
    kernels: tuple[Kernel, ...]
    places: tuple[int, ...]  # of the kernels in the step


def groups(program: Program) -> list[Group]:
    """Returns the kernels of a step that are launched, by the code that they run."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, kernel in enumerate(program.kernels):
        if kernel.launches:
            found.setdefault(tuple(each.source for each in kernel.launches), []).append(place)
    return [
        Group(
            alike(program.kernels[places[0]].name) if len(places) > 1 else program.kernels[places[0]].name,
            sources,
            tuple(program.kernels[at] for at in places),
            tuple(places),
        )
        for sources, places in found.items()
    ]


def least_of(work: Work, peaks: Peaks) -> tuple[float, float]:
    """Returns the least seconds that some work takes to read, and to compute."""
    computing = sum(count / peaks.flops[arithmetic] for arithmetic, count in work.flops.items())
    return work.bytes / peaks.bandwidth, computing


def bound_of(work: Work, peaks: Peaks) -> tuple[float, str]:
    """Returns the least seconds of some work, and what bounds it."""
    reading, computing = least_of(work, peaks)
    return max(reading, computing), "bytes" if reading >= computing else "flops"


def lines(
    program: Program,
    steps: Mapping[int, Rows],
    times: Mapping[int, Sequence[Sequence[float]]],
    peaks: Peaks,
    chosen: Sequence[Group],
) -> list[Line]:
    """Returns a line for each row count and group, the slowest group of a row count first.

    times   of each row count: for each round, the seconds of every kernel of the step
    """
    found: list[Line] = []
    for rows, rounds in times.items():
        own: list[Line] = []
        for group in chosen:
            work = [work_of(program, kernel, steps[rows]) for kernel in group.kernels]
            least = [bound_of(each, peaks) for each in work]
            seconds = median(median(round[at] for at in group.places) for round in rounds)
            count = len(group.kernels)
            moved, done = sum(each.bytes for each in work) // count, sum(sum(each.flops.values()) for each in work)
            bound = sum(each for each, _ in least) / count
            own.append(Line(rows, group.name, count, seconds, moved, done // count, bound, least[0][1]))
        found += sorted(own, key=lambda each: -each.seconds * each.kernels)
    return found


def measured(
    tuning: Tuning, executable: Any, state: Any, steps: Mapping[int, Rows], rounds: int, progress: Progress
) -> tuple[dict[int, list[list[float]]], Peaks]:
    """Times every kernel of each step in `rounds` rounds, in which row counts and the machine's peaks take turns.

    Returns the seconds of every kernel in each round, by row count, and the peaks.
    """
    with progress.stage("peaks"):
        peaks: Peaks = named(tuning.peaks)(executable)
    times: Callable[[Rows], list[float]] = partial(named(tuning.times), executable, state)
    found: dict[int, list[list[float]]] = {rows: [] for rows in steps}
    with progress.counted("time kernels") as counted:
        for each in steps.values():
            times(each)  # what runs first may compile or allocate
        for done in range(rounds):
            for rows, each in steps.items():
                found[rows].append(times(each))
            peaks.measure()
            counted(done + 1, rounds)
    return found, peaks
