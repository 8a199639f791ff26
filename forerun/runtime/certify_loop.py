"""Certifies decoding on the device: random texts, with and without drafts, against plain decoding on the host."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from forerun.errors import InvalidOptionError, NotANumberError
from forerun.runtime.device_loop import Drafting, Loops, OnDevice
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable, Float32
from forerun.runtime.generation import Request, Step, decode
from forerun.runtime.policy import Fixed
from forerun.runtime.round_size import SameSize
from forerun.runtime.sampling import SamplingSettings

SIZES = (1, 3, 8, 16, 32)
"""Rows of an iteration."""
NEW_TOKENS = 24


@dataclass(frozen=True)
class LoopReport:
    """The result of the texts."""

    texts: int
    tokens: int
    rounds: int  # iterations that they took on the device
    differences: int  # texts in which a token or a bit of a logit differs
    first: str | None  # the first of them, in words

    @property
    def exact(self) -> bool:
        return self.differences == 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "exact": self.exact}

    def __str__(self) -> str:
        told = f"{self.tokens} tokens of {self.texts} texts in {self.rounds} iterations on the device"
        return f"{told}: all bits equal" if self.exact else f"{told}: {self.differences} differ\n{self.first}"


def certify_loop(
    executable: Executable, texts: int = 20, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> LoopReport | None:
    """Decode `texts` random prompts, greedy and sampled; None if the executable has no loop on the device.

    Half of the texts are decoded with iterations running ahead and compared by their tokens, the others also by the
    bits of their logits. Nothing else may use the executable meanwhile.
    """
    if texts < 1:
        raise InvalidOptionError(f"texts must be at least 1, not {texts}")
    if not isinstance(executable, Loops) or not executable.candidates:
        return None
    random, engine = np.random.default_rng(seed), Engine(executable)
    most = min(executable.max_rows, executable.max_outputs)
    loop = executable.loop(engine.state, Drafting(), min(most, max(SIZES)))
    tokens = rounds = differences = 0
    first: str | None = None
    for text in range(texts):
        request = _request(random, executable, text)
        size = min(SIZES[text % len(SIZES)], most)
        expected = _steps(decode(engine, request, Drafter(), Fixed(1)))
        found = _steps(OnDevice(loop, SameSize(size)).decode(engine, request))
        tokens += sum(len(step.tokens) for step in found)
        rounds += sum(step.rows > 0 for step in found)
        if (parted := _parts_at(expected, found)) is not None:
            differences += 1
            first = first or f"text {text}, iterations of {size} rows: token {parted} differs from plain decoding"
        if progress:
            progress(text + 1, texts)
    return LoopReport(texts, tokens, rounds, differences, first)


def _steps(decoded: Iterable[Step]) -> list[Step]:
    """Returns all steps of a text, or those before a row with NaN logits."""
    found: list[Step] = []
    with suppress(NotANumberError):
        found.extend(decoded)
    return found


def _request(random: np.random.Generator, executable: Executable, text: int) -> Request:
    """Returns a repetitive prompt, so that drafts are made; half of the texts are sampled, half keep their logits."""
    room = executable.max_length - 2
    new_tokens = max(1, min(NEW_TOKENS, room // 2))
    phrase = random.integers(0, executable.vocabulary, int(random.integers(1, 9))).tolist()
    prompt = (phrase * 64)[: max(1, min(int(random.integers(1, 80)), room - new_tokens))]
    sampling = SamplingSettings()
    if text % 2 and executable.draws:
        sampling = SamplingSettings(True, float(random.choice([0.3, 1.0, 5.0])), seed=int(random.integers(2**63)))
    return Request(prompt, new_tokens, sampling, keep_logits=text % 4 < 2)


def _parts_at(expected: list[Step], found: list[Step]) -> int | None:
    """Returns the number of the first token that differs between two texts, else of the first whose logits differ."""
    one, other = _tokens(expected), _tokens(found)
    for number in range(max(len(one), len(other))):
        if one[number : number + 1] != other[number : number + 1]:
            return number
    ours, theirs = _logits(expected), _logits(found)
    differing = [at for at, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a.tobytes() != b.tobytes()]
    return differing[0] if differing else None


def _tokens(steps: list[Step]) -> list[int]:
    return [token for step in steps for token in step.tokens]


def _logits(steps: list[Step]) -> list[Float32]:
    return [row for step in steps if step.logits is not None for row in step.logits]
