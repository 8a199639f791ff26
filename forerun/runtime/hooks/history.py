"""What hooks know of the tokens before: arrays that never change, and are copied to go on."""

from collections.abc import Sequence
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


def ends_with(tokens: Tokens, end: Sequence[int]) -> bool:
    """Whether the last tokens are some others."""
    return len(end) <= len(tokens) and tokens[len(tokens) - len(end) :].tolist() == list(end)


def require_within(hook: Hook, ids: Sequence[int] | Tokens, scores: Float32) -> None:
    """Raises `InvalidOptionError` for a token id for which there is no score."""
    if len(ids) and int(np.max(ids)) >= len(scores):
        raise InvalidOptionError(
            f"{name(hook)} names token {int(np.max(ids))}, which is outside the vocabulary of {len(scores)}"
        )
