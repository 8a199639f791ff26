"""What certifying whole texts needs: random requests, and where two texts part."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from forerun.errors import NotANumberError
from forerun.runtime.certify_report import Report
from forerun.runtime.executable import Executable, Float32
from forerun.runtime.request import Request, Step
from forerun.runtime.sampling import SamplingSettings

NEW_TOKENS = 24


@dataclass(frozen=True)
class TextsReport(Report):
    """The result of texts that were decoded twice; `differences` counts those in which a token or a bit differs."""

    texts: int
    tokens: int
    rounds: int  # iterations that they took
    differences: int
    first: str | None
    where: str  # what the iterations were

    @property
    def compared(self) -> str:
        return f"{self.tokens} tokens of {self.texts} texts in {self.rounds} {self.where}"


def steps_of(decoded: Iterable[Step]) -> list[Step]:
    """Returns all steps of a text, or those before a row with NaN logits."""
    found: list[Step] = []
    with suppress(NotANumberError):
        found.extend(decoded)
    return found


def random_request(random: np.random.Generator, executable: Executable, text: int) -> Request:
    """Returns a repetitive prompt, so that drafts are made; half of the texts are sampled, half keep their logits."""
    room = executable.max_length - 2
    new_tokens = max(1, min(NEW_TOKENS, room // 2))
    phrase = random.integers(0, executable.vocabulary, int(random.integers(1, 9))).tolist()
    prompt = (phrase * 64)[: max(1, min(int(random.integers(1, 80)), room - new_tokens))]
    sampling = SamplingSettings()
    if text % 2 and executable.draws:
        sampling = SamplingSettings(True, float(random.choice([0.3, 1.0, 5.0])), seed=int(random.integers(2**63)))
    return Request(prompt, new_tokens, sampling, keep_logits=text % 4 < 2)


def parts_at(expected: list[Step], found: list[Step]) -> int | None:
    """Returns the number of the first token that differs between two texts, else of the first whose logits differ."""
    one, other = tokens_of(expected), tokens_of(found)
    for number in range(max(len(one), len(other))):
        if one[number : number + 1] != other[number : number + 1]:
            return number
    ours, theirs = logits_of(expected), logits_of(found)
    differing = [at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a.tobytes() != b.tobytes()]
    return differing[0] if differing else None


def tokens_of(steps: list[Step]) -> list[int]:
    return [token for step in steps for token in step.tokens]


def logits_of(steps: list[Step]) -> list[Float32]:
    return [row for step in steps if step.logits is not None for row in step.logits]
