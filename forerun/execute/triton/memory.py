"""The memory layout on the device: weights, states, and the inputs of a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from forerun.codegen import program as plain
from forerun.codegen.program import Program
from forerun.codegen.triton.layout import ALIGNMENT, DRAWING, SIZES, WORDS
from forerun.errors import UnsupportedOperationError
from forerun.execute.runner import EntryState
from forerun.runtime.executable import Draw, Int32, Rows

TORCH = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i32": torch.int32}


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def load_weights(
    step: Program, weights: Callable[[str], torch.Tensor], device: torch.device
) -> dict[str, torch.Tensor]:
    """Returns the weights in the form that the kernels read; they are read and copied one at a time."""
    return {name: stored(step, name, weights(name)).to(device=device, copy=True) for name in step.weights}


def stored(step: Program, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Returns a weight in the form that the kernels read. Raises `UnsupportedOperationError` for large integers."""
    tensor, element = weight.detach(), step.weights[name].element
    if element == "i32":
        whole = tensor.to(torch.int32)
        if (outside := tensor[whole != tensor]).numel():
            raise UnsupportedOperationError(
                f"the cuda target stores integers as int32, but the weight {name} holds {int(outside[0])}; use "
                "smaller numbers, or the reference target."
            )
        tensor = whole
    return tensor.to(TORCH[element]).contiguous()


@dataclass(frozen=True)
class Places:
    """The places of the numbers of slots: slot s has its number w at first[w] + s // P * block[w] + s % P * lane[w]."""

    first: torch.Tensor
    block: torch.Tensor
    lane: torch.Tensor

    def of(self, slots: torch.Tensor, block: int) -> torch.Tensor:
        """Returns [n, w]."""
        return self.first + (slots // block)[:, None] * self.block + (slots % block)[:, None] * self.lane


@dataclass
class State(EntryState):
    """States per position, each [blocks, *lead, P, last], one after another; states per row and per request apart."""

    numbers: torch.Tensor  # of the states per position
    records: torch.Tensor  # of the states per row, float32
    requests: torch.Tensor  # float32
    blocks: int
    parts: Mapping[str, torch.Tensor]  # the memory that begins with each state
    places: Places  # in `numbers`
    graphs: dict[Any, Any] = field(default_factory=dict[Any, Any])

    @property
    def bytes(self) -> int:
        return self.numbers.nbytes + self.records.nbytes + self.requests.nbytes


def new_state(step: Program, blocks: int, device: torch.device, requests: int = 1, rows: int = 1) -> State:
    """Returns zeroed room for `blocks * P` slots, `requests` requests and records of `rows` rows."""
    counts = {"position": blocks * step.block, "row": rows + 1, "request": requests}
    kept: dict[str, torch.Tensor] = {}
    parts: dict[str, torch.Tensor] = {}
    columns: list[np.ndarray[Any, Any]] = []
    for per, slots in counts.items():
        own = {name: each for name, each in step.states.items() if each.per == per}
        total = sum(each.numbers for each in own.values()) * slots
        element = next((each.element for each in own.values()), "f32")
        kept[per] = torch.zeros(max(1, total), dtype=TORCH[element], device=device)
        start = 0
        for name, shape in own.items():
            parts[name] = kept[per][start:]
            if per == "position":
                columns.append(_columns(shape, start, step.block))
            start += shape.numbers * slots
    return State(kept["position"], kept["row"], kept["request"], blocks, parts, _places(columns, device))


def _columns(shape: plain.State, start: int, block: int) -> np.ndarray[Any, Any]:
    """Returns [3, numbers]: the place of each number of a state's record, and its strides along blocks and lanes."""
    lead, number = np.meshgrid(np.arange(shape.numbers // shape.last), np.arange(shape.last), indexing="ij")
    first = start + lead * block * shape.last + number
    strides = np.full_like(first, block * shape.numbers), np.full_like(first, shape.last)
    return np.stack([first, *strides]).reshape(3, -1)


def _places(columns: Sequence[np.ndarray[Any, Any]], device: torch.device) -> Places:
    joined = np.concatenate(columns, 1) if columns else np.zeros((3, 0), np.int64)
    return Places(*(torch.from_numpy(np.ascontiguousarray(each)).to(device) for each in joined.astype(np.int64)))


@dataclass(frozen=True)
class InputLayout:
    """The layout of a step's inputs, in numbers; the block tables, whose size varies, come last."""

    rows: int
    outputs: int
    path: int
    tables: int
    extra: tuple[str, ...] = ()  # those of `codegen.program.EXTRA` that the step takes

    @property
    def places(self) -> dict[str, int]:
        found: dict[str, int] = {}
        at = SIZES
        for name in ("tokens", "positions", "sequences", "slots", "bases", *self.extra):
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
        """Writes a step's inputs and each sequence's sampling parameters; returns how many numbers are in use."""
        places = self.places
        drawing = any(each is not None for each in draws)
        staging[:2] = len(rows.tokens), len(rows.outputs)
        staging[DRAWING] = drawing
        if drawing:
            words = draw_words(draws)[rows.sequences[rows.outputs]]
            staging[places["draws"] : places["draws"] + words.size] = words.reshape(-1)
        for name in ("tokens", "positions", "sequences", "slots", "bases", "outputs", *self.extra):
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
    """Returns [S, 6] how each sequence samples; all zeros (temperature 0) if it takes the likeliest token."""
    words = np.zeros((len(draws), WORDS), np.int32)
    for own, draw in zip(words, draws, strict=True):
        if draw is not None:
            own[:4] = np.array([draw.seed, draw.identifier], "<u8").view("<i4")
            own[4:] = np.array([draw.temperature], "<f8").view("<i4")
    return words


def inputs_size(step: Program) -> int:
    """Returns how many numbers the inputs of any step or other entry take."""
    layout = InputLayout(step.max_rows, step.max_rows, step.max_path, step.tables, step.extra)
    return max(
        [layout.places["block_tables"] + step.max_rows * step.tables, *(each.inputs for each in step.entries[1:])]
    )


def state_bytes(step: Program, blocks: int) -> int:
    kept = (each for each in step.states.values() if each.per == "position")
    return sum(each.numbers * TORCH[each.element].itemsize for each in kept) * blocks * step.block


def buffer_bytes(step: Program) -> int:
    """Returns the bytes of the arena and the inputs."""
    return 4 * (step.arena + inputs_size(step))
