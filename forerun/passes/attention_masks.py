"""What an attention mask means, found by evaluating it for all pairs of positions, without matching patterns of code.

A row sees a range of positions that ends at the row itself: causal, a sliding window, chunks. Visible keys may get a
bias that is a function of their distance or of their own position. Everything else is an error.

A long context has far too many pairs to hold, or even to visit. A block of rows and keys is decided if its bounds say
that all of it is visible, or none of it; otherwise it is split, and evaluated once it is small (`pairwise`). Nothing is
sampled: a block without bounds is evaluated pair by pair, and refused if that would take too long.

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
from forerun.passes.lengths import shorter_lengths
from forerun.passes.matching import HIDDEN
from forerun.passes.pair_rules import Span
from forerun.passes.pairwise import BUDGET, Pairs
from forerun.passes.sequence_axis import look_ahead, place
from forerun.torch_threads import one_torch_thread

SMALL = 128
"""Rows and keys of a block that is evaluated."""
TOLERANCE = 1e-5
"""Of a bias, relative and absolute."""
NOWHERE = 1 << 60
"""The first position of a row that sees none."""


@dataclass(frozen=True)
class Steps:
    """First visible positions: 0 up to row `start`, which sees `first`, and `rise` more every `every` rows."""

    start: int
    first: int
    every: int
    rise: int

    def table(self, rows: torch.Tensor) -> torch.Tensor:
        return ((rows - self.start).div(self.every, rounding_mode="floor") * self.rise + self.first).clamp(min=0)


@dataclass(frozen=True)
class Mask:
    """`first`: None where every row sees position 0. `bias_by`: what the bias is a function of, None without a bias."""

    first: Steps | None
    bias_by: Literal["key", "distance"] | None
    summary: str


@dataclass(frozen=True)
class Seen:
    """For each row [T]: the first and the last visible position, and the number of visible positions."""

    first: torch.Tensor
    last: torch.Tensor
    count: torch.Tensor

    def begins(self, longer: Seen) -> bool:
        """Whether the rows equal those of a longer sequence, except rows that see positions beyond this one."""
        length = len(self.first)
        same = (self.first == longer.first[:length]) & (self.last == longer.last[:length])
        same &= self.count == longer.count[:length]
        return bool((same | (longer.last[:length] >= length)).all())


@one_torch_thread()
def classify(mask: SSAValue, attention: Attention, pairs: Pairs, context: PassContext) -> Mask:
    """Understand a mask [heads or nothing, T, T] from its values at the length of `pairs`, and at shorter lengths.

    Raises LookAheadError where a row sees later positions or where the mask changes with the length, and
    UnsupportedOperationError where the visible positions have gaps or the bias is of another form.
    """
    shorter = [Pairs(mask, short, context) for short in shorter_lengths(pairs.length)]
    seen = visible(pairs)
    if not all(visible(short).begins(seen) for short in shorter):
        raise look_ahead(attention, "has a mask that changes with the length of the sequence")
    rows = torch.arange(pairs.length)
    if bool((seen.last > rows).any()):
        row = int((seen.last > rows).nonzero()[0])
        raise look_ahead(attention, f"lets position {row} see position {_first_ahead(pairs, row)}")
    if not bool(((seen.last == rows) & (seen.count == rows - seen.first + 1)).all()):
        raise UnsupportedOperationError(
            f"The attention mask at {place(attention)} has gaps; "
            "only a range of positions that ends at the row itself is supported."
        )
    steps = _steps(seen.first, attention)
    width = int((rows - seen.first + 1).max())
    window = steps is not None and steps.every == steps.rise == steps.first == 1
    shape = (
        "causal"
        if steps is None
        else f"a {'sliding window' if window else 'range'} of {'' if window else 'at most '}{width}"
    )
    by = _bias_by(pairs, shorter, seen, attention)
    return Mask(steps, by, shape + (f" with a bias by {by}" if by else ""))


def visible(pairs: Pairs) -> Seen:
    """What each row sees: decided by the bounds of a block if possible, otherwise by its values."""
    length = pairs.length
    seen = Seen(torch.full((length,), NOWHERE), torch.full((length,), -1), torch.zeros(length, dtype=torch.long))
    evaluated = 0
    pending = [(pairs.whole, pairs.whole)]
    while pending:
        rows, keys = pending.pop()
        certain, possible = _shown_bounds(pairs, rows, keys)
        if not possible:
            continue
        if not certain and max(rows.size, keys.size) > SMALL:
            pending += [(part, other) for part in rows.halves() for other in keys.halves()]
            continue
        if certain:
            first, last, count = keys.start, keys.stop - 1, keys.size
        else:
            evaluated += pairs.heads * rows.size * keys.size
            if evaluated > BUDGET:
                raise pairs.too_many()
            shown = _same_for_heads(shown_of(pairs.values(rows, keys)))
            count = shown.sum(-1)
            some = count > 0
            first = torch.where(some, keys.start + shown.int().argmax(-1), NOWHERE)
            last = torch.where(some, keys.stop - 1 - shown.flip(-1).int().argmax(-1), -1)
        seen.first[rows.part] = seen.first[rows.part].clamp(max=first)
        seen.last[rows.part] = seen.last[rows.part].clamp(min=last)
        seen.count[rows.part] += count
    return seen


def shown_of(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.bool else values > HIDDEN


def _shown_bounds(pairs: Pairs, rows: Span, keys: Span) -> tuple[bool, bool]:
    """(all of a block is visible, some of it may be)."""
    bounds = pairs.bounds(rows, keys)
    if bounds is None:
        return False, True
    low, high = bounds
    return bool(shown_of(low).all()), bool(shown_of(high).any())


def _same_for_heads(visible: torch.Tensor) -> torch.Tensor:
    if not bool((visible == visible[:1]).all()):
        raise UnsupportedOperationError(
            f"The attention mask differs between heads (values of {HIDDEN:.0f} or less count as hidden); "
            "give every head the same visible range, or compile with a smaller max_length."
        )
    return visible[0]


def _first_ahead(pairs: Pairs, row: int) -> int:
    shown = shown_of(pairs.values(Span(row, row + 1), Span(row + 1, pairs.length)))
    return row + 1 + int(shown[0, 0].nonzero()[0])


def _steps(first: torch.Tensor, attention: Attention) -> Steps | None:
    """The table of first visible positions as a formula, checked on all rows; None for zeros."""
    if not bool(first.any()):
        return None
    start, *later = (int(each) + 1 for each in first.diff().nonzero()[:2, 0])
    every = later[0] - start if later else len(first)
    steps = Steps(start, int(first[start]), every, int(first[later[0]] - first[start]) if later else int(first[start]))
    if not torch.equal(steps.table(torch.arange(len(first))), first):
        raise UnsupportedOperationError(
            f"The attention mask at {place(attention)} has a first visible position that moves unevenly with the row; "
            "only a window, or chunks of one size, are supported."
        )
    return steps


def _bias_by(
    pairs: Pairs, shorter: Sequence[Pairs], seen: Seen, attention: Attention
) -> Literal["key", "distance"] | None:
    """What the bias depends on, at the visible keys and at every length: from the graph, or else pair by pair."""
    if pairs.is_truth:
        return None
    bounds = pairs.bounds(pairs.whole, pairs.whole, pairs.shown)
    if bounds is not None and not bool(bounds[0].any() or bounds[1].any()):
        return None
    everyone = [pairs, *shorter]
    depends = set[str]().union(*(each.depends_on(each.shown) for each in everyone))
    if depends <= {"key"}:
        biases = [_last_row(each).double() for each in everyone]
        distance, key = _is_line(biases), all(_close(each, biases[0][:, : each.shape[1]]) for each in biases)
    elif depends <= {"distance"}:
        relative = [_relative(_last_row(each)).flip(-1) for each in everyone]
        distance, key = all(_close(each, relative[0][:, : each.shape[1]]) for each in relative), False
    else:
        if pairs.heads * pairs.length**2 > BUDGET:
            raise pairs.too_many()
        found = [_compared(each, seen, _last_row(pairs)) for each in everyone]
        if not any(some for some, _, _ in found):
            return None
        distance, key = all(each for _, each, _ in found), all(each for _, _, each in found)
    if distance or key:
        return "distance" if distance else "key"
    raise UnsupportedOperationError(
        f"The attention bias at {place(attention)} is a function of neither the distance nor the key's position; "
        "rewrite the model so that it depends on one of them."
    )


def _last_row(pairs: Pairs) -> torch.Tensor:
    """The bias [heads, T] of the last row, which has every key position and every distance."""
    return pairs.values(Span(pairs.length - 1, pairs.length), pairs.whole, pairs.shown)[:, 0].float()


def _relative(row: torch.Tensor) -> torch.Tensor:
    """The last row's bias relative to its own key."""
    return row - row[:, -1:]


