"""The log-probabilities of chosen tokens and of the likeliest ones, from the logits of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from forerun.runtime.executable import Float32

LEAST = -9999.0
"""What stands for minus infinity, as in OpenAI's API: JSON has no infinity."""


@dataclass(frozen=True)
class TokenLogprobs:
    """A token's log-probability, and the likeliest tokens at its place, the likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Float32, token: int, top: int) -> TokenLogprobs:
    """Returns log_softmax of the logits [V] by which a token was chosen, in float64, at it and at the `top` largest.

    Of equal logits, the lower token id comes first. NaN counts as the smallest logit.
    """
    scores = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    largest = scores.max()
    if np.isinf(largest):  # all probability is shared by the infinite ones, or by all if all are excluded
        scores = np.where(scores == largest, 0.0, -np.inf)
        largest = 0.0
    total = largest + np.log(np.exp(scores - largest).sum())
    top = min(top, len(scores))
    likely = np.flatnonzero(scores >= np.partition(scores, len(scores) - top)[len(scores) - top]) if top else []
    chosen = sorted(likely, key=lambda each: (-scores[each], each))[:top]
    return TokenLogprobs(
        token, _finite(scores[token] - total), tuple((int(each), _finite(scores[each] - total)) for each in chosen)
    )


def _finite(value: float) -> float:
    return max(LEAST, float(value))
