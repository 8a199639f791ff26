"""unmerge_sequence: a dimension in which the sequence is merged with others is taken apart again, [k*T] as [T, k].

Code for experts merges tokens and their choices, computes on the merged rows, and takes them apart at the end. Merged
rows have no place along the sequence. The pass repeats the computation between the two views with both dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from forerun import dims as dimensions
from forerun import ir
from forerun.ir import (
    Broadcast,
    Builder,
    Concat,
    Context,
    Dim,
    Function,
    Gather,
    InsertPoint,
    MatMul,
    ModuleOp,
    Reduce,
    Reshape,
    Slice,
    SpecOperation,
    SSAValue,
    TopK,
    Transpose,
    each_of,
    refused,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.matching import SEQUENCE

Axes = tuple[tuple[Dim, ...], ...]
"""For each dimension of a value, the dimensions that it is taken apart into; itself if it is whole."""


@dataclass(frozen=True)
class Apart:
    """A value with more dimensions than the value that it stands for."""

    value: SSAValue
    axes: Axes

    def at(self, axis: int) -> int:
        """The place of the first part of a dimension."""
        return sum(map(len, self.axes[:axis]))


@dataclass(frozen=True)
class UnmergeSequence(Pass):
    """Values with a dimension such as `2*T` that a reshape has merged are computed with its parts."""

    name: ClassVar[str] = "unmerge-sequence"
    needs: ClassVar[Needs | None] = Needs("forward")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        forward = function_named(op, "forward")
        count = _Unmerging(forward).run()
        if count:
            pass_context(ctx).note(f"{self.name}: {count} views take a merged dimension apart")
            clean(forward)


def is_merged(dim: Dim) -> bool:
    """Whether a dimension is a multiple of the sequence."""
    found = dimensions.affine(dim)
    return found.symbol == SEQUENCE and found.scale > 1 and found.offset == 0


class _Unmerging:
    """Repeats the operations of a function on values that are taken apart, where there is a rule for it."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.apart: dict[SSAValue, Apart] = {}
        self.build = Builder(function.block)

    def run(self) -> int:
        """Returns the number of values that are no longer computed from merged ones."""
        count = 0
        for operation in self.function.body:
            if not isinstance(operation, Reshape) and not any(each in self.apart for each in operation.operands):
                continue
            self.build = Builder(InsertPoint.before(operation), operation.location)
            made = RULES.of(operation)(self, operation)
            if made is None:
                continue
            new, axes = made
            for old, value in zip(operation.results, new, strict=True):
                value.name_hint = value.name_hint or old.name_hint
                if any(len(each) > 1 for each in axes):
                    self.apart[old] = Apart(value, axes)
                else:
                    old.replace_all_uses_with(value)
                    count += 1
        return count

    def of(self, value: SSAValue) -> Apart:
        return self.apart.get(value) or Apart(value, tuple((dim,) for dim in tensor_type(value).dims))

    def remade(self, operation: SpecOperation, operands: Sequence[SSAValue], **changes: Any) -> list[SSAValue]:
        return list(self.build.emit(operation.remade(operands, **changes)).results)

    def joint(self, values: Sequence[SSAValue]) -> Axes | None:
        """How the dimensions of a result are taken apart that numpy's broadcasting aligns with those of some values;
        None if two of them disagree."""
        found: list[tuple[Dim, ...]] = []
        dims = ir.broadcast_dims([tensor_type(each).dims for each in values])
        for place, dim in enumerate(reversed(dims), start=1):
            parts = {each.axes[-place] for each in map(self.of, values) if len(each.axes) >= place}
            split = {each for each in parts if len(each) > 1}
            if len(split) > 1:
                return None
            found.append(split.pop() if split else (dim,))
        return tuple(reversed(found))

    def fitted(self, value: SSAValue, axes: Axes) -> SSAValue:
        """Returns a value with its last dimensions taken apart as `axes` says, for broadcasting."""
        own, wide = self.of(value), value.owner
        taken = axes[len(axes) - len(own.axes) :]
        if isinstance(wide, Broadcast) and value not in self.apart:  # of a number, as a rule
            narrow = taken[len(taken) - tensor_type(wide.x).rank :]
            return self.build.broadcast(self.fitted(wide.x, narrow), _shape(wide.shape, taken))
        return self.build.reshape(own.value, _shape(tensor_type(value).dims, taken))


