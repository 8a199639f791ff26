"""Reading and writing states: the data that a step leaves for later ones (`spec.state`).

A state per position is read by attention (`decoder.TreeAttention`), a state per row by `spec.tree_recurrence`
(`recurrences`), a state per request by `spec.state_read`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from xdsl.irdl import operand_def, traits_def
from xdsl.traits import MemoryReadEffect, MemoryWriteEffect

from forerun.dims import Dim
from forerun.ir.families import StepOperation
from forerun.ir.operation import Environment, Types, ValueOperation, operation, require
from forerun.ir.properties import DIMENSIONS, SYMBOL, TEXT, Symbol, parameter
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
