"""What hooks know of the tokens before: arrays that never change, and are copied to go on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32
from forerun.runtime.hooks.base import Hook, name

Tokens = NDArray[np.int64]


class Following(Hook):
    """A hook whose state is all tokens before, [n]."""

    def begin(self, prompt: Sequence[int]) -> Tokens:
        return np.array(prompt, np.int64)

    def advance(self, state: Tokens, token: int) -> Tokens:
        return np.append(state, token)


@dataclass(frozen=True)
class Counts:
    """How often each token has occurred."""

    ids: Tokens  # [n] those that have, in the order in which they first did
    counts: Tokens  # [n]

    @staticmethod
    def of(tokens: Sequence[int]) -> "Counts":
        ids, first, counts = np.unique(np.array(tokens, np.int64), return_index=True, return_counts=True)
        order = np.argsort(first)
        return Counts(ids[order], counts[order].astype(np.int64))

    def add(self, token: int) -> "Counts":
        """Returns the counts after one more token."""
        at = np.flatnonzero(self.ids == token)
        if not len(at):
            return Counts(np.append(self.ids, token), np.append(self.counts, 1))
        counts = self.counts.copy()
        counts[at] += 1
        return Counts(self.ids, counts)


class Endings:
    """Numbers by sequences of tokens, found by all tokens of a sequence but the last."""

    def __init__(self, numbers: Mapping[tuple[int, ...], float]) -> None:
        """Single tokens come first, then the lengths in the order in which they first occur."""
        self._found: dict[int, dict[tuple[int, ...], list[tuple[int, float]]]] = {0: {}}
        for (*before, last), number in numbers.items():
            self._found.setdefault(len(before), {}).setdefault(tuple(before), []).append((last, number))
        self.largest = max((token for sequence in numbers for token in sequence), default=-1)

    def after(self, tokens: Tokens) -> Iterator[tuple[int, float]]:
        """Yields the last tokens of the sequences whose other tokens are the last of some, with their numbers."""
        for length, found in self._found.items():
            if length <= len(tokens):
                yield from found.get(tuple(tokens[len(tokens) - length :].tolist()), ())


def require_within(hook: Hook, largest: int, scores: Float32) -> None:
    """Raises `InvalidOptionError` if there is no score for the largest token id of a hook."""
    if largest >= len(scores):
        raise InvalidOptionError(
            f"{name(hook)} names token {largest}, which is outside the vocabulary of {len(scores)}: give tokens of "
            "this model"
        )
