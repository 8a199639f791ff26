"""Lifting: a function of one token and its states becomes a function of all positions of a sequence.

A value of the step is, over all positions,
  whole    one value: it depends on neither the token nor the position;
  rows     [T, *shape], one for each position, if it depends on the token or the position;
  history  [..., T, ...], where the step has an axis of all positions so far: its first t + 1 entries are position t's;
  pairs    [T, ..., T, ...], one for each position and each position so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from forerun import dims as dimensions
from forerun import ir
from forerun.errors import UnsupportedOperationError
from forerun.ir import (
    AlongAxes,
    Attention,
    Builder,
    Concat,
    Dim,
    Function,
    Gather,
    Iota,
    MatMul,
    Slice,
    SpecOperation,
    SSAValue,
    TakeAlong,
    TensorType,
    each_of,
    neighbourhood,
    refused,
    tensor_type,
)
from forerun.passes.matching import SEQUENCE

SO_FAR = "S"
"""The name of the positions before the token in a cached step."""
WITH_OWN = dimensions.add(SO_FAR, 1)
"""The size of an axis that runs over all positions up to the token's own."""


def grown_axis(value: SSAValue) -> int | None:
    """The axis of a state that runs over the positions so far, or None."""
    dims = tensor_type(value).dims
    return next((axis for axis, dim in enumerate(dims) if dimensions.symbol(dim)), None)


