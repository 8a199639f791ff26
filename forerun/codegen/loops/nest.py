"""Loop nests: what one kernel computes, over which axes, from where to where; independent of the back end.

Nest = RowNest         elements that are stored row by row
     | ProductNest     rows times matrices, with a prologue and an epilogue
     | AttentionNest   attention of every row over its history
     | RecurrenceNest  the rows of a state, parents before their children
     | TopKNest        the k largest of each row
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.expr import Expr, Reduce, reductions
from forerun.codegen.loops.index import Index, Lane
from forerun.codegen.loops.states import StateLayout

T = TypeVar("T", "Store", "Taken")


@dataclass(frozen=True)
class Axis:
    """A loop: its lane runs over all of a dimension."""

    lane: Lane
    dim: ir.Dim

    @property
    def named(self) -> str:
        """The name that its size depends on; "" if the size is known."""
        return dimensions.symbol(self.dim)


@dataclass(frozen=True)
class Store:
    """For all lanes of the axes: `buffer[index] = value`."""

    axes: tuple[Axis, ...]
    value: Expr
    buffer: Buffer
    index: tuple[Index, ...]

    @property
    def row(self) -> Axis | None:
        """The axis that is divided among workers: the first with a name."""
        return next((axis for axis in self.axes if axis.named), None)

    @property
    def is_flat(self) -> bool:
        """Whether a row's numbers may all lie side by side: no reduction that itself needs lanes depends on them."""
        return depends_across(self.value, [axis.lane for axis in self.axes if axis is not self.row]) is None

    def at(self, places: Mapping[Lane, Index]) -> Store:
        """Returns the store at some places of its lanes."""
        return moved(self, places)


@dataclass(frozen=True)
class Choice:
    """The k largest of each row of [rows, size], largest first, the lower id first among equals, NaN as -inf.

    values, ids  [rows, k]
    sampled      the token sampled from each row; None if none is
    columns      the range that tiles divide: `size`, or the columns of a product of which the value is a part
    """

    rows: tuple[ir.Dim, ...]
    size: int
    k: int
    values: Buffer
    ids: Buffer
    sampled: Buffer | None
    columns: int


@dataclass
class RowNest:
    """Stores, one after another for each row; `rows` is the dimension that is divided among workers, 1 for none."""

    rows: ir.Dim
    stores: list[Store]


@dataclass(frozen=True)
class Matrix:
    """A linear: its weight [columns, features], of each expert if there are any, and its bias at the column lane."""

    weight: Buffer
    bias: Expr | None
    product: Buffer  # stands for the result, at [row, column], in the expressions of the epilogue
    arithmetic: str | None = None  # of the products (`ir.Linear`)


@dataclass(frozen=True)
class Taken:
    """A value that a tile computes from its products, and stores or chooses from.

    Its own `column` is the products' column minus `shift`, if that is in [0, count).
    """

    value: Expr
    to: Buffer | Choice
    index: tuple[Index, ...]
    shift: int
    count: int
    of: ir.SSAValue

    @property
    def column(self) -> Lane:
        return Lane("column", self.count)

    def at(self, column: Index) -> Taken:
        """Returns the value at a place of its own column."""
        return moved(self, {self.column: column})


@dataclass
class Segment:
    """Matrices over the same columns. For `pair` = D a lane covers the columns (h, i) and (h, D / 2 + i) of a head."""

    matrices: list[Matrix]
    columns: int
    pair: int
    outputs: list[Taken]

    @property
    def column(self) -> Lane:
        return Lane("column", self.columns)


@dataclass(frozen=True)
class Norm:
    """An RMS norm whose factor, one number per row, multiplies the products; features are `unscaled` times `gain`."""

    epsilon: float
    unscaled: Expr
    gain: Expr | None


@dataclass(frozen=True)
class Experts:
    """The experts of a product's rows: of `count` matrices, each row is multiplied by the one that `chosen` names.

    `shared` consecutive rows have one input: the choices of one row.
    """

    count: int
    chosen: Expr
    shared: int


