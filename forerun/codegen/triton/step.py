"""A compiled step as plain data: which kernels run, on what, in which grids. It needs neither the IR nor Triton."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forerun import ir
from forerun.errors import InvalidOptionError, TooLongError
from forerun.ir import dims as dimensions
from forerun.signature import ENCODE, Argument, Signature


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

    `kind` is input, given, value, weight, state, scratch or drawn; `key` the name of an input, a weight or a state, or
    the place in the arena, in numbers; `stream` the number of the residual stream's value that it is, if it is one.
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
    rows: tuple[tuple[ir.Dim, ...], ...]
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
            case "combine":
                return rows, self.columns[0], 1
            case "recurrence":
                return 1, 1, 1
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
    dims: tuple[ir.Dim, ...]
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
    """Records of a state: per position and per row [blocks, *lead, P, last], per request [requests, *lead, last]."""

    per: str
    lead: tuple[int, ...]
    last: int
    element: str

    @property
    def lies_at_slots(self) -> bool:
        return self.per != "request"

    @property
    def numbers(self) -> int:
        """Of one record."""
        return math.prod(self.lead) * self.last


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
    """An entry beside the step; it shares the step's sources, weights and arena."""

    signature: Signature
    kernels: tuple[Kernel, ...]
    returned: tuple[Value, ...]
    sizes: Mapping[str, int]  # of each named dimension the largest; actual ones stand in this order before the inputs

    def largest(self, argument: Argument) -> list[int]:
        """The largest sizes of an argument."""
        return [dimensions.evaluate(dim, self.sizes) for dim in argument.dims]

    def bound(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The sizes of its dimensions where its arguments have these; `TooLongError` for more than was compiled."""
        found: dict[str, int] = {}
        name = self.signature.name
        for argument, shape in zip(self.signature.arguments, shapes, strict=True):
            try:
                dimensions.bind(argument.dims, shape, found)
            except ValueError as error:
                raise InvalidOptionError(
                    f"@{name} takes {argument.name} {list(argument.dims)}: {error}; give that shape"
                ) from error
        for dim, most in self.sizes.items():
            if found[dim] > most:
                raise TooLongError(
                    f"@{name} takes at most {most} of {dim}, and {found[dim]} are given: shorten the input, or compile "
                    "with a larger max_length"
                )
        return found


@dataclass(frozen=True)
class TritonStep:
    """A step, but for its weights."""

    signature: Signature
    entries: Mapping[str, Entry]  # the others
    sources: Mapping[str, Source]
    kernels: tuple[Kernel, ...]
    returned: tuple[Value, ...]  # logits, and the candidates' ids and logits
    drawn: Value | None  # the drawn tokens [M]; None where none can be drawn
    weights: Mapping[str, str]  # name -> element type in memory
    states: Mapping[str, StateShape]
    number: str  # element type of what states keep per position
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
    def takes(self) -> frozenset[str]:
        """The names of its arguments."""
        return frozenset(each.name for each in self.signature.arguments)

    @property
    def loops(self) -> bool:
        """Whether the loop on the device can give all that it takes."""
        return len(self.returned) == 3 and not self.takes & {"order", "requests"} and ENCODE not in self.entries

    @property
    def launches(self) -> int:
        return sum(len(each.launches) for each in self.kernels)
