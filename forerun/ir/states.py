"""Reading and writing states: the data that a step leaves for later ones (`spec.state`).

A state per position is read by attention (`decoder.TreeAttention`), a state per row by `spec.recurrence`, a state per
request by `spec.state_read`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from xdsl.ir import Region, SSAValue
from xdsl.irdl import operand_def, region_def, traits_def, var_operand_def
from xdsl.traits import MemoryReadEffect, MemoryWriteEffect

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.ir.families import StepOperation
from forerun.ir.operation import Environment, SpecOperation, Types, ValueOperation, operation, require, tensor_type
from forerun.ir.properties import DIMENSIONS, INTEGER, SYMBOL, TEXT, Symbol, parameter
from forerun.ir.structure import Yield, operations
from forerun.ir.types import TensorType

WHOLE = ("i64", "i32")


@operation
class StateWrite(StepOperation):
    """Write a record [N, *shape] to each of the slots [N] of a state."""

    name = "spec.state_write"
    traits = traits_def(MemoryWriteEffect())

    value = operand_def(TensorType)
    slots = operand_def(TensorType)
    symbol: Symbol = parameter(SYMBOL)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.symbol,)

    @classmethod
    def infer(cls, value: TensorType, slots: TensorType, *, symbol: Symbol) -> Types:
        require(
            slots.rank == 1 and slots.dims == value.dims[:1], f"has {value}, not one record for each slot of {slots}"
        )
        require(slots.dtype in WHOLE, "needs slots of i64 or i32")
        return []

    def evaluate(self, environment: Environment, value: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, ...]:
        records = environment.states[self.symbol]
        records[slots.long()] = value.to(records.dtype)
        return ()


@operation
class StateRead(StepOperation, ValueOperation):
    """The records [N, *shape] at the slots [N] of a state per request."""

    name = "spec.state_read"
    traits = traits_def(MemoryReadEffect())

    slots = operand_def(TensorType)
    symbol: Symbol = parameter(SYMBOL)
    shape: tuple[Dim, ...] = parameter(DIMENSIONS)
    dtype: str = parameter(TEXT)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.symbol,)

    @classmethod
    def infer(cls, slots: TensorType, *, symbol: Symbol, shape: Sequence[Dim], dtype: str) -> Types:
        require(slots.rank == 1 and slots.dtype in WHOLE, f"needs slots [N] of i64 or i32, not {slots}")
        return [TensorType.of((*slots.dims, *shape), dtype)]

    def evaluate(self, environment: Environment, slots: torch.Tensor) -> torch.Tensor:
        return environment.states[self.symbol][slots.long()]


@operation
class Recurrence(StepOperation, ValueOperation):
    """The records of a state per row, each computed from its parent's by the body: [N, *shape].

    positions [N], sequences [N], bases [N], paths [N, D], block_tables [S, B], slots [N], and `order` [N], the rows
    with parents before their children; `block` is P. A row's parent is the position before its own in its history
    (`runtime.executable` says where it lies); the record before position 0 is zero. The body takes the parent's
    record and the other inputs (inputs of rows [N, ...] at the row, others whole), and yields the row's record, which
    is written to the row's slot.
    """

    name = "spec.recurrence"
    traits = traits_def(MemoryReadEffect(), MemoryWriteEffect())

    positions = operand_def(TensorType)
    sequences = operand_def(TensorType)
    bases = operand_def(TensorType)
    paths = operand_def(TensorType)
    block_tables = operand_def(TensorType)
    slots = operand_def(TensorType)
    order = operand_def(TensorType)
    inputs = var_operand_def(TensorType)
    region = region_def("single_block")
    symbol: Symbol = parameter(SYMBOL)
    block: int = parameter(INTEGER)

    @classmethod
    def of(cls, operands: Sequence[SSAValue], body: Region, *, symbol: Symbol, block: int) -> Self:
        """Returns the recurrence over the operands in order, with the inputs last."""
        last = body.block.last_op
        assert isinstance(last, Yield)
        record = tensor_type(last.inputs[0])
        properties = {"symbol": cls.encoded("symbol", symbol), "block": cls.encoded("block", block)}
        result = record.with_dims((*tensor_type(operands[0]).dims, *record.dims))
        return cls.create(operands=operands, result_types=[result], properties=properties, regions=[body])

    def remade(self, operands: Sequence[SSAValue], **changes: Any) -> Self:
        return self.of(operands, self.region.clone(), symbol=self.symbol, block=self.block)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.symbol,)

    @property
    def writes(self) -> tuple[str, ...]:
        return (self.symbol,)

    @property
    def body(self) -> list[SpecOperation]:
        """Its operations, without the terminator."""
        return [each for each in operations(self.region.block) if not each.ends_body]

    @property
    def before(self) -> SSAValue:
        """The parent's record, in the body."""
        return self.region.block.args[0]

    @property
    def after(self) -> SSAValue:
        """The row's record, in the body."""
        last = self.region.block.last_op
        assert isinstance(last, Yield)
        return last.inputs[0]

    def of_rows(self) -> dict[SSAValue, tuple[SSAValue, bool]]:
        """The body's inputs, each with its operand, and whether the operand has N rows."""
        rows = tensor_type(self.positions).dims
        arguments = self.region.block.args[1:]
        return {
            inner: (outer, tensor_type(outer).dims[:1] == rows)
            for inner, outer in zip(arguments, self.inputs, strict=True)
        }

    def check(self) -> None:
        of_rows = (self.positions, self.sequences, self.bases, self.slots, self.order)
        types = [tensor_type(each) for each in (*of_rows, self.paths, self.block_tables)]
        rows = types[0].dims
        shown = [str(each) for each in types]
        require(
            len(rows) == 1 and all(each.dims == rows for each in types[:5]), f"needs row operands [N], not {shown[:5]}"
        )
        require(
            types[5].rank == 2 and types[5].dims[:1] == rows,
            f"has paths {types[5]}, which do not fit the rows {list(rows)}",
        )
        require(types[6].rank == 2, f"needs block tables [S, B], not {types[6]}")
        require(all(each.dtype in WHOLE for each in types), "needs rows described by i64 or i32")
        require(self.block >= 1, f"needs blocks of at least 1 position, not {self.block}")
        last = self.region.block.last_op
        require(isinstance(last, Yield) and len(last.operands) == 1, "does not end in a spec.yield of one record")
        record = tensor_type(self.after)
        expected = [record]
        for each in map(tensor_type, self.inputs):
            expected.append(each.with_dims(each.dims[1:]) if each.dims[:1] == rows else each)
        actual = [each.type for each in self.region.block.args]
        fits = actual == expected
        require(fits, f"has a body with arguments ({_shown(actual)}), not its record and inputs ({_shown(expected)})")
        held = [dim for each in expected for dim in each.dims if dimensions.symbol(dim)]
        require(not held, f"has a body over the named dimension {held[0] if held else ''}; give it fixed sizes")
        given, result = record.with_dims((*rows, *record.dims)), self.result.type
        require(result == given, f"gives {given}, not {result}")


def _shown(types: Sequence[object]) -> str:
    return ", ".join(map(str, types))


def parent_slots(
    positions: torch.Tensor,
    sequences: torch.Tensor,
    bases: torch.Tensor,
    paths: torch.Tensor,
    tables: torch.Tensor,
    block: int,
) -> torch.Tensor:
    """[N]: where each row's parent lies, the position before its own in its history; -1 for position 0."""
    before = (positions - 1).long()
    last = before.clamp(min=0)
    committed = tables[sequences.long(), (last // block).clamp(max=tables.shape[1] - 1)].long() * block + last % block
    if paths.shape[1] == 0:
        return torch.where(before < 0, -1, committed)
    step = (last - bases.long()).clamp(min=0, max=paths.shape[1] - 1)
    own = paths.gather(1, step[:, None].to(torch.int64))[:, 0].long()
    return torch.where(before < 0, -1, torch.where(last < bases.long(), committed, own))
