"""A compiled step as plain data: which kernels run, on which operands, and where everything lies.

It can be saved and read back, and needs neither the IR nor a code generator. Places and sizes are in 4-byte words.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.records import restored
from forerun.signature import Signature

NUMBER = 4
"""Bytes of a number."""

APART = 64
"""Where the third buffer of the stream begins and ends is a multiple of this."""

BYTES = {"f32": 4, "i32": 4, "bf16": 2, "f16": 2}
"""Bytes of an element in memory."""


@dataclass(frozen=True)
class Config:
    """What may be tuned in a launch on a GPU; no choice changes a bit of the results."""

    block: int = 64  # BLOCK: outputs or lanes of a tile
    rows: int = 16  # ROWS: rows of a tile
    warps: int = 4
    stages: int = 3

    def __str__(self) -> str:
        return f"block {self.block}, rows {self.rows}, warps {self.warps}, stages {self.stages}"


@dataclass(frozen=True)
class Operand:
    """The memory that an argument of a kernel points to.

    `kind` is input, value, weight, state, scratch or sampled; `key` the name of an input, a weight or a state, or the
    place in the arena; `stream` its number among the residual stream's values, if it is one.
    """

    kind: str
    key: str | int
    element: str
    stream: int | None = None


@dataclass(frozen=True)
class Grid:
    """The programs of a launch on a GPU.

    kind     products, head: (row tiles, tiles of all segments); rows: (units, tiles of lanes); attention: (splits,
             groups, row tiles); combine: (rows, heads); recurrence: (shares); chunks: (rows, tiles);
             choice: (rows); grouped: (row tiles); experts: (experts, tiles of all segments)
    rows     the dims whose product is the number of rows; several for several stores of one launch
    columns  lanes of each segment, or the sizes of the other axes
    tile     rows of an attention tile, and tiles of one row's heads
    together how many attention tiles may share a load
    experts  of products, how many there are
    """

    kind: str
    rows: tuple[tuple[Dim, ...], ...]
    columns: tuple[int, ...] = ()
    tile: tuple[int, int] = (1, 1)
    together: tuple[int, ...] = (1,)
    experts: int = 0

    def count(self, sizes: Mapping[str, int]) -> int:
        """The number of rows: the largest of any store."""
        return max(math.prod(dimensions.evaluate(dim, sizes) for dim in dims) for dims in self.rows)

    def shared(self, sizes: Mapping[str, int]) -> int:
        """The number of attention tiles that share a load."""
        tiles = -(-self.count(sizes) // self.tile[0]) * self.tile[1]
        return next((each for each in self.together if each >= tiles), self.together[-1])

    def programs(self, sizes: Mapping[str, int], config: Config, shared: int = 1) -> tuple[int, int, int]:
        rows = self.count(sizes)
        match self.kind:
            case "products" | "head":
                return -(-rows // config.rows), sum(-(-each // config.block) for each in self.columns), 1
            case "grouped":
                return -(-rows // config.rows), 1, 1
            case "experts":
                return self.experts, sum(-(-each // config.block) for each in self.columns), 1
            case "rows" | "chunks":
                return rows, -(-max(self.columns) // config.block), 1
            case "attention":
                own = -(-rows // self.tile[0]) * self.tile[1]
                return self.columns[0], self.columns[1], own if shared == 1 else own + -(-own // shared)
            case "recurrence":
                return self.columns[0], 1, 1
            case "combine":
                return rows, self.columns[0], 1
            case _:
                return rows, 1, 1


@dataclass(frozen=True)
class Launch:
    """One launch: a kernel's source by name, and its arguments; on a GPU its grid."""

    source: str
    operands: tuple[Operand, ...]
    matrices: tuple[str, ...] = ()  # the weights of its products: read once, whatever the rows
    grid: Grid | None = None
    config: Config | None = None


@dataclass(frozen=True)
class Value:
    """A value of an entry in the arena."""

    name: str
    dims: tuple[Dim, ...]
    dtype: str
    place: int
    stream: int | None = None

    def sizes(self, bindings: Mapping[str, int]) -> list[int]:
        return [dimensions.evaluate(dim, bindings) for dim in self.dims]


@dataclass(frozen=True)
class Message:
    """What a part of a step gives the other part, or takes from it."""

    payload: str
    value: Value
    received: bool
    peers: bool = False  # between ranks that share the part


@dataclass(frozen=True)
class Product:
    """A product of rows with matrices: for each row, `outputs` sums over `features`."""

    rows: tuple[Dim, ...]  # the dims whose product is the number of rows
    features: int
    outputs: int  # of all matrices
    arithmetic: str  # such as "float32"


@dataclass(frozen=True)
class Kernel:
    """A kernel of an entry: the launches of one region; those `on_demand` compute results that a step leaves out.

    Or, without launches, a message between kernels of a part.
    """

    name: str
    launches: tuple[Launch, ...]
    results: tuple[Value, ...]
    moved: tuple[tuple[Dim, ...], ...]  # the shapes of its inputs and results, each once
    history: int  # bytes of states that its attention reads for each position of a history
    branch: int | None  # the residual branch that it belongs to
    begins: bool  # whether the stream's first value is its only result
    on_demand: tuple[Launch, ...] = ()
    places: bool = False  # whether its results say where rows lie, and nothing of the text
    message: Message | None = None
    adds: bool | None = None
    """Whether it reads the residual stream only as an addend of its branch's sum (True), or only as the branch's input
    (False); None if it does neither or both."""
    products: tuple[Product, ...] = ()
    attended: int = 0  # multiplications of its attention for each row and each position that the row sees

    @property
    def mixes(self) -> bool:
        """Whether its reads of the stream cannot be told apart."""
        read = [operand.stream for launch in (*self.launches, *self.on_demand) for operand in launch.operands]
        read += [] if self.message is None else [self.message.value.stream]
        return self.adds is None and self.branch is not None and self.branch in read

    @property
    def traced(self) -> tuple[Value, ...]:
        """The results that a trace compares: none that say where rows lie."""
        return () if self.places else self.results

    @property
    def matrices(self) -> tuple[str, ...]:
        """The weights of its products, each once."""
        return tuple(dict.fromkeys(name for launch in self.launches for name in launch.matrices))


