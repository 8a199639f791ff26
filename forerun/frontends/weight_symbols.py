"""The weights of a module that is being imported, each under one symbol for all functions that use the tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import torch

from forerun.ir import ModuleOp, Symbol, TensorType, Weight


class WeightSymbols:
    """Declares a `spec.weight` for each tensor on first use; a tensor has one, however many names it has."""

    def __init__(self, module: ModuleOp, taken: Iterable[str]) -> None:
        self.module = module
        self.taken = {*taken}
        """All symbols, those of functions too."""
        self.tensors: dict[str, torch.Tensor] = {}
        """By symbol, those that other functions can share."""

    def weight(self, target: str, tensor: torch.Tensor, kind: TensorType, function: str) -> dict[str, Any]:
        """The parameters of the tensor's symbol."""
        symbol = next((name for name, each in self.tensors.items() if _same(each, tensor)), None)
        given = {"shape": kind.dims, "dtype": kind.dtype}
        if symbol is not None:
            return {"symbol": Symbol(symbol), **given}
        own = Symbol(next(each for each in _names(target, function) if each not in self.taken))
        self.taken.add(own)
        self.module.body.block.add_op(Weight.make(symbol=own, **given))
        return {"symbol": own, **given}


def _names(target: str, function: str) -> Iterator[str]:
    """The names that a weight may have, the best first."""
    yield target
    yield f"{function}.{target}"
    yield from (f"{function}.{target}.{number}" for number in count(1))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are the same numbers in memory."""
    return one is other or (
        one.numel() > 0
        and (one.data_ptr(), one.dtype, one.shape, one.stride())
        == (other.data_ptr(), other.dtype, other.shape, other.stride())
    )
