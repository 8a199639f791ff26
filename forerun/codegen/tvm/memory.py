"""The memory layout: weights in one packed buffer, values in one arena, states as one record per block."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.tvm.expressions import kind_of
from forerun.codegen.tvm.formats import WeightFormat
from forerun.codegen.tvm.phases import Plan, Surroundings
from forerun.codegen.tvm.records import Form
from forerun.codegen.tvm.step import NUMBER, SPARE
from forerun.codegen.tvm.target import OUTPUTS
from forerun.errors import UnsupportedOperationError

ALIGNMENT = 16
"""float32 numbers that every offset is a multiple of: one cache line."""


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def packed_size(weight: ir.Weight, form: WeightFormat | None) -> int:
    """Numbers a weight takes: whole blocks of outputs where it has a format."""
    dims = [int(dim) for dim in weight.type.dims]
    if form is None:
        return aligned(math.prod(dims))
    outputs, features = dims
    return aligned(-(-outputs // OUTPUTS) * form.block_words(features))


def weight_offsets(
    names: Iterable[str], declared: Mapping[str, ir.Weight], formats: Mapping[str, WeightFormat]
) -> tuple[dict[str, int], int]:
    """Returns the offset of each weight in one buffer, and the buffer's size, in numbers."""
    offsets: dict[str, int] = {}
    total = 0
    for name in dict.fromkeys(names):
        offsets[name] = total
        total += packed_size(declared[name], formats.get(name))
    return offsets, total + SPARE


def pack(
    offsets: Mapping[str, int],
    size: int,
    declared: Mapping[str, ir.Weight],
    formats: Mapping[str, WeightFormat],
    weights: Callable[[str], torch.Tensor],
    blocks: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    """Copy the weights into one buffer, matrices of linears in their format; one tensor is read at a time.

    `blocks` has the quantized blocks, uint8 [out, in / 32, bytes], of weights whose storage keeps them.
    """
    buffer = torch.zeros(size)
    tables = buffer.view(torch.int32)
    for name, offset in offsets.items():
        if declared[name].storage in ir.BLOCK_STORAGES:
            formats[name].pack(buffer[offset:], blocks[name])
            continue
        tensor = weights(name).detach()
        count = tensor.numel()
        if not tensor.is_floating_point():
            tables[offset : offset + count] = _int32(name, tensor).reshape(-1)
        elif name in formats:
            formats[name].pack(buffer[offset:], tensor.float())
        else:
            buffer[offset : offset + count] = tensor.reshape(-1).float()
    return buffer


def _int32(name: str, tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.to(torch.int32)
    if (outside := tensor[whole != tensor]).numel():
        raise UnsupportedOperationError(
            f"the cpu target stores integers as int32, but the weight {name} holds {int(outside[0])}; use smaller "
            "numbers, or the reference target."
        )
    return whole


@dataclass(frozen=True)
class StateLayout:
    """The layout of states: one record for each block of slots, and one for each request."""

    offsets: dict[str, int]  # of each state in its region's record
    sizes: dict[str, int]  # of a region's record
    words: NDArray[np.int64]  # [P, w]: the places in a block's record of what is kept at a lane
    block: int


def state_layout(known: Surroundings) -> StateLayout:
    """The layout of all states of a module."""
    offsets: dict[str, int] = {}
    sizes = {"state": 0, "requests": 0}
    places: list[torch.Tensor] = []
    for name, form in known.states.items():
        offsets[name] = sizes[form.region]
        if form.region == "state":
            places.append(offsets[name] + _words(form))
        sizes[form.region] += aligned(form.words)
    # An odd number of cache lines a record: blocks of one layer fall into different cache sets.
    sizes["state"] += ALIGNMENT if (sizes["state"] // ALIGNMENT) % 2 == 0 else 0
    words = torch.cat(places, 1) if places else torch.zeros((known.block, 0), dtype=torch.int64)
    return StateLayout(offsets, sizes, words.numpy(), known.block)


def _words(form: Form) -> torch.Tensor:
    """[P, numbers]: where the numbers of a record lie, for each lane of a block."""
    lanes = torch.arange(form.block)[:, None, None]
    lead, last = torch.arange(math.prod(form.lead))[None, :, None], torch.arange(form.last)[None, None, :]
    if form.side_by_side:
        found = (lead * form.last + last) * form.block + lanes
    else:
        found = (lead * form.block + lanes) * form.width + last
    return found.reshape(form.block, -1)


@dataclass(frozen=True)
class ArenaLayout:
    """Offsets, in numbers, of the function's values and of each region's scratch."""

    values: dict[ir.SSAValue, int]
    scratch: list[dict[int, int]]  # by region, then slot
    size: int


def arena_layout(function: ir.Function, plans: Sequence[Plan], capacity: Mapping[str, int]) -> ArenaLayout:
    """The plan that the IR carries (plan-memory), and every region's scratch behind it, where regions take turns.

    A value that the IR has no place for, in a function that was not planned, gets memory of its own, and so does an
    argument that is a float: the inputs hold integers.
    """
    values: dict[ir.SSAValue, int] = {}
    for operation in function.body:
        offsets = operation.offsets if isinstance(operation, ir.Kernel) else ()
        values.update((value, offset // NUMBER) for value, offset in zip(operation.results, offsets, strict=False))
    end = (function.arena or 0) // NUMBER
    for argument in function.block.args:
        if kind_of(ir.tensor_type(argument).dtype) == "number":
            values[argument] = end
            end += _volume(ir.tensor_type(argument).dims, capacity)
    for plan in plans:
        for _, outer in plan.region.results:
            if outer not in values:
                values[outer] = end
                end += _volume(ir.tensor_type(outer).dims, capacity)
    scratch: list[dict[int, int]] = []
    size = end
    for plan in plans:
        own, top = dict[int, int](), end
        for number, slot in enumerate(plan.slots):
            if slot.kind == "scratch":
                own[number] = top
                top += _volume(slot.key[1], capacity)
        scratch.append(own)
        size = max(size, top)
    return ArenaLayout(values, scratch, size)


def _volume(dims: Sequence[ir.Dim], capacity: Mapping[str, int]) -> int:
    return aligned(math.prod(dimensions.evaluate(dim, capacity) for dim in dims))
