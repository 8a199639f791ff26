"""A text as a server sends it: what each step adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from forerun.report.replay import replay_step, words
from forerun.runtime.keywords import Asked
from forerun.runtime.recording import Iteration, Outcome
from forerun.runtime.request import Step
from forerun.runtime.spelling import Spelling, Tokenizer
from forerun.runtime.texts import TextReader
from forerun.server.logprobs import TokenLogprobs, token_logprobs


@dataclass(frozen=True)
class Piece:
    """What a step adds to a text. Text comes as soon as it is certain, which may be later than its tokens."""

    text: str
    tokens: int
    logprobs: Sequence[TokenLogprobs] = ()  # of the tokens of the text so far that have not been told, on demand
    tree: dict[str, Any] | None = None  # of the step, on demand
    finish_reason: str | None = None  # of the last piece


class Tapering(TextReader):
    """A reader that turns a step's logits into log-probabilities and lets them go."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer, top: int) -> None:
        super().__init__(asked, tokenizer)
        self.top = top
        self.logprobs: list[TokenLogprobs] = []  # of the last step

    def take(self, step: Step) -> list[int]:
        tokens = super().take(replace(step, logits=None))
        rows = () if step.logits is None else step.logits[: len(tokens)]
        self.logprobs = [token_logprobs(row, token, self.top) for row, token in zip(rows, tokens, strict=False)]
        return tokens


@dataclass
class Trees:
    """The trees of a text's steps, as a report's replay has them."""

    tokenizer: Tokenizer
    names: dict[str, int] = field(default_factory=dict[str, int])
    waiting: list[tuple[Iteration, Outcome]] = field(default_factory=list[tuple[Iteration, Outcome]])
    began: float | None = None

    def next(self, text: str) -> dict[str, Any] | None:
        """Returns the tree of the next step, which has added `text`."""
        if not self.waiting:
            return None
        iteration, outcome = self.waiting.pop(0)
        self.began = iteration.began if self.began is None else self.began
        step = replay_step(iteration, outcome, self.began, self.names, text)
        return asdict(step) | {"proposer_names": list(self.names), "words": words([step], self.tokenizer)}


class Pieces:
    """Turns the steps of one text into pieces."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer, top: int = 0, watched: bool = False) -> None:
        self.reader = Tapering(asked, tokenizer, top)
        self.trees = Trees(tokenizer) if watched else None
        self._spelling = Spelling(tokenizer)
        self._waiting: list[TokenLogprobs] = []  # that may yet turn out to belong to a stop string
        self._told = 0  # those before them

    def take(self, step: Step) -> Piece | None:
        """Returns what a step adds; None if that is nothing."""
        reader = self.reader
        tokens = reader.take(step)
        if not tokens:
            return None
        text = reader.stopped.news() if reader.stopped else self._spelling.add(tokens, last=reader.finished)
        tree = self.trees.next(text) if self.trees else None
        return Piece(text, len(tokens), self._logprobs(), tree, reader.finish_reason)

    def _logprobs(self) -> list[TokenLogprobs]:
        """Returns those of the tokens that have become certain; tokens that begin in a stop string are never told."""
        self._waiting += self.reader.logprobs
        stopped = self.reader.stopped
        count = len(self._waiting) if stopped is None else stopped.begun - self._told
        found, self._waiting = self._waiting[:count], self._waiting[count:]
        self._told += count
        return found
