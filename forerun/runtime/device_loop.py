"""The decoding loop on the device: the host enqueues drafting, step, verification and commit, and reads the results.

The host chooses how many rows the next iteration (`Round`) has, and reads an iteration or two behind, so that the
device never waits for it. The text is that of `generation.decode`: the device makes the same decisions by the same
rules.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from forerun.errors import InvalidOptionError, NotANumberError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.calibration import trial_steps
from forerun.runtime.choice import drawn_by
from forerun.runtime.drafters.prompt_lookup import LONGEST_COUNTED_MATCH, PRIOR_OF_MATCH
from forerun.runtime.drafters.token_recycling import SHARES, STILL_TRUE
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Draw, Executable, Float32, Int32, Rows
from forerun.runtime.request import Request, Step
from forerun.runtime.round_size import Round, RoundSize
from forerun.runtime.tree import Float64
from forerun.signature import ENCODE, STEP

AHEAD = 2
"""Iterations that are enqueued while the host waits for one."""
RANKS = (1.0, 0.4, 0.2)
"""A continuation's initial weight by its rank among siblings: the first, the second, any later one."""
FILLED = ("tokens", "positions", "sequences", "slots", "bases", "paths", "outputs", "block_tables")
"""Arguments of a step that a loop on the device fills in."""
LARGEST = 64
"""The most rows of an iteration."""
PLACES = 24
"""The most earlier occurrences that a tree may continue on the device; a bit mask says which of them a row matches."""


@dataclass(frozen=True)
class Drafting:
    """The drafters on the device: prompt lookup and token recycling, in one tree (`runtime.drafters`)."""

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
        """The length in tokens of the longest match that counts."""
        return LONGEST_COUNTED_MATCH if self.places else 0

    def prior(self) -> Float64:
        """Returns the prior acceptance rates [features], if drafters err independently.

        A feature is (match length and rank, or not looked up; class of share, or not recycled; depth).
        """
        looked = (np.array(PRIOR_OF_MATCH)[:, None] * np.array(RANKS)).reshape(-1)
        looked = np.concatenate([[0.0], looked[: self.longest * len(RANKS)]])
        bounds = np.concatenate([[0.0], SHARES, [1.0]])
        share = np.concatenate([[0.0], (bounds[:-1] + bounds[1:]) / 2])
        recycled = share[:, None] * np.array(STILL_TRUE)
        return (1 - (1 - looked)[:, None, None] * (1 - recycled)).reshape(-1)


class DeviceLoop(Protocol):
    """Runs and reports the iterations of one sequence at a time, in order. What it learned outlives the sequence."""

    @property
    def pending(self) -> int:
        """Iterations enqueued and not yet reported."""
        ...

    @property
    def prepares(self) -> bool:
        """Whether `prepare` compiles iterations of each size before the first text."""
        ...

    def prepare(self, rows: int, trial: Rows) -> None:
        """Prepare iterations of at most `rows` rows; `trial` is a step of that many rows, of no text."""
        ...

    def begin(
        self, sequence: CachedSequence, spare: Int32, tokens: Sequence[int], last: int, draw: Draw | None = None
    ) -> None:
        """Begin a text of which all `tokens` but the last are in the cache; no row will come after position `last`.

        All rows of a depth but the first are at `spare` slots. Without a `draw`, the likeliest token is chosen.
        """
        ...

    def enqueue(self, rows: int) -> None:
        """Enqueue an iteration of at most `rows` rows. After the text's last position it does nothing."""
        ...

    def report(self) -> Round:
        """Wait for the oldest iteration not yet reported, and return it."""
        ...

    def logits(self, rows: Sequence[int]) -> Float32:
        """Returns the logits [n, V] of some rows of the iteration reported last, if no other was enqueued since."""
        ...

    def end(self) -> None:
        """Wait for all enqueued iterations, and discard them."""
        ...


@runtime_checkable
class Loops(Protocol):
    """An executable that can run the loop on the device."""

    def loop(self, state: object, drafting: Drafting, largest: int) -> DeviceLoop:
        """Returns a loop over a cache, with iterations of at most `largest` rows."""
        ...


def fills_inputs(executable: Executable) -> bool:
    """Whether a loop on the device fills in all arguments of a step, and a session needs nothing else to begin."""
    arguments = executable.entries[STEP].arguments
    return ENCODE not in executable.entries and all(each.name in FILLED for each in arguments)


@dataclass
class OnDevice:
    """A loop and the sizes of its iterations. One text at a time; while it is `busy`, the host decodes others."""

    loop: DeviceLoop
    size: RoundSize
    busy: bool = False

    def prepare(self, engine: Engine) -> None:
        """Compile and measure iterations of all sizes before the first text."""
        if self.loop.prepares:
            with trial_steps(engine, self.size.sizes) as trials:
                for size, trial in zip(self.size.sizes, trials, strict=True):
                    self.loop.prepare(size, trial)

    def serves(self, executable: Executable, request: Request) -> bool:
        """Whether the device can decode a request now: it chooses the likeliest or a sampled token, no others."""
        chosen_here = not request.sampling.do_sample or drawn_by(executable, request) is not None
        forbids = request.min_new_tokens > 0 and request.stop
        host_chooses = request.allow_nan or forbids or request.hooks or request.keep_scores
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
        ahead = 0 if request.keep_logits else AHEAD  # logits are those of the last iteration that ran
        sizes: list[int] = []
        generated, finished = 0, False
        while not finished:
            # An iteration yields at least one token: more iterations than missing tokens would have nothing to do.
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
