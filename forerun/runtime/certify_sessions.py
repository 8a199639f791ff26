"""Certifies sessions that share steps: random arrivals, forks and cancellations, against each text alone."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from forerun.errors import InvalidOptionError, NotANumberError
from forerun.runtime.cases import random_inputs
from forerun.runtime.certify_texts import TextsReport, parts_at, random_request, steps_of, tokens_of
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.generation import decode
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.request import Request, Step
from forerun.runtime.serving import Serving
from forerun.runtime.session import Session

TOGETHER = 6
"""Texts that share steps."""
FORKED, CANCELLED = 0.04, 0.01
"""How often a session is forked or cancelled after a step."""


@dataclass(eq=False)
class _Text:
    number: int
    session: Session
    steps: list[Step] = field(default_factory=list[Step])
    cancelled: bool = False


def certify_sessions(
    engine: Engine,
    drafter: Drafter,
    policy: Policy,
    texts: int = 24,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TextsReport:
    """Decode `texts` random prompts, greedy and sampled, a few at a time, some with the same beginnings.

    Half of them are compared by their tokens, the others also by the bits of their logits. Nothing else may use the
    engine meanwhile.
    """
    if texts < 1:
        raise InvalidOptionError(f"texts must be at least 1, not {texts}")
    batch = _Batch(engine, Serving(engine, drafter, policy), np.random.default_rng(seed))
    for first in range(0, texts, TOGETHER):
        batch.run(range(first, min(texts, first + TOGETHER)))
        if progress:
            progress(min(texts, first + TOGETHER), texts)
    return TextsReport(batch.texts, batch.tokens, batch.rounds, batch.differences, batch.first, "shared steps")


class _Batch:
    def __init__(self, engine: Engine, serving: Serving, random: np.random.Generator) -> None:
        self.engine, self.serving, self.random = engine, serving, random
        self.texts = self.tokens = self.rounds = self.differences = 0
        self.first: str | None = None

    def run(self, numbers: range) -> None:
        """Decodes some texts together, which arrive a few at a time, and compares them."""
        pending = [self._request(number) for number in numbers]
        live: list[_Text] = []
        ended: list[_Text] = []
        began = self.serving.scheduler.iteration
        while pending or live:
            if pending and (not live or self.random.random() < 0.3):
                arrived = [pending.pop() for _ in range(min(len(pending), int(self.random.integers(1, TOGETHER))))]
                sessions = self.serving.begin([request for _, request in arrived])
                live += [_Text(number, session) for (number, _), session in zip(arrived, sessions, strict=True)]
            text = live[int(self.random.integers(len(live)))]
            self.serving.wait([text.session])
            text.steps.extend(steps_of(text.session.take()))
            if text.session.finished:
                live.remove(text)
                ended.append(text)
            elif self.random.random() < FORKED:
                live.append(self._fork(text))
            elif self.random.random() < CANCELLED:
                text.cancelled = True
                self.serving.cancel([text.session])
        self.rounds += self.serving.scheduler.iteration - began
        for text in ended:
            self._compare(text)

    def _request(self, number: int) -> tuple[int, Request]:
        """Returns a random request; every other one begins like another."""
        executable = self.engine.executable
        request = random_request(self.random, executable, number)
        if number % 2 == 0:
            room = executable.max_length - request.max_new_tokens - 1
            common = [(7 * at) % executable.vocabulary for at in range(int(self.random.integers(1, 100)))]
            request = replace(request, prompt=[*common, *request.prompt][: max(1, room)])
        return number, replace(request, inputs=random_inputs(self.random, executable))

    def _fork(self, text: _Text) -> _Text:
        """Returns a text that goes on from an earlier one's present state."""
        session = text.session
        prompt = list(session.context.tokens)
        request = replace(session.request, prompt=prompt, max_new_tokens=max(1, session.left))
        return _Text(text.number, self.serving.fork(session, request, len(prompt)))

    def _compare(self, text: _Text) -> None:
        session, found = text.session, text.steps
        if session.error is not None and not isinstance(session.error, NotANumberError):
            raise session.error
        self.engine.cache.forget_ended()  # so that the text alone is computed anew
        expected = steps_of(decode(self.engine, session.request, Drafter(), Fixed(1)))
        parted = parts_at(_first(expected, session.generated) if text.cancelled else expected, found)
        self.texts += 1
        self.tokens += len(tokens_of(found))
        if parted is not None:
            self.differences += 1
            self.first = self.first or (
                f"text {text.number}, decoded beside others: token {parted} differs from plain decoding alone"
            )


def _first(steps: list[Step], count: int) -> list[Step]:
    """Returns the steps of a text's first tokens; plain decoding has one token a step."""
    return steps[: count + 1]