class Lifting:
    """The values of a cached step as values of `@forward`."""

    def __init__(self, cached: Function, forward: Function) -> None:
        self.build = Builder(forward.block)
        self.values: dict[SSAValue, SSAValue] = {}
        self._rows: set[SSAValue] = set()
        token, *self.states = cached.block.args
        (input_ids,) = forward.block.args
        self.define(token, self.build.reshape(input_ids, (SEQUENCE, *tensor_type(token).dims)))

    def define(self, value: SSAValue, rows: SSAValue) -> None:
        """A value of the step has one value for each position."""
        self.values[value] = rows
        self._rows.add(value)

    def is_rows(self, value: SSAValue) -> bool:
        return value in self._rows

    def has(self, value: SSAValue) -> bool:
        """Whether a value has been lifted."""
        return value in self.values

    def given(self, value: SSAValue) -> SSAValue:
        """A lifted value. Raises UnsupportedOperationError for a state that is read in a way without a rule."""
        if value not in self.values:
            reader = next(iter(value.uses)).operation
            assert isinstance(reader, SpecOperation)
            raise self.refusal(reader, "reads a state of the model before the token is part of it")
        return self.values[value]

    def row(self, value: SSAValue) -> SSAValue:
        """A lifted value with one for each position, [T, *shape]."""
        found = self.given(value)
        if self.is_rows(value):
            return found
        dims = tensor_type(found).dims
        if SEQUENCE in map(dimensions.symbol, dims):
            reader = next(iter(value.uses)).operation
            assert isinstance(reader, SpecOperation)
            raise self.refusal(reader, "reads the positions so far where it needs a value of each")
        return self.build.broadcast(self.build.reshape(found, (1, *dims)), (SEQUENCE, *dims))

    def lift(self, operation: SpecOperation) -> None:
        """Adds what an operation computes over all positions."""
        self.build.location = operation.location
        LIFTED.of(operation)(self, operation)

    def refusal(self, operation: SpecOperation, what: str) -> UnsupportedOperationError:
        return UnsupportedOperationError(
            f"spec.{operation.mnemonic} at {operation.location} {what}, for which the cached step has no rule.\n"
            + neighbourhood(operation)
        )

    # --- rules

    def elementwise(self, operation: SpecOperation) -> None:
        """Operands are aligned from the end, and the positions stand in front."""
        rank = tensor_type(operation.results[0]).rank
        self._emit(operation, [self._aligned(each, rank) for each in operation.operands])

    def along(self, operation: AlongAxes) -> None:
        """A computation along some axes, for each position."""
        first = tensor_type(operation.operands[0])
        if any(dimensions.symbol(first.dims[axis]) for axis in operation.axes):
            raise self.refusal(operation, "works along all positions so far")
        self._emit(operation, [self._aligned(each, first.rank) for each in operation.operands])

    def broadcast(self, operation: ir.Broadcast) -> None:
        self._emit(operation, [self._aligned(operation.x, tensor_type(operation.result).rank)])

    def whole_or_rows(self, operation: SpecOperation) -> None:
        self._emit(operation, [self.given(each) for each in operation.operands])

    def iota(self, operation: Iota) -> None:
        if dimensions.symbol(operation.size) and operation.size != WITH_OWN:
            raise self.refusal(operation, "counts other positions than those so far")
        self._emit(operation, [])

    def slice(self, operation: Slice) -> None:
        """The last of the positions so far is the token's own."""
        x, size = operation.x, tensor_type(operation.x).dims[operation.dim]
        if not dimensions.symbol(size):
            self._emit(operation, [self.given(x)])
            return
        if self.is_rows(x) or (operation.start, operation.stop, size) != (SO_FAR, WITH_OWN, WITH_OWN):
            raise self.refusal(operation, "takes a part of the positions so far")
        value, rank = self.given(x), tensor_type(x).rank
        order = (operation.dim, *(axis for axis in range(rank) if axis != operation.dim))
        moved = self.build.transpose(value, order)
        self.define(operation.result, self.build.reshape(moved, (SEQUENCE, *tensor_type(operation.result).dims)))

    def concat(self, operation: Concat) -> None:
        """Appended to a state, the values of all positions are the history."""
        first, *rest = operation.inputs
        if first in self.states and operation.dim == grown_axis(first):
            if len(rest) != 1 or tensor_type(rest[0]).dims[operation.dim] != 1:
                raise self.refusal(operation, "appends more than one position to a state")
            value, dim, rank = self.row(rest[0]), operation.dim, tensor_type(rest[0]).rank
            dims = tensor_type(rest[0]).dims
            apart = self.build.reshape(value, (SEQUENCE, *dims[:dim], *dims[dim + 1 :]))
            order = (*range(1, dim + 1), 0, *range(dim + 1, rank))
            self.values[operation.result] = self.build.transpose(apart, order)
            return
        if any(dimensions.symbol(tensor_type(each).dims[operation.dim]) for each in operation.inputs):
            raise self.refusal(operation, "joins values to the positions so far")
        rows = any(map(self.is_rows, operation.inputs))
        self._emit(operation, [self.row(each) if rows else self.given(each) for each in operation.inputs])

    def gather(self, operation: Gather) -> None:
        """A table is indexed at each position; a list of the token's is read along its axis."""
        table = tensor_type(operation.table)
        if self.is_rows(operation.table) and table.rank == 1 and isinstance(table.dims[0], int):
            (index,) = operation.indices
            dims = tensor_type(index).dims
            flat = self.build.reshape(self.row(index), (SEQUENCE, prod(map(int, dims))))
            taken = self.build.add(TakeAlong, self.given(operation.table), flat, dim=1)
            self.define(operation.result, self.build.reshape(taken, (SEQUENCE, *dims)))
            return
        if self.is_rows(operation.table) or dimensions.symbol(table.dims[0]):
            raise self.refusal(operation, "picks from values of the token or from the positions so far")
        rank = max(tensor_type(each).rank for each in operation.indices)
        indices = [self._aligned(each, rank) for each in operation.indices]
        made = self.build.emit(operation.remade([self.given(operation.table), *indices]))
        self._defined(operation, made)

    def linear(self, operation: ir.Linear) -> None:
        if any(self.is_rows(each) for each in operation.operands[1:]):
            raise self.refusal(operation, "multiplies by a matrix that depends on the token")
        self.whole_or_rows(operation)

    def matmul(self, operation: MatMul) -> None:
        inner = tensor_type(operation.a).dims[-1], tensor_type(operation.b).dims[-2]
        if any(map(dimensions.symbol, inner)):
            raise self.refusal(operation, "sums over all positions so far outside an attention")
        rank = max(tensor_type(each).rank for each in operation.operands)
        self._emit(operation, [self._aligned(each, rank) for each in operation.operands])

    def attention(self, operation: Attention) -> None:
        """Queries of all positions over the histories of keys and values."""
        build, query = self.build, tensor_type(operation.query)
        if query.dims[-2] != 1 or operation.first is not None or operation.bias is not None:
            raise self.refusal(operation, "attends in a form that no cached step has")
        if any(tensor_type(each).dims[-2] != WITH_OWN for each in (operation.key, operation.value)):
            raise self.refusal(operation, "attends to other positions than those so far")
        given = build.reshape(self.row(operation.query), (SEQUENCE, *query.dims[:-2], query.dims[-1]))
        moved = build.transpose(given, (*range(1, query.rank - 1), 0, query.rank - 1))
        mask = None if operation.mask is None else self._mask(operation.mask)
        attended = build.add(
            Attention,
            moved,
            self.given(operation.key),
            self.given(operation.value),
            mask=mask,
            sinks=None if operation.sinks is None else self.given(operation.sinks),
            scale=operation.scale,
            softcap=operation.softcap,
            causal=True if mask is None else None,
        )
        back = build.transpose(attended, (query.rank - 2, *range(query.rank - 2), query.rank - 1))
        self.define(operation.result, build.reshape(back, (SEQUENCE, *tensor_type(operation.result).dims)))

    def _mask(self, mask: SSAValue) -> SSAValue:
        """[..., T, T], with later positions hidden."""
        build, kind = self.build, tensor_type(mask)
        value = self.given(mask)
        if self.is_rows(mask):
            dims = tensor_type(value).dims  # [T, ..., 1, T]
            apart = build.reshape(value, (*dims[:-2], dims[-1]))
            rank = len(dims) - 1
            value = build.transpose(apart, (*range(1, rank - 1), 0, rank - 1))
        at = build.add(Iota, size=SEQUENCE)
        seen = build.map("le", at, build.reshape(at, (SEQUENCE, 1)))
        if kind.dtype == "i1":
            return build.map("and", value, seen)
        return build.map("where", seen, value, build.constant(float("-inf"), kind.dtype))

    # --- helpers

    def _aligned(self, value: SSAValue, rank: int) -> SSAValue:
        """A lifted operand whose axes after the positions are aligned with those of a result of some rank."""
        found = self.given(value)
        dims = tensor_type(value).dims
        if not self.is_rows(value) or len(dims) == rank:
            return found
        own = tensor_type(found).dims
        return self.build.reshape(found, (own[0], *(1,) * (rank - len(dims)), *own[1:]))

    def _emit(self, operation: SpecOperation, operands: Sequence[SSAValue]) -> None:
        """The operation on lifted operands: sizes and axes after the positions, if there are any."""
        rows = any(map(self.is_rows, operation.operands))
        made = self.build.emit(operation.remade(operands, **_parameters(operation, rows)))
        self._defined(operation, made)

    def _defined(self, operation: SpecOperation, made: SpecOperation) -> None:
        rows = any(map(self.is_rows, operation.operands))
        for value, result in zip(operation.results, made.results, strict=True):
            expected = _lifted_type(value, rows)
            assert result.type == expected, f"{operation.name} was lifted to {result.type}, not {expected}"
            result.name_hint = value.name_hint
            self.values[value] = result
            if rows:
                self._rows.add(value)


