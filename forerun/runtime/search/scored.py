"""Texts that grow by segments, ranked at each border by a user's scorer (`policies.Scored`)."""

import math
import numbers
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.keywords import Asked
from forerun.runtime.options import unwrapped
from forerun.runtime.request import Generation, Request, Stats, Step
from forerun.runtime.search.policies import Scored
from forerun.runtime.search.sampling import Running, Sampled, running
from forerun.runtime.serving import Serving
from forerun.runtime.session import Session
from forerun.runtime.spelling import Spelling, Tokenizer
from forerun.runtime.texts import TextReader


class Segment(Sampled):
    """The tokens of a text from one border to the next."""

    def __init__(self, session: Session, reader: TextReader, policy: Scored, before: "tuple[Generation, ...]") -> None:
        """`before`: the segments before this one."""
        super().__init__(session, reader)
        self.before, self.score = before, 0.0
        self._policy, self._complete = policy, False
        self._texts = [end for end in policy.ends if isinstance(end, str)]
        self._spelling = None if reader.tokenizer is None or not self._texts else Spelling(reader.tokenizer)
        self._spelled = ""
        if reader.stopped is not None:  # a stop string may begin in an earlier segment
            for token in self.token_ids:
                reader.stopped.add(token)

    @property
    def waits(self) -> bool:
        return not self._complete and not self.reader.finished

    @property
    def cut(self) -> bool:
        return self._complete or self.reader.cut

    def read(self, step: Step) -> None:
        for number, token in enumerate(step.tokens):
            if self._ends(len(self.reader.token_ids) + number + 1, token):
                self._complete = self.session.resting = True
                if number + 1 < len(step.tokens):
                    step = replace(step.cut(number + 1), finished=False)
                break
        self.reader.take(step)

    def _ends(self, count: int, token: int) -> bool:
        """Whether a segment ends with a token, the `count`-th."""
        if self._spelling is not None:
            self._spelled += self._spelling.add([token])
        found = any(end in self._spelled for end in self._texts)
        return found or token in self._policy.ends or count == self._policy.segment

    @property
    def parts(self) -> tuple[Generation, ...]:
        """All segments so far."""
        return (*self.before, self.reader.generation())

    @property
    def token_ids(self) -> list[int]:
        """The new tokens of all segments."""
        return [token for part in self.before for token in part.token_ids] + self.reader.token_ids

    @property
    def text(self) -> str | None:
        """The text of all segments; None without a tokenizer."""
        reader = self.reader
        if reader.finished and reader.stopped is not None:
            return reader.stopped.text
        return None if reader.tokenizer is None else reader.tokenizer.decode(self.token_ids, skip_special_tokens=True)

    def judge(self, prompt: list[int]) -> None:
        """Lets the scorer say how good the text is so far."""
        given: Any = unwrapped(self._policy.scorer(list(prompt), self.token_ids, self.text))
        if isinstance(given, bool) or not isinstance(given, numbers.Real) or math.isnan(given):
            raise InvalidOptionError(
                f"the scorer must return a number, not {given!r}: rank a bad text by float('-inf')"
            )
        self.score = float(given)


@dataclass
class _Growth:
    """A search while it runs."""

    sessions: Running
    asked: Asked
    policy: Scored
    tokenizer: Tokenizer | None
    begun: int = 0  # candidates so far

    def first(self) -> list[Segment]:
        """Returns the first segments, which are yet to be read."""
        requests = [self._numbered(self.asked.request) for _ in range(self.policy.candidates)]
        begun = self.sessions.begin(requests)
        return [self._segment(*each, ()) for each in zip(begun, requests, strict=True)]

    def next(self, segment: Segment) -> list[Segment]:
        """Returns segments that go on from one that is complete."""
        token_ids, parts = segment.token_ids, segment.parts
        whole = self.asked.request.after(token_ids)
        found: list[Segment] = []
        for _ in range(self.policy.candidates // self.policy.keep):
            request = self._numbered(whole)
            session = self.sessions.fork(segment.session, request, len(whole.prompt))
            found.append(self._segment(session, request, parts))
        return found

    def _numbered(self, request: Request) -> Request:
        self.begun += 1
        return replace(request, identifier=self.begun - 1)

    def _segment(self, session: Session, request: Request, before: tuple[Generation, ...]) -> Segment:
        return Segment(session, TextReader(replace(self.asked, request=request), self.tokenizer), self.policy, before)


def search_scored(serving: Serving, asked: Asked, policy: Scored, tokenizer: Tokenizer | None) -> list[Generation]:
    """Returns the texts that are left, the best first. An error of the scorer ends the search."""
    if tokenizer is None and any(isinstance(end, str) for end in policy.ends):
        raise InvalidOptionError("ends are texts, but the model has no tokenizer: give token ids")
    prompt = asked.request.prompt
    with running(serving) as sessions:
        growth = _Growth(sessions, asked, policy, tokenizer)
        ended, growing = list[Segment](), growth.first()
        while growing:
            sessions.read(growing)
            for segment in growing:
                segment.judge(prompt)
            best = sorted([*ended, *growing], key=lambda segment: -segment.score)[: policy.keep]
            ended = [segment for segment in best if segment.reader.finished]
            following = [each for segment in best if not segment.reader.finished for each in growth.next(segment)]
            sessions.end([segment.session for segment in growing])
            growing = following
    return [_joined(segment, prompt) for segment in ended]


def _joined(segment: Segment, prompt: list[int]) -> Generation:
    """Returns the whole text of several segments."""
    parts = segment.parts
    logits = [part.logits for part in parts if part.logits is not None]
    scores = [part.scores for part in parts if part.scores is not None]
    stats, reason = _sum([part.stats for part in parts]), segment.reader.finish_reason
    kept = (np.concatenate(each) if each else None for each in (logits, scores))
    return Generation(segment.token_ids, next(kept), segment.text, stats, prompt, next(kept), reason, segment.score)


def _sum(stats: Sequence[Stats]) -> Stats:
    lengths, tokens_by = Counter[int](), Counter[str]()
    for each in stats:
        lengths.update(each.lengths)
        tokens_by.update(each.tokens_by)
    phases = [each.phases for each in stats if each.phases is not None]
    return Stats(
        sum(each.steps for each in stats),
        sum(each.rows for each in stats),
        sum(each.tokens for each in stats),
        sum(each.prefill_seconds for each in stats),
        sum(each.decode_seconds for each in stats),
        None if not phases else sum(phases[1:], phases[0]),
        dict(sorted(lengths.items())),
        dict(tokens_by),
    )
