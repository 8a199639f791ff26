"""Tracing code that loops over the places where values are true, as code for mixtures of experts does.

    for expert in chosen.sum((-1, -2)).nonzero():
        choice, token = torch.where(chosen[expert])
        result.index_add_(0, token, f(x[token]) * weights[token, choice, None])

    result[chosen] = f(x[chosen])

How many places there are is not known in a trace. It takes all places; where nothing is true, it adds zeros, and keeps
what is there.
What else is done with places, or with what lies at them, is refused, or shows in a comparison with the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from forerun.errors import TraceError

FINDS = {torch.nonzero, Tensor.nonzero, torch.where, Tensor.where, torch.argwhere, Tensor.argwhere}
ADDS = {torch.index_add, Tensor.index_add, Tensor.index_add_}
HARMLESS = {"size", "numel", "dim", "__len__", "__get__", "item", "tolist", "long", "int", "unbind", "__iter__"}
"""What may be asked of places."""


@dataclass(frozen=True)
class Places:
    """The coordinates along one axis of all places of `truths`, in the order of memory."""

    truths: Tensor
    axis: int
    index: Tensor


class Coordinate(int):
    """A coordinate of a place where something might be true."""

    def item(self) -> int:
        return int(self)


class Place(tuple[Coordinate, ...]):
    """A place, as a row of what `nonzero` gives."""

    def item(self) -> int:
        (only,) = self
        return only


class EveryPlace(TorchFunctionMode):
    """While it is entered, the places where values are true are all places."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, Places] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is Tensor.__getitem__ and isinstance(args[1], Coordinate) and args[1] >= args[0].shape[0]:
            return args[0][-1]  # nothing is true there, so whatever is computed is not added
        if func in FINDS and len(args) == 1 and named.keys() <= {"as_tuple"}:
            separate = named.get("as_tuple", func in (torch.where, Tensor.where))
            return self._every(args[0], separate)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and _is_mask(args[1]):
            return _where_true(*args)
        if not any(id(each) in self.found for each in _tensors(args)):
            return func(*args, **named)
        if func is Tensor.__getitem__ and id(args[0]) not in self.found:
            return self._taken(*args)
        if func in ADDS and not named and len(args) == 4:
            return self._added(func, *args)
        if getattr(func, "__name__", "") in HARMLESS or func is Tensor.__getitem__:
            return func(*args, **named)
        raise TraceError(
            f"The model uses the places where values are true in {getattr(func, '__name__', func)}, which cannot be "
            "traced: index by them, and add what is computed with index_add_."
        )

    def _every(self, truths: Tensor, separate: bool) -> Any:
        sizes: tuple[int | torch.SymInt, ...] = tuple(truths.shape)
        if not separate:
            if not any(isinstance(each, torch.SymInt) for each in sizes):
                return [Place(map(Coordinate, each)) for each in product(*map(range, sizes))]
            raise TraceError("The model looks for places along the sequence in a form that cannot be traced.")
        indices: list[Tensor] = []
        for axis, size in enumerate(sizes):
            shape = [1] * len(sizes)
            shape[axis] = size
            index = torch.arange(size, device=truths.device).view(shape).expand(sizes).reshape(-1)
            self.found[id(index)] = Places(truths, axis, index)
            indices.append(index)
        return tuple(indices)

    def _taken(self, x: Tensor, index: Any) -> Tensor:
        """x at places, for its first axes: x spread over all places."""
        parts = list(index) if isinstance(index, tuple) else [index]
        chosen = [self.found[id(each)] for each in parts if id(each) in self.found]
        rest = parts[len(chosen) :]
        if any(id(each) not in self.found for each in parts[: len(chosen)]) or any(each is not None for each in rest):
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
        places = self.found[id(index)]
        truths = places.truths
        seen = (truths != 0).reshape(-1, *(1 for _ in values.shape[1:]))
        kept = torch.where(seen, values, torch.zeros_like(values)).reshape(*truths.shape, *values.shape[1:])
        others = [axis for axis in range(truths.dim()) if axis != places.axis]
        total = kept.sum(others) if others else kept
        if dim != 0:
            raise TraceError("The model adds at places of an axis other than the first, which cannot be traced.")
        return x.add_(total) if func is Tensor.index_add_ else x + total


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.dim() > 0


def _where_true(x: Tensor, mask: Tensor, *values: Any) -> Tensor | None:
    """x[mask], for all places; or x with other values where the mask is true."""
    features = x.shape[mask.dim() :]
    if not values:
        return x.reshape(-1, *features)
    (value,) = values
    seen = mask.reshape(*mask.shape, *(1 for _ in features))
    if isinstance(value, Tensor) and value.dim():
        value = value.reshape(x.shape)
    x.copy_(torch.where(seen, value, x))
    return None


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for each in values for tensor in _tensors(each)]
    return []
