"""Reading and writing states: the data that a step leaves for later ones (`spec.state`).

A state per position is read by attention (`decoder.TreeAttention`) or by `spec.state_read` at `spec.ancestors`, a state
per row by `spec.tree_recurrence` (`recurrences`), a state per request by `spec.state_read`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from xdsl.irdl import operand_def, traits_def
from xdsl.traits import MemoryReadEffect, MemoryWriteEffect, Pure

from forerun.dims import Dim
from forerun.ir.families import StepOperation
from forerun.ir.operation import Environment, Types, ValueOperation, operation, require
from forerun.ir.properties import DIMENSIONS, INTEGER, SYMBOL, TEXT, Symbol, parameter
from forerun.ir.types import TensorType

WHOLE = ("i64", "i32")


def require_history(
    positions: TensorType, sequences: TensorType, bases: TensorType, paths: TensorType, block_tables: TensorType
) -> None:
    """The shape rule of what describes the histories of rows."""
    of_rows, rows = (positions, sequences, bases), positions.dims[:1]
    shown = ", ".join(map(str, of_rows))
    fits = positions.rank == 1 and all(each.dims == rows for each in of_rows)
    require(fits, f"needs positions, sequences and bases [N], not {shown}")
    require(paths.rank == 2 and paths.dims[:1] == rows, f"has paths {paths}, which do not fit the rows of {positions}")
    require(block_tables.rank == 2, f"needs block tables [S, B], not {block_tables}")
    require(all(each.dtype in WHOLE for each in (*of_rows, paths, block_tables)), "needs rows described by i64 or i32")


def history_slots(
    row: int,
    positions: torch.Tensor,
    sequences: torch.Tensor,
    bases: torch.Tensor,
    paths: torch.Tensor,
    block_tables: torch.Tensor,
    block: int,
) -> torch.Tensor:
    """The slots of a row's positions, the row's own last: in its sequence's blocks below its base, then on its path."""
    position, base = int(positions[row]), int(bases[row])
    history = torch.arange(position + 1)
    committed = block_tables[sequences[row], history // block].long() * block + history % block
    return torch.cat((committed[:base], paths[row, : max(0, position + 1 - base)].long()))


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
    """The records [N, ..., *shape] at the slots [N, ...] of a state per request or per position; zero at slot -1."""

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
        require(slots.rank >= 1 and slots.dtype in WHOLE, f"needs slots [N, ...] of i64 or i32, not {slots}")
        return [TensorType.of((*slots.dims, *shape), dtype)]

    def evaluate(self, environment: Environment, slots: torch.Tensor) -> torch.Tensor:
        found = environment.states[self.symbol][slots.long().clamp(min=0)]
        exists = (slots >= 0).reshape(*slots.shape, *(1 for _ in self.shape))
        return torch.where(exists, found, torch.zeros_like(found))


@operation
class Ancestors(StepOperation, ValueOperation):
    """The slots [N, count] of the positions before each row in its history, the oldest first; -1 before the first.

    positions [N], sequences [N], bases [N], paths [N, D], block_tables [S, B], as `runtime.executable` says; `block` P.
    """

    name = "spec.ancestors"
    traits = traits_def(Pure())

    positions = operand_def(TensorType)
    sequences = operand_def(TensorType)
    bases = operand_def(TensorType)
    paths = operand_def(TensorType)
    block_tables = operand_def(TensorType)
    count: int = parameter(INTEGER)
    block: int = parameter(INTEGER)

    @classmethod
    def infer(
        cls,
        positions: TensorType,
        sequences: TensorType,
        bases: TensorType,
        paths: TensorType,
        block_tables: TensorType,
        *,
        count: int,
        block: int,
    ) -> Types:
        require(count >= 1 and block >= 1, f"needs a count and blocks of at least 1, not {count} and {block}")
        require_history(positions, sequences, bases, paths, block_tables)
        return [positions.with_dims((*positions.dims, count))]

    def evaluate(
        self,
        environment: Environment,
        positions: torch.Tensor,
        sequences: torch.Tensor,
        bases: torch.Tensor,
        paths: torch.Tensor,
        block_tables: torch.Tensor,
    ) -> torch.Tensor:
        found = torch.full((len(positions), self.count), -1, dtype=positions.dtype)
        for row in range(len(positions)):
            slots = history_slots(row, positions, sequences, bases, paths, block_tables, self.block)[:-1]
            before = slots[-self.count :]
            found[row, self.count - len(before) :] = before
        return found
