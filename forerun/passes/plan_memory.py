"""plan_memory: places every buffer of a step in one arena, by lifetime.

The results of a kernel, and what is received, live from there to their last reader. Buffers are placed largest first,
each at the lowest offset that is free for its whole lifetime. Sizes count `max_rows` rows (N) and `max_outputs` rows of
logits (M).

The values of the residual stream alternate between two buffers of their own: wherever a branch is left out, the next
one finds the value it adds to in one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from forerun.ir import (
    Context,
    Exchange,
    Kernel,
    ModuleOp,
    Operation,
    Receive,
    SSAValue,
    tensor_type,
    torch_dtype,
)
from forerun.passes.base import Needs, Pass, function_named, option, pass_context

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""


WORD = 4
"""Bytes that a number takes at least: targets keep truth values and small integers as 32 bits."""


@dataclass(frozen=True)
class Buffer:
    """`size` bytes, alive from kernel `start` through kernel `stop`."""

    value: SSAValue
    size: int
    start: int
    stop: int


@dataclass(frozen=True)
class PlanMemory(Pass):
    """Kernels get `offsets`, one per result, in bytes; `@step` gets `arena` (bytes) and the sizes planned for."""

    name: ClassVar[str] = "plan-memory"
    needs: ClassVar[Needs | None] = Needs("step")

    max_rows: int = option(256, least=1, most=2**20)
    max_outputs: int = option(64, least=1, most=2**20)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        step = function_named(op, "step")
        kernels = [each for each in step.body if isinstance(each, Kernel | Exchange)]
        order: dict[Operation, int] = {each: index for index, each in enumerate(kernels)}
        stream = {
            each.results[0]: each.stream for each in kernels if isinstance(each, Kernel) and each.stream is not None
        }
        turns = {index % 2: value for value, index in reversed(stream.items())}  # one for the others of its turn
        buffers = [
            Buffer(value, self.bytes_of(value), 0, len(kernels))
            if value in stream
            else Buffer(value, self.bytes_of(value), index, max(index, _last_use(value, order, len(kernels))))
            for index, kernel in enumerate(kernels)
            for value in kernel.results
            if value not in stream or turns[stream[value] % 2] is value
        ]
        offsets = place(buffers)
        offsets |= {value: offsets[turns[index % 2]] for value, index in stream.items()}
        for kernel in kernels:
            if isinstance(kernel, Receive):
                kernel.offset = offsets[kernel.result]
            elif isinstance(kernel, Kernel) and kernel.results:
                kernel.offsets = tuple(offsets[each] for each in kernel.results)
        arena = max((offsets[each.value] + each.size for each in buffers), default=0)
        step.arena = arena
        step.max_rows = self.max_rows
        step.max_outputs = self.max_outputs
        total = sum(each.size for each in buffers)
        pass_context(ctx).note(f"plan-memory: {len(buffers)} buffers, {total} bytes, in an arena of {arena} bytes")

    def bytes_of(self, value: SSAValue) -> int:
        kind = tensor_type(value)
        count = prod(kind.sizes({"N": self.max_rows, "M": self.max_outputs}))
        size = count * max(WORD, torch_dtype(kind.dtype).itemsize)
        return -(-size // ALIGNMENT) * ALIGNMENT


def _last_use(value: SSAValue, order: Mapping[Operation, int], end: int) -> int:
    """The last kernel or message that reads a value, 0 if none does; returned values live to the end."""
    return max((order.get(use.operation, end) for use in value.uses), default=0)


def place(buffers: list[Buffer]) -> dict[SSAValue, int]:
    """Returns offsets at which no two buffers alive at the same time overlap."""
    placed: list[tuple[int, Buffer]] = []
    for buffer in sorted(buffers, key=lambda each: (-each.size, each.start)):
        together = sorted(
            (offset, other.size)
            for offset, other in placed
            if other.start <= buffer.stop and buffer.start <= other.stop
        )
        offset = 0
        for start, size in together:
            if offset + buffer.size <= start:
                break
            offset = max(offset, start + size)
        placed.append((offset, buffer))
    return {buffer.value: offset for offset, buffer in placed}
