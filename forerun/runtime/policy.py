"""Tree policies: which of the proposed rows a step evaluates."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from forerun.runtime.balance import Balance
from forerun.runtime.calibration import CostModel
from forerun.runtime.current_cost import LARGEST, CurrentCost
from forerun.runtime.fields import Checked, integer, number
from forerun.runtime.tree import Tree, rows_of_each

LEAST_ROOM = 8
"""Rows that drafters may propose unless speculation rests."""
DEBT = 1.0
"""The most tokens that a trial may cost before the next: a pause of the process in one must not end speculation."""
SLOW = 8
"""The plain steps as which the rest of an iteration counts at most: a prompt that a draft reads serves all others."""


class Policy(Protocol):
    """Cuts the proposals of the sequences that share a step down to the rows worth evaluating."""

    @property
    def rows(self) -> int:
        """The most rows that it selects for a step, and so the most that are worth proposing for a sequence."""
        ...

    @property
    def price(self) -> float:
        """The tokens that a second of drafting must be worth to each session; 0 if time does not count."""
        ...

    @property
    def pace(self) -> float:
        """The seconds of a plain step now, divided by those of the calibration."""
        ...

    @property
    def row(self) -> float:
        """The seconds that a further row adds to a step; 0 if time does not count."""
        ...

    def begin(self) -> None:
        """Called when an iteration of the loop begins, before drafting."""
        ...

    def renew(self) -> None:
        """Called when a drafter has a reason to expect more than its last proposals brought."""
        ...

    def choose(self, trees: Sequence[Tree], share: float = 1.0) -> list[Tree]:
        """Returns a part of each tree, at least its root. `share`: the part of a step's bytes not read by drafts."""
        ...

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """Called when an iteration ends: a step of `rows` rows took `seconds` and committed `tokens` tokens."""
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

    @property
    def row(self) -> float:
        return 0.0

    def begin(self) -> None:
        pass

    def renew(self) -> None:
        pass

    def choose(self, trees: Sequence[Tree], share: float = 1.0) -> list[Tree]:
        return [tree.likeliest(self.rows) for tree in trees]

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        pass


@dataclass
class _Weighing:
    """Speculation against plain decoding."""

    balance: Balance = field(default_factory=lambda: Balance(debt=DEBT))
    around: float = 0.0  # recent seconds around a plain step, while speculation rests


@dataclass
class CostAware(Checked):
    """Selects rows, the likeliest first, as long as they increase tokens per second.

    A step of n rows is worth the tokens it is expected to commit, less the tokens that its time would yield elsewhere:
    sum of path probabilities - rate * t(n), where `rate` is the recent tokens per second. Maximising this in every step
    maximises tokens over time (Dinkelbach 1967). The roots alone are always a candidate.

    By the clock, an iteration also pays for what lies around its step: drafting, verifying, learning. If iterations
    have lately been slower than plain decoding, speculation rests: nothing is proposed, except in trials. It pauses for
    a step where the time of a plain one is in doubt.
    """

    calibrated: CostModel
    most: int = integer(64, least=1)  # rows of a tree
    memory: float = number(0.98, above=0, below=1)  # the weight of a step's evidence of the rate one step later
    clock: Callable[[], float] = time.perf_counter
    cost: CurrentCost = field(init=False)
    _balances: dict[int, "_Weighing"] = field(init=False, default_factory=dict[int, "_Weighing"])
    _tokens: float = field(init=False, default=10.0)  # of each session, initially as after ten plain steps
    _steps: float = field(init=False, default=10.0)  # the time that they took, in calibrated plain steps
    _room: int = field(init=False)
    _began: float | None = field(init=False, default=None)  # when the iteration began
    _share: float = field(init=False, default=1.0)
    _roots: int = field(init=False, default=1)  # sequences of the step
    _rests: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.cost = CurrentCost(self.calibrated)
        self._room = self.most

    @property
    def _weighing(self) -> "_Weighing":
        """What is known of speculation for so many sessions: whether it pays depends on how many share a step."""
        return self._balances.setdefault(self._roots.bit_length(), _Weighing())

    @property
    def balance(self) -> Balance:
        """The gain of speculation for as many sessions as the last step had, about."""
        return self._weighing.balance

    @property
    def rows(self) -> int:
        """Twice the rows of a tree selected last: more take time to propose, fewer could not grow. At rest only one."""
        return 1 if self._rests else self._room

    @property
    def rate(self) -> float:
        """The recent tokens per second of each session, drafting time included."""
        return self._tokens / self._steps / self.calibrated.seconds(self._roots)

    @property
    def price(self) -> float:
        """The value of time elsewhere: the recent rate, or that of plain decoding, which is always possible."""
        return max(self.rate, 1.0 / self.cost.seconds(self._roots))

    @property
    def pace(self) -> float:
        return self.cost.seconds(1) / self.calibrated.seconds(1)

    @property
    def row(self) -> float:
        most = min(self.most, LEAST_ROOM)
        return (self.cost.seconds(most) - self.cost.seconds(1)) / max(1, most - 1)

    def begin(self) -> None:
        self.balance.earn()
        self._rests = self.cost.is_stale or not (self.balance.pays or self.balance.allows)
        self._began = self.clock()

    def renew(self) -> None:
        self.balance.renew()

    def choose(self, trees: Sequence[Tree], share: float = 1.0) -> list[Tree]:
        self._share, self._roots = share, len(trees)
        roots = self._roots
        if all(len(tree) == 1 for tree in trees):
            self._room = min(self.most, LEAST_ROOM)
            return list(trees)
        drafted = np.concatenate([tree.probability[1:] for tree in trees])
        best = np.sort(drafted)[::-1][: max(0, max(self.most, LARGEST) - roots) if roots > 1 else self.most - 1]
        expected = np.concatenate([[0.0], np.cumsum(best)])
        worth = expected - self.price * roots * share * self.cost.table(roots + len(best))[roots - 1 :]
        taken = int(worth.argmax())  # ties go to the fewest rows
        self._room = min(self.most, max(LEAST_ROOM, 2 * (1 + -(-taken // roots))))
        if taken == 0:
            return [tree.select(np.zeros(1, np.intp)) for tree in trees]
        if roots == 1:
            return [trees[0].likeliest(taken + 1)]
        counts = rows_of_each(trees, taken)
        return [tree.likeliest(count) for tree, count in zip(trees, counts, strict=True)]

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        plain = self.cost.seconds(self._roots)
        around = 0.0
        if self._began is not None:
            around = min(max(0.0, self.clock() - self._began - seconds), SLOW * plain)
            self._began = None
        if self._share < 1.0:
            seconds = min(seconds, 4 * self.cost.seconds(rows))  # includes evaluating further rows up to the entry
        else:
            self.cost.observe(rows, seconds, self._roots)
            seconds = min(seconds, 2 * self.cost.seconds(rows))
        plain = self.cost.seconds(self._roots)
        weighing = self._weighing
        if self._rests:
            weighing.around += 0.1 * (around - weighing.around)
        else:
            steps = (seconds + around) / (plain + weighing.around)
            self.balance.observe(tokens / self._roots - steps, trial=not self.balance.pays)
        self._tokens = self._tokens * self.memory + tokens / self._roots
        self._steps = self._steps * self.memory + (seconds + around) / self.calibrated.seconds(self._roots)