@dataclass(frozen=True)
class Source:
    """The code of a kernel: its text, empty if the back end stores code elsewhere, and its loop nest in words."""

    name: str
    kind: str
    text: str
    nest: str
    elements: tuple[str, ...]  # of its pointer arguments, in order
    shape: str = ""  # in words
    together: tuple[int, ...] = (1,)  # its functions: an attention has one for each number of tiles that share a load


@dataclass(frozen=True)
class Entry:
    """A function of the module that can be run.

    places   where each argument lies: among the inputs, or, for a float of the embedded back end, in the arena
    sizes    the names of the dimensions whose sizes are passed to its kernels, in this order
    inputs   total size of the inputs, in numbers
    """

    name: str
    signature: Signature
    places: Mapping[str, int]
    sizes: tuple[str, ...]
    inputs: int
    kernels: tuple[Kernel, ...]
    returned: tuple[Value, ...]


@dataclass(frozen=True)
class DraftPart:
    """What of a step's residual branches its `@draft` evaluates: those before `leave`, less the skipped ones."""

    leave: int | None
    skipped: tuple[int, ...]


@dataclass(frozen=True)
class Weight:
    """A weight in memory; `read` of its bytes are what a step of one row reads, of experts those of the chosen."""

    shape: tuple[int, ...]
    element: str
    bytes: int
    read: int | None = None  # None for all


@dataclass(frozen=True)
class State:
    """The records of a state: `dims` is the shape of those of one block, or of one request."""

    per: str  # "position", "row" or "request"
    shape: tuple[int, ...]
    dims: tuple[int, ...]
    element: str
    side_by_side: bool = False  # a block's slots are innermost: [*lead, last, P] instead of [*lead, P, last]

    @property
    def last(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def numbers(self) -> int:
        """The size of a record, in numbers."""
        return math.prod(self.shape)

    @property
    def words(self) -> int:
        """The size of a block's records, or of a request's, in words."""
        return math.prod(self.dims)


EXTRA = ("parents", "records", "order", "requests")
"""The inputs that a step takes only if its states need them."""


@dataclass(frozen=True)
class Program:
    """A step and the module's other entries, without their weights."""

    target: str
    key: str  # of the code, where it is stored separately
    entries: tuple[Entry, ...]  # the step first
    sources: Mapping[str, Source]
    weights: Mapping[str, Weight]
    states: Mapping[str, State]
    sampled: Value | None  # the sampled tokens [M]; None if none can be sampled
    arena: int
    stream: tuple[int, ...]  # the two places that the residual stream's values alternate between, or none
    branches: tuple[tuple[int, str], ...]  # the layer and the kind of each residual branch
    width: int  # features of the stream
    block: int
    tables: int  # width of the block tables
    max_rows: int
    max_outputs: int
    max_path: int
    max_length: int
    generated: str = ""  # the key of the code as it was generated, before kernels were edited
    overrides: Mapping[str, str] = field(default_factory=dict[str, str])  # edited kernels: what is other, in words

    @property
    def stream_places(self) -> tuple[int, ...]:
        """The places of the stream's values: those of `stream`, and a third behind the arena, for parts in which layers
        read an earlier value."""
        return (*self.stream, self._behind) if self.stream else ()

    @property
    def memory(self) -> int:
        """The size of the arena and of that third buffer."""
        return self._behind + _apart(self.max_rows * self.width) if self.stream else self.arena

    @property
    def _behind(self) -> int:
        return _apart(self.arena)

    @property
    def step(self) -> Entry:
        return self.entries[0]

    @property
    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of the step."""
        return self.step.kernels

    @property
    def returned(self) -> tuple[Value, ...]:
        """The results of the step: logits, and the candidates' ids and logits if it has them."""
        return self.step.returned

    @property
    def signatures(self) -> dict[str, Signature]:
        """The signatures of the entries, the step first."""
        return {each.name: each.signature for each in self.entries}

    @property
    def vocabulary(self) -> int:
        return int(self.returned[0].dims[-1]) if self.returned and self.returned[0].dims else 0

    @property
    def candidates(self) -> int:
        return int(self.returned[1].dims[-1]) if len(self.returned) == 3 else 0

    @property
    def extra(self) -> tuple[str, ...]:
        """The inputs that a step takes only if its states need them."""
        names = [each.name for each in self.step.signature.arguments]
        return tuple(each for each in EXTRA if each in names)

    @property
    def launches(self) -> int:
        return sum(len(each.launches) for each in self.kernels)

    def entry(self, name: str) -> Entry:
        return next(each for each in self.entries if each.name == name)

    def weight_bytes(self, names: tuple[str, ...]) -> int:
        """Returns the bytes of some weights that a step of one row reads."""
        found = (self.weights[name] for name in names)
        return sum(each.bytes if each.read is None else each.read for each in found)

    def text(self) -> str:
        """The program as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def read(text: str) -> Program:
        """Reads a program from JSON. Raises KeyError, TypeError or ValueError if the text is not a program."""
        return restored(Program, json.loads(text))


def _apart(count: int) -> int:
    return -(-count // APART) * APART


def has_rows(program: Program) -> bool:
    """Whether a program has states per row."""
    return any(each.per == "row" for each in program.states.values())
