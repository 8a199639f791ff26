"""Text of a module with layers that are alike written once.

Two lines are alike if they differ only in what numbers a layer: the names of values, numbers within names of weights,
states and payloads, branches, places in the stream and in the arena, and source lines. Of lines that repeat with a
period, three times or more, the first period stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 3
"""The fewest layers that are folded."""
SHORTEST = 2
"""The fewest lines of a layer."""
VALUE = re.compile(r"%[\w.$-]+(?:#\d+)?")
NAME = re.compile(r"@(?:\"[^\"]*\"|[\w.$-]+)|\"[^\"]*\"")
NUMBERED = re.compile(r"\b(branch|stream|offsets?|derived) = (?:\[[^\]]*\]|\d+)")
LOCATION = re.compile(r" loc\(.*\)$")
DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Fold:
    """Lines [begin, begin + period * count) are `count` layers of `period` lines."""

    begin: int
    period: int
    count: int

    @property
    def lines(self) -> int:
        return self.period * self.count


def folded(text: str) -> str:
    """The text with a comment in place of every further layer; the text itself where nothing repeats."""
    lines = text.splitlines(keepends=True)
    shapes: dict[str, int] = {}
    alike = np.array([shapes.setdefault(_shape(each), len(shapes)) for each in lines], np.int64)
    found: list[str] = []
    at = 0
    for fold in _folds(alike, 0, len(lines)):
        found += lines[at : fold.begin + fold.period]
        found.append(_comment(lines, fold))
        at = fold.begin + fold.lines
    return "".join([*found, *lines[at:]])


def _comment(lines: Sequence[str], fold: Fold) -> str:
    """Says which layers a fold leaves out, by the numbers in their names."""
    first, second = (lines[fold.begin + fold.period * each :][: fold.period] for each in (0, 1))
    numbers = [(int(a), int(b)) for a, b in zip(_numbers(first), _numbers(second), strict=False)]
    layer = next((a for a, b in numbers if b == a + 1), None)
    more = fold.count - 1
    what = f"{more} more like these" if layer is None else f"layers {layer + 1}..{layer + more} as layer {layer}"
    indent = lines[fold.begin][: -len(lines[fold.begin].lstrip())]
    return f"{indent}// {what}: {fold.period} lines each\n"


def _numbers(lines: Sequence[str]) -> list[str]:
    """The numbers within the names of some lines, in order."""
    return [number for line in lines for name in NAME.findall(line) for number in DIGITS.findall(name)]


def _shape(line: str) -> str:
    """What of a line is the same in all layers."""
    line = NUMBERED.sub(r"\1", LOCATION.sub("", line.rstrip("\n")))
    line = NAME.sub(lambda name: DIGITS.sub("#", name.group()), line)
    return VALUE.sub("%", line)


def _folds(alike: np.ndarray, begin: int, end: int) -> list[Fold]:
    """The folds of lines [begin, end), in order: the one that saves most, and those before and behind it."""
    best = _longest(alike[begin:end])
    if best is None:
        return []
    found = Fold(begin + best.begin, best.period, best.count)
    before = _folds(alike, begin, found.begin)
    return [*before, found, *_folds(alike, found.begin + found.lines, end)]


def _longest(alike: np.ndarray) -> Fold | None:
    """The repetition that saves most lines; of those, the one of the shortest period, and the first."""
    best, saved = None, 0
    for period in range(SHORTEST, len(alike) // FEWEST + 1):
        same = np.concatenate([[False], alike[period:] == alike[:-period], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        for start, stop in edges.reshape(-1, 2).tolist():
            count = (stop - start) // period + 1
            if count >= FEWEST and (count - 1) * period > saved:
                best, saved = Fold(start, period, count), (count - 1) * period
    return best
