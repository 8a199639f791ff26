"""Where everything lies on the device: weights, states, and the inputs of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forerun.codegen.triton.step import Entry, StateShape, TritonStep
from forerun.errors import UnsupportedOperationError
from forerun.runtime.executable import Draw, Int32, Rows
from forerun.signature import STEP_ARGUMENTS

TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i32": torch.int32}
ALIGNMENT = 64
"""Numbers that every place is a multiple of."""
SIZES = 64
"""Numbers in front of the inputs: N, M, whether a row draws, S, and room to the next aligned place."""
SIZE_PLACES: Mapping[str, int] = {"N": 0, "M": 1, "S": 3}
"""Which of them are sizes of a step."""
DRAWING = 2
"""Which of them says whether any row of the step draws."""
WORDS = 6
"""int32 words of an output row's draw: seed, identifier and temperature (float64), the lower half of each first."""


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


@dataclass(frozen=True)
class Pool:
    """What lies at slots, of one element type: states of shape [*lead, last], one after another, as
    [blocks, *lead, P, last]."""

    numbers: torch.Tensor
    places: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """[w] each: slot s has its number w at places[0] + s // P * places[1] + s % P * places[2]."""


@dataclass
class State:
    """What entries leave behind: pools of what lies at slots, by element type, and the records of requests."""

    pools: Mapping[str, Pool]
    requests: Mapping[str, torch.Tensor]  # state -> [requests, *shape]
    parts: Mapping[str, torch.Tensor]  # state -> what begins with its records
    number: str  # element type of what is kept per position
    blocks: int
    graphs: dict[Any, Any] = field(default_factory=dict[Any, Any])

    @property
    def numbers(self) -> torch.Tensor:
        """What is kept per position; in float32, the records per row as well."""
        return self.pools[self.number].numbers

    @property
    def buffers(self) -> list[torch.Tensor]:
        return [*(each.numbers for each in self.pools.values()), *self.requests.values()]

    @property
    def bytes(self) -> int:
        return sum(each.nbytes for each in self.buffers)


def new_state(step: TritonStep, blocks: int, device: torch.device, requests: int = 1) -> State:
    """Records at `blocks * P` slots and of so many requests, all zero."""
    at_slots = {name: each for name, each in step.states.items() if each.lies_at_slots}
    pools: dict[str, Pool] = {}
    parts: dict[str, torch.Tensor] = {}
    for element in dict.fromkeys([step.number, *(each.element for each in at_slots.values())]):
        shapes = {name: each for name, each in at_slots.items() if each.element == element}
        pools[element], found = _pool(shapes, element, step.block, blocks, device)
        parts |= found
    constant = {
        name: torch.zeros(requests * each.numbers, dtype=TORCH[each.element], device=device)
        for name, each in step.states.items()
        if not each.lies_at_slots
    }
    return State(pools, constant, parts | constant, step.number, blocks)


