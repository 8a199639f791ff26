"""Token choice: a pure function of (logits, settings, sequence, absolute position).

Random numbers are counter-based: token id t at position p of sequence s under seed k gets the t-th double of the
Philox 4x64 stream with key (k, s) and counter (0, 0, p, 0). It depends on nothing else, so a sampled token is a
property of its position, however many rows a step evaluates. Sampling is Gumbel-max over the tokens the filters keep.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Float32
from forerun.runtime.options import require_flag, require_integer, require_number

Float64 = NDArray[np.float64]
Kept = NDArray[np.intp]

LEAST_TEMPERATURE = 1e-200  # logits divided by less leave float64's range
FILTERS = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""The settings that exclude tokens, in the order of transformers' warpers."""
NUCLEUS_FIRST_LOOK = 1024  # tokens searched for a nucleus before all are sorted


@dataclass(frozen=True)
class SamplingSettings:
    """transformers' sampling options with their meanings. None filters nothing, and stands for all values that do not.

    top_k           the k likeliest tokens stay
    top_p           the fewest likeliest tokens that together have this probability stay (nucleus, 1904.09751)
    min_p           tokens with this share of the largest probability stay (2407.01082)
    typical_p       the fewest tokens of nearly the expected information that have this probability stay (2202.00666)
    epsilon_cutoff  tokens with this probability stay, and the likeliest (truncation sampling, 2210.15191)
    eta_cutoff      the same with a threshold that falls with the entropy (2210.15191)
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    min_p: float | None = None
    typical_p: float | None = None
    epsilon_cutoff: float | None = None
    eta_cutoff: float | None = None

    def __post_init__(self) -> None:
        self._keep("temperature", require_number("temperature", self.temperature))
        if self.top_k is not None:
            self._keep("top_k", require_integer("top_k", self.top_k, least=0) or None)
        if self.top_p is not None:
            top_p = require_number("top_p", self.top_p, least=0, most=1)
            self._keep("top_p", None if top_p == 1 else top_p)
        if self.min_p is not None:
            self._keep("min_p", require_number("min_p", self.min_p, least=0, most=1) or None)
        if self.typical_p is not None:
            typical_p = require_number("typical_p", self.typical_p, above=0, most=1)
            self._keep("typical_p", None if typical_p == 1 else typical_p)
        for name in ("epsilon_cutoff", "eta_cutoff"):
            if (cutoff := getattr(self, name)) is not None:
                self._keep(name, require_number(name, cutoff, least=0, below=1) or None)
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
        return any(getattr(self, name) is not None for name in FILTERS)

    def _keep(self, name: str, value: float | None) -> None:
        object.__setattr__(self, name, value)  # Python's numbers in place of numpy's, whose sums wrap

    def _reject_sampling_options(self) -> None:
        given = ["temperature"] if self.temperature != 1 else []
        given += [name for name in FILTERS if getattr(self, name) is not None]
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
    """Returns scores [V] and the ascending kept ids: the temperature, then `FILTERS` in order. NaN counts as -inf."""
    scores = logits.astype(np.float64) / settings.temperature
    if np.isnan(scores.max()):
        scores[np.isnan(scores)] = -np.inf
    kept = np.arange(len(scores))
    if settings.top_k is not None and settings.top_k < len(scores):
        kept = keep_top_k(scores, settings.top_k)
    if settings.top_p is not None:
        kept = kept[keep_top_p(scores[kept], settings.top_p)]
    if settings.min_p is not None:
        kept = kept[keep_min_p(scores[kept], settings.min_p)]
    if settings.typical_p is not None:
        kept = kept[keep_typical_p(scores[kept], settings.typical_p)]
    if settings.epsilon_cutoff is not None:
        kept = kept[keep_epsilon(scores[kept], settings.epsilon_cutoff)]
    if settings.eta_cutoff is not None:
        kept = kept[keep_eta(scores[kept], settings.eta_cutoff)]
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


def log_probabilities(scores: NDArray[Any]) -> Float64:
    """Returns the logarithms of the probabilities, of scores in any dtype. An infinite score has all, the first one."""
    found = scores.astype(np.float64)
    largest = found.max()
    if np.isinf(largest):
        first, found[:] = int(found.argmax()), -np.inf
        found[first] = 0
        return found
    found -= largest
    return found - np.log(np.exp(found).sum())


def keep_min_p(scores: Float64, p: float) -> Kept:
    """Returns the ascending ids of the tokens with at least p times the largest probability."""
    probabilities = np.exp(log_probabilities(scores))
    return np.flatnonzero(probabilities >= p * probabilities.max())


def keep_typical_p(scores: Float64, p: float) -> Kept:
    """Returns the ascending ids of the tokens whose information is nearest to its expectation.

    They are the fewest whose probabilities sum to p or more, with all that are as near as the last one of these.
    """
    logarithms = log_probabilities(scores)
    probabilities = np.exp(logarithms)
    distances = np.abs(-logarithms - _entropy(logarithms, probabilities))
    order = np.argsort(distances, kind="stable")
    last = int((np.cumsum(probabilities[order]) < p).sum())
    return np.flatnonzero(distances <= distances[order[min(last, len(order) - 1)]])


def keep_epsilon(scores: Float64, epsilon: float) -> Kept:
    """Returns the ascending ids of the tokens with a probability of epsilon or more, and of the likeliest ones."""
    return np.flatnonzero((np.exp(log_probabilities(scores)) >= epsilon) | (scores == scores.max()))


def keep_eta(scores: Float64, epsilon: float) -> Kept:
    """Returns `keep_epsilon`'s ids for sqrt(epsilon) exp(-entropy) in place of epsilon, if that is less."""
    logarithms = log_probabilities(scores)
    entropy = _entropy(logarithms, np.exp(logarithms))
    return keep_epsilon(scores, min(epsilon, epsilon**0.5 * np.exp(-entropy)))


def _entropy(logarithms: Float64, probabilities: Float64) -> float:
    likely = probabilities > 0
    return -float((logarithms[likely] * probabilities[likely]).sum())


def _nucleus(scores: Float64, probabilities: Float64, p: float) -> Kept:
    order = np.argsort(-scores, kind="stable")
    above = np.cumsum(probabilities[order]) - probabilities[order]
    kept = above < p
    kept[0] = True
    return np.sort(order[kept])
