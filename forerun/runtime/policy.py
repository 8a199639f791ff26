"""Tree policies: which of the proposed rows a step evaluates."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from forerun.runtime.calibration import CostModel
from forerun.runtime.fields import Checked, integer, number
from forerun.runtime.tree import Float64, Tree

LEAST_ROOM = 8
"""Rows that drafters may always propose."""


class Policy(Protocol):
    """Cuts the proposals of the sequences that share a step down to the rows worth evaluating."""

    @property
    def rows(self) -> int:
        """The most rows that it selects for a step, and so the most that are worth proposing for a sequence."""
        ...

    @property
    def price(self) -> float:
        """The tokens that a second of drafting must be worth; 0 if time does not count."""
        ...

    @property
    def pace(self) -> float:
        """The seconds of a plain step now, divided by those of the calibration."""
        ...

    def begin(self) -> None:
        """Called when an iteration of the loop begins, before drafting."""
        ...

    def choose(self, trees: Sequence[Tree], share: float = 1.0) -> list[Tree]:
        """Returns a part of each tree, at least its root. `share`: the part of a step's bytes not read by drafts."""
        ...

    def observe(self, rows: int, tokens: int) -> None:
        """Called after a step of `rows` rows that committed `tokens` tokens."""
        ...


@dataclass(frozen=True)
class Fixed(Checked):
    """The likeliest `rows` of each tree, roots included."""

    rows: int = integer(least=1)

    @property
    def price(self) -> float:
        return 0.0

    @property
    def pace(self) -> float:
        return 1.0

    def begin(self) -> None:
        pass

    def choose(self, trees: Sequence[Tree], share: float = 1.0) -> list[Tree]:
        return [tree.likeliest(self.rows) for tree in trees]

    def observe(self, rows: int, tokens: int) -> None:
        pass


@dataclass
class CurrentCost(Checked):
    """The recent cost of steps: a t(1) + b (t(n) - t(1)), with t(n) as calibrated.

    The calibration used one context, in one state of the machine. As the context grows, or another process takes
    memory bandwidth, the cost of a step and that of its further rows change, each by its own factor. The factors are
    fitted by least squares to the timed steps, whose evidence fades, and are regularized towards 1.
    """

    calibrated: CostModel
    memory: float = number(0.97, above=0, below=1)  # the weight of a step's evidence one step later
    _a: float = field(init=False, default=1.0)
    _b: float = field(init=False, default=1.0)
    _sums: list[float] = field(init=False, default_factory=lambda: [0.0] * 5)  # 1, x, x x, y, x y, in units of t(1)

    def table(self, rows: int) -> Float64:
        """Returns the seconds [rows] of steps of 1 to `rows` rows."""
        times = self.calibrated.table(rows)
        return self._a * times[0] + self._b * (times - times[0])

    def seconds(self, rows: int) -> float:
        """Returns the seconds of a step of `rows` rows."""
        first = self.calibrated.seconds(1)
        return self._a * first + self._b * (self.calibrated.seconds(rows) - first)

    def observe(self, rows: int, seconds: float) -> None:
        """Called after a step of `rows` rows; ignores outliers, which say nothing about the next step."""
        first = self.calibrated.seconds(1)
        x = self.calibrated.seconds(rows) / first - 1
        y = seconds / first
        if not 0.25 < y / (1 + x) < 4:
            return
        self._sums = [old * self.memory + new for old, new in zip(self._sums, (1.0, x, x * x, y, x * y), strict=True)]
        ones, xs, squares, ys, products = self._sums
        ones, ys = ones + 2, ys + 2  # prior: two plain steps, and the cost of two further rows in one, as calibrated
        squares, products = squares + 0.5, products + 0.5
        determinant = ones * squares - xs * xs
        self._a = max(0.25, (ys * squares - xs * products) / determinant)
        self._b = min(4.0, max(0.25, (ones * products - xs * ys) / determinant))


