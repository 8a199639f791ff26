"""Token choice: a pure function of (logits, settings, sequence, absolute position).

Random numbers are counter-based: token id t at position p of sequence s under seed k gets the t-th double of the
Philox 4x64 stream with key (k, s) and counter (0, 0, p, 0). It depends on nothing else, so a sampled token is a
property of its position, however many rows a step evaluates. Sampling is Gumbel-max over the tokens the filters keep.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32
from forerun.runtime.options import require_flag, require_integer, require_number

Float64 = NDArray[np.float64]
Kept = NDArray[np.intp]

LEAST_TEMPERATURE = 1e-200  # logits divided by less leave float64's range
NUCLEUS_FIRST_LOOK = 1024  # tokens searched for a nucleus before all are sorted


@dataclass(frozen=True)
class SamplingSettings:
    """transformers' sampling options with their meanings. `None`, `top_k=0` and `top_p=1` filter nothing."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        self._keep("temperature", require_number("temperature", self.temperature))
        if self.top_k is not None:
            self._keep("top_k", require_integer("top_k", self.top_k, least=0) or None)
        if self.top_p is not None:
            top_p = require_number("top_p", self.top_p, least=0, most=1)
            self._keep("top_p", None if top_p == 1 else top_p)
        self._keep("do_sample", require_flag("do_sample", self.do_sample))
        self._keep("seed", require_integer("seed", self.seed, least=0, most=2**64 - 1))
        if not self.do_sample:
            self._reject_sampling_options()
        if not LEAST_TEMPERATURE <= self.temperature < float("inf"):
            raise InvalidOptionError(
                f"temperature must be finite and at least {LEAST_TEMPERATURE}, not {self.temperature}: use "
                "do_sample=False for greedy decoding"
            )

    @property
    def filters(self) -> bool:
        """Whether some tokens are excluded by their probabilities."""
        return self.top_k is not None or self.top_p is not None

    def _keep(self, name: str, value: float | None) -> None:
        object.__setattr__(self, name, value)  # Python's numbers in place of numpy's, whose sums wrap

    def _reject_sampling_options(self) -> None:
        given = [
            name
            for name, neutral in (("temperature", 1.0), ("top_k", None), ("top_p", None))
            if getattr(self, name) != neutral
        ]
        if given:
            verb = "needs" if len(given) == 1 else "need"
            raise InvalidOptionError(f"{' and '.join(given)} {verb} do_sample=True: add it, or decode greedily without")


def sample_token(logits: Float32, settings: SamplingSettings, sequence: int, position: int) -> int:
    """Returns the token at `position` (absolute) of `sequence`, sampled from logits [V]."""
    scores, kept = filtered(logits, settings)
    if len(kept) == 1:
        return int(kept[0])
    uniform = random_row(settings.seed, sequence, position, len(scores))[kept]
    with np.errstate(divide="ignore"):  # a uniform of exactly 0 makes a token that cannot win
        gumbel = -np.log(-np.log(uniform))
    return int(kept[(scores[kept] + gumbel).argmax()])


def choose_token(logits: Float32, settings: SamplingSettings, sequence: int, position: int) -> int:
    """Returns the sampled token, or the likeliest one without sampling: on ties the lowest id."""
    if settings.do_sample:
        return sample_token(logits, settings, sequence, position)
    return int(as_numbers(logits).argmax())


def as_numbers(logits: Float32) -> Float32:
    """Returns logits with -inf for NaN, as tokens are chosen by them."""
    return np.where(np.isnan(logits), np.float32(-np.inf), logits)


def without(logits: Float32, forbidden: Iterable[int]) -> Float32:
    """Returns logits [V] by which no forbidden token is chosen."""
    ids = list(forbidden)
    if not ids:
        return logits
    masked = logits.copy()
    masked[ids] = -np.inf
    return masked


def scores_of(logits: Float32, settings: SamplingSettings, forbidden: Iterable[int] = ()) -> Float32:
    """Returns transformers' scores of logits [V]: the logits after all processing, -inf for excluded tokens."""
    masked = as_numbers(without(logits, forbidden))
    if not settings.do_sample:
        return masked
    scores, kept = filtered(masked, settings)
    found = np.full_like(masked, -np.inf)
    found[kept] = scores[kept]
    return found


def filtered(logits: Float32, settings: SamplingSettings) -> tuple[Float64, Kept]:
    """Returns scores [V] and the ascending kept ids: temperature, then top_k, then top_p. NaN counts as -inf."""
    scores = logits.astype(np.float64) / settings.temperature
    if np.isnan(scores.max()):
        scores[np.isnan(scores)] = -np.inf
    kept = np.arange(len(scores))
    if settings.top_k is not None and settings.top_k < len(scores):
        kept = keep_top_k(scores, settings.top_k)
    if settings.top_p is not None:
        kept = kept[keep_top_p(scores[kept], settings.top_p)]
    return scores, kept


def random_row(seed: int, sequence: int, position: int, vocabulary: int) -> Float64:
    """Returns [V] uniform numbers in [0, 1), one for each token id."""
    philox = np.random.Philox(
        key=np.array([seed, sequence], np.uint64), counter=np.array([0, 0, position, 0], np.uint64)
    )
    return np.random.Generator(philox).random(vocabulary)


def keep_top_k(scores: Float64, k: int) -> Kept:
    """Returns the ascending ids of the k largest scores; all that equal the k-th stay, as in transformers."""
    smallest = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= smallest)


def keep_top_p(scores: Float64, p: float) -> Kept:
    """Returns the ascending ids of the fewest tokens whose probabilities sum to p or more, at least one.

    A token stays if those above it sum to less than p. Of equal scores, the lower id ranks higher.
    """
    with np.errstate(invalid="ignore"):  # if the largest is infinite, only the first token that has it is kept
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
    if len(scores) > NUCLEUS_FIRST_LOOK:
        smallest = np.partition(scores, len(scores) - NUCLEUS_FIRST_LOOK)[len(scores) - NUCLEUS_FIRST_LOOK]
        # All scores above `smallest` are here, so their order is the order among all.
        likely = np.flatnonzero(scores > smallest)
        if probabilities[likely].sum() > p + 1e-6:
            return likely[_nucleus(scores[likely], probabilities[likely], p)]
    return _nucleus(scores, probabilities, p)


def _nucleus(scores: Float64, probabilities: Float64, p: float) -> Kept:
    order = np.argsort(-scores, kind="stable")
    above = np.cumsum(probabilities[order]) - probabilities[order]
    kept = above < p
    kept[0] = True
    return np.sort(order[kept])
