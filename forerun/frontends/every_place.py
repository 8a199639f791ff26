"""Tracing code that loops over the places where values are true, as code for mixtures of experts does.

    for expert in chosen.sum((-1, -2)).nonzero():
        choice, token = torch.where(chosen[expert])
        result.index_add_(0, token, f(x[token]) * weights[token, choice, None])

    result[chosen] = f(x[chosen])

Rows that are split by how many each expert has (`row_pieces.py`) are such places, too.

How many places there are is not known in a trace. It takes all places; where nothing is true, it adds zeros, and keeps
what is there. That is the same as long as `f` computes each row by itself and nobody counts: only functions of single
rows are let through, and a count may only be compared with zero. The caller compares the result with the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from forerun.errors import TraceError
from forerun.frontends.counts import Count
from forerun.frontends.row_functions import is_row_by_row, tensors
from forerun.frontends.row_pieces import JOINS, SPLITS, Pieces

FINDS = {torch.nonzero, Tensor.nonzero, torch.where, Tensor.where, torch.argwhere, Tensor.argwhere}
ADDS = {torch.index_add, Tensor.index_add, Tensor.index_add_}
GETS = {getattr(Tensor, name).__get__ for name in ("dtype", "device", "ndim", "is_cuda", "requires_grad", "layout")}
SHAPE = getattr(Tensor, "shape").__get__  # noqa: B009
COPIES = {"long", "to", "contiguous", "clone", "detach"}
"""What gives the same whole numbers again."""


class Coordinate(int):
    """A coordinate of a place where something might be true."""

    def item(self) -> int:
        return int(self)


class Place(tuple[Coordinate, ...]):
    """A place, as a row of what `nonzero` gives."""

    def item(self) -> int:
        (only,) = self
        return only


class Rows:
    """All places of truth values of known sizes, one after the other, as `nonzero` gives those that are true."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.places = [Place(map(Coordinate, each)) for each in product(*map(range, sizes))]
        self.shape = (Count(), len(sizes))

    def __iter__(self) -> Iterator[Place]:
        return iter(self.places)

    def numel(self) -> Count:
        return Count()

    def __len__(self) -> int:
        return int(Count())


@dataclass(frozen=True)
class Places:
    """The coordinates along one axis of all places of `truths`, in the order of memory."""

    truths: Tensor
    axis: int
    index: Tensor


