"""The rows and keys of its operands that an operation needs for given rows and keys of its result.

There is one rule per operation: elementwise operations and views say where the rows and keys lie in their operands; an
operation that is not elementwise over pairs of positions is a leaf, evaluated in full. The table is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from forerun import dims as dimensions
from forerun import ir
from forerun.ir import Gather, Reshape, Slice, SpecOperation, SSAValue, Transpose, each_of, refused, tensor_type

Role = Literal["row", "key"]
Axes = tuple[tuple[int, Role, int], ...]
"""For each axis, counted from the end, that runs along the rows or the keys: which, and where position 0 lies on it."""


class Span(NamedTuple):
    """Positions from `start` below `stop`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def part(self) -> slice:
        return slice(self.start, self.stop)

    def halves(self) -> tuple[Span, Span]:
        middle = (self.start + self.stop) // 2
        return Span(self.start, middle), Span(middle, self.stop)


POINT: Mapping[Role, Span] = {"row": Span(0, 1), "key": Span(0, 1)}
"""Bounds are one number for all rows and keys of a block."""


@dataclass(frozen=True, eq=False)
class Node:
    """A value restricted to rows and keys along `axes`; a leaf has no operation."""

    value: SSAValue
    axes: Axes
    operation: SpecOperation | None = None
    inputs: tuple[Node, ...] = ()


Chosen = Mapping[Node, int]
"""Of some choices (`where`), the operand that is taken."""


Placed = dict[int, tuple[Role, int]]
"""`Axes` by axis."""
Restriction = Callable[[Any, int, Placed, Mapping[str, int]], Placed | None]
"""Where the rows and keys lie in an operand, given its number, where they lie in the result, and the sizes of names."""


def leaf(operation: SpecOperation, number: int, axes: Placed, sizes: Mapping[str, int]) -> Placed | None:
    """The operation needs all of its operands."""
    return None


def _aligned(operation: SpecOperation, number: int, axes: Placed, sizes: Mapping[str, int]) -> Placed | None:
    dims = tensor_type(operation.operands[number]).dims
    return {axis: each for axis, each in axes.items() if axis >= -len(dims) and dims[axis] != 1}


def _reshape(operation: Reshape, number: int, axes: Placed, sizes: Mapping[str, int]) -> Placed | None:
    shapes = tensor_type(operation.x).dims, tensor_type(operation.result).dims
    before, after = ([(at - len(dims), dim) for at, dim in enumerate(dims) if dim != 1] for dims in shapes)
    if [dim for _, dim in before] != [dim for _, dim in after]:
        return None
    moved = {new: old for (old, _), (new, _) in zip(before, after, strict=True)}
    return {moved[axis]: each for axis, each in axes.items()}


def _transpose(operation: Transpose, number: int, axes: Placed, sizes: Mapping[str, int]) -> Placed | None:
    permutation = operation.permutation
    return {permutation[axis] - len(permutation): each for axis, each in axes.items()}


def _slice(operation: Slice, number: int, axes: Placed, sizes: Mapping[str, int]) -> Placed | None:
    along = operation.dim - tensor_type(operation.x).rank
    if along not in axes:
        return axes
    role, offset = axes[along]
    first = offset + dimensions.evaluate(operation.start, sizes)
    return None if operation.step != 1 else {**axes, along: (role, first)}


def _gather(operation: Gather, number: int, axes: Placed, sizes: Mapping[str, int]) -> Placed | None:
    rest = tensor_type(operation.table).rank - len(operation.indices)
    if any(axis >= -rest for axis in axes):
        return None
    return _aligned(operation, number, {axis + rest: each for axis, each in axes.items()} if number else {}, sizes)


RESTRICTIONS: ir.OperationTable[Restriction] = ir.OperationTable(
    "restrictions to rows and keys",
    {
        **each_of(_aligned, ir.Elementwise, ir.Broadcast),
        Reshape: _reshape,
        Transpose: _transpose,
        Slice: _slice,
        Gather: _gather,
        ir.Computation: leaf,
        **each_of(refused("works on the rows of a step, not on pairs of positions"), ir.StepOperation, ir.Kernel),
        **each_of(refused("does not give a value"), ir.Yield, ir.Return, ir.Function, ir.Weight, ir.State),
    },
)
