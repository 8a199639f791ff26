"""Where everything lies on the device: weights, the cache, and the inputs of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from forerun.codegen.triton.step import DRAWING, SIZES, WORDS, CacheShape, TritonStep
from forerun.errors import UnsupportedOperationError
from forerun.runtime.executable import Draw, Int32, Rows

TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i32": torch.int32}
ALIGNMENT = 64
"""Numbers that every place is a multiple of."""


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def load_weights(
    step: TritonStep, weights: Callable[[str], torch.Tensor], device: torch.device
) -> dict[str, torch.Tensor]:
    """The weights that the kernels read, as they read them; one at a time is read and copied."""
    found: dict[str, torch.Tensor] = {}
    for name, element in step.weights.items():
        tensor = weights(name).detach()
        if element == "i32":
            whole = tensor.to(torch.int32)
            if (outside := tensor[whole != tensor]).numel():
                raise UnsupportedOperationError(
                    f"the cuda target keeps integers as int32, and the weight {name} holds {int(outside[0])}; use "
                    "smaller numbers, or the reference target."
                )
            tensor = whole
        found[name] = tensor.to(device=device, dtype=TORCH[element], copy=True).contiguous()
    return found


def record(shape: CacheShape, block: int) -> int:
    """Numbers of one block of one attention."""
    return shape.heads * block * (shape.key_dim + shape.value_dim)


@dataclass
class State:
    """The cache: for each attention, the keys [blocks, Hkv, P, D] and then the values [blocks, Hkv, P, Dv]."""

    numbers: torch.Tensor
    blocks: int
    parts: Mapping[tuple[str, str], torch.Tensor]  # (half, cache) -> what begins there
    places: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """[w] each: slot s has its number w at places[0] + s // P * places[1] + s % P * places[2]."""
    graphs: dict[Any, Any] = field(default_factory=dict[Any, Any])

    @property
    def bytes(self) -> int:
        return self.numbers.nbytes


def new_state(step: TritonStep, blocks: int, device: torch.device) -> State:
    """A cache of `blocks * P` slots, all zero."""
    total = sum(record(shape, step.block) for shape in step.caches.values()) * blocks
    numbers = torch.zeros(max(1, total), dtype=TORCH[step.cache_element], device=device)
    parts: dict[tuple[str, str], torch.Tensor] = {}
    columns: list[np.ndarray[Any, Any]] = []
    start = 0
    for name, shape in step.caches.items():
        for half, dim in (("keys", shape.key_dim), ("values", shape.value_dim)):
            parts[half, name] = numbers[start:]
            head, number = np.meshgrid(np.arange(shape.heads), np.arange(dim), indexing="ij")
            first = start + head * step.block * dim + number
            strides = np.full_like(first, shape.heads * step.block * dim), np.full_like(first, dim)
            columns.append(np.stack([first, *strides]).reshape(3, -1))
            start += blocks * shape.heads * step.block * dim
    joined = np.concatenate(columns, 1) if columns else np.zeros((3, 0), np.int64)
    first, block, lane = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in joined.astype(np.int64))
    return State(numbers, blocks, parts, (first, block, lane))


@dataclass(frozen=True)
class InputLayout:
    """Where the inputs of a step of so many rows and outputs lie, in numbers; the block tables, which vary, last."""

    rows: int
    outputs: int
    path: int
    tables: int

    @property
    def places(self) -> dict[str, int]:
        found: dict[str, int] = {}
        at = SIZES
        for name in ("tokens", "positions", "sequences", "slots", "bases"):
            found[name] = at
            at += aligned(self.rows)
        found["outputs"] = at
        at += aligned(self.outputs)
        found["draws"] = at
        at += aligned(WORDS * self.outputs)
        found["paths"] = at
        at += aligned(self.rows * self.path)
        found["block_tables"] = at
        return found

    def fill(self, staging: Int32, rows: Rows, draws: Sequence[Draw | None] = ()) -> int:
        """Write a step's inputs, and how each of its sequences draws; gives how many numbers are in use."""
        places = self.places
        drawing = any(each is not None for each in draws)
        staging[:2] = len(rows.tokens), len(rows.outputs)
        staging[DRAWING] = drawing
        if drawing:
            words = draw_words(draws)[rows.sequences[rows.outputs]]
            staging[places["draws"] : places["draws"] + words.size] = words.reshape(-1)
        for name in ("tokens", "positions", "sequences", "slots", "bases", "outputs"):
            given: Int32 = getattr(rows, name)
            staging[places[name] : places[name] + len(given)] = given
        count, width = rows.paths.shape
        paths = staging[places["paths"] : places["paths"] + self.rows * self.path].reshape(self.rows, self.path)
        paths[:count, :width] = rows.paths
        sequences, blocks = rows.block_tables.shape
        end = places["block_tables"] + sequences * self.tables
        staging[places["block_tables"] : end].reshape(sequences, self.tables)[:, :blocks] = rows.block_tables
        return end


def draw_words(draws: Sequence[Draw | None]) -> Int32:
    """[S, 6]: how each sequence draws; zeros, a temperature of 0 with them, where it takes the likeliest token."""
    words = np.zeros((len(draws), WORDS), np.int32)
    for own, draw in zip(words, draws, strict=True):
        if draw is not None:
            own[:4] = np.array([draw.seed, draw.identifier], "<u8").view("<i4")
            own[4:] = np.array([draw.temperature], "<f8").view("<i4")
    return words


def inputs_size(step: TritonStep) -> int:
    """Numbers that the inputs of any step take."""
    layout = InputLayout(step.max_rows, step.max_rows, step.max_path, step.tables)
    return layout.places["block_tables"] + step.max_rows * step.tables


def state_bytes(step: TritonStep, blocks: int) -> int:
    return sum(record(each, step.block) for each in step.caches.values()) * blocks * TORCH[step.cache_element].itemsize


def buffer_bytes(step: TritonStep) -> int:
    """The arena and the inputs."""
    return 4 * (step.arena + inputs_size(step))
