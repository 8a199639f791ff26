"""A compiled step as plain data: which kernels run, on what, in which grids. It needs neither the IR nor Triton."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.signature import Signature

LEAST_BLOCK = 32
"""The smallest tile of a head that may be chosen: more columns have no more tiles than that."""
SIZES = 64
"""Numbers in front of the inputs: N, M, whether a row draws, and room to the next aligned place."""
DRAWING = 2
"""The one that says whether any row of the step samples."""
WORDS = 6
"""int32 words of an output row's draw: seed, identifier and temperature (float64), the lower half of each first."""
STEP_SIZES = ("N", "M")
"""The dimensions whose sizes stand in front of a step's inputs."""


@dataclass(frozen=True)
class Config:
    """What may be tuned of a launch; no choice changes a bit."""

    block: int = 64  # BLOCK: outputs or lanes of a tile
    rows: int = 16  # ROWS of a tile
    warps: int = 4
    stages: int = 3

    def __str__(self) -> str:
        return f"block {self.block}, rows {self.rows}, warps {self.warps}, stages {self.stages}"


@dataclass(frozen=True)
class Operand:
    """What a pointer argument of a kernel points to.

    `kind` is input, value, weight, state, scratch or drawn; `key` the name of an input, a weight or a state, or the
    place in the arena, in numbers; `stream` the number of the residual stream's value that it is, if it is one.
    """

    kind: str
    key: str | int
    element: str
    stream: int | None = None


@dataclass(frozen=True)
class Grid:
    """The programs of a launch.

    kind     products, head: (row tiles, tiles of all segments); rows: (units, tiles of lanes); attention: (splits,
             groups, row tiles); combine: (rows, heads); recurrence: (1); chunks: (rows, tiles); choice: (rows)
    rows     the dims whose product is the rows, several for several items of one launch
    columns  lanes of each segment, or the sizes of the other axes
    tile     rows of an attention tile, and tiles of one row's heads
    together how many attention tiles may share a load
    """

    kind: str
    rows: tuple[tuple[Dim, ...], ...]
    columns: tuple[int, ...] = ()
    tile: tuple[int, int] = (1, 1)
    together: tuple[int, ...] = (1,)

    def count(self, sizes: Mapping[str, int]) -> int:
        """Rows, the most of any item."""
        return max(math.prod(dimensions.evaluate(dim, sizes) for dim in dims) for dims in self.rows)

    def shared(self, sizes: Mapping[str, int]) -> int:
        """How many attention tiles share a load."""
        tiles = -(-self.count(sizes) // self.tile[0]) * self.tile[1]
        return next((each for each in self.together if each >= tiles), self.together[-1])

    def programs(self, sizes: Mapping[str, int], config: Config, shared: int = 1) -> tuple[int, int, int]:
        rows = self.count(sizes)
        match self.kind:
            case "products" | "head":
                return -(-rows // config.rows), sum(-(-each // config.block) for each in self.columns), 1
            case "rows" | "chunks":
                return rows, -(-max(self.columns) // config.block), 1
            case "attention":
                own = -(-rows // self.tile[0]) * self.tile[1]
                return self.columns[0], self.columns[1], own if shared == 1 else own + -(-own // shared)
            case "recurrence":
                return 1, 1, 1
            case "combine":
                return rows, self.columns[0], 1
            case _:
                return rows, 1, 1


@dataclass(frozen=True)
class Launch:
    """One launch: a kernel's source by name, its arguments, its grid."""

    source: str
    operands: tuple[Operand, ...]
    grid: Grid
    config: Config
    weight_bytes: int


@dataclass(frozen=True)
class Value:
    """A value of the step in the arena."""

    name: str
    dims: tuple[Dim, ...]
    dtype: str
    place: int  # in numbers of 4 bytes
    stream: int | None = None

    def sizes(self, bindings: Mapping[str, int]) -> list[int]:
        return [dimensions.evaluate(dim, bindings) for dim in self.dims]


@dataclass(frozen=True)
class Kernel:
    """A kernel of the step: the launches of one region; `asked` give the results that a step leaves out, the logits."""

    name: str
    launches: tuple[Launch, ...]
    results: tuple[Value, ...]
    branch: int | None
    begins: bool  # whether the stream's first value is all that it gives
    weight_bytes: int
    asked: tuple[Launch, ...] = ()


@dataclass(frozen=True)
class StateShape:
    """Records of a state: [blocks, *lead, P, last] in `element` numbers, [requests, *shape] for a state per request."""

    per: str  # "position", "row" or "request"
    shape: tuple[int, ...]
    element: str

    @property
    def last(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def numbers(self) -> int:
        """The numbers of a record."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Source:
    """The text of a kernel. `together` names its functions: an attention has one for each number of tiles that share a
    load."""

    name: str
    text: str
    kind: str
    elements: tuple[str, ...]  # of the pointer arguments, in order
    shape: str  # in words
    together: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class Entry:
    """Another entry of the module: its arguments are where the inputs of a step lie, each at its place in numbers."""

    name: str
    signature: Signature
    places: Mapping[str, int]
    sizes: tuple[str, ...]  # names of dimensions, in front of the inputs in this order
    inputs: int  # numbers that the inputs take
    kernels: tuple[Kernel, ...]
    returned: tuple[Value, ...]


@dataclass(frozen=True)
class TritonStep:
    """A step and the module's other entries, but for their weights."""

    sources: Mapping[str, Source]
    kernels: tuple[Kernel, ...]
    returned: tuple[Value, ...]  # logits, and the candidates' ids and logits
    drawn: Value | None  # the drawn tokens [M]; None where none can be drawn
    weights: Mapping[str, str]  # name -> element type in memory
    states: Mapping[str, StateShape]
    signature: Signature
    entries: tuple[Entry, ...]  # beside the step
    arena: int  # numbers of 4 bytes
    stream: tuple[int, ...]  # the two places in which the residual stream's values take turns, or none
    branches: tuple[tuple[int, str], ...]
    width: int
    block: int
    tables: int  # width of the block tables
    max_rows: int
    max_outputs: int
    max_path: int
    max_length: int

    @property
    def vocabulary(self) -> int:
        return int(self.returned[0].dims[-1]) if self.returned and self.returned[0].dims else 0

    @property
    def candidates(self) -> int:
        return int(self.returned[1].dims[-1]) if len(self.returned) == 3 else 0

    @property
    def extra(self) -> tuple[str, ...]:
        """The inputs that a step takes only where its states ask for them."""
        names = [each.name for each in self.signature.arguments]
        return tuple(each for each in ("order", "requests") if each in names)

    @property
    def launches(self) -> int:
        return sum(len(each.launches) for each in self.kernels)


@dataclass(frozen=True)
class TritonProgram:
    """What code generation wrote down of a step, and the weights that it reads."""

    step: TritonStep
    weights: Callable[[str], torch.Tensor]  # each is read once
    sizes: Mapping[str, int]  # how many numbers each has


def function_name(shared: int) -> str:
    """The name of a kernel's function; an attention has one for each number of tiles that share a load."""
    return "kernel" if shared == 1 else f"kernel_{shared}"