class EveryPlace(TorchFunctionMode):
    """While it is entered, the places where values are true are all places."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, Places] = {}
        self.rows: dict[int, Tensor] = {}  # what lies at places, and what is computed of it
        self.pieces = Pieces()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is Tensor.__getitem__ and isinstance(args[1], Coordinate) and args[1] >= args[0].shape[0]:
            return args[0][-1]  # nothing is true there, so whatever is computed is not added
        if func in FINDS and len(args) == 1 and named.keys() <= {"as_tuple"}:
            separate = named.get("as_tuple", func in (torch.where, Tensor.where))
            return self._every(args[0], separate)
        if func is Tensor.__getitem__ and _is_mask(args[1]) and id(args[0]) not in self.rows:
            return self._kept(_flat(*args))
        if func is Tensor.__setitem__ and _is_mask(args[1]) and id(args[0]) not in self.rows:
            _put(*args)
            return None
        if func in JOINS and self.pieces.appends(*args, **named):
            return self.pieces.appended(*args, **named)
        given = tensors([*args, *named.values()])
        self.pieces.require_unchanged(given)
        if any(id(each) in self.found for each in given):
            return self._at_places(func, args, named)
        if any(id(each) in self.rows for each in given):
            return self._of_rows(func, args, named)
        if self.pieces.counts_by(func, args):
            return self.pieces.counted(func, args, named)
        if func in SPLITS and self.pieces.splits(*args, **named):
            return self._kept(self.pieces.split(*args, **named))
        return func(*args, **named)

    def _every(self, truths: Tensor, separate: bool) -> Any:
        sizes: tuple[int | torch.SymInt, ...] = tuple(truths.shape)
        if not separate:
            known = [each for each in sizes if not isinstance(each, torch.SymInt)]
            if len(known) < len(sizes):
                raise TraceError("The model looks for places along the sequence in a form that cannot be traced.")
            return Rows(known)
        indices: list[Tensor] = []
        for axis, size in enumerate(sizes):
            shape = [1] * len(sizes)
            shape[axis] = size
            index = torch.arange(size, device=truths.device).view(shape).expand(sizes).reshape(-1)
            self.found[id(index)] = Places(truths, axis, index)
            indices.append(index)
        return tuple(indices)

    def _kept(self, rows: Any) -> Any:
        """Remembers rows at places."""
        for each in tensors(rows):
            self.rows[id(each)] = each
        return rows

    def _at_places(self, func: Callable[..., Any], args: Sequence[Any], named: dict[str, Any]) -> Any:
        """What is done with places: rows are taken there, or added; or they are counted."""
        name = getattr(func, "__name__", str(func))
        if func is Tensor.__getitem__ and id(args[0]) not in self.found:
            if id(args[0]) in self.rows:
                raise TraceError("The model indexes what lies at places by places, which cannot be traced.")
            return self._kept(self._taken(*args))
        if func in ADDS and not named and len(args) == 4:
            return self._added(func, *args)
        if func in (Tensor.numel, Tensor.size, Tensor.__len__) or func == SHAPE:
            return (Count(),) if func == SHAPE else int(Count()) if func is Tensor.__len__ else Count()
        if func in GETS:
            return func(*args, **named)
        if name in COPIES and len(args) == 1 and args[0].dtype == torch.int64 and not named:
            return args[0]
        raise TraceError(
            f"The model uses the places where values are true in {name}, which cannot be traced: index by them, and "
            "add what is computed with index_add_."
        )

    def _taken(self, x: Tensor, index: Any) -> Tensor:
        """x at places, for its first axes: x spread over all places."""
        parts = list(index) if isinstance(index, tuple) else [index]
        chosen = [self.found[id(each)] for each in parts if id(each) in self.found]
        rest = parts[len(chosen) :]
        first = all(id(each) in self.found for each in parts[: len(chosen)])
        together = all(each.truths is chosen[0].truths for each in chosen)
        if not first or not together or any(each is not None for each in rest):
            raise TraceError("The model indexes by places and by something else, which cannot be traced.")
        truths = chosen[0].truths
        order = sorted(range(len(chosen)), key=lambda at: chosen[at].axis)
        features = tuple(x.shape[len(chosen) :])
        moved = x.permute(*order, *range(len(chosen), x.dim()))
        shape = [1] * truths.dim()
        for at in order:
            shape[chosen[at].axis] = truths.shape[chosen[at].axis]
        spread = moved.reshape(*shape, *features).expand(*truths.shape, *features)
        flat = spread.reshape(-1, *features)
        for number, _ in enumerate(rest):
            flat = flat.unsqueeze(1 + number)
        return flat

    def _added(self, func: Callable[..., Any], x: Tensor, dim: int, index: Tensor, values: Tensor) -> Tensor:
        if dim != 0 or id(index) not in self.found or id(values) not in self.rows or id(x) in self.rows:
            raise TraceError("The model adds at places in a form that cannot be traced: add rows taken there, along 0.")
        places = self.found[id(index)]
        truths = places.truths
        seen = (truths != 0).reshape(-1, *(1 for _ in values.shape[1:]))
        kept = torch.where(seen, values, torch.zeros_like(values)).reshape(*truths.shape, *values.shape[1:])
        others = [axis for axis in range(truths.dim()) if axis != places.axis]
        total = kept.sum(others) if others else kept
        return x.add_(total) if func is Tensor.index_add_ else x + total

    def _of_rows(self, func: Callable[..., Any], args: Sequence[Any], named: dict[str, Any]) -> Any:
        """A function of rows at places, if it is one of each row by itself."""
        name = getattr(func, "__name__", str(func))
        if func in GETS or name in ("dim", "is_floating_point"):
            return func(*args, **named)
        if func in (Tensor.numel, Tensor.__len__):
            return Count() if func is Tensor.numel else int(Count())
        if func == SHAPE or (func is Tensor.size and len(args) == 1):
            return (Count(), *list(func(*args))[1:])
        if not is_row_by_row(name, args, named, lambda each: id(each) in self.rows):
            raise TraceError(
                f"The model computes what lies at the places where values are true with {name}, in which places may "
                "meet: compute each row by itself."
            )
        rows = [each for each in tensors([*args, *named.values()]) if id(each) in self.rows]
        self.pieces.note_changes(name, rows)
        return self._kept(self.pieces.kept(rows, func(*args, **named)))


def _flat(x: Tensor, mask: Tensor) -> Tensor:
    """x[mask], for all places: other memory, as the model may change it."""
    return x.reshape(-1, *x.shape[mask.dim() :]).clone()


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() > 0


def _put(x: Tensor, mask: Tensor, value: Any) -> None:
    """x with other values where the mask is true."""
    seen = mask.reshape(*mask.shape, *(1 for _ in x.shape[mask.dim() :]))
    if isinstance(value, Tensor) and value.dim():
        whole = value.dim() == 1 + x.dim() - mask.dim() and value.shape[0] != 1
        value = value.reshape(x.shape) if whole else value
    x.copy_(torch.where(seen, value, x))
