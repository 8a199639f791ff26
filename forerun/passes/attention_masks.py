"""What an attention mask means, found by evaluating it at two lengths: no pattern matching of mask code.

A row sees a range of positions that ends at the row itself: causal, a sliding window, or any other first position.
Visible keys may get a bias that is a function of their distance or of their own position. Everything else is an error.

A softmax does not change when one number is added to a whole row, so a bias is taken relative to the row's own key:
ALiBi (arXiv 2108.12409) is a bias by distance, whether a model counts from the first position or back from the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from forerun.errors import UnsupportedOperationError
from forerun.ir import Attention, Environment, SSAValue, run_body
from forerun.passes.base import PassContext
from forerun.passes.raise_attention import HIDDEN
from forerun.passes.sequence_axis import SEQUENCE, look_ahead
from forerun.passes.substitute import backward_slice

SHORT = 16
"""The second length: what a row sees may not depend on how long the sequence is."""


@dataclass(frozen=True)
class Mask:
    """`limited`: some rows do not see position 0. `bias_by`: what the bias is a function of, None without a bias."""

    limited: bool
    bias_by: Literal["key", "distance"] | None
    summary: str


def classify(mask: SSAValue, attention: Attention, length: int, context: PassContext) -> Mask:
    """Understand a mask [heads or nothing, T, T] from its values at `length` and at a shorter length.

    Raises LookAheadError where a row sees later positions or where the mask changes with the length, and
    UnsupportedOperationError where the visible positions have gaps or the bias is of another form.
    """
    visible, bias = _at(mask, length, context)
    short = min(SHORT, length)
    visible_short, bias_short = _at(mask, short, context)
    if not torch.equal(visible[:short, :short], visible_short):
        raise look_ahead(attention, "has a mask that changes with the length of the sequence")
    ahead = visible.triu(1)
    if bool(ahead.any()):
        row = int(ahead.any(-1).nonzero()[0])
        raise look_ahead(attention, f"lets position {row} see position {int(ahead[row].nonzero()[0])}")
    rows = torch.arange(length)
    first = visible.int().argmax(-1)
    if not torch.equal(visible, (rows >= first[:, None]) & (rows <= rows[:, None])):
        raise UnsupportedOperationError(
            f"The attention mask at {attention.location} has gaps; "
            "only a range of positions that ends at the row itself is supported."
        )
    width = int((rows - first + 1).max())
    window = torch.equal(first, (rows - width + 1).clamp(min=0))
    shape = (
        "causal"
        if not bool(first.any())
        else f"a sliding window of {width}"
        if window
        else f"a range of at most {width}"
    )
    by = _bias_by(bias, bias_short, visible, attention)
    return Mask(bool(first.any()), by, shape + (f" with a bias by {by}" if by else ""))


def _at(mask: SSAValue, length: int, context: PassContext) -> tuple[torch.Tensor, torch.Tensor]:
    """(visible [T, T], bias [heads, T, T] that is zero where invisible) at T = length."""
    values: dict[SSAValue, torch.Tensor] = {}
    body = backward_slice(mask)
    run_body(body, values, Environment(context.weights, bindings={SEQUENCE: length}), keep={mask})
    mask_value = values[mask]
    full = mask_value.reshape(-1, *mask_value.shape[-2:]).expand(-1, length, length)
    if full.dtype == torch.bool:
        return _same_for_heads(full), torch.zeros(1, length, length)
    shown = full > HIDDEN
    return _same_for_heads(shown), torch.where(shown, full.float(), 0.0)


def _same_for_heads(visible: torch.Tensor) -> torch.Tensor:
    if not bool((visible == visible[:1]).all()):
        raise UnsupportedOperationError(
            "The attention mask differs between heads; give every head the same visible range."
        )
    return visible[0]


def _bias_by(
    bias: torch.Tensor, bias_short: torch.Tensor, visible: torch.Tensor, attention: Attention
) -> Literal["key", "distance"] | None:
    """What a bias [heads, T, T] is a function of, at the visible keys."""
    if not bool(bias.any()):
        return None
    length, short = bias.shape[-1], bias_short.shape[-1]
    relative, relative_short = (each - each.diagonal(dim1=1, dim2=2)[..., None] for each in (bias, bias_short))
    shown = visible[:short, :short]
    if torch.allclose(relative[:, :short, :short][:, shown], relative_short[:, shown], rtol=1e-5, atol=1e-5):
        distance = (torch.arange(length)[:, None] - torch.arange(length)[None]).clamp(min=0)
        by_distance = relative[:, -1].flip(-1)[:, distance]
        if torch.allclose(relative[:, visible], by_distance[:, visible], rtol=1e-5, atol=1e-5):
            return "distance"
    if torch.equal(bias[:, :short, :short][:, shown], bias_short[:, shown]):
        by_key = bias[:, -1][:, None, :].expand_as(bias)
        if torch.equal(bias[:, visible], by_key[:, visible]):
            return "key"
    raise UnsupportedOperationError(
        f"The attention bias at {attention.location} is a function of neither the distance nor the key's position; "
        "rewrite the model so that it is."
    )