def _is_line(biases: Sequence[torch.Tensor]) -> bool:
    """Whether biases by key [heads, T] lie on a line with one slope at all lengths, and so are biases by distance."""
    longest = biases[0]
    slope = (longest[:, -1:] - longest[:, :1]) / max(1, longest.shape[1] - 1)
    lines = (each[:, :1] + slope * torch.arange(each.shape[1]) for each in biases)
    return all(bool(((each - line).abs() <= TOLERANCE / 4).all()) for each, line in zip(biases, lines, strict=True))


def _compared(pairs: Pairs, seen: Seen, last: torch.Tensor) -> tuple[bool, bool, bool]:
    """Whether any visible pair has a bias, and whether the biases are `last`'s by distance, and by key."""
    some, distance, key = False, True, True
    by_distance, keys = _relative(last).flip(-1), torch.arange(pairs.length)
    for start in range(0, pairs.length, SMALL):
        rows = torch.arange(start, min(start + SMALL, pairs.length))
        bias = pairs.values(Span(start, start + len(rows)), pairs.whole, pairs.shown).float()
        shown = (keys >= seen.first[rows, None]) & (keys <= rows[:, None])
        own = bias.gather(-1, rows.expand(len(bias), -1)[..., None])
        away = (rows[:, None] - keys).clamp(min=0)
        some = some or bool(bias[:, shown].any())
        distance = distance and _close((bias - own)[:, shown], by_distance[:, away][:, shown])
        key = key and _close(bias[:, shown], last[:, None, : pairs.length].expand_as(bias)[:, shown])
    return some, distance, key


def _close(bias: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(bias, expected, rtol=TOLERANCE, atol=TOLERANCE)
