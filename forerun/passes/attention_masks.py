"""What an attention mask means, found by evaluating it at several lengths: no pattern matching of mask code.

A row sees a range of positions that ends at the row itself: causal, a sliding window, or any other first position.
Visible keys may get a bias that is a function of their distance or of their own position. Everything else is an error.

A softmax does not change when one number is added to a whole row, so a bias is taken relative to the row's own key:
ALiBi (arXiv 2108.12409) is a bias by distance, whether a model counts from the first position or back from the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from forerun.errors import UnsupportedOperationError
from forerun.ir import Attention, SSAValue
from forerun.passes.base import PassContext
from forerun.passes.lengths import evaluate_at, shorter_lengths
from forerun.passes.matching import HIDDEN
from forerun.passes.sequence_axis import look_ahead, place


@dataclass(frozen=True)
class Mask:
    """`limited`: some rows do not see position 0. `bias_by`: what the bias is a function of, None without a bias."""

    limited: bool
    bias_by: Literal["key", "distance"] | None
    summary: str


def classify(mask: SSAValue, attention: Attention, length: int, context: PassContext) -> Mask:
    """Understand a mask [heads or nothing, T, T] from its values at `length` and at shorter lengths.

    Raises LookAheadError where a row sees later positions or where the mask changes with the length, and
    UnsupportedOperationError where the visible positions have gaps or the bias is of another form.
    """
    visible, bias = _at(mask, length, context)
    shorter = {short: _at(mask, short, context) for short in shorter_lengths(length)}
    for short, (seen, _) in shorter.items():
        if not torch.equal(visible[:short, :short], seen):
            raise look_ahead(attention, "has a mask that changes with the length of the sequence")
    ahead = visible.triu(1)
    if bool(ahead.any()):
        row = int(ahead.any(-1).nonzero()[0])
        raise look_ahead(attention, f"lets position {row} see position {int(ahead[row].nonzero()[0])}")
    rows = torch.arange(length)
    first = visible.int().argmax(-1)
    if not torch.equal(visible, (rows >= first[:, None]) & (rows <= rows[:, None])):
        raise UnsupportedOperationError(
            f"The attention mask at {place(attention)} has gaps; "
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
    by = None if bias is None else _bias_by(bias, [each for _, each in shorter.values()], visible, attention)
    return Mask(bool(first.any()), by, shape + (f" with a bias by {by}" if by else ""))


def _at(mask: SSAValue, length: int, context: PassContext) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(visible [T, T], bias [heads, T, T] that is zero where invisible, None for i1) at T = length."""
    value = evaluate_at(mask, length, context)
    full = value.reshape(-1, *value.shape[-2:]).expand(-1, length, length)
    if full.dtype == torch.bool:
        return _same_for_heads(full), None
    shown = full > HIDDEN
    return _same_for_heads(shown), torch.where(shown, full.float(), 0.0)


def _same_for_heads(visible: torch.Tensor) -> torch.Tensor:
    if not bool((visible == visible[:1]).all()):
        raise UnsupportedOperationError(
            "The attention mask differs between heads; give every head the same visible range."
        )
    return visible[0]


def _bias_by(
    bias: torch.Tensor, shorter: Sequence[torch.Tensor | None], visible: torch.Tensor, attention: Attention
) -> Literal["key", "distance"] | None:
    """What a bias [heads, T, T] is a function of, at the visible keys and at every length."""
    if not bool(bias.any()):
        return None
    length = bias.shape[-1]
    shorts = [each for each in shorter if each is not None]
    relative = _relative(bias)
    distance = (torch.arange(length)[:, None] - torch.arange(length)[None]).clamp(min=0)
    by_distance = relative[:, -1].flip(-1)[:, distance]
    if _same(relative, by_distance, visible) and all(_same(_relative(each), by_distance, visible) for each in shorts):
        return "distance"
    by_key = bias[:, -1][:, None, :].expand_as(bias)
    if _same(bias, by_key, visible) and all(_same(each, by_key, visible) for each in shorts):
        return "key"
    raise UnsupportedOperationError(
        f"The attention bias at {place(attention)} is a function of neither the distance nor the key's position; "
        "rewrite the model so that it is."
    )


def _relative(bias: torch.Tensor) -> torch.Tensor:
    """The bias relative to the row's own key."""
    return bias - bias.diagonal(dim1=1, dim2=2)[..., None]


def _same(bias: torch.Tensor, expected: torch.Tensor, visible: torch.Tensor) -> bool:
    """Whether a bias is the beginning of another, at the visible keys."""
    size = bias.shape[-1]
    shown = visible[:size, :size]
    return torch.allclose(bias[:, shown], expected[:, :size, :size][:, shown], rtol=1e-5, atol=1e-5)
