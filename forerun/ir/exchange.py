"""What two parts of a disaggregated step tell each other: payloads, each with a name and a type.

A payload's dimension names mean the same in both parts; a part that has no argument with a dimension takes its size
from what it receives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from xdsl.irdl import operand_def, traits_def
from xdsl.traits import MemoryReadEffect, MemoryWriteEffect

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.ir.families import Exchange
from forerun.ir.operation import Environment, Types, ValueOperation, operation, require
from forerun.ir.properties import DIMENSIONS, INTEGER, TEXT, optional, parameter
from forerun.ir.types import TensorType


@operation
class Send(Exchange):
    """Gives the other part a value under a name."""

    name = "spec.send"
    traits = traits_def(MemoryWriteEffect())

    value = operand_def(TensorType)

    @classmethod
    def infer(cls, value: TensorType, *, payload: str, branch: int | None = None, peers: bool = False) -> Types:
        require(bool(payload), "needs a name for its payload")
        return []

    def evaluate(self, environment: Environment, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        environment.channel.send(self.payload, value, self.peers)
        return ()


@operation
class Receive(Exchange, ValueOperation):
    """The value that the other part gives under a name; `offset` is where it lies in the arena, in bytes."""

    name = "spec.receive"
    traits = traits_def(MemoryReadEffect(), MemoryWriteEffect())  # a message is taken once

    shape: tuple[Dim, ...] = parameter(DIMENSIONS)
    dtype: str = parameter(TEXT)
    offset: int | None = optional(INTEGER)

    @classmethod
    def infer(
        cls,
        *,
        payload: str,
        shape: Sequence[Dim],
        dtype: str,
        branch: int | None = None,
        peers: bool = False,
        offset: int | None = None,
    ) -> Types:
        require(bool(payload), "needs the name of a payload")
        require(offset is None or offset >= 0, f"needs an offset of at least 0, not {offset}")
        return [TensorType.of(shape, dtype)]

    def evaluate(self, environment: Environment) -> torch.Tensor:
        value = environment.channel.receive(self.payload, self.peers)
        dimensions.bind(self.shape, value.shape, environment.bindings)
        return value
