"""Chooses how many rows an iteration of the loop on the device has, as policies do for the host's loop (`policy`)."""

from dataclasses import dataclass, field
from typing import Protocol

from forerun.errors import InvalidOptionError
from forerun.runtime.calibration import CostModel


@dataclass(frozen=True)
class Round:
    """The result of an iteration."""

    rows: int  # evaluated rows
    path: list[int]  # the accepted rows, from the root on; rows are numbered the likeliest first
    tokens: list[int]  # the committed tokens, one per row of the path; -1 - t where the logit of token t is NaN
    seconds: float | None = None  # on the device; None if they say nothing about the next iteration


class RoundSize(Protocol):
    """Chooses how many rows an iteration has."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes that it may choose."""
        ...

    def choose(self) -> int: ...

    def observe(self, size: int, done: Round) -> None:
        """Called with the result of an iteration of at most `size` rows."""
        ...


@dataclass(frozen=True)
class SameSize:
    """Every iteration has `rows` rows."""

    rows: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.rows,)

    def choose(self) -> int:
        return self.rows

    def observe(self, size: int, done: Round) -> None:
        pass


@dataclass
class MostTokens:
    """Chooses the size with the most tokens per second, by the tokens and times of recent iterations.

    The first n rows of an iteration are the tree of n rows, so an iteration shows what every smaller one would have
    committed: a token for each row of the path that is among the first n. One iteration in `trial` does not have the
    best size, but alternately the largest and each in turn. The calibration times steps that the host waits for, so
    only differences of its times are used, and only until a size has been timed.
    """

    cost: CostModel
    sizes: tuple[int, ...]  # ascending
    memory: float = 0.95  # the weight of an iteration's evidence one iteration later
    trial: int = 24
    _tokens: list[float] = field(init=False)
    _seconds: list[float | None] = field(init=False)
    _seen: list[int] = field(init=False)  # the iteration in which each was observed last
    _rounds: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise InvalidOptionError(f"sizes must ascend from 1 or more, not be {self.sizes}: give at least one")
        self._tokens = [1.0 + 0.5 * number for number in range(len(self.sizes))]
        self._seconds = [None] * len(self.sizes)
        self._seen = [0] * len(self.sizes)

    def choose(self) -> int:
        self._rounds += 1
        turn, rest = divmod(self._rounds, self.trial)
        if rest == 1 or self.trial == 1:
            return self.sizes[-1] if turn % 2 == 0 else self.sizes[turn // 2 % len(self.sizes)]
        rates = [tokens / self.seconds(number) for number, tokens in enumerate(self._tokens)]
        return self.sizes[max(range(len(rates)), key=rates.__getitem__)]

    def seconds(self, number: int) -> float:
        """The time of an iteration of size `number`: measured, or that of the nearest measured size plus extra rows."""
        timed = [other for other, seconds in enumerate(self._seconds) if seconds is not None]
        if not timed:
            return self.cost.seconds(self.sizes[number])
        nearest = min(timed, key=lambda other: abs(other - number))
        known = self._seconds[nearest] or 0.0
        size, other = self.sizes[number], self.sizes[nearest]
        return max(known * min(1.0, size / other), known + self.cost.seconds(size) - self.cost.seconds(other))

    def observe(self, size: int, done: Round) -> None:
        number = self.sizes.index(size)
        for index, smaller in enumerate(self.sizes[: number + 1]):
            tokens = sum(row < smaller for row in done.path)
            weight = 1 - self.memory ** min(self._rounds - self._seen[index], self.trial)  # old evidence weighs little
            self._tokens[index] += max(weight, 1 - self.memory) * (tokens - self._tokens[index])
            self._seen[index] = self._rounds
        if done.seconds is not None:
            before = self._seconds[number]
            self._seconds[number] = done.seconds if before is None else before + 0.1 * (done.seconds - before)
