"""The thread that decodes: all requests share its steps, and the event loop gets what each step adds."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from forerun.runtime.keywords import Asked
from forerun.runtime.model import CompiledModel
from forerun.runtime.recording import Iteration
from forerun.runtime.session import Session
from forerun.runtime.spelling import Tokenizer
from forerun.server.pieces import Piece, Pieces
from forerun.server.refusals import draining, timed_out

log = logging.getLogger("forerun.server")

News = tuple[int, Piece | BaseException]
"""The number of a request's text, and what is new of it: its next piece, or why it failed."""


@dataclass(eq=False)
class Text:
    """A text that is being decoded."""

    job: Job
    index: int
    session: Session
    pieces: Pieces

    def take(self) -> list[Piece | BaseException]:
        """Returns what its steps have added since the last call, and then the error if it failed."""
        found: list[Piece | BaseException] = []
        try:
            for step in self.session.pending():
                if (piece := self.pieces.take(step)) is not None:
                    found.append(piece)
                if self.pieces.reader.finished:
                    return found
        except BaseException as error:  # of a tokenizer; a panic in Rust is no `Exception`
            return [*found, error]
        return found if self.session.error is None else [*found, self.session.error]


@dataclass(eq=False)
class Job:
    """The texts of one request."""

    decoding: Decoding
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue[News])
    texts: list[Text] = field(default_factory=list[Text])

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """Yields the pieces of all texts with the text's number, as they come. Raises the error of one that fails."""
        running = len(self.texts)
        while running:
            index, new = await self.news.get()
            if isinstance(new, Exception):
                raise new
            if isinstance(new, BaseException):  # not one of the event loop's own
                raise RuntimeError("decoding failed") from new
            running -= new.finish_reason is not None
            yield index, new

    def expire(self, seconds: float) -> None:
        """Ends what is left of the texts, which took so many seconds."""
        self.close()
        self.news.put_nowait((0, timed_out(seconds)))

    def close(self) -> None:
        """Ends what is left of the texts: the step that runs now is their last."""
        self.decoding.end(self.texts)


class Decoding:
    """Decodes the texts of jobs in a thread of its own, from `start` to `stop`."""

    def __init__(self, model: CompiledModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._thread = threading.Thread(target=self._run, name="forerun-decoding", daemon=True)
        self._changed = threading.Condition()  # guards the next two
        self._texts: list[Text] = []
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Called in the event loop, which gets the news."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Ends all texts, and the thread after the step that runs now."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def begin(self, asked: Sequence[Asked], top: int = 0, watched: bool = False) -> Job:
        """Returns a job for some texts; they take part from the next step on, if there is room.

        top     how many of the likeliest tokens are told of each place, for requests that keep logits
        watched whether their trees are told

        Raises `RefusedError` after `stop`.
        """
        job = Job(self)
        pieces = [Pieces(each, self.tokenizer, top, watched) for each in asked]
        with self._changed:  # so that no step is over before its listener knows the texts
            if self._stopping:
                raise draining()
            sessions = self.model.serving.begin([each.request for each in asked])
            for index, (session, each) in enumerate(zip(sessions, pieces, strict=True)):
                job.texts.append(Text(job, index, session, each))
            self._texts += job.texts
            self._changed.notify()
        return job

    def end(self, texts: Sequence[Text]) -> None:
        """Ends texts without waiting for anything."""
        self.model.serving.abandon(text.session for text in texts)

    @property
    def waiting(self) -> int:
        """How many texts have no place in the cache yet, or again."""
        return sum(text.session.sequence is None for text in list(self._texts))

    @property
    def running(self) -> int:
        """How many texts have a place in the cache."""
        return sum(text.session.sequence is not None for text in list(self._texts))

    # --- in the thread

    def _run(self) -> None:
        with self.model.serving.listening(self._listen):
            while self._turn():
                pass

    def _turn(self) -> bool:
        """Runs steps until a text has news, and hands them on. Returns False at the end."""
        texts = self._next()
        if texts is None:
            return False
        try:
            self.model.serving.wait([text.session for text in texts])
        except BaseException as error:  # a bug: the server outlives it; a panic in Rust is no `Exception`
            log.exception("a step failed")
            for text in texts:
                text.session.fail(error)
        self._tell(texts)
        return True

    def _next(self) -> list[Text] | None:
        """Waits for texts; returns those that are running, or None at the end."""
        serving = self.model.serving
        with self._changed:
            while not self._texts and not self._stopping:
                self._changed.wait()
            texts = list(self._texts)
            if not self._stopping:
                return texts
            self._texts = []
        self.end(texts)
        serving.cancel(())  # lets the sessions go
        self._hand_on([(text.job, (text.index, draining())) for text in texts])
        return None

    def _tell(self, texts: list[Text]) -> None:
        """Hands on what the texts have; lets those go that have ended."""
        news: list[tuple[Job, News]] = []
        ended: set[Text] = set()
        for text in texts:
            if not text.session.has_news:
                continue
            found = text.take()
            news += [(text.job, (text.index, each)) for each in found]
            failed = bool(found) and isinstance(found[-1], BaseException)
            if failed or text.pieces.reader.finished or text.session.finished:
                ended.add(text)
        if ended:
            self.end(list(ended))
            with self._changed:
                self._texts = [text for text in self._texts if text not in ended]
            if not self._texts:
                self.model.serving.cancel(())
        self._hand_on(news)

    def _hand_on(self, news: list[tuple[Job, News]]) -> None:
        if news and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_deliver, news)

    def _listen(self, iteration: Iteration) -> None:
        """Keeps the trees of those that are watched; called after each step."""
        if not iteration.outcomes:
            return
        with self._changed:
            watched = {text.session: text.pieces.trees for text in self._texts if text.pieces.trees is not None}
        for outcome in iteration.outcomes if watched else ():
            if (trees := watched.get(outcome.session)) is not None:
                trees.waiting.append((iteration, outcome))


def _deliver(news: list[tuple[Job, News]]) -> None:
    for job, each in news:
        job.news.put_nowait(each)
