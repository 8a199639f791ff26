"""Sampled texts of a search: sessions that decode beside each other, and the best of n."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from forerun.interrupts import uninterrupted
from forerun.runtime.hooks.keywords import numbered
from forerun.runtime.keywords import Asked
from forerun.runtime.request import Generation, Request, Step
from forerun.runtime.sampling import as_numbers, log_probabilities
from forerun.runtime.serving import Serving
from forerun.runtime.session import Session
from forerun.runtime.spelling import Tokenizer
from forerun.runtime.texts import TextReader


class Sampled:
    """A text that a session decodes, as far as it has been read."""

    def __init__(self, session: Session, reader: TextReader) -> None:
        self.session, self.reader = session, reader

    @property
    def waits(self) -> bool:
        """Whether more tokens are to be read."""
        return not self.reader.finished

    @property
    def cut(self) -> bool:
        """Whether the text ends before what the session has decoded."""
        return self.reader.cut

    def take(self) -> None:
        """Reads what the session has decoded. Raises its error, unless the text ends before."""
        for step in self.session.pending():
            if self.waits:
                self.read(step)
        if self.session.error is not None and not self.cut:
            raise self.session.error

    def read(self, step: Step) -> None:
        self.reader.take(step)


class Running:
    """The sessions of a search, which `running` ends."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving
        self.sessions: list[Session] = []

    def begin(self, requests: Sequence[Request]) -> list[Session]:
        """Returns a new session for each request."""
        with uninterrupted():
            begun = self.serving.begin(requests)
            self.sessions += begun
        return begun

    def fork(self, source: Session, request: Request, shared: int) -> Session:
        """Returns a session that goes on from the first `shared` tokens of another."""
        with uninterrupted():
            forked = self.serving.fork(source, request, shared)
            self.sessions.append(forked)
        return forked

    def end(self, sessions: Sequence[Session]) -> None:
        """Ends sessions of the search."""
        self.serving.cancel(sessions)
        self.sessions = [session for session in self.sessions if session not in sessions]

    def read(self, texts: Sequence[Sampled]) -> None:
        """Decodes until no text waits for tokens. Raises the first error of a session."""
        while waiting := [text for text in texts if text.waits]:
            self.serving.wait([text.session for text in waiting])
            for text in waiting:
                text.take()
            self.end([text.session for text in waiting if text.reader.finished])


@contextmanager
def running(serving: Serving) -> Generator[Running]:
    """Yields the sessions of a search; all end with the body."""
    found = Running(serving)
    try:
        yield found
    finally:
        serving.cancel(found.sessions)


class _Weighed(Sampled):
    """A text whose tokens' log-probabilities are noted."""

    def __init__(self, session: Session, reader: TextReader) -> None:
        super().__init__(session, reader)
        self.log_probabilities: list[float] = []

    def read(self, step: Step) -> None:
        logits = step.logits
        tokens = self.reader.take(step if self.reader.asked.request.keep_logits else replace(step, logits=None))
        if logits is not None:
            rows = zip(logits, tokens, strict=False)  # the text may have ended earlier
            self.log_probabilities += [float(log_probabilities(as_numbers(row))[token]) for row, token in rows]

    @property
    def score(self) -> float:
        """The mean; the smallest number there is for a text without tokens."""
        return float(np.mean(self.log_probabilities)) if self.log_probabilities else float("-inf")


def best_of(serving: Serving, asked: Asked, n: int, tokenizer: Tokenizer | None) -> list[Generation]:
    """Returns n sampled texts, the best first (`policies.BestOf`); of equal ones the lower identifier."""
    request = asked.request
    requests = [replace(request, identifier=number, hooks=numbered(request.hooks, number)) for number in range(n)]
    with running(serving) as sessions:
        begun = sessions.begin([replace(request, keep_logits=True) for request in requests])
        readers = [TextReader(replace(asked, request=request), tokenizer) for request in requests]
        texts = [_Weighed(session, reader) for session, reader in zip(begun, readers, strict=True)]
        sessions.read(texts)
    ranked = sorted(texts, key=lambda text: -text.score)
    return [replace(text.reader.generation(), score=text.score) for text in ranked]
