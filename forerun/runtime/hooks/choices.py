"""Hooks that say which tokens may be chosen, with the meanings of transformers' processors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.hooks.history import Endings, Following, Tokens, require_within
from forerun.runtime.options import require_integer

MINUS = np.float32(-np.inf)


@dataclass(frozen=True)
class NoRepeatedNgrams(Following):
    """Excludes tokens with which a run of `size` tokens would occur a second time, the prompt included."""

    size: int
    narrows = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", require_integer("no_repeat_ngram_size", self.size, least=1))

    def _excluded(self, state: Tokens) -> Tokens:
        """Returns what has followed the last `size - 1` tokens where they occurred before."""
        length, others = len(state), self.size - 1
        found = np.ones(max(0, length - others), bool)  # by where a run begins
        for offset in range(others if len(found) else 0):
            found &= state[offset : offset + len(found)] == state[length - others + offset]
        return state[others:][found]

    def scores(self, state: Tokens, scores: Float32, place: Place) -> Float32:
        scores[self._excluded(state)] = MINUS
        return scores

    def allows(self, state: Tokens, tokens: Sequence[int]) -> list[bool]:
        return _outside(tokens, self._excluded(state))


@dataclass(frozen=True)
class BadWords(Following):
    """Excludes the last token of each of some sequences after its others. End tokens alone are never excluded."""

    words: Sequence[Sequence[int]]
    ends: Iterable[int] = ()
    narrows = True

    def __post_init__(self) -> None:
        ends = frozenset(self.ends)
        words = [[require_integer("a token of bad_words_ids", token, 0) for token in word] for word in self.words]
        if [] in words:
            raise InvalidOptionError("bad_words_ids has an empty sequence: give at least one token for each")
        object.__setattr__(self, "words", tuple(tuple(word) for word in words if word[1:] or word[0] not in ends))

    @cached_property
    def _endings(self) -> Endings:
        return Endings(dict.fromkeys(map(tuple, self.words), -np.inf))

    def _excluded(self, state: Tokens) -> list[int]:
        return [token for token, _ in self._endings.after(state)]

    def scores(self, state: Tokens, scores: Float32, place: Place) -> Float32:
        require_within(self, self._endings.largest, scores)
        scores[self._excluded(state)] = MINUS
        return scores

    def allows(self, state: Tokens, tokens: Sequence[int]) -> list[bool]:
        return _outside(tokens, self._excluded(state))


@dataclass(frozen=True)
class _OfTokens(Hook):
    """A hook for some tokens."""

    tokens: Iterable[int]

    def __post_init__(self) -> None:
        ids = dict.fromkeys(require_integer(f"a token of {type(self).__name__}", each, 0) for each in self.tokens)
        object.__setattr__(self, "tokens", tuple(ids))

    @cached_property
    def ids(self) -> Tokens:
        return np.array([*self.tokens], np.int64)

    @cached_property
    def largest(self) -> int:
        return max(self.tokens, default=-1)

    @cached_property
    def _members(self) -> frozenset[int]:
        return frozenset(self.tokens)


class SuppressTokens(_OfTokens):
    """Excludes some tokens everywhere."""

    narrows = True

    def scores(self, state: None, scores: Float32, place: Place) -> Float32:
        require_within(self, self.largest, scores)
        scores[self.ids] = MINUS
        return scores

    def allows(self, state: None, tokens: Sequence[int]) -> list[bool]:
        return [token not in self._members for token in tokens]


@dataclass(frozen=True)
class SuppressFirstTokens(_OfTokens):
    """Excludes some tokens at one place: the first new token, or one after it."""

    after: int = 0  # new tokens

    def scores(self, state: None, scores: Float32, place: Place) -> Float32:
        require_within(self, self.largest, scores)
        if place.generated == self.after:
            scores[self.ids] = MINUS
        return scores


class AllowedTokens(_OfTokens):
    """Excludes all tokens but some."""

    narrows = True

    def scores(self, state: None, scores: Float32, place: Place) -> Float32:
        require_within(self, self.largest, scores)
        return _only(self.ids, scores, scores[self.ids])

    def allows(self, state: None, tokens: Sequence[int]) -> list[bool]:
        return [token in self._members for token in tokens]


class ForcedSecondToken(_OfTokens):
    """Forces the text's second token, which is new only after a prompt of one: transformers' forced_bos_token_id."""

    def scores(self, state: None, scores: Float32, place: Place) -> Float32:
        require_within(self, self.largest, scores)
        return _only(self.ids, scores, np.float32(0)) if place.position == 1 else scores


class ForcedLastToken(_OfTokens):
    """Forces the last token for which there is room to be one of some: transformers' forced_eos_token_id."""

    def scores(self, state: None, scores: Float32, place: Place) -> Float32:
        require_within(self, self.largest, scores)
        return _only(self.ids, scores, np.float32(0)) if place.left == 1 else scores


@dataclass(frozen=True)
class MinNewTokens(_OfTokens):
    """Excludes end tokens before there are `count` new ones."""

    count: int = 0

    def scores(self, state: None, scores: Float32, place: Place) -> Float32:
        require_within(self, self.largest, scores)
        if place.generated < self.count:
            scores[self.ids] = MINUS
        return scores


def _only(ids: Tokens, scores: Float32, values: Float32 | np.float32) -> Float32:
    """Returns scores by which only some tokens can be chosen."""
    scores = np.full_like(scores, MINUS)
    scores[ids] = values
    return scores


def _outside(tokens: Sequence[int], excluded: Iterable[int] | Tokens) -> list[bool]:
    found = frozenset(cast("NDArray[np.int64]", excluded).tolist() if isinstance(excluded, np.ndarray) else excluded)
    return [token not in found for token in tokens]
