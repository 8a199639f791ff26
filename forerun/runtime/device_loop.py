"""The decoding loop on the device: drafting, step, verification and commit are enqueued, and the host reads along.

A turn of the loop there is a *round*. The host chooses how many rows the next one has and is a round or two behind with
reading, so that the device never waits for it. The text is that of `generation.decode`, which decides the same by the
same rules; what differs is where.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from forerun.errors import InvalidOptionError, NotANumberError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.calibration import trial_steps
from forerun.runtime.drafters.prompt_lookup import LONGEST_COUNTED_MATCH, PRIOR_OF_MATCH
from forerun.runtime.drafters.token_recycling import SHARES, STILL_TRUE
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Draw, Executable, Float32, Int32, Rows
from forerun.runtime.generation import Request, Step, drawn_by
from forerun.runtime.round_size import Round, RoundSize
from forerun.runtime.tree import Float64
from forerun.signature import ENCODE, STEP

AHEAD = 2
"""Rounds that are enqueued while the host waits for one."""
RANKS = (1.0, 0.4, 0.2)
"""What a continuation is worth at first beside its siblings: the first, the second, any later one."""
FILLED = ("tokens", "positions", "sequences", "slots", "bases", "paths", "outputs", "block_tables")
"""Arguments of a step that a loop on the device fills in."""
LARGEST = 64
"""Rows of a round at most."""
PLACES = 24
"""Earlier occurrences that a tree may continue on the device: which of them a row reads like are bits of a number."""


@dataclass(frozen=True)
class Drafting:
    """What drafts on the device: prompt lookup and token recycling, in one tree (`runtime.drafters`)."""

    places: int = 8  # earlier occurrences that a tree continues, at most `PLACES`; 0 for no prompt lookup
    deepest: int = 8  # the deepest row that recycled candidates may have; 0 for none

    def __post_init__(self) -> None:
        if not 0 <= self.places <= PLACES or self.deepest < 0:
            raise InvalidOptionError(
                f"drafting on the device continues 0 to {PLACES} places and recycles to a depth of 0 or more: give "
                f"other values than {self.places} and {self.deepest}"
            )

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


class DeviceLoop(Protocol):
    """Rounds of one sequence at a time, run in order and reported in order. What it learned outlives a sequence."""

    @property
    def pending(self) -> int:
        """Rounds enqueued and not yet reported."""
        ...

    @property
    def prepares(self) -> bool:
        """Whether rounds of a size are compiled before the first text, by `prepare`."""
        ...

    def prepare(self, rows: int, trial: Rows) -> None:
        """Make rounds of at most so many rows ready; `trial` is a step of as many rows, of no text."""
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


def fills_inputs(executable: Executable) -> bool:
    """Whether a loop on the device fills in all that a step takes, and a session needs nothing else to begin."""
    arguments = executable.entries[STEP].arguments
    return ENCODE not in executable.entries and all(each.name in FILLED for each in arguments)


@dataclass
class OnDevice:
    """A loop and the sizes of its rounds. It decodes one text at a time; while it is `busy`, others are the host's."""

    loop: DeviceLoop
    size: RoundSize
    busy: bool = False

    def prepare(self, engine: Engine) -> None:
        """Compile and measure what rounds of all sizes need, before the first text."""
        if self.loop.prepares:
            with trial_steps(engine, self.size.sizes) as trials:
                for size, trial in zip(self.size.sizes, trials, strict=True):
                    self.loop.prepare(size, trial)

    def serves(self, executable: Executable, request: Request) -> bool:
        """Whether a request can be decoded here now: the likeliest token and a drawn one are known, others are not."""
        chosen_here = not request.sampling.do_sample or drawn_by(executable, request) is not None
        host_chooses = request.allow_nan or (request.min_new_tokens > 0 and request.stop)
        return chosen_here and not host_chooses and not self.busy

    def decode(self, engine: Engine, request: Request) -> Generator[Step]:
        """As `generation.decode`; closing the iterator frees the cache."""
        self.busy = True
        try:
            yield from self._decode(engine, request)
        finally:
            self.busy = False

    def _decode(self, engine: Engine, request: Request) -> Generator[Step]:
        length, draw = len(request.prompt), drawn_by(engine.executable, request)
        with engine.sequence(length + request.max_new_tokens - 1) as sequence:
            engine.prefill(sequence, np.array(request.prompt[:-1], np.int32))
            yield Step([], 0, None, finished=False)
            try:
                last = length + request.max_new_tokens - 2
                self.loop.begin(sequence, engine.cache.spare, request.prompt, last, draw)
                yield from self._rounds(request)
            finally:
                self.loop.end()

    def _rounds(self, request: Request) -> Generator[Step]:
        ahead = 0 if request.keep_logits else AHEAD  # logits are those of the last round that ran
        sizes: list[int] = []
        generated, finished = 0, False
        while not finished:
            # A round brings a token at least: more than are missing would have nothing to do.
            while self.loop.pending <= ahead and generated + self.loop.pending < request.max_new_tokens:
                sizes.append(self.size.choose())
                self.loop.enqueue(sizes[-1])
            done = self.loop.report()
            self.size.observe(sizes.pop(0), done)
            numbers = next((i for i, token in enumerate(done.tokens) if token < 0), len(done.tokens))
            kept = request.keep(done.tokens[:numbers], generated)
            logits = self.loop.logits(done.path[:kept]) if request.keep_logits and kept else None
            generated += kept
            finished = generated == request.max_new_tokens or (kept > 0 and done.tokens[kept - 1] in request.stop)
            if kept:
                yield Step(done.tokens[:kept], done.rows, logits, finished)
            if not finished and kept < len(done.tokens):
                raise NotANumberError(len(request.prompt) + generated - 1, -1 - done.tokens[kept])
