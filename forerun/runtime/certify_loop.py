"""Certifies decoding on the device: random texts, with and without drafts, against plain decoding on the host."""

from collections.abc import Callable

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.certify_texts import TextsReport, parts_at, random_request, steps_of
from forerun.runtime.device_loop import Drafting, Loops, OnDevice
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable
from forerun.runtime.generation import decode
from forerun.runtime.policy import Fixed
from forerun.runtime.round_size import SameSize

SIZES = (1, 3, 8, 16, 32)
"""Rows of an iteration."""


def certify_loop(
    executable: Executable, texts: int = 20, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> TextsReport | None:
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
        request = random_request(random, executable, text)
        size = min(SIZES[text % len(SIZES)], most)
        expected = steps_of(decode(engine, request, Drafter(), Fixed(1)))
        found = steps_of(OnDevice(loop, SameSize(size)).decode(engine, request))
        tokens += sum(len(step.tokens) for step in found)
        rounds += sum(step.rows > 0 for step in found)
        if (parted := parts_at(expected, found)) is not None:
            differences += 1
            first = first or f"text {text}, iterations of {size} rows: token {parted} differs from plain decoding"
        if progress:
            progress(text + 1, texts)
    return TextsReport(texts, tokens, rounds, differences, first, "iterations on the device")
