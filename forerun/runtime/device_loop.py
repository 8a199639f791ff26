"""Decoding that goes on on the device: drafting, step, verification and commit are enqueued, and the host reads along.

A turn of the loop there is a *round*. The host chooses how many rows the next one has and is a round or two behind with
reading, so that the device never waits for it. The text is that of `generation.decode`, which decides the same by the
same rules; what differs is where.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.prompt_lookup import LONGEST_COUNTED_MATCH, PRIOR_OF_MATCH
from forerun.runtime.drafters.token_recycling import SHARES, STILL_TRUE
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Draw, Executable, Float32, Int32
from forerun.runtime.generation import Request, Step, drawn_by
from forerun.runtime.tree import Float64

AHEAD = 2
"""Rounds that are enqueued while the host waits for one."""
RANKS = (1.0, 0.4, 0.2)
"""What a continuation is worth at first beside its siblings: the first, the second, any later one."""
LARGEST = 64
"""Rows of a round at most."""
PLACES = 24
"""Earlier occurrences that a tree may continue on the device: which of them a row reads like are bits of a number."""


@dataclass(frozen=True)
class Drafting:
    """What drafts on the device: prompt lookup and token recycling, in one tree (`runtime.drafters`)."""

    places: int = 8  # earlier occurrences that a tree continues, at most `PLACES`; 0 for no prompt lookup
    deepest: int = 8  # the deepest row that recycled candidates may have; 0 for none

    @property
    def longest(self) -> int:
        """Tokens of the longest match that counts."""
        return LONGEST_COUNTED_MATCH if self.places else 0

    def prior(self) -> Float64:
        """[features] acceptance rates before anything is known, drafters erring independently.

        A feature is (match length and rank, or not looked up; class of share, or not recycled; depth).
        """
        looked = (np.array(PRIOR_OF_MATCH)[:, None] * np.array(RANKS)).reshape(-1)
        looked = np.concatenate([[0.0], looked[: self.longest * len(RANKS)]])
        bounds = np.concatenate([[0.0], SHARES, [1.0]])
        share = np.concatenate([[0.0], (bounds[:-1] + bounds[1:]) / 2])
        recycled = share[:, None] * np.array(STILL_TRUE)
        return (1 - (1 - looked)[:, None, None] * (1 - recycled)).reshape(-1)


@dataclass(frozen=True)
class Round:
    """What a round did."""

    rows: int  # that it evaluated
    path: list[int]  # the accepted rows, from the root on; rows are numbered the likeliest first
    tokens: list[int]  # that it committed: as many as the path has rows


class DeviceLoop(Protocol):
    """Rounds of one sequence at a time, run in order and reported in order. What it learned outlives a sequence."""

    @property
    def pending(self) -> int:
        """Rounds enqueued and not yet reported."""
        ...

    def begin(
        self, sequence: CachedSequence, spare: Int32, tokens: Sequence[int], last: int, draw: Draw | None = None
    ) -> None:
        """A text of which all `tokens` but the last are in the cache; no row will stand behind position `last`.

        Rows beside the first of their depth lie at `spare` slots. Without a `draw` the likeliest token is taken.
        """
        ...

    def enqueue(self, rows: int) -> None:
        """One more round, of at most `rows` rows. Behind the text's last position it does nothing."""
        ...

    def report(self) -> Round:
        """The oldest round that is not reported yet; waits for it."""
        ...

    def logits(self, rows: Sequence[int]) -> Float32:
        """[n, V] of some rows of the round reported last, if no other was enqueued since."""
        ...

    def end(self) -> None:
        """Waits for what is enqueued, and forgets it."""
        ...


@runtime_checkable
class Loops(Protocol):
    """An executable that can go on by itself."""

    def loop(self, state: object, drafting: Drafting, largest: int) -> DeviceLoop:
        """A loop over a cache, of rounds of at most `largest` rows."""
        ...


class RoundSize(Protocol):
    """Chooses how many rows a round has."""

    def choose(self) -> int: ...

    def observe(self, size: int, accepted: Round, seconds: float) -> None:
        """A round of `size` rows at most did this, and took so long."""
        ...


