"""The axis of an operand that shares its index with an axis of the result: one rule per operation."""

from collections.abc import Callable
from typing import Any

from forerun import dims as dimensions
from forerun import ir
from forerun.ir import each_of, refused

Rule = Callable[[Any, int, ir.SSAValue], int | None]
"""`rule(operation, axis of the result, operand)`; None where the operand is read at other indices, or has no such."""


def source_axis(operation: ir.SpecOperation, axis: int | None, operand: ir.SSAValue) -> int | None:
    """The axis of an operand whose index is the result's index along `axis`; None where there is none."""
    return None if axis is None else SOURCES.of(operation)(operation, axis, operand)


def right_aligned(axis: int | None, rank: int, operand: ir.SSAValue) -> int | None:
    """The axis of an operand that numpy's broadcasting aligns with an axis of a result."""
    if axis is None:
        return None
    own = axis - (rank - ir.tensor_type(operand).rank)
    return own if own >= 0 else None


def _aligned(operation: ir.SpecOperation, axis: int, operand: ir.SSAValue) -> int | None:
    return right_aligned(axis, ir.tensor_type(operation.results[0]).rank, operand)


def _transpose(operation: ir.Transpose, axis: int, operand: ir.SSAValue) -> int | None:
    return operation.permutation[axis]


def _reshape(operation: ir.Reshape, axis: int, operand: ir.SSAValue) -> int | None:
    result = ir.tensor_type(operation.result)
    before = dimensions.volume(result.dims[:axis])
    source = ir.tensor_type(operand)
    for own, dim in enumerate(source.dims):
        if dim == result.dims[axis] and dimensions.volume(source.dims[:own]) == before:
            return own
    return None


def _other_axes(operation: ir.AlongAxes, axis: int, operand: ir.SSAValue) -> int | None:
    """Along its axes, a number of the result needs others of the operand."""
    return None if axis in operation.axes else _aligned(operation, axis, operand)


def _reduce(operation: ir.Reduce, axis: int, operand: ir.SSAValue) -> int | None:
    over = operation.dims
    if operation.keep:
        return None if axis in over else axis
    return [own for own in range(ir.tensor_type(operand).rank) if own not in over][axis]


def _linear(operation: ir.Linear, axis: int, operand: ir.SSAValue) -> int | None:
    return axis if operand is operation.x and axis < ir.tensor_type(operand).rank - 1 else None


def _matmul(operation: ir.MatMul, axis: int, operand: ir.SSAValue) -> int | None:
    """The rows of the result are the left operand's, its columns the right one's; the batch is both's."""
    from_end = axis - ir.tensor_type(operation.result).rank
    other = {-1: operation.a, -2: operation.b}.get(from_end)
    return None if operand is other else _aligned(operation, axis, operand)


def _rows_of_states(operation: ir.StateRead | ir.Recurrence, axis: int, operand: ir.SSAValue) -> int | None:
    """A record is read at its own row's slot; a recurrence reads other rows."""
    return 0 if axis == 0 and isinstance(operation, ir.StateRead) else None


SOURCES: ir.OperationTable[Rule] = ir.OperationTable(
    "axes of operands in the cpu target",
    {
        ir.Transpose: _transpose,
        ir.Reshape: _reshape,
        ir.Reduce: _reduce,
        ir.Linear: _linear,
        ir.MatMul: _matmul,
        ir.AlongAxes: _other_axes,
        **each_of(_aligned, ir.Elementwise, ir.Broadcast, ir.TreeAttention, ir.Parameter, ir.Constant, ir.Iota),
        **each_of(_rows_of_states, ir.StateRead, ir.Recurrence),
        ir.Gather: refused("reads its table at other indices, which the planner follows"),
        **each_of(refused("has no axes in the cpu target"), ir.Attention, ir.StateWrite, ir.Kernel),
        **each_of(refused("has no axes in the cpu target"), ir.Return, ir.Yield, ir.Function, ir.Weight, ir.State),
    },
)