@dataclass
class CostAware(Checked):
    """Selects rows, the likeliest first, as long as they increase tokens per second.

    A step of n rows is worth the tokens it is expected to commit, less the tokens that its time would yield elsewhere:
    sum of path probabilities - rate * t(n), where `rate` is the recent tokens per second. Maximising this in every step
    maximises tokens over time (Dinkelbach 1967). The roots alone are always a candidate.
    """

    calibrated: CostModel
    most: int = integer(64, least=1)  # rows of a step
    memory: float = number(0.98, above=0, below=1)  # the weight of a step's evidence of the rate one step later
    clock: Callable[[], float] = time.perf_counter
    cost: CurrentCost = field(init=False)
    _tokens: float = field(init=False, default=10.0)  # initially as after ten steps of plain decoding
    _seconds: float = field(init=False)
    _room: int = field(init=False)
    _turn: float | None = field(init=False, default=None)  # when drafting began
    _began: float | None = field(init=False, default=None)  # when the step began
    _share: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cost = CurrentCost(self.calibrated)
        self._seconds = 10 * self.cost.seconds(1)
        self._room = self.most

    @property
    def rows(self) -> int:
        """Twice the rows selected last: more would cost time to propose, and fewer could not grow."""
        return self._room

    @property
    def rate(self) -> float:
        """The recent tokens per second, drafting time included."""
        return self._tokens / self._seconds

    @property
    def price(self) -> float:
        """The value of time elsewhere: the recent rate, or that of plain decoding, which is always possible."""
        return max(self.rate, 1.0 / self.cost.seconds(1))

    @property
    def pace(self) -> float:
        return self.cost.seconds(1) / self.calibrated.seconds(1)

    def begin(self) -> None:
        self._turn = self.clock()

    def choose(self, trees: Sequence[Tree], share: float = 1.0) -> list[Tree]:
        self._began, self._share = self.clock(), share
        roots = len(trees)
        if all(len(tree) == 1 for tree in trees):
            self._room = min(self.most, max(LEAST_ROOM, 2 * roots))
            return list(trees)
        drafted = np.concatenate([tree.probability[1:] for tree in trees])
        best = np.sort(drafted)[::-1][: max(0, self.most - roots)]
        expected = np.concatenate([[0.0], np.cumsum(best)])
        worth = expected - self.price * share * self.cost.table(roots + len(best))[roots - 1 :]
        taken = int(worth.argmax())  # ties go to the fewest rows
        self._room = min(self.most, max(LEAST_ROOM, 2 * (roots + taken)))
        if taken == 0:
            return [tree.select(np.zeros(1, np.intp)) for tree in trees]
        if roots == 1:
            return [trees[0].likeliest(taken + 1)]
        counts = _shares(trees, taken)
        return [tree.likeliest(count) for tree, count in zip(trees, counts, strict=True)]

    def observe(self, rows: int, tokens: int) -> None:
        drafting, seconds = 0.0, self.cost.seconds(rows)
        if self._began is not None:
            took = self.clock() - self._began
            if self._share < 1.0:
                seconds = min(took, 4 * seconds)  # includes evaluating further rows up to the entry
            else:
                self.cost.observe(rows, took)
                seconds = self.cost.seconds(rows)
            if self._turn is not None:
                drafting = self._began - self._turn
            self._turn = self._began = None
        self._tokens = self._tokens * self.memory + tokens
        self._seconds = self._seconds * self.memory + seconds + drafting


def _shares(trees: Sequence[Tree], drafted: int) -> list[int]:
    """Returns how many rows each tree gets if the `drafted` likeliest of all are selected besides the roots."""
    owner = np.repeat(np.arange(len(trees)), [len(tree) - 1 for tree in trees])
    probability = np.concatenate([tree.probability[1:] for tree in trees])
    taken = owner[np.argsort(-probability, kind="stable")[:drafted]]
    return (1 + np.bincount(taken, minlength=len(trees))).tolist()
