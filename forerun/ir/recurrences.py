"""Recurrences: each position's record is computed from the record of the position before it.

    spec.recurrence       over the positions of a traced sequence
    spec.tree_recurrence  over the rows of a step, each of which follows its parent in the tree

Both have a body over one position: it takes the record before and the inputs, and yields the record after and what the
rest of the model reads of it. The record before the first position is zero. A position that reads what a few positions
before it gave needs no record: `spec.window`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from xdsl.ir import Region, SSAValue
from xdsl.irdl import operand_def, region_def, traits_def, var_operand_def, var_result_def
from xdsl.traits import MemoryReadEffect, MemoryWriteEffect

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.ir.families import Computation, StepOperation
from forerun.ir.operation import Environment, SpecOperation, Types, ValueOperation, operation, require, tensor_type
from forerun.ir.properties import DIMENSION, INTEGER, SYMBOL, Symbol, parameter
from forerun.ir.states import WHOLE
from forerun.ir.structure import Yield, operations
from forerun.ir.types import TensorType


class WithBody(SpecOperation):
    """A recurrence, with its body. `inputs` are its last operands, `outputs` its results."""

    inputs = var_operand_def(TensorType)
    outputs = var_result_def(TensorType)
    region = region_def("single_block")

    @property
    def rows(self) -> Dim:
        """The dimension that inputs and outputs of one number or more for each position begin with."""
        raise NotImplementedError

    @property
    def body(self) -> list[SpecOperation]:
        """Its operations, without the terminator."""
        return [each for each in operations(self.region.block) if not each.ends_body]

    @property
    def before(self) -> SSAValue:
        """The record before, in the body."""
        return self.region.block.args[0]

    @property
    def after(self) -> SSAValue:
        """The record after, in the body."""
        return self._yielded[0]

    @property
    def read(self) -> list[SSAValue]:
        """What the outputs are made of, in the body."""
        return self._yielded[1:]

    @property
    def _yielded(self) -> list[SSAValue]:
        last = self.region.block.last_op
        assert isinstance(last, Yield)
        return list(last.inputs)

    def of_rows(self) -> dict[SSAValue, tuple[SSAValue, bool]]:
        """The body's inputs, each with its operand, and whether the operand has a row for each position."""
        arguments = self.region.block.args[1:]
        return {
            inner: (outer, tensor_type(outer).dims[:1] == (self.rows,))
            for inner, outer in zip(arguments, self.inputs, strict=True)
        }

    def check_body(self) -> None:
        """The body's arguments are the record and the inputs at one position; the outputs are what it yields."""
        last = self.region.block.last_op
        require(isinstance(last, Yield) and len(last.operands) >= 1, "does not end in a spec.yield of a record")
        record = tensor_type(self.after)
        expected = [record]
        for each in map(tensor_type, self.inputs):
            expected.append(each.with_dims(each.dims[1:]) if each.dims[:1] == (self.rows,) else each)
        actual = [each.type for each in self.region.block.args]
        fits = actual == expected
        require(fits, f"has a body with arguments ({_shown(actual)}), not its record and inputs ({_shown(expected)})")
        held = [dim for each in expected for dim in each.dims if dimensions.symbol(dim)]
        require(not held, f"has a body over the named dimension {held[0] if held else ''}; give it fixed sizes")
        given, results = _of_rows(self.rows, self.read), [each.type for each in self.outputs]
        require(results == given, f"gives ({_shown(given)}), not ({_shown(results)})")


@operation
class Recurrence(Computation, WithBody):
    """A recurrence over the positions of a sequence of `size`: inputs [size, ...] at the position, others whole.

    Its outputs are [size, *shape] for each value that the body yields after the record.
    """

    name = "spec.recurrence"

    size: Dim = parameter(DIMENSION)

    @classmethod
    def of(cls, inputs: Sequence[SSAValue], body: Region, *, size: Dim) -> Self:
        """Returns the recurrence with that body."""
        properties = {"size": cls.encoded("size", size)}
        return cls.create(
            operands=inputs, result_types=_of_rows(size, _read(body)), properties=properties, regions=[body]
        )

    def remade(self, operands: Sequence[SSAValue], **changes: Any) -> Self:
        return self.of(operands, self.region.clone(), size=changes.get("size", self.size))

    @property
    def rows(self) -> Dim:
        return self.size

    def check(self) -> None:
        self.check_body()


@operation
class Window(Computation, ValueOperation):
    """The values of the `count` positions before each one, the oldest first, zero before the first position.

    x [T, *shape] -> [T, count, *shape].
    """

    name = "spec.window"

    x = operand_def(TensorType)
    count: int = parameter(INTEGER)

    @classmethod
    def infer(cls, x: TensorType, *, count: int) -> Types:
        require(x.rank >= 1 and count >= 1, f"needs values [T, ...] and a count of at least 1, not {x} and {count}")
        return [x.with_dims((x.dims[0], count, *x.dims[1:]))]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        padded = torch.cat((x.new_zeros(self.count, *x.shape[1:]), x))
        return torch.stack([padded[at : at + len(x)] for at in range(self.count)], 1)


@operation
class TreeRecurrence(StepOperation, WithBody):
    """A recurrence over the rows of a step, whose records are those of a state per row.

    parents [N] are the places of the records before, negative for none (zero); records [N] the places where the rows
    leave theirs; order [N] the rows, parents before their children. Inputs [N, ...] are read at the row, others whole.
    """

    name = "spec.tree_recurrence"
    traits = traits_def(MemoryReadEffect(), MemoryWriteEffect())

    parents = operand_def(TensorType)
    records = operand_def(TensorType)
    order = operand_def(TensorType)
    inputs = var_operand_def(TensorType)
    symbol: Symbol = parameter(SYMBOL)

    @classmethod
    def of(cls, operands: Sequence[SSAValue], body: Region, *, symbol: Symbol) -> Self:
        """Returns the recurrence over the operands in order, with the inputs last."""
        properties = {"symbol": cls.encoded("symbol", symbol)}
        rows = tensor_type(operands[0]).dims[0]
        return cls.create(
            operands=operands, result_types=_of_rows(rows, _read(body)), properties=properties, regions=[body]
        )

    def remade(self, operands: Sequence[SSAValue], **changes: Any) -> Self:
        return self.of(operands, self.region.clone(), symbol=self.symbol)

    @property
    def rows(self) -> Dim:
        return tensor_type(self.parents).dims[0]

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.symbol,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.symbol,)

    def check(self) -> None:
        types = [tensor_type(each) for each in (self.parents, self.records, self.order)]
        fits = types[0].rank == 1 and all(each.dims == types[0].dims for each in types)
        require(fits, f"needs parents, records and an order [N], not {_shown(types)}")
        require(all(each.dtype in WHOLE for each in types), "needs rows described by i64 or i32")
        self.check_body()


def _read(body: Region) -> list[SSAValue]:
    last = body.block.last_op
    assert isinstance(last, Yield)
    return list(last.inputs)[1:]


def _of_rows(rows: Dim, values: Sequence[SSAValue]) -> list[TensorType]:
    """The types of values that there is one of for each row."""
    return [kind.with_dims((rows, *kind.dims)) for kind in map(tensor_type, values)]


def _shown(types: Sequence[object]) -> str:
    return ", ".join(map(str, types))
