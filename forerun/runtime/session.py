"""A session: one request that is being decoded."""

import threading
from collections import deque
from collections.abc import Iterable

import numpy as np

from forerun.runtime.cache import CachedSequence
from forerun.runtime.drafters.base import Context
from forerun.runtime.executable import Float32, Int32
from forerun.runtime.hooks.base import HookStates
from forerun.runtime.request import Phases, Request, Step


class Session:
    """The text of a request so far, and its place in the cache while it has one.

    A session waits until it has one, reads its prompt, and then decodes. It may lose its place to an older session, and
    then waits again; what it has decoded is read like a prompt, with the same bits.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.context = Context(list(request.prompt))
        self.hooks = HookStates(request.hooks, request.begin) if request.hooks else None
        self.sequence: CachedSequence | None = None
        self.finished = False
        self.error: BaseException | None = None  # why it ended before its text did
        self.resting = False  # whether it takes no part in steps, but may be forked
        self.begun = False  # whether the drafter knows the context
        self.thread = threading.get_ident()  # that began it
        self.last = -1  # the iteration in which it last decoded
        self._steps: deque[Step] = deque()
        self._announced = False  # whether the caller has been told that the prompt is in the cache

    def __repr__(self) -> str:
        state = "finished" if self.finished else "waiting" if self.sequence is None else "decoding"
        return f"Session({len(self.request.prompt)} + {self.generated} tokens, {state})"

    @property
    def generated(self) -> int:
        """The number of new tokens so far."""
        return len(self.context.tokens) - len(self.request.prompt)

    @property
    def token_ids(self) -> list[int]:
        """The new tokens so far."""
        return self.context.tokens[len(self.request.prompt) :]

    @property
    def cached(self) -> CachedSequence:
        """Its place in the cache."""
        assert self.sequence is not None
        return self.sequence

    @property
    def reads(self) -> bool:
        """Whether some of its tokens before the last one have yet to be read."""
        return self.cached.length < len(self.context.tokens) - 1

    def next_of_prompt(self, count: int) -> Int32:
        """Returns the next tokens [count] to read."""
        at = self.cached.length
        return np.array(self.context.tokens[at : at + count], np.int32)

    @property
    def left(self) -> int:
        """How many tokens its text may still grow by."""
        return self.request.max_new_tokens - self.generated

    @property
    def has_news(self) -> bool:
        """Whether there is something for the caller: a step, the end or an error."""
        return self.has_steps or self.finished

    @property
    def has_steps(self) -> bool:
        return bool(self._steps)

    def announce(self) -> None:
        """Tells the caller once that the prompt is in the cache."""
        if not self._announced:
            self._announced = True
            self._steps.append(Step([], 0, None, finished=False))

    def accept(
        self,
        tokens: list[int],
        rows: int,
        logits: Float32 | None,
        phases: Phases | None = None,
        proposers: tuple[str, ...] = (),
        scores: Float32 | None = None,
        ended: bool = False,
    ) -> None:
        """Appends what a step of `rows` rows has committed, and who `proposers` were of all tokens but the last.

        `ended`: nothing may follow them.
        """
        self.context.tokens.extend(tokens)
        finished = ended or self.left == 0 or tokens[-1] in self.request.stop
        self._steps.append(Step(tokens, rows, logits, finished, phases, proposers, scores, ended))
        if finished:  # it may have been cancelled meanwhile
            self.finished = True

    def fail(self, error: BaseException) -> None:
        """Ends it with an error, which its caller gets, unless it has ended already."""
        if not self.finished:
            self.error, self.finished = error, True

    def pending(self) -> Iterable[Step]:
        """Yields the steps that the caller has not seen."""
        while self._steps:
            yield self._steps.popleft()

    def take(self) -> Iterable[Step]:
        """Yields the steps that the caller has not seen, and then raises the error if it failed."""
        yield from self.pending()
        if self.error is not None:
            raise self.error
