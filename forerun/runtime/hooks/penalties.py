"""Hooks that raise and lower the scores of tokens, with the arithmetic of transformers' processors in float32."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.hooks.history import Counts, Endings, Following, Tokens, require_within
from forerun.runtime.options import require_integer, require_number

Sequences = Mapping[tuple[int, ...], float]
INFINITE = float("inf")


@dataclass(frozen=True)
class RepetitionPenalty(Hook):
    """Divides the positive scores of all tokens before, those of the prompt included, and multiplies the negative ones.

    CTRL's penalty (1909.05858); 1 changes nothing, and less than 1 favours repetition.
    """

    penalty: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "penalty", require_number("repetition_penalty", self.penalty, above=0, below=INFINITE))

    def begin(self, prompt: Sequence[int]) -> Counts:
        return Counts.of(prompt)

    def advance(self, state: Counts, token: int) -> Counts:
        return state.add(token)

    def scores(self, state: Counts, scores: Float32, place: Place) -> Float32:
        ids, penalty = state.ids, np.float32(self.penalty)
        own = scores[ids]
        scores[ids] = np.where(own < 0, own * penalty, own / penalty)
        return scores


@dataclass(frozen=True)
class OccurrencePenalties(Hook):
    """Lowers the scores of the new tokens so far: by `presence` once, and by `frequency` for each occurrence.

    OpenAI's and vLLM's presence_penalty and frequency_penalty; tokens of the prompt do not count.
    """

    presence: float = 0.0
    frequency: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "presence", require_number("presence_penalty", self.presence, above=-INFINITE, below=INFINITE)
        )
        object.__setattr__(
            self, "frequency", require_number("frequency_penalty", self.frequency, above=-INFINITE, below=INFINITE)
        )

    def begin(self, prompt: Sequence[int]) -> Counts:
        return Counts.of(())

    def advance(self, state: Counts, token: int) -> Counts:
        return state.add(token)

    def scores(self, state: Counts, scores: Float32, place: Place) -> Float32:
        scores[state.ids] -= np.float32(self.frequency) * state.counts.astype(np.float32)
        scores[state.ids] -= np.float32(self.presence)
        return scores


@dataclass(frozen=True)
class LogitBias(Hook):
    """Adds a number to the scores of some tokens, by their ids (OpenAI's logit_bias)."""

    bias: Mapping[int, float]

    def __post_init__(self) -> None:
        bias = {
            require_integer("a token of logit_bias", token, least=0): require_number(f"logit_bias of {token}", value)
            for token, value in self.bias.items()
        }
        object.__setattr__(self, "bias", bias)

    @cached_property
    def _arrays(self) -> tuple[Tokens, Float32]:
        return np.array([*self.bias], np.int64), np.array([*self.bias.values()], np.float32)

    @cached_property
    def _largest(self) -> int:
        return max(self.bias, default=-1)

    def scores(self, state: None, scores: Float32, place: Place) -> Float32:
        ids, values = self._arrays
        require_within(self, self._largest, scores)
        scores[ids] += values
        return scores


@dataclass(frozen=True)
class SequenceBias(Following):
    """Adds a number to the score of the last token of each sequence whose other tokens were the last ones.

    transformers' sequence_bias.
    """

    bias: Sequences

    def __post_init__(self) -> None:
        bias: dict[tuple[int, ...], float] = {}
        for sequence, value in self.bias.items():
            tokens = tuple(require_integer("a token of sequence_bias", token, least=0) for token in sequence)
            if not tokens:
                raise InvalidOptionError("a sequence of sequence_bias is empty: give at least one token for each bias")
            bias[tokens] = require_number(f"sequence_bias of {list(tokens)}", value)
        object.__setattr__(self, "bias", bias)

    @cached_property
    def _endings(self) -> Endings:
        return Endings(self.bias)

    def scores(self, state: Tokens, scores: Float32, place: Place) -> Float32:
        require_within(self, self._endings.largest, scores)
        sums: dict[int, np.float32] = {}
        for last, value in self._endings.after(state):
            sums[last] = sums.get(last, np.float32(0)) + np.float32(value)
        for token, value in sums.items():
            scores[token] += value
        return scores


@dataclass(frozen=True)
class ExponentialLengthPenalty(Hook):
    """Raises the scores of end tokens after `start` new tokens, by a factor that grows with each further one.

    transformers' exponential_decay_length_penalty.
    """

    start: int
    factor: float
    ends: Iterable[int]

    def __post_init__(self) -> None:
        keyword = "exponential_decay_length_penalty"
        object.__setattr__(self, "start", require_integer(f"the start of {keyword}", self.start, least=0))
        object.__setattr__(
            self, "factor", require_number(f"the factor of {keyword}", self.factor, above=0, below=INFINITE)
        )
        object.__setattr__(self, "ends", tuple(sorted(self.ends)))

    def scores(self, state: None, scores: Float32, place: Place) -> Float32:
        ids = np.array([*self.ends], np.int64)
        require_within(self, max(self.ends, default=-1), scores)
        later = place.generated - self.start
        if later > 0:
            own = scores[ids]
            try:
                grown = np.float32(self.factor**later - 1)
            except OverflowError:
                grown = np.float32(np.inf)
            with np.errstate(invalid="ignore", over="ignore"):
                raised = own + np.abs(own) * grown
            scores[ids] = np.where(np.isfinite(own), raised, own)
        return scores