def _shape(dims: Sequence[Dim], axes: Axes) -> list[Dim]:
    """Dimensions taken apart as `axes` says; one of size 1 is repeated along all parts."""
    found: list[Dim] = []
    for dim, parts in zip(dims, axes, strict=True):
        found.extend((dim,) if len(parts) == 1 else (1,) * len(parts) if dim == 1 else parts)
    return found


Made = tuple[list[SSAValue], Axes] | None
"""The new results of an operation and how their dimensions are taken apart; None if it stays as it is."""


def _reshape(self: _Unmerging, operation: Reshape) -> Made:
    """Each merged dimension is apart if the operand has its parts, in that order and nothing else."""
    source = self.of(operation.x)
    before, after = tensor_type(source.value).dims, tuple(operation.shape)
    if operation.x not in self.apart and not any(map(is_merged, after)):
        return None
    axes: list[tuple[Dim, ...]] = []
    for old, new in dimensions.groups(before, after):
        parts = tuple(dim for dim in before[old] if dim != 1)
        wide = [dim for dim in after[new] if dim != 1]
        if len(wide) == 1 and is_merged(wide[0]) and len(parts) > 1:
            axes.extend(parts if dim == wide[0] else (dim,) for dim in after[new])
        elif wide and is_merged(wide[0]) and parts[:1] == (SEQUENCE,):  # features that are seen as rows of fewer
            split = (SEQUENCE, dimensions.affine(wide[0]).scale)
            axes.extend(split if dim == wide[0] else (dim,) for dim in after[new])
        else:
            axes.extend((dim,) for dim in after[new])
    if operation.x not in self.apart and all(len(each) == 1 for each in axes):
        return None
    if any(is_merged(each[0]) for each in axes if len(each) == 1):
        return None
    return [self.build.reshape(source.value, [dim for each in axes for dim in each])], tuple(axes)


def _elementwise(self: _Unmerging, operation: SpecOperation) -> Made:
    axes = self.joint(operation.operands)
    return (
        None
        if axes is None
        else (self.remade(operation, [self.fitted(each, axes) for each in operation.operands]), axes)
    )


def _gather(self: _Unmerging, operation: Gather) -> Made:
    """The indices may be apart; the table may not."""
    axes = self.joint(operation.indices)
    if axes is None or operation.table in self.apart:
        return None
    rows = tensor_type(operation.result).dims[len(axes) :]
    indices = [self.fitted(each, axes) for each in operation.indices]
    return self.remade(operation, [operation.table, *indices]), (*axes, *((dim,) for dim in rows))


def _matmul(self: _Unmerging, operation: MatMul) -> Made:
    """Batches may be apart; rows, columns and what is summed may not."""
    if any(len(part) > 1 for each in operation.operands for part in self.of(each).axes[-2:]):
        return None
    lead = [self.of(each) for each in operation.operands]
    axes: list[tuple[Dim, ...]] = []
    dims = tensor_type(operation.result).dims
    for place in range(3, len(dims) + 1):
        split = {each.axes[-place] for each in lead if len(each.axes) >= place and len(each.axes[-place]) > 1}
        if len(split) > 1:
            return None
        axes.insert(0, split.pop() if split else (dims[-place],))
    found = (*axes, (dims[-2],), (dims[-1],))
    return self.remade(operation, [self.fitted(each, found) for each in operation.operands]), found


