"""Where everything lies: weights in one packed buffer, values in one arena, the cache as one record a block."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.tvm.formats import WeightFormat
from forerun.codegen.tvm.key_values import padded, words_of
from forerun.codegen.tvm.phases import Plan, Surroundings
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
    """Where each weight lies in one buffer, and the buffer's size, in numbers."""
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
            f"the tvm target keeps integers as int32, and the weight {name} holds {int(outside[0])}; use smaller "
            "numbers, or the reference target."
        )
    return whole


@dataclass(frozen=True)
class CacheLayout:
    """One record of numbers a block: layer after layer, keys [Hkv, D, P], then values [Hkv, P, Dv]."""

    offsets: dict[str, int]
    record: int
    words: NDArray[np.int64]  # [P, w]: the places in a record of what is cached at a lane
    block: int


def cache_layout(known: Surroundings) -> CacheLayout:
    """The layout of all caches of a module."""
    offsets: dict[str, int] = {}
    places: list[torch.Tensor] = []
    total, block = 0, next(iter(known.blocks.values()), ALIGNMENT)
    lanes = torch.arange(block)[:, None, None]
    for name, cache in known.caches.items():
        heads, key_dim, value_dim = cache.heads, cache.key_dim, cache.value_dim
        offsets[name] = total
        keys = torch.arange(heads * key_dim).view(1, heads, key_dim) * block + lanes
        width = padded(value_dim)
        head, dim = torch.arange(heads)[None, :, None], torch.arange(value_dim)[None, None, :]
        values = heads * key_dim * block + (head * block + lanes) * width + dim
        places.extend(total + each.reshape(block, -1) for each in (keys, values))
        total += aligned(words_of(heads, key_dim, value_dim, block))
    # An odd number of cache lines a record: blocks of one layer fall into different cache sets.
    record = total + ALIGNMENT if (total // ALIGNMENT) % 2 == 0 else total
    words = torch.cat(places, 1) if places else torch.zeros((block, 0), dtype=torch.int64)
    return CacheLayout(offsets, record, words.numpy(), block)


@dataclass(frozen=True)
class ArenaLayout:
    """Offsets, in numbers, of the function's values and of each region's scratch."""

    values: dict[ir.SSAValue, int]
    scratch: list[dict[int, int]]  # by region, then slot
    size: int


def arena_layout(function: ir.Function, plans: Sequence[Plan], capacity: Mapping[str, int]) -> ArenaLayout:
    """The plan that the IR carries (plan-memory), and every region's scratch behind it, where regions take turns.

    A value that the IR has no place for, in a function that was not planned, gets memory of its own.
    """
    values: dict[ir.SSAValue, int] = {}
    for operation in function.body:
        offsets = operation.offsets if isinstance(operation, ir.Kernel) else ()
        values.update((value, offset // NUMBER) for value, offset in zip(operation.results, offsets, strict=False))
    end = (function.arena or 0) // NUMBER
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