def _so_far(dim: Dim) -> Dim:
    """A dimension of the step as one of the sequence."""
    return dimensions.substitute(dim, SO_FAR, dimensions.add(SEQUENCE, -1))


def _lifted_type(value: SSAValue, rows: bool) -> TensorType:
    kind = tensor_type(value)
    dims = tuple(map(_so_far, kind.dims))
    return kind.with_dims((SEQUENCE, *dims) if rows else dims)


def _parameters(operation: SpecOperation, rows: bool) -> dict[str, Any]:
    """An operation's axes and sizes, over all positions."""
    found: dict[str, Any] = {}
    for name, size in operation.sizes().items():
        found[name] = tuple(map(_so_far, size)) if isinstance(size, tuple) else _so_far(size)
    if not rows:
        return found
    for name, value in operation.decoded().items():
        if name == "shape":
            found[name] = (SEQUENCE, *found.get(name, value))
        elif name == "dim":
            found[name] = value + 1
        elif name == "dims":
            found[name] = tuple(each + 1 for each in value)
        elif name == "permutation":
            found[name] = (0, *(each + 1 for each in value))
    return found


LIFTED: ir.OperationTable[Callable[[Lifting, Any], None]] = ir.OperationTable(
    "operations over all positions",
    {
        ir.Elementwise: Lifting.elementwise,
        AlongAxes: Lifting.along,
        ir.Broadcast: Lifting.broadcast,
        **each_of(Lifting.whole_or_rows, ir.Parameter, ir.Constant, ir.Reshape, ir.Transpose, ir.ExpertLinear),
        Iota: Lifting.iota,
        Slice: Lifting.slice,
        Concat: Lifting.concat,
        Gather: Lifting.gather,
        ir.Linear: Lifting.linear,
        MatMul: Lifting.matmul,
        Attention: Lifting.attention,
        **each_of(refused("runs over a whole sequence; a cached step has one token"), ir.Recurrence, ir.Window),
        ir.StepOperation: refused("already works on rows; raise recurrences before insert-kv-cache"),
        **each_of(refused("hides its operations; raise recurrences before fuse-kernels"), ir.Kernel, ir.Yield),
        **each_of(refused("cannot be lifted"), ir.Return, Function, ir.Weight, ir.State),
    },
)
"""How each operation of a cached step is computed over all positions."""