def _linear(self: _Unmerging, operation: ir.Linear) -> Made:
    x = self.of(operation.x)
    if len(x.axes[-1]) > 1 or any(each in self.apart for each in operation.operands[1:]):
        return None
    axes = (*x.axes[:-1], (tensor_type(operation.result).dims[-1],))
    return self.remade(operation, [x.value, *operation.operands[1:]]), axes


def _along(self: _Unmerging, operation: ir.AlongAxes) -> Made:
    """Other axes of the first operand may be apart, as long as no other operand has them."""
    x, others = self.of(operation.operands[0]), operation.operands[1:]
    if any(len(x.axes[axis]) > 1 for axis in operation.axes) or any(each in self.apart for each in others):
        return None
    changes = {"dim": x.at(operation.dim)} if isinstance(operation, ir.Softmax | ir.Scan | Slice) else {}
    made = self.remade(operation, [x.value, *others], **changes)
    result = tensor_type(operation.results[0]).dims
    return made, tuple(parts if len(parts) > 1 else (dim,) for parts, dim in zip(x.axes, result, strict=True))


def _concat(self: _Unmerging, operation: Concat) -> Made:
    found = {self.of(each).axes[: operation.dim] + self.of(each).axes[operation.dim + 1 :] for each in operation.inputs}
    first = self.of(operation.inputs[0])
    if len(found) > 1 or len(first.axes[operation.dim]) > 1:
        return None
    values = [self.of(each).value for each in operation.inputs]
    axes = [*first.axes]
    axes[operation.dim] = (tensor_type(operation.result).dims[operation.dim],)
    return self.remade(operation, values, dim=first.at(operation.dim)), tuple(axes)


def _reduce(self: _Unmerging, operation: Reduce) -> Made:
    x = self.of(operation.x)
    if any(len(x.axes[axis]) > 1 for axis in operation.dims):
        return None
    made = self.remade(operation, [x.value], dims=tuple(x.at(axis) for axis in operation.dims))
    kept = [((1,) if axis in operation.dims else each) for axis, each in enumerate(x.axes)]
    return made, tuple(each for axis, each in enumerate(kept) if operation.keep or axis not in operation.dims)


def _broadcast(self: _Unmerging, operation: Broadcast) -> Made:
    x = self.of(operation.x)
    lead = len(operation.shape) - len(x.axes)
    pairs = zip(x.axes, operation.shape[lead:], strict=True)
    axes = (*((dim,) for dim in operation.shape[:lead]), *(each if len(each) > 1 else (dim,) for each, dim in pairs))
    return self.remade(operation, [x.value], shape=tuple(dim for each in axes for dim in each)), axes


def _transpose(self: _Unmerging, operation: Transpose) -> Made:
    x = self.of(operation.x)
    axes = tuple(x.axes[axis] for axis in operation.permutation)
    order = [x.at(axis) + part for axis in operation.permutation for part in range(len(x.axes[axis]))]
    return self.remade(operation, [x.value], permutation=tuple(order)), axes


def _left(self: _Unmerging, operation: SpecOperation) -> Made:
    """The operation stays as it is, on merged values."""
    return None


RULES: ir.OperationTable[Callable[[_Unmerging, Any], Made]] = ir.OperationTable(
    "operations on values that are taken apart",
    {
        **each_of(_elementwise, ir.Map, ir.Cast),
        Reshape: _reshape,
        Broadcast: _broadcast,
        Transpose: _transpose,
        Gather: _gather,
        MatMul: _matmul,
        ir.Linear: _linear,
        Concat: _concat,
        Reduce: _reduce,
        **each_of(_along, ir.Softmax, ir.Scan, Slice, TopK, ir.RMSNorm, ir.LayerNorm),
        **each_of(_left, ir.Computation, ir.Return),
        ir.StepOperation: refused("works on rows; run this pass before insert-kv-cache"),
        **each_of(refused("hides its operations; run this pass before fuse-kernels"), ir.Kernel, ir.Yield),
        **each_of(refused("cannot stand in a function"), Function, ir.Weight, ir.State),
    },
)
"""How each operation is repeated on values that are taken apart."""
