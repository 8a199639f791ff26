"""Tree policies: which of the proposed rows a step evaluates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.calibration import CostModel
from forerun.runtime.tree import Tree


class Policy(Protocol):
    """Cuts the proposals of the sequences that share a step down to the rows worth evaluating."""

    @property
    def rows(self) -> int:
        """The most rows that it takes in a step, and so the most that are worth proposing for a sequence."""
        ...

    def choose(self, trees: Sequence[Tree]) -> list[Tree]:
        """A part of each tree, its root at least."""
        ...

    def observe(self, rows: int, tokens: int) -> None:
        """A step of `rows` committed `tokens`."""
        ...


@dataclass(frozen=True)
class Fixed:
    """The likeliest `rows` of each tree, roots included."""

    rows: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InvalidOptionError(f"a tree has at least 1 row, not {self.rows}")

    def choose(self, trees: Sequence[Tree]) -> list[Tree]:
        return [tree.likeliest(self.rows) for tree in trees]

    def observe(self, rows: int, tokens: int) -> None:
        pass


@dataclass
class CostAware:
    """Takes rows, the likeliest first, as long as they pay in tokens per second.

    A step of n rows is worth the tokens it is expected to commit, less the tokens that its time would bring elsewhere:
    sum of path probabilities - rate * t(n), with `rate` the tokens per second of late. Maximising this in every step
    maximises tokens over time (Dinkelbach 1967). The roots alone are always a candidate.
    """

    cost: CostModel
    rows: int = 64
    memory: float = 0.98  # what a step's evidence of the rate still weighs a step later
    _tokens: float = field(init=False, default=10.0)  # at first, as ten steps of plain decoding
    _seconds: float = field(init=False)

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise InvalidOptionError(f"a step has at least 1 row, not {self.rows}")
        self._seconds = 10 * self.cost.seconds(1)

    @property
    def rate(self) -> float:
        """Tokens per second of late, by the cost model's clock."""
        return self._tokens / self._seconds

    def choose(self, trees: Sequence[Tree]) -> list[Tree]:
        roots = len(trees)
        drafted = np.concatenate([tree.probability[1:] for tree in trees])
        best = np.sort(drafted)[::-1][: max(0, self.rows - roots)]
        expected = np.concatenate([[0.0], np.cumsum(best)])
        worth = expected - self.rate * self.cost.table(roots + len(best))[roots - 1 :]
        taken = int(worth.argmax())  # of equals the fewest rows
        if taken == 0:
            return [tree.select(np.zeros(1, np.intp)) for tree in trees]
        if roots == 1:
            return [trees[0].likeliest(taken + 1)]
        counts = _shares(trees, taken)
        return [tree.likeliest(count) for tree, count in zip(trees, counts, strict=True)]

    def observe(self, rows: int, tokens: int) -> None:
        self._tokens = self._tokens * self.memory + tokens
        self._seconds = self._seconds * self.memory + self.cost.seconds(rows)


def _shares(trees: Sequence[Tree], drafted: int) -> list[int]:
    """How many rows each tree gets if the `drafted` likeliest of all of them are taken beside the roots."""
    owner = np.repeat(np.arange(len(trees)), [len(tree) - 1 for tree in trees])
    probability = np.concatenate([tree.probability[1:] for tree in trees])
    taken = owner[np.argsort(-probability, kind="stable")[:drafted]]
    return (1 + np.bincount(taken, minlength=len(trees))).tolist()
