"""Tunes the kernels of a step, those in which most of its time is spent first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from forerun.codegen.backends import Tuning, named
from forerun.runtime.certify_kernel import certify_kernel
from forerun.runtime.executable import Rows
from forerun.runtime.trial import Trial
from forerun.tuning.roofline import Group
from forerun.tuning.search import Found, search

HEAVY = ("products", "attention")
"""Of several sources of a kernel, one of these kinds takes nearly all of its time."""
WARM = 3
"""Times that each step is run to see where its time goes."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be tuned."""

    name: str  # of its source
    share: float  # of the time of all kernels that can be


def tunable(tuning: Tuning, program: Any, chosen: Sequence[Group]) -> list[str]:
    """Returns the sources of some kernels that have several schedules."""
    files: Mapping[str, str] = named(tuning.files)(program)
    names = dict.fromkeys(source for group in chosen for source in group.sources)
    return [name for name in names if f"{name}{tuning.suffix}" in files]


def shares(
    tuning: Tuning,
    executable: Any,
    state: Any,
    steps: Mapping[int, Rows],
    chosen: Sequence[Group],
    names: Sequence[str],
) -> list[Kernel]:
    """Returns kernels by their share of the time, the largest first."""
    spent = dict.fromkeys(names, 0.0)
    for rows in steps.values():
        rounds = [named(tuning.times)(executable, state, rows) for _ in range(WARM)]
        for group in chosen:
            seconds = sum(median(each[at] for each in rounds) for at in group.places)
            own = [name for name in group.sources if name in spent]
            heaviest = max(own, key=lambda name: executable.step.sources[name].kind in HEAVY, default=None)
            if heaviest is not None:
                spent[heaviest] += seconds
    total = sum(spent.values()) or 1.0
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return [Kernel(name, seconds / total) for name, seconds in ordered if seconds > 0]


def tune(
    tuning: Tuning,
    program: Any,
    executable: Any,
    kernels: Sequence[Kernel],
    trial: Trial,
    steps: Mapping[int, Rows],
    budget: float,
    progress: Callable[[str], Any],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Found | None]:
    """Returns the fastest version by the name of each kernel that was searched, checked; None if that is the generated.

    A kernel has its share of the budget, in seconds. What it leaves of it goes to those after it.
    """
    until, found = clock() + budget, dict[str, Found | None]()
    for at, kernel in enumerate(kernels):
        rest = sum(each.share for each in kernels[at:])
        seconds = (until - clock()) * kernel.share / rest
        if seconds <= 0:
            break
        file = f"{kernel.name}{tuning.suffix}"

        def opened(texts: Sequence[str], name: str = kernel.name) -> Any:
            return named(tuning.versions)(program, executable, name, texts)

        def candidates(text: str, file: str = file) -> list[str]:
            assert tuning.candidates is not None
            return named(tuning.candidates)(program, file, text)

        with progress(kernel.name):
            best = search(opened, candidates, trial.state, steps, seconds, clock)
            if best is not None:
                certify_kernel(opened(["", best.text]), 1, kernel.name)
            found[kernel.name] = best
    return found