def _pool(
    shapes: Mapping[str, StateShape], element: str, size: int, blocks: int, device: torch.device
) -> tuple[Pool, dict[str, torch.Tensor]]:
    """States of one element type, in blocks of `size` slots, and what begins with the records of each."""
    total = sum(shape.numbers for shape in shapes.values()) * size * blocks
    numbers = torch.zeros(max(1, total), dtype=TORCH[element], device=device)
    parts: dict[str, torch.Tensor] = {}
    columns: list[np.ndarray[Any, Any]] = []
    start = 0
    for name, shape in shapes.items():
        parts[name] = numbers[start:]
        lead, number = np.meshgrid(np.arange(shape.numbers // shape.last), np.arange(shape.last), indexing="ij")
        first = start + lead * size * shape.last + number
        strides = np.full_like(first, shape.numbers * size), np.full_like(first, shape.last)
        columns.append(np.stack([first, *strides]).reshape(3, -1))
        start += blocks * size * shape.numbers
    joined = np.concatenate(columns, 1) if columns else np.zeros((3, 0), np.int64)
    first, block, lane = (torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in joined.astype(np.int64))
    return Pool(numbers, (first, block, lane)), parts


@dataclass(frozen=True)
class InputLayout:
    """Where the inputs of a step of so many rows and outputs lie, in numbers; the block tables, which vary, last."""

    rows: int
    outputs: int
    path: int
    tables: int
    order: bool = False  # whether a step takes it
    requests: int = 0  # the most that a step takes

    @property
    def sizes(self) -> dict[str, int]:
        return {"N": self.rows, "M": self.outputs}

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
        if self.order:
            found["order"] = at
            at += aligned(self.rows)
        if self.requests:
            found["requests"] = at
            at += aligned(self.requests)
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
        sequences, blocks = rows.block_tables.shape
        staging[SIZE_PLACES["S"]] = sequences
        for name in places.keys() - {"draws", "paths", "block_tables"}:
            given: Int32 = getattr(rows, name)
            staging[places[name] : places[name] + len(given)] = given
        count, width = rows.paths.shape
        paths = staging[places["paths"] : places["paths"] + self.rows * self.path].reshape(self.rows, self.path)
        paths[:count, :width] = rows.paths
        end = places["block_tables"] + sequences * self.tables
        staging[places["block_tables"] : end].reshape(sequences, self.tables)[:, :blocks] = rows.block_tables
        return end


@dataclass(frozen=True)
class EntryLayout:
    """Where the inputs of an entry lie, in numbers: the sizes of its dimensions, then its arguments.

    Each has room for the largest sizes. Paths and block tables, where it takes those of a step, are as wide as the
    largest.
    """

    entry: Entry
    sizes: Mapping[str, int]

    @property
    def places(self) -> dict[str, int]:
        found: dict[str, int] = {}
        at = SIZES
        for each in self.entry.signature.arguments:
            found[each.name] = at
            at += aligned(prod(self.entry.largest(each)))
        return found

    @property
    def numbers(self) -> int:
        return SIZES + sum(aligned(prod(self.entry.largest(each))) for each in self.entry.signature.arguments)

    def fill(self, staging: Int32, given: Sequence[NDArray[Any]]) -> int:
        """Write an entry's inputs, in the order of its arguments; gives how many numbers are in use."""
        staging[: len(self.sizes)] = [self.sizes[name] for name in self.entry.sizes]
        for argument, place, value in zip(self.entry.signature.arguments, self.places.values(), given, strict=True):
            words = value.view(np.int32)
            if argument == STEP_ARGUMENTS.get(argument.name) and words.ndim == 2:
                width = self.entry.largest(argument)[1]
                room = staging[place : place + len(words) * width].reshape(len(words), width)
                room[:, : words.shape[1]] = words
            else:
                staging[place : place + words.size] = words.reshape(-1)
        return self.numbers


def draw_words(draws: Sequence[Draw | None]) -> Int32:
    """[S, 6]: how each sequence draws; zeros, a temperature of 0 with them, where it takes the likeliest token."""
    words = np.zeros((len(draws), WORDS), np.int32)
    for own, draw in zip(words, draws, strict=True):
        if draw is not None:
            own[:4] = np.array([draw.seed, draw.identifier], "<u8").view("<i4")
            own[4:] = np.array([draw.temperature], "<f8").view("<i4")
    return words


def input_layout(step: TritonStep, rows: int, outputs: int) -> InputLayout:
    """Where the inputs of a step of so many rows and outputs lie."""
    requests = step.max_rows if "requests" in step.takes else 0
    return InputLayout(rows, outputs, step.max_path, step.tables, "order" in step.takes, requests)


def inputs_size(step: TritonStep) -> int:
    """Numbers that the inputs of any step, and of any other entry, take."""
    layout = input_layout(step, step.max_rows, step.max_rows)
    others = (EntryLayout(each, each.sizes).numbers for each in step.entries.values())
    return max(layout.places["block_tables"] + step.max_rows * step.tables, *others, 0)


def state_bytes(step: TritonStep, blocks: int, requests: int = 1) -> int:
    return sum(
        each.numbers * TORCH[each.element].itemsize * (blocks * step.block if each.lies_at_slots else requests)
        for each in step.states.values()
    )


def buffer_bytes(step: TritonStep) -> int:
    """The arena and the inputs."""
    return 4 * (step.arena + inputs_size(step))