@dataclass
class ProductNest:
    """Products of one input with matrices: rows x features times features x columns.

    x is the input at `row` and `feature`, without its factor if the norm is deferred; `row` is the row-major place
    in `rows`, of which a row with several experts has several.
    """

    rows: tuple[ir.Dim, ...]
    features: int
    x: Expr
    norm: Norm | None
    segments: list[Segment]
    row: Lane
    feature: Lane
    experts: Experts | None = None

    @property
    def inputs(self) -> tuple[ir.Dim, ...]:
        """The rows of the input."""
        return self.rows if self.experts is None or self.experts.shared == 1 else self.rows[:-1]

    @property
    def element(self) -> str:
        """The matrices' element type in memory."""
        return self.segments[0].matrices[0].weight.element

    @property
    def arithmetic(self) -> str | None:
        """The arithmetic of all its products."""
        return self.segments[0].matrices[0].arithmetic

    @property
    def choice(self) -> Choice | None:
        """The choice that its tiles make among their columns, if any."""
        places = (output.to for segment in self.segments for output in segment.outputs)
        return next((place for place in places if isinstance(place, Choice)), None)


@dataclass(frozen=True)
class History:
    """The history of a row: how to find the slot of each of its positions, all at the lane `row`."""

    row: Lane
    position: Expr
    sequence: Expr
    base: Expr
    paths: Buffer  # [N, D]
    tables: Buffer  # [S, B]
    block: int


@dataclass(frozen=True)
class AttentionNest:
    """Tree attention: for each row and head, the keys of its history weigh their values.

    query at `row`, `head` and `dim`; first at `row`; bias at `head` and `place`, [H or 1, L]; sinks at `head`.
    """

    rows: ir.Dim
    heads: int
    history: History
    head: Lane
    dim: Lane
    place: Lane
    query: Expr
    first: Expr | None
    bias: Expr | None
    bias_length: ir.Dim
    bias_by_key: bool
    sinks: Expr | None
    keys: StateLayout
    values: StateLayout
    scale: float
    softcap: float | None
    result: Buffer

    @property
    def groups(self) -> int:
        """The number of key heads."""
        return self.keys.shape[0]

    @property
    def key_dim(self) -> int:
        return self.keys.shape[1]

    @property
    def value_dim(self) -> int:
        return self.values.shape[1]


@dataclass(frozen=True)
class RecurrenceNest:
    """The rows of a step in topological order; each record is computed from the parent's.

    For each `step`: `row` is the next row; `stores` write, one after another, its record and what is read of it.
    Workers divide one of the dimensions in `free`, each given as an axis of every store: along it, elements of
    different places do not depend on one another.
    """

    rows: ir.Dim
    step: Lane
    stores: tuple[Store, ...]
    free: tuple[tuple[Axis, ...], ...]

    @property
    def divided(self) -> tuple[Axis, ...] | None:
        """The largest dimension that workers may divide, the first among equals."""
        return max(self.free, key=lambda axes: int(axes[0].dim), default=None)


@dataclass(frozen=True)
class TopKNest:
    """A choice among numbers in memory."""

    logits: Buffer
    choice: Choice


Nest = RowNest | ProductNest | AttentionNest | RecurrenceNest | TopKNest


def moved(written: T, places: Mapping[Lane, Index]) -> T:
    """Returns what is written, at some places of its lanes."""
    index = tuple(each.substitute(places.get) for each in written.index)
    return replace(written, value=written.value.substitute(places.get), index=index)


def depends_across(value: Expr, lanes: Sequence[Lane]) -> Reduce | None:
    """Returns the innermost reduction with partial results side by side that depends on one of some lanes."""
    for each in reductions(value):
        if each.order == "lanes" and each.lanes & set(lanes):
            return each
    return None


def invariants(expr: Expr, lanes: Collection[Lane]) -> list[Expr]:
    """Returns the largest parts with reductions that do not depend on some lanes: they are hoisted out of the loops."""
    found: dict[Expr, None] = {}
    seen: set[Expr] = set()

    def visit(each: Expr) -> None:
        if each in seen:
            return
        seen.add(each)
        if each.lanes.isdisjoint(lanes):
            if reductions(each):
                found[each] = None
            return
        for part in each.parts:
            visit(part)

    visit(expr)
    return list(found)
