"""Texts as their callers read them: whole, in pieces, or several at a time."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32
from forerun.runtime.keywords import Asked
from forerun.runtime.options import require_integer
from forerun.runtime.prompts import flat_tokens
from forerun.runtime.request import TARGET, Generation, Phases, Stats, Step
from forerun.runtime.serving import Serving
from forerun.runtime.session import Session
from forerun.runtime.spelling import Spelling, StoppedText, Tokenizer
from forerun.runtime.stopping import Stopping


class TextReader:
    """Collects one text from its steps."""

    def __init__(self, asked: Asked, tokenizer: Tokenizer | None) -> None:
        self.asked, self.tokenizer = asked, tokenizer
        self.token_ids: list[int] = []
        self.finished = False
        self._logits: list[Float32] = []
        self._scores: list[Float32] = []
        self.finish_reason: str | None = None
        self.stopped = StoppedText(tokenizer, asked.stop) if asked.stop and tokenizer is not None else None
        self._stopping = Stopping(asked.request, asked.criteria, self.stopped)
        self._meter = _Meter()

    def take(self, step: Step) -> list[int]:
        """Returns the tokens of a step that belong to the text."""
        step = self._stopping.cut(step)
        self._meter.observe(step)
        self.token_ids.extend(step.tokens)
        if step.logits is not None:
            self._logits.append(step.logits)
        if step.scores is not None:
            self._scores.append(step.scores)
        if step.finished:
            self._finish(step)
        return step.tokens

    def _finish(self, step: Step) -> None:
        """Ends the text with its last step."""
        self.finished = True
        ends = self._stopping.stopped or step.ended or (step.tokens and step.tokens[-1] in self.asked.request.stop)
        self.finish_reason = "stop" if ends else "length"
        if self.stopped is not None:
            self.stopped.finish()

    @property
    def cut(self) -> bool:
        """Whether the text ends before what was decoded: nothing that comes later concerns it."""
        return self._stopping.stopped

    @property
    def text(self) -> str | None:
        """The text so far; None without a tokenizer."""
        if self.stopped is not None:
            return self.stopped.text
        return None if self.tokenizer is None else self.tokenizer.decode(self.token_ids, skip_special_tokens=True)

    def generation(self) -> Generation:
        """Returns the text so far with its cost."""
        request = self.asked.request
        logits = _joined(self._logits) if request.keep_logits else None
        scores = _joined(self._scores) if request.keep_scores else None
        stats, reason = self._meter.stats(), self.finish_reason
        return Generation(self.token_ids, logits, self.text, stats, request.prompt, scores, reason)


def _joined(rows: list[Float32]) -> Float32:
    return np.concatenate(rows) if rows else np.zeros((0, 0), np.float32)


class TextSession:
    """A session as its caller sees it: what `CompiledModel.sessions` yields."""

    def __init__(self, owner: "Sessions", index: int, session: Session, reader: TextReader) -> None:
        self.index = index  # of the prompt and its copies; forks are numbered after them
        self.new_tokens: list[int] = []  # since it was last yielded
        self.error: BaseException | None = None  # why it ended before its text did
        self._owner, self._session, self._reader = owner, session, reader

    def __repr__(self) -> str:
        state = "failed" if self.error else "finished" if self.finished else "decoding"
        return f"TextSession({self.index}, {len(self.token_ids)} new tokens, {state})"

    @property
    def token_ids(self) -> list[int]:
        """The new tokens so far."""
        return self._reader.token_ids

    @property
    def text(self) -> str | None:
        """The same as text; None without a tokenizer."""
        return self._reader.text

    @property
    def finished(self) -> bool:
        """Whether it gets no more tokens."""
        return self._reader.finished or (self._session.finished and not self._session.has_steps)

    def generation(self) -> Generation:
        """Returns the text so far with its cost. Raises the error if the session failed."""
        if self.error is not None:
            raise self.error
        return self._reader.generation()

    def cancel(self) -> None:
        """Ends the session now; what it has stays."""
        self._owner.serving.cancel([self._session])
        self._reader.finished = True

    def fork(
        self,
        tokens: Sequence[int] = (),
        max_new_tokens: int | None = None,
        seed: int | None = None,
        identifier: int | None = None,
    ) -> "TextSession":
        """Returns another session that goes on from here, and is yielded like this one from now on.

        It is decoded like a prompt of the text so far and `tokens`, of which it computes only the latter.

        max_new_tokens      by default as many as this one may still have
        seed, identifier    by default this session's, with which a fork without `tokens` samples the same text

        Raises `InvalidOptionError` for tokens outside the vocabulary, and if there is no room for a new token.
        """
        return self._owner.fork(self, tokens, max_new_tokens, seed, identifier)

    def take(self) -> bool:
        """Takes what the session has decoded; returns whether that is anything."""
        self.new_tokens = []
        if self._reader.finished:  # what it decoded after it was cancelled is not wanted
            return True
        try:
            for step in self._session.pending():
                self.new_tokens.extend(self._reader.take(step))
                if self._reader.finished:
                    break
        except Exception as error:  # of a stopping criterion
            self.error = error
            self.cancel()
        if self._session.error is not None and not self._reader.cut:
            self.error = self.error or self._session.error
            self._reader.finished = True
        if self._reader.finished:
            self._owner.serving.cancel([self._session])
        return bool(self.new_tokens) or self.finished

    @property
    def session(self) -> Session:
        return self._session

    @property
    def asked(self) -> Asked:
        return self._reader.asked


class Sessions:
    """Iterates over sessions: yields one each time that it has new tokens or has ended, until all have ended.

    All decode together, and beside those of other callers: also while nobody reads them, if anybody else waits for a
    step. Leaving a `with` block, `close` and dropping the last reference end those that are left. A session that fails
    is yielded with its `error`; the others go on.
    """

    def __init__(self, serving: Serving, asked: Iterable[Asked], tokenizer: Tokenizer | None, room: Any) -> None:
        self.serving, self._tokenizer, self._room = serving, tokenizer, room
        self.all: list[TextSession] = []
        given = list(asked)
        sessions = serving.begin([each.request for each in given])
        self.all += [
            TextSession(self, index, session, TextReader(each, tokenizer))
            for index, (session, each) in enumerate(zip(sessions, given, strict=True))
        ]
        self._reading = threading.Lock()
        self._ready: deque[TextSession] = deque()
        self._ended: set[TextSession] = set()

    def __iter__(self) -> "Sessions":
        return self

    def __next__(self) -> TextSession:
        with self._reading:  # one thread at a time
            return self._next()

    def _next(self) -> TextSession:
        while not self._ready:
            live = [each for each in self.all if each not in self._ended]
            if not live:
                raise StopIteration
            pending = [each for each in live if not each.finished]
            if len(pending) == len(live):
                self.serving.wait([each.session for each in pending])
            for each in live:
                if (each.session.has_news or each.finished) and each.take():
                    self._ready.append(each)
                    if each.finished:
                        self._ended.add(each)
        return self._ready.popleft()

    def __enter__(self) -> "Sessions":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:  # in any thread, whatever locks it holds
        self.serving.abandon(each.session for each in self.all)

    def generations(self) -> list[Generation]:
        """Decodes all texts. Raises the first error of a session; the others then end, too."""
        with self:
            for session in self:
                if session.error is not None:
                    raise session.error
            return [each.generation() for each in self.all]

    def close(self) -> None:
        """Ends all sessions that are left."""
        self.serving.cancel([each.session for each in self.all if not each.session.finished])

    def fork(
        self,
        source: TextSession,
        tokens: Sequence[int],
        max_new_tokens: int | None,
        seed: int | None,
        identifier: int | None,
    ) -> TextSession:
        """Returns `TextSession.fork`'s session."""
        request, done = source.asked.request, len(source.token_ids)
        tokens = flat_tokens(tokens)
        if max_new_tokens is not None:
            max_new_tokens = require_integer("max_new_tokens", max_new_tokens, least=1)
        else:
            max_new_tokens = request.max_new_tokens - done - len(tokens)
            if max_new_tokens < 1:
                raise InvalidOptionError(
                    f"a fork after {done} of {request.max_new_tokens} new tokens has no room for its own: give "
                    "max_new_tokens"
                )
        identifier = request.identifier if identifier is None else identifier
        identifier = require_integer("identifier", identifier, 0, 2**64 - 1)
        sampling = request.sampling if seed is None else replace(request.sampling, seed=seed)
        forked = request.after([*source.token_ids, *tokens], max_new_tokens)
        prompt = self._room(forked.prompt, max_new_tokens)
        forked = replace(forked, prompt=prompt, sampling=sampling, identifier=identifier)
        reader = TextReader(replace(source.asked, request=forked), self._tokenizer)
        session = self.serving.fork(source.session, forked, len(request.prompt) + done)
        found = TextSession(self, len(self.all), session, reader)
        self.all.append(found)
        return found


