"""The skinny linear: x w^T for a tile of rows and a tile of outputs, with a norm in front and what follows behind.

Rows are the M operand of `tl.dot`, in tiles of 16 or 32: an mma instruction of 16 rows each, over one load of weights.
A tile of 64 rows would make Triton use wgmma on Hopper, whose order of sums is another, so that a row's bits would
depend on how many rows there are. Features are summed in blocks of `feature_block`, a function of the weight alone, in
order, by one program: no split over features. Everything else may be tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.triton.expressions import TRITON_TYPES, Expressions, NeedsMemoryError, Stored, Term
from forerun.codegen.triton.index import Index, Lane, size_of, unflat
from forerun.codegen.triton.rules import literal
from forerun.codegen.triton.storing import store
from forerun.codegen.triton.topk import Choice

FEATURES = {"f32": 32, "bf16": 128, "f16": 128}
"""The most features of one block, by the element type of the weight: what 64 outputs' operands take in registers."""


def feature_block(features: int, element: str) -> int:
    """Features of one `tl.dot`: a power of two, that divides them where that leaves 32 or more."""
    most = FEATURES[element]
    for block in (most, most // 2, most // 4):
        if block >= 32 and features % block == 0:
            return block
    return max(16, min(most, 1 << (features - 1).bit_length()))


def leading(x: ir.SSAValue) -> tuple[ir.Dim, ...]:
    """All axes of a linear's input but the features."""
    return ir.tensor_type(x).dims[:-1]


@dataclass(frozen=True)
class Columns:
    """The columns of a tile's lanes: one each, or for `pair` = D the two (h, i) and (h, D / 2 + i) of a head."""

    outputs: int
    pair: int = 0

    @property
    def parts(self) -> int:
        return 2 if self.pair else 1

    @property
    def lanes(self) -> int:
        return self.outputs // self.parts

    def open(self, context: Expressions, depth: int, start: str, name: str = "") -> list[Index]:
        """Name the lanes of a tile in the innermost scope, from `start` on; gives each part's column."""
        context.line(f"lane{name} = {start}")
        below = f"(lane{name} >= 0) & " if name else ""
        context.line(f"lane_in{name} = {below}(lane{name} < {self.lanes})")
        guards = frozenset({f"lane_in{name}"})
        if not self.pair:
            return [Index.of(Lane(f"lane{name}", self.lanes, guards, depth, True))]
        half = self.pair // 2
        context.line(f"head{name} = lane{name} // {half}")
        context.line(f"within_head{name} = lane{name} % {half}")
        head = Index.of(Lane(f"head{name}", self.outputs // self.pair, guards, depth, True))
        within = Index.of(Lane(f"within_head{name}", half, guards, depth, True))
        return [head.times(self.pair).plus(within).plus(part * half) for part in range(2)]


@dataclass(frozen=True)
class Taken:
    """An output that a tile takes along. Its column is the product's less `shift`, where that is in [0, count)."""

    value: ir.SSAValue
    place: Any
    shift: int
    count: int


@dataclass
class Segment:
    """Linears over the same columns, and what their tiles write."""

    linears: list[ir.Linear]
    columns: Columns
    outputs: list[Taken] = field(default_factory=list[Taken])

    def raw(self, value: ir.SSAValue, place: Stored) -> list[Taken]:
        return [Taken(value, place, 0, self.columns.outputs)]


@dataclass
class Products:
    """Linears on one input, in one launch: grid (row tiles, tiles of all segments one after another)."""

    x: ir.SSAValue
    rows: tuple[ir.Dim, ...]
    element: str
    segments: list[Segment]

    @property
    def features(self) -> int:
        return int(ir.tensor_type(self.x).dims[-1])

    @property
    def choice(self) -> Choice | None:
        """What its tiles choose among their columns, if they do."""
        places = (output.place for segment in self.segments for output in segment.outputs)
        return next((place for place in places if isinstance(place, Choice)), None)

    def describe(self) -> str:
        parts = [
            f"{len(each.linears)} x [{each.columns.outputs}, {self.features}]"
            if len(each.linears) > 1
            else f"[{each.columns.outputs}, {self.features}]"
            for each in self.segments
        ]
        return f"{' and '.join(parts)} in {self.element} on {list(ir.tensor_type(self.x).dims)}"

    def emit(self, context: Expressions, known: Any) -> None:
        """The kernel's body."""
        for dim in self.rows:
            context.size(dim)
        count = rows_text(self.rows)
        context.line("first_row = tl.program_id(0) * ROWS")
        context.line("row = first_row + tl.arange(0, ROWS)[:, None]")
        context.line(f"row_in = row < {count}")
        context.line("tile = tl.program_id(1)")
        row = Lane("row", None, frozenset({"row_in"}))
        with context.block(f"if first_row < {count}:"):
            if len(self.segments) == 1:
                self._segment(context, self.segments[0], row, known)
                return
            for number, segment in enumerate(self.segments):
                last = number == len(self.segments) - 1
                if number:
                    context.line(f"tile -= (({self.segments[number - 1].columns.lanes} + BLOCK - 1) // BLOCK)")
                inside = "" if last else f" & (tile < (({segment.columns.lanes} + BLOCK - 1) // BLOCK))"
                with context.block(f"if (tile >= 0){inside}:"):
                    self._segment(context, segment, row, known)

    def _segment(self, context: Expressions, segment: Segment, row: Lane, known: Any) -> None:
        depth = len(context.scopes) - 1
        columns = segment.columns.open(context, depth, "tile * BLOCK + tl.arange(0, BLOCK)[None, :]")
        sums = self._sums(context, segment, columns, row)
        outer = unflat(self.rows, Index.of(row))
        for number, output in enumerate(segment.outputs):
            own = columns
            if output.shift or output.count != segment.columns.outputs:
                parts = segment.columns.parts
                start = f"lane - {output.shift // parts}" if output.shift else "lane"
                own = Columns(output.count, segment.columns.pair).open(context, depth, start, f"_{number}")
            for linear in segment.linears:
                context.computed[linear.result] = _product(linear, sums, own, output.shift, outer)
            for column in own:
                index = output_index(output.value, self.rows, row, column)
                store(context, output, index, context.element(output.value, index), known)
            for linear in segment.linears:
                del context.computed[linear.result]

    def _sums(
        self, context: Expressions, segment: Segment, columns: list[Index], row: Lane
    ) -> dict[tuple[ir.Linear, int], Term]:
        """x w^T, with bias, of the tile's rows and columns."""
        features, depth = self.features, len(context.scopes) - 1
        block = feature_block(features, self.element)
        kind = TRITON_TYPES[self.element]
        names = {(linear, part): context.fresh("sum") for linear in segment.linears for part in range(len(columns))}
        for name in names.values():
            context.line(f"{name} = tl.full([ROWS, BLOCK], 0.0, tl.float32)")
        wide = "" if segment.columns.outputs * features < 1 << 31 else ".to(tl.int64)"
        places = [context.fresh("column") for _ in columns]
        for place, column in zip(places, columns, strict=True):
            context.line(f"{place} = ({column.text}){wide} * {features}")
        norm, squares = self._trailing_norm(context), context.fresh("squares")
        if norm is not None:
            context.line(f"{squares} = tl.full([ROWS, {block}], 0.0, tl.float32)")
        with context.block(f"for start in range(0, {features}, {block}):") as inside:
            context.line(f"feature = start + tl.arange(0, {block})")
            ragged = features % block != 0
            guards = frozenset[str]()
            if ragged:
                context.line(f"feature_in = feature < {features}")
                guards = frozenset({"feature_in[None, :]"})
            at = Index.of(Lane("feature[None, :]", features, guards, inside, True))
            source = self.x if norm is None else norm.x
            x = context.element(source, [*unflat(leading(source), Index.of(row)), at]).text
            x = f"tl.where(feature_in[None, :], {x}, 0.0)" if ragged else x
            if norm is not None:
                context.line(f"unscaled = {x}")
                context.line(f"{squares} = tl.fma(unscaled, unscaled, {squares})")
                gain = "" if norm.weight is None else f" * {context.element(norm.weight, [at]).text}"
                x = f"(unscaled{gain})"
            context.line(f"x = {x}.to({kind})")
            for (linear, part), name in names.items():
                weight = context.stored[linear.weight]
                pointer = context.argument(weight.slot, weight.element)
                mask = "lane_in" + (" & feature_in[:, None]" if ragged else "")
                context.line(f"w = tl.load({pointer} + {places[part]} + feature[:, None], mask={mask}, other=0.0)")
                context.line(f'{name} = tl.dot(x, w, {name}, input_precision="ieee")')
        if norm is not None:
            total = f"row_sum({squares}, ROWS, {block}, {block.bit_length() - 1})"
            scale = context.fresh("scale")
            context.line(f"{scale} = 1.0 / tl.sqrt({total} / {features} + {literal(norm.eps)})")
            for name in names.values():
                context.line(f"{name} = {name} * {scale}")
        terms: dict[tuple[ir.Linear, int], Term] = {}
        for (linear, part), name in names.items():
            terms[linear, part] = Term(name, depth)
            if linear.bias is not None:
                bias = context.element(linear.bias, [columns[part]])
                terms[linear, part] = context.let(f"({name} + {bias.text})", depth, "biased")
        return terms

    def _trailing_norm(self, context: Expressions) -> ir.RMSNorm | None:
        """The RMS norm in front whose factor, one number a row, can multiply the products instead of the features.

        So a row is read once: its squares are summed beside the products. float16 has not the range for features that
        are not yet scaled.
        """
        value = self.x
        while isinstance(value.owner, ir.Reshape) and value not in context.stored:
            value = value.owner.x
        owner: Any = value.owner
        fits = isinstance(owner, ir.RMSNorm) and value not in context.stored and self.element != "f16"
        return owner if fits and int(ir.tensor_type(value).dims[-1]) == self.features else None


def rows_text(dims: Sequence[ir.Dim]) -> str:
    """The number of rows of some leading axes."""
    parts = [size_of(dim).text for dim in dims if dim != 1]
    return " * ".join(parts) or "1"


def output_index(value: ir.SSAValue, rows: Sequence[ir.Dim], row: Lane, column: Index) -> list[Index]:
    """Returns the index of an output's element for a row and a column."""
    dims = ir.tensor_type(value).dims
    if tuple(dims[: len(rows)]) == tuple(rows):
        return [*unflat(rows, Index.of(row)), *unflat(dims[len(rows) :], column)]
    axis = next((axis for axis, dim in enumerate(dims) if dimensions.symbol(dim)), None)
    if axis is None or [dim for dim in rows if dim != 1] != [dims[axis]]:
        raise NeedsMemoryError(value)
    others = unflat([*dims[:axis], *dims[axis + 1 :]], column)
    return [*others[:axis], Index.of(row), *others[axis:]]


def _product(
    linear: ir.Linear, sums: dict[tuple[ir.Linear, int], Term], own: list[Index], shift: int, outer: list[Index]
) -> Callable[[Sequence[Index]], Term]:
    """The element of a product under way, at one of a tile's columns."""

    def element(index: Sequence[Index]) -> Term:
        if all(same(*each) for each in zip(index[:-1], outer, strict=True)):
            for part, column in enumerate(own):
                if same(column.plus(shift), index[-1]):
                    return sums[linear, part]
        raise NeedsMemoryError(linear.result)

    return element


def same(one: Index, other: Index) -> bool:
    return one.constant == other.constant and dict(one.terms) == dict(other.terms)


def fitting_segment(
    stored: Mapping[ir.SSAValue, Stored],
    constants: Mapping[ir.SSAValue, ir.Constant],
    linears: list[ir.Linear],
    outputs: Sequence[Any],
    known: Any,
) -> Segment:
    """The division of columns under which a tile takes most outputs along; single columns where none is better."""
    width = int(ir.tensor_type(linears[0].result).dims[-1])
    sizes = {int(ir.tensor_type(each.x).dims[-1]) for each in _rotaries([each.value for each in outputs])}
    choices = [Columns(width), *(Columns(width, size) for size in sorted(sizes) if width % size == 0)]
    best = Segment(linears, choices[0])
    rows = leading(linears[0].x)
    for columns in choices:
        found = [_taken(stored, constants, linears, each, columns, rows, known) for each in outputs]
        segment = Segment(linears, columns, [each for each in found if each is not None])
        if len(segment.outputs) > len(best.outputs):
            best = segment
    return best


def _rotaries(values: Sequence[ir.SSAValue]) -> list[ir.Rotary]:
    found: list[ir.Rotary] = []
    for value in values:
        owner: Any = value.owner
        if isinstance(owner, ir.Rotary):
            found.append(owner)
        if isinstance(owner, ir.SpecOperation) and not isinstance(owner, ir.Linear):
            found.extend(_rotaries(list(owner.operands)))
    return found


def _taken(
    stored: Mapping[ir.SSAValue, Stored],
    constants: Mapping[ir.SSAValue, ir.Constant],
    linears: list[ir.Linear],
    output: Any,
    columns: Columns,
    rows: tuple[ir.Dim, ...],
    known: Any,
) -> Taken | None:
    """How a tile takes an output along, found by asking for its element at a tile's own columns; None if it cannot."""
    dims = ir.tensor_type(output.value).dims
    count = 1
    for dim in dims:
        count *= dim if isinstance(dim, int) else 1
    for dim in rows:
        count //= dim if isinstance(dim, int) else 1
    row = Lane("row", None, frozenset({"row_in"}))
    shifts: set[int] = set()
    context = Expressions(dict(stored), dict(constants))
    try:
        own = Columns(count, columns.pair).open(context, 0, "") if count % columns.parts == 0 else []
        outer = unflat(rows, Index.of(row))

        def product(index: Sequence[Index]) -> Term:
            for column in own:
                shift = index[-1].plus(column.times(-1))
                if not shift.terms and all(same(*each) for each in zip(index[:-1], outer, strict=True)):
                    shifts.add(shift.constant)
                    return Term("product")
            raise NeedsMemoryError(output.value)

        for linear in linears:
            context.computed[linear.result] = product
        for column in own:
            index = output_index(output.value, rows, row, column)
            store(context, output, index, context.element(output.value, index), known)
    except NeedsMemoryError:
        return None
    if columns.pair and any(shift % columns.pair not in (0, columns.pair // 2) for shift in shifts):
        return None
    heads = {shift - shift % columns.pair if columns.pair else shift for shift in shifts}
    if len(heads) != 1:
        return None
    (shift,) = heads
    if isinstance(output.place, Choice) and (columns.pair or shift):
        return None  # the first lane of a tile has the tile's first id
    return Taken(output.value, output.place, shift, count) if 0 <= shift <= columns.outputs - count else None