@dataclass(frozen=True)
class SameSize:
    """Every round has so many rows."""

    rows: int

    def choose(self) -> int:
        return self.rows

    def observe(self, size: int, accepted: Round, seconds: float) -> None:
        pass


@dataclass
class MostTokens:
    """The size that brings most tokens a second, by what rounds of late brought and took.

    The first n rows of a round are the tree of n rows, so that a round says what every smaller one would have brought:
    a token for each row of the path that is among the first n. Larger ones are tried now and then.
    """

    cost: CostModel
    sizes: tuple[int, ...]  # ascending
    memory: float = 0.95  # what a round's evidence still weighs a round later
    trial: int = 48  # of so many rounds one has the most rows
    _tokens: list[float] = field(init=False)
    _seconds: list[float] = field(init=False)
    _rounds: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if not self.sizes or list(self.sizes) != sorted(set(self.sizes)) or self.sizes[0] < 1:
            raise InvalidOptionError(f"sizes of rounds must ascend from 1 or more, not {self.sizes}: give at least one")
        self._tokens = [1.0 + 0.5 * number for number in range(len(self.sizes))]
        self._seconds = [self.cost.seconds(size) for size in self.sizes]

    def choose(self) -> int:
        self._rounds += 1
        if self._rounds % self.trial == 1:
            return self.sizes[-1]
        rates = [tokens / seconds for tokens, seconds in zip(self._tokens, self._seconds, strict=True)]
        return self.sizes[max(range(len(rates)), key=rates.__getitem__)]

    def observe(self, size: int, accepted: Round, seconds: float) -> None:
        number = self.sizes.index(size)
        for index, smaller in enumerate(self.sizes[: number + 1]):
            tokens = sum(row < smaller for row in accepted.path)
            self._tokens[index] += (1 - self.memory) * (tokens - self._tokens[index])
        seconds = min(seconds, 4 * self._seconds[number])  # more, and it was compiled, or the host was away
        self._seconds[number] += (1 - self.memory) * (seconds - self._seconds[number])


@dataclass(frozen=True)
class OnDevice:
    """A loop and the sizes of its rounds."""

    loop: DeviceLoop
    size: RoundSize

    def serves(self, executable: Executable, request: Request) -> bool:
        """Whether tokens are chosen on the device: sampling under top_k or top_p needs whole rows of logits."""
        return not request.sampling.do_sample or drawn_by(executable, request) is not None

    def decode(
        self, engine: Engine, request: Request, clock: Callable[[], float] = time.perf_counter
    ) -> Generator[Step]:
        """As `generation.decode`; closing the iterator frees the cache."""
        length, draw = len(request.prompt), drawn_by(engine.executable, request)
        with engine.sequence(length + request.max_new_tokens - 1) as sequence:
            engine.prefill(sequence, np.array(request.prompt[:-1], np.int32))
            yield Step([], 0, None, finished=False)
            try:
                last = length + request.max_new_tokens - 2
                self.loop.begin(sequence, engine.cache.spare, request.prompt, last, draw)
                yield from self._rounds(request, clock)
            finally:
                self.loop.end()

    def _rounds(self, request: Request, clock: Callable[[], float]) -> Generator[Step]:
        ahead = 0 if request.keep_logits else AHEAD  # logits are those of the last round that ran
        sizes: list[int] = []
        generated, finished, before = 0, False, clock()
        while not finished:
            while self.loop.pending <= ahead:
                sizes.append(self.size.choose())
                self.loop.enqueue(sizes[-1])
            done = self.loop.report()
            now = clock()
            self.size.observe(sizes.pop(0), done, now - before)
            before = now
            kept = request.keep(done.tokens, generated)
            logits = self.loop.logits(done.path[:kept]) if request.keep_logits else None
            generated += kept
            finished = generated == request.max_new_tokens or done.tokens[kept - 1] in request.stop
            yield Step(done.tokens[:kept], done.rows, logits, finished)
