"""Rows that are split by counts and put together again, as code for experts of sorted rows does.

    counts = one_hot(ids).sum(0).tolist()
    torch.cat([expert(piece) for expert, piece in zip(experts, x.split(counts))])

How many rows a piece has is not known in a trace: there, each piece has all rows. Where pieces are put together, each
row is taken from the piece that it is in, which the counts say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forerun.errors import TraceError
from forerun.frontends.counts import Count
from forerun.frontends.row_functions import tensors

UNBINDS = {torch.unbind, Tensor.unbind}
SPLITS = {torch.split, Tensor.split}
JOINS = {torch.cat, torch.concat, torch.concatenate}


@dataclass(frozen=True, eq=False)
class CountOf(Count):
    """A number of a vector of counts."""

    counts: Tensor
    place: int
    number: Tensor


@dataclass(frozen=True)
class Piece:
    """Rows of which those in one piece count."""

    counts: Tensor  # the number of rows in each piece
    place: int
    rows: Tensor
    source: Tensor  # what it was split from


class Pieces:
    """The counts, and the pieces of rows, of a trace."""

    def __init__(self) -> None:
        self.counts: dict[int, CountOf] = {}
        self.pieces: dict[int, Piece] = {}
        self.changed: dict[int, Tensor] = {}  # rows of which a piece was changed in place, but not here

    def counts_by(self, func: Callable[..., Any], args: Sequence[Any]) -> bool:
        """Whether a function takes a vector of whole numbers apart, or gives one of them; `tolist` does both."""
        return (func in UNBINDS and _is_vector(args[0])) or (func is Tensor.item and id(args[0]) in self.counts)

    def counted(self, func: Callable[..., Any], args: Sequence[Any], named: dict[str, Any]) -> Any:
        """What such a function gives: numbers that may be counts."""
        if func is Tensor.item:
            return self.counts[id(args[0])]
        numbers: Sequence[Tensor] = func(*args, **named)
        self.counts.update((id(each), CountOf(args[0], place, each)) for place, each in enumerate(numbers))
        return numbers

    @staticmethod
    def splits(x: Tensor, sizes: Any, dim: int = 0) -> bool:
        """Whether sizes of pieces are counts."""
        return isinstance(sizes, (list, tuple)) and any(isinstance(each, Count) for each in sizes)

    def split(self, x: Tensor, sizes: Sequence[Any], dim: int = 0) -> tuple[Tensor, ...]:
        """The pieces of x, each with all of its rows: in other memory, as the model may change it."""
        found = [(each.counts, each.place) for each in sizes if isinstance(each, CountOf)]
        if len(found) < len(sizes) or dim % x.dim() != 0 or not _are_all(found):
            raise _refused("splits")
        rows = tuple(x.clone() for _ in found)
        for each, (counts, place) in zip(rows, found, strict=True):
            self.pieces[id(each)] = Piece(counts, place, each, x)
        return rows

    def kept(self, rows: Sequence[Tensor], results: Any) -> Any:
        """Remembers which piece the results of a function of rows are, and returns them."""
        found = [self.pieces.get(id(each)) for each in rows]
        if len({None if each is None else (id(each.counts), each.place) for each in found}) > 1:
            raise TraceError("The model computes with rows of several pieces at once, which cannot be traced.")
        if found and (piece := found[0]) is not None:
            self.pieces.update(
                (id(each), Piece(piece.counts, piece.place, each, piece.source)) for each in tensors(results)
            )
        return results

    def note_changes(self, name: str, rows: Sequence[Tensor]) -> None:
        """Notes that a function changes pieces in place, and so the rows that they were split from."""
        if name.startswith("__i") or (name.endswith("_") and not name.endswith("__")):
            sources = [self.pieces[id(each)].source for each in rows if id(each) in self.pieces]
            self.changed.update((id(each), each) for each in sources)

    def require_unchanged(self, given: Sequence[Tensor]) -> None:
        """Raises `TraceError` for rows that the model has changed through one of their pieces."""
        if any(id(each) in self.changed for each in given):
            raise TraceError("The model reads rows of which it has changed a piece in place: compute new rows.")

    def appends(self, values: Any, dim: int = 0, **named: Any) -> bool:
        """Whether a concatenation appends rows of pieces."""
        given = tensors(values)
        return any(id(each) in self.pieces for each in given) and not named and dim % max(1, given[0].dim()) == 0

    def appended(self, values: Sequence[Tensor], dim: int = 0) -> Tensor:
        """Rows of all pieces in their order: each that of the piece that it is in."""
        pieces = [self.pieces[id(each)] for each in values if id(each) in self.pieces]
        if len(pieces) < len(values) or not _are_all([(each.counts, each.place) for each in pieces]):
            raise _refused("appends")
        rows, ends = torch.arange(values[0].shape[0], device=values[0].device), pieces[0].counts.cumsum(0)
        group = (ends <= rows[:, None]).sum(1)
        own = group[:, None] == torch.arange(len(pieces), device=group.device)
        terms = [
            torch.where(own[(slice(None), place, *(None,) * (each.dim() - 1))], each, each.new_zeros(()))
            for place, each in enumerate(values)
        ]
        return sum(terms[1:], terms[0])


def _are_all(found: Sequence[tuple[Tensor, int]]) -> bool:
    """Whether these are all places of one vector of counts, in order."""
    vectors = {id(counts): len(counts) for counts, _ in found}
    return len(vectors) == 1 and [place for _, place in found] == list(range(*vectors.values()))


def _is_vector(x: Tensor) -> bool:
    return x.dim() == 1 and x.dtype in (torch.int64, torch.int32) and not isinstance(x.shape[0], torch.SymInt)


def _refused(what: str) -> TraceError:
    return TraceError(
        f"The model {what} rows by counts in a form that cannot be traced: split them along their first dimension by "
        "all counts of one vector, and append all pieces in their order."
    )
