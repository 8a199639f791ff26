"""Calibration measures t(n), the time of a step of n rows on this machine."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Int32, Rows
from forerun.runtime.rows import tree_rows, tree_slots
from forerun.runtime.tree import Float64, Tree

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
FEW = (1, 8, 32)
"""The sizes that `estimated` measures."""
TREES = 5
"""The trees of each size that are timed in turn: with experts, which weights a step reads depends on its tokens."""
ALIKE = 1.5
"""A model whose sizes take other times than before has another cost model if the ratios differ by more than this."""


@dataclass(frozen=True)
class CostModel:
    """Seconds of a step by its rows: measured at `rows`, made non-decreasing, interpolated and extrapolated."""

    rows: tuple[int, ...]  # ascending
    measured: tuple[float, ...]  # seconds

    def __post_init__(self) -> None:
        if not self.rows or len(self.rows) != len(self.measured):
            raise InvalidOptionError("a cost model needs one time for each row count, and at least one")
        if list(self.rows) != sorted(set(self.rows)) or self.rows[0] < 1:
            raise InvalidOptionError("a cost model's row counts must ascend from 1 or more")
        if min(self.measured) <= 0:
            raise InvalidOptionError("a cost model's times must be above 0")

    @cached_property
    def _fitted(self) -> list[float]:
        return isotonic(self.measured)

    @cached_property
    def _tables(self) -> dict[int, Float64]:
        return {}

    def table(self, rows: int) -> Float64:
        """Returns the seconds [rows] of steps of 1 to `rows` rows."""
        if rows not in self._tables:
            counts = np.arange(1, rows + 1, dtype=np.float64)
            table = np.interp(counts, self.rows, self._fitted)
            beyond = counts > self.rows[-1]
            table[beyond] *= counts[beyond] / self.rows[-1]  # beyond the last measurement, time is proportional to rows
            self._tables[rows] = table
        return self._tables[rows]

    def seconds(self, rows: int) -> float:
        return float(self.table(rows)[-1])

    def to_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows), "seconds": list(self.measured)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "CostModel":
        return cls(tuple(int(count) for count in data["rows"]), tuple(float(value) for value in data["seconds"]))


def isotonic(values: Sequence[float]) -> list[float]:
    """Returns the non-decreasing least-squares fit to `values` (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while pools and pools[-1][0] > mean:
            before, size = pools.pop()
            mean, count = (before * size + mean * count) / (size + count), size + count
        pools.append((mean, count))
    return [mean for mean, count in pools for _ in range(count)]


def calibrate(
    engine: Engine,
    context: int = 128,
    seconds: float = 1.0,
    sizes: Sequence[int] = SIZES,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> CostModel:
    """Measures median step times, interleaved over `sizes`, with `context` tokens cached, for about `seconds`.

    Each size is timed 1 to 25 times, by the engine's clock, on trees of other tokens in turn. `progress` is called with
    the fraction done.
    """
    limits = engine.executable
    sizes = [size for size in sizes if size <= min(limits.max_rows, limits.max_outputs)]
    times: list[list[float]] = [[] for _ in sizes]
    with trial_steps(engine, [*sizes] * TREES, context, seed) as steps:
        for rows in steps[: len(sizes)]:  # the first run of a size may compile or allocate
            engine.run(rows)
        began = engine.clock()
        while not times[0] or (len(times[0]) < 25 and engine.clock() - began < seconds):
            first = len(times[0]) % TREES * len(sizes)
            for size_times, rows in zip(times, steps[first : first + len(sizes)], strict=True):
                start = engine.clock()
                engine.run(rows)
                size_times.append(engine.clock() - start)
            if progress:
                progress(min(1.0, max(len(times[0]) / 25, (engine.clock() - began) / seconds)))
    return CostModel(tuple(sizes), tuple(median(size_times) for size_times in times))


def estimated(engine: Engine) -> CostModel:
    """Returns a cost model from the times of a few sizes, in a fraction of a second; others are interpolated."""
    return calibrate(engine, context=16, seconds=0.0, sizes=FEW)


def scaled(known: CostModel, few: CostModel) -> CostModel | None:
    """Returns what was known elsewhere or earlier, scaled to a few times from here and now.

    None if small and large steps have not become slower or faster alike.
    """
    ratios = [here / known.seconds(rows) for rows, here in zip(few.rows, few.measured, strict=True)]
    if max(ratios) > ALIKE * min(ratios):
        return None
    return CostModel(known.rows, tuple(median(ratios) * each for each in known.measured))


@contextmanager
def trial_steps(engine: Engine, sizes: Sequence[int], context: int = 128, seed: int = 0) -> Generator[list[Rows]]:
    """Yields steps of random trees of these sizes after a prompt of `context` tokens, to be run in any order."""
    executable = engine.executable
    context = max(1, min(context, executable.max_length // 2))
    deepest = max(1, min(executable.max_path, executable.max_length - context - 1))
    random = np.random.default_rng(seed)
    with engine.sequence(min(context + executable.max_path + 1, executable.max_length)) as sequence:
        engine.prefill(sequence, random.integers(0, executable.vocabulary, context, dtype=np.int32))
        steps: list[Rows] = []
        for size in sizes:
            tree = comb(random.integers(0, executable.vocabulary, size, dtype=np.int32), deepest)
            slots, _ = tree_slots(sequence, tree, engine.cache.spare)
            steps.append(tree_rows(sequence, tree, slots))
        yield steps


def comb(tokens: Int32, deepest: int) -> Tree:
    """Returns a tree like those of drafters: half of the rows form a chain, the others are leaves along it."""
    parents, depths = [-1], [0]
    tip = 0
    for row in range(1, len(tokens)):
        parent = tip if depths[tip] < deepest else parents[tip]
        if row % 2 and depths[tip] < deepest:
            tip = row
        parents.append(parent)
        depths.append(depths[parent] + 1)
    return Tree(tokens, np.array(parents, np.int32), np.array(depths, np.int32), np.ones(len(tokens)))
