"""The outputs that a product's tile includes: their elements depend only on the products at the tile's own columns.

A tile has a row and a column. An output fits at its own column if every product it reads is at that column, or, for a
part of the columns, a fixed distance away (`shift`). For a rotary embedding, a tile may have both columns of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.elements import Elements, NeedsMemoryError
from forerun.codegen.loops.expr import Expr, Load, loads, reductions
from forerun.codegen.loops.index import Index, Lane, unflat
from forerun.codegen.loops.nest import Choice, Matrix, Segment, Taken, depends_across


@dataclass(frozen=True)
class Output:
    """A value and its destination: memory, a state, or the candidates that are chosen from it."""

    value: ir.SSAValue
    place: Buffer | ir.StateWrite | Choice

    def is_taken(self, segment: Segment) -> bool:
        """Whether a tile includes it."""
        return any(each.of is self.value and self._goes_to(each.to) for each in segment.outputs)

    def _goes_to(self, place: Buffer | Choice) -> bool:
        if isinstance(self.place, ir.StateWrite):
            return isinstance(place, Buffer) and place.of_state and place.key == str(self.place.symbol)
        return place == self.place

    def destination(self, context: Elements, index: Sequence[Index]) -> tuple[Buffer | Choice, tuple[Index, ...]]:
        """Returns where the element at an index goes."""
        if isinstance(self.place, ir.StateWrite):
            slot = context.element(self.place.slots, index[:1])
            return context.record(self.place.symbol, slot, index[1:])
        return self.place, tuple(index)


@dataclass(frozen=True)
class Tile:
    """The lanes of a product: a place in its rows, and a column."""

    rows: tuple[ir.Dim, ...]
    columns: int

    @property
    def row(self) -> Lane:
        return Lane("row")

    @property
    def column(self) -> Lane:
        return Lane("column", self.columns)

    @property
    def outer(self) -> list[Index]:
        return unflat(self.rows, Index.of(self.row))

    def index(self, value: ir.SSAValue, column: Index) -> list[Index]:
        """Returns the index of an output's element for the row and a column."""
        dims, rows = ir.tensor_type(value).dims, self.rows
        if tuple(dims[: len(rows)]) == tuple(rows):
            return [*self.outer, *unflat(dims[len(rows) :], column)]
        axis = next((axis for axis, dim in enumerate(dims) if dimensions.symbol(dim)), None)
        if axis is None or [dim for dim in rows if dim != 1] != [dims[axis]]:
            raise NeedsMemoryError(value)
        others = unflat([*dims[:axis], *dims[axis + 1 :]], column)
        return [*others[:axis], Index.of(self.row), *others[axis:]]


def paired(column: Lane, pair: int, part: int) -> Index:
    """The column of one part of a pair's lane: `head` and `within` number the lanes of a tile."""
    count = None if column.size is None else column.size // pair
    head, within = Lane("head", count), Lane("within_head", pair // 2)
    return Index.of(head).times(pair).plus(Index.of(within)).plus(part * (pair // 2))


def _rotaries(values: Sequence[ir.SSAValue]) -> list[ir.Rotary]:
    found: list[ir.Rotary] = []
    for value in values:
        owner = value.owner
        if isinstance(owner, ir.Rotary):
            found.append(owner)
        if isinstance(owner, ir.SpecOperation) and not isinstance(owner, ir.WeightProduct):
            found.extend(_rotaries(list(owner.operands)))
    return found


class Fitting:
    """Finds the outputs that the tiles of some linears include.

    Unless `anywhere`, an output must have all columns of the products, go to memory, and contain no reduction.
    """

    def __init__(self, context: Elements, tile: Tile, linears: Sequence[ir.WeightProduct], anywhere: bool) -> None:
        self.context, self.tile, self.linears, self.anywhere = context, tile, linears, anywhere
        self.matrices = [self._matrix(linear, number) for number, linear in enumerate(linears)]

    def _matrix(self, linear: ir.WeightProduct, number: int) -> Matrix:
        kind, at = ir.tensor_type(linear.result), [Index.of(self.tile.column)]
        if isinstance(linear, ir.ExpertLinear):
            count = ir.tensor_type(linear.weight).dims[0]
            at.insert(0, self.context.place(linear.ids, self.tile.outer, count))
        bias = None if linear.bias is None else self.context.element(linear.bias, at)
        product = Buffer("product", number, tuple(kind.dims), kind.dtype, "f32")
        return Matrix(self.context.buffers[linear.weight], bias, product, linear.arithmetic)

    def segment(self, outputs: Sequence[Output]) -> Segment:
        """Returns the division of columns under which a tile includes most outputs; single ones if none is better."""
        width = self.tile.columns
        sizes = {int(ir.tensor_type(each.x).dims[-1]) for each in _rotaries([each.value for each in outputs])}
        best = Segment(self.matrices, width, 0, [])
        for pair in (0, *(size for size in sorted(sizes) if self.anywhere and width % size == 0)):
            found = [self._taken(each, pair) for each in outputs]
            segment = Segment(self.matrices, width, pair, [each for each in found if each is not None])
            if len(segment.outputs) > len(best.outputs):
                best = segment
        return best

    def _taken(self, output: Output, pair: int) -> Taken | None:
        """Returns how a tile includes an output; None if it cannot."""
        width, anywhere = self.tile.columns, self.anywhere
        sizes = [dim for dim in ir.tensor_type(output.value).dims if isinstance(dim, int)]
        number = prod(sizes) // prod(dim for dim in self.tile.rows if isinstance(dim, int))
        if pair and number % pair:
            return None
        own = Lane("column", number)
        try:
            index, value = self._element(output, own)
        except NeedsMemoryError:
            return None
        if depends_across(value, [own]) is not None or (not anywhere and reductions(value)):
            return None
        shift = self._shift(value, own, pair)
        if shift is None or not 0 <= shift <= width - number:
            return None
        if isinstance(output.place, Choice) and (pair or shift):
            return None  # the first lane of a tile has the tile's first id
        if not anywhere and (shift or number != width or not isinstance(output.place, Buffer)):
            return None
        to, at = output.destination(self.context, index)
        return Taken(value, to, at, shift, number, output.value)

    def _element(self, output: Output, own: Lane) -> tuple[list[Index], Expr]:
        """The index and the element of an output at the tile's row and its own column."""
        context = self.context
        for linear, matrix in zip(self.linears, self.matrices, strict=True):
            context.computed[linear.result] = lambda index, matrix=matrix: Load(matrix.product, tuple(index))
        try:
            index = self.tile.index(output.value, Index.of(own))
            if output.value in context.computed:
                return index, context.element(output.value, index)
            return index, context.definition(output.value, index)
        finally:
            for linear in self.linears:
                del context.computed[linear.result]

    def _shift(self, value: Expr, own: Lane, pair: int) -> int | None:
        """Returns how far after its own column the products that an element reads lie; None if no distance fits all.

        For a pair, both parts are measured from the first.
        """
        shifts: set[int] = set()
        columns = [paired(own, pair, part) for part in range(2)] if pair else [Index.of(own)]
        for column in columns:
            for load in loads(value.substitute({own: column}.get)):
                if load.buffer.space != "product":
                    continue
                behind = load.index[-1].minus(columns[0])
                if behind.known is None or list(load.index[:-1]) != self.tile.outer:
                    return None
                shifts.add(behind.known)
        if pair and any(shift % pair not in (0, pair // 2) for shift in shifts):
            return None
        heads = {shift // pair * pair if pair else shift for shift in shifts}
        return heads.pop() if len(heads) == 1 else None