@dataclass(frozen=True)
class Piece:
    """What one step adds to a text."""

    token_ids: list[int]
    text: str | None
    """Whole characters only: one whose last bytes are still to come is part of a later piece, as is what may be the
    beginning of a stop string. None without a tokenizer."""
    finish_reason: str | None = None
    """Why the text ends with this piece (`Generation.finish_reason`); None if it goes on."""


class Stream:
    """Iterates over the pieces of a text. Closing it ends the text; any thread may do that."""

    def __init__(
        self, steps: Generator[Step], reader: TextReader, close: Callable[[], None], abandon: Callable[[], None]
    ) -> None:
        """`close` ends the text, and `abandon` does so later, without waiting for a lock."""
        self._steps, self._reader, self._close, self._abandon = steps, reader, close, abandon
        self._spelling = None if reader.tokenizer is None else Spelling(reader.tokenizer)
        self._reading = threading.Lock()

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Piece:
        with self._reading:  # one thread at a time
            try:
                return self._next()
            except BaseException:
                self.close()
                raise

    def _next(self) -> Piece:
        while not self._reader.finished and (step := next(self._steps, None)) is not None:
            tokens = self._reader.take(step)
            if self._reader.finished:
                self.close()
            if tokens:
                return Piece(tokens, self._text(tokens), self._reader.finish_reason)
        raise StopIteration

    def _text(self, tokens: list[int]) -> str | None:
        """Returns the text that has become certain with some tokens."""
        if self._reader.stopped is not None:
            return self._reader.stopped.news()
        return None if self._spelling is None else self._spelling.add(tokens, last=self._reader.finished)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:  # in any thread, whatever locks it holds
        self._abandon()

    def close(self) -> None:
        """Ends the text."""
        self._reader.finished = True
        self._close()

    def generation(self) -> Generation:
        """Returns the text so far with its cost."""
        return self._reader.generation()


class _Meter:
    """Counts and times the steps of a generation."""

    def __init__(self) -> None:
        self._steps = self._rows = self._tokens = 0
        self._phases: Phases | None = None
        self._lengths, self._tokens_by = Counter[int](), Counter[str]()
        self._prefilled = self._ended = self._began = time.perf_counter()

    def observe(self, step: Step) -> None:
        self._ended = time.perf_counter()
        if step.rows == 0:
            self._prefilled = self._ended
            return
        self._steps += 1
        self._rows += step.rows
        self._tokens += len(step.tokens)
        self._lengths[len(step.tokens)] += 1
        proposed = step.proposers[: len(step.tokens)]
        self._tokens_by.update(proposed)
        self._tokens_by[TARGET] += len(step.tokens) - len(proposed)
        if step.phases is not None:
            self._phases = step.phases if self._phases is None else self._phases + step.phases

    def stats(self) -> Stats:
        prefill, decoding = self._prefilled - self._began, self._ended - self._prefilled
        lengths, tokens_by = dict(sorted(self._lengths.items())), dict(self._tokens_by)
        return Stats(self._steps, self._rows, self._tokens, prefill, decoding, self._phases, lengths, tokens_by)
