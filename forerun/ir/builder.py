"""Appending operations at one place, with short forms for constants, casts and views."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from xdsl.dialects.builtin import LocationAttr
from xdsl.ir import Block, Operation, SSAValue
from xdsl.pattern_rewriter import PatternRewriter
from xdsl.rewriter import InsertPoint, Rewriter

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.ir.elementwise import Cast, Constant, Map
from forerun.ir.operation import SpecOperation, tensor_type
from forerun.ir.reductions import Reduce
from forerun.ir.views import Broadcast, Concat, Reshape, Slice, Transpose


class Builder:
    """Inserts operations at `at`, in order; returns the new value, or the operand itself if nothing changes."""

    def __init__(self, at: InsertPoint | Block, location: LocationAttr | None = None, hint: str | None = None) -> None:
        self.at = InsertPoint.at_end(at) if isinstance(at, Block) else at
        self.location = location
        self.hint = hint
        self.insert: Callable[[Operation, InsertPoint], Any] = Rewriter.insert_op

    @staticmethod
    def before(operation: Operation, rewriter: PatternRewriter | None = None) -> Builder:
        """A builder in front of an operation, with its location; a rewriter is notified of insertions."""
        build = Builder(InsertPoint.before(operation), operation.location)
        if rewriter is not None:
            build.insert = rewriter.insert
        return build

    def emit(self, operation: SpecOperation) -> SpecOperation:
        if self.location is not None:
            operation.location = self.location
        if self.hint is not None and operation.results:
            operation.results[0].name_hint = self.hint
        self.insert(operation, self.at)
        return operation

    def add(self, kind: type[SpecOperation], *inputs: SSAValue | None, **parameters: Any) -> SSAValue:
        return self.emit(kind.make(*inputs, **parameters)).results[0]

    def constant(self, value: bool | int | float, dtype: str) -> SSAValue:
        number = bool(value) if dtype == "i1" else int(value) if dtype.startswith("i") else float(value)
        return self.add(Constant, value=number, dtype=dtype)

    def full(self, shape: Sequence[Dim], value: bool | int | float, dtype: str) -> SSAValue:
        return self.broadcast(self.constant(value, dtype), shape)

    def map(self, function: str, *inputs: SSAValue) -> SSAValue:
        return self.add(Map, *inputs, function=function)

    def cast(self, value: SSAValue, dtype: str) -> SSAValue:
        return value if tensor_type(value).dtype == dtype else self.add(Cast, value, dtype=dtype)

    def reshape(self, value: SSAValue, shape: Sequence[Dim]) -> SSAValue:
        """Reshape; one dimension may be -1."""
        dims = tensor_type(value).dims
        shape = resolve(dims, shape)
        return value if tuple(shape) == dims else self.add(Reshape, value, shape=tuple(shape))

    def broadcast(self, value: SSAValue, shape: Sequence[Dim]) -> SSAValue:
        return value if tuple(shape) == tensor_type(value).dims else self.add(Broadcast, value, shape=tuple(shape))

    def transpose(self, value: SSAValue, permutation: Sequence[int]) -> SSAValue:
        same = list(permutation) == list(range(len(permutation)))
        return value if same else self.add(Transpose, value, permutation=tuple(permutation))

    def slice(self, value: SSAValue, dim: int, start: Dim, stop: Dim, step: int = 1) -> SSAValue:
        whole = start == 0 and stop == tensor_type(value).dims[dim] and step == 1
        return value if whole else self.add(Slice, value, dim=dim, start=start, stop=stop, step=step)

    def concat(self, values: Sequence[SSAValue], dim: int) -> SSAValue:
        return values[0] if len(values) == 1 else self.add(Concat, *values, dim=dim)

    def reduce(self, function: str, value: SSAValue, dims: Sequence[int], keep: bool = False) -> SSAValue:
        return self.add(Reduce, value, function=function, dims=tuple(dims), keep=keep)


def resolve(dims: Sequence[Dim], shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """`shape` with its -1 inferred from the elements of `dims`; ValueError if the result is not a dimension."""
    if -1 not in shape:
        return tuple(shape)
    factor, symbols = dimensions.volume(dims)
    known_factor, known_symbols = dimensions.volume([dim for dim in shape if dim != -1])
    left = list(symbols)
    for symbol in known_symbols:
        if symbol not in left:
            raise ValueError(f"cannot view {list(dims)} as {list(shape)}")
        left.remove(symbol)
    if len(left) > 1 or factor % max(1, known_factor):
        raise ValueError(f"cannot view {list(dims)} as {list(shape)}")
    rest: Dim = math.floor(factor / max(1, known_factor))
    rest = dimensions.multiply(left[0], rest) if left else rest
    return tuple(rest if dim == -1 else dim for dim in shape)
