"""The skinny linear: x w^T for a tile of rows and a tile of outputs, with a norm before it and an epilogue after it.

Rows are the M operand of `tl.dot`, in tiles of 16 or 32: one mma instruction per 16 rows, over one load of weights.
With tiles of 64 rows Triton would use wgmma on Hopper, whose order of sums differs, so that a row's bits would depend
on how many rows there are. Features are summed in blocks of `feature_block`, which depends only on the weight, in
order, by one program: features are not split. Everything else may be tuned.
"""

from __future__ import annotations

from collections.abc import Mapping

from forerun.codegen.loops.expr import loads
from forerun.codegen.loops.expr import number as constant
from forerun.codegen.loops.fitting import paired
from forerun.codegen.loops.index import Index, Lane, volume
from forerun.codegen.loops.nest import Choice, Matrix, ProductNest, Segment, Taken
from forerun.codegen.triton.experts import begins_of, order_of
from forerun.codegen.triton.functions import literal
from forerun.codegen.triton.text import TYPES, Text
from forerun.codegen.triton.topk import emit_tile

FEATURES = {"f32": 32, "bf16": 128, "f16": 128}
"""The most features of one block, by the weight's element type: limited by the registers for 64 outputs' operands."""


def feature_block(features: int, element: str) -> int:
    """Features of one `tl.dot`: a power of two, which divides `features` if such a divisor is 32 or more."""
    most = FEATURES[element]
    for block in (most, most // 2, most // 4):
        if block >= 32 and features % block == 0:
            return block
    return max(16, min(most, 1 << (features - 1).bit_length()))


def tile_lanes(segment: Segment) -> int:
    """The number of lanes for a segment's columns: one each, or one for the two columns of a pair."""
    return segment.columns // (2 if segment.pair else 1)


def describe(nest: ProductNest) -> str:
    parts = [
        f"{len(each.matrices)} x [{each.columns}, {nest.features}]"
        if len(each.matrices) > 1
        else f"[{each.columns}, {nest.features}]"
        for each in nest.segments
    ]
    experts = "" if nest.experts is None else f" of each of {nest.experts.count} experts"
    return f"{' and '.join(parts)}{experts} in {nest.element} on {[*nest.rows, nest.features]}"


def emit_products(text: Text, nest: ProductNest) -> None:
    """Writes the kernel of a product nest. Grid (row tiles, tiles of all segments one after another)."""
    count = text.index(volume(nest.rows))
    text.line("first_row = tl.program_id(0) * ROWS")
    text.line("row = first_row + tl.arange(0, ROWS)[:, None]")
    text.line(f"row_in = row < {count}")
    text.line("tile = tl.program_id(1)")
    text.bind(nest.row, "row", "row_in")
    with text.block(f"if first_row < {count}:"):
        _emit_segments(text, nest)


def emit_experts(text: Text, nest: ProductNest) -> None:
    """Writes the kernel of a product nest with experts. Grid (experts, tiles of all segments one after another).

    A program runs the row tiles of its expert one after another, none if no row chose it.
    """
    assert nest.experts is not None
    begins, order = text.argument(begins_of(nest.experts)), text.argument(order_of(nest))
    text.line("expert = tl.program_id(0)")
    text.line(f"end = tl.load({begins} + expert + 1)")
    with text.block(f"for first in range(tl.load({begins} + expert), end, ROWS):") as inside:
        text.line("at = first + tl.arange(0, ROWS)[:, None]")
        text.line("row_in = at < end")
        text.line(f"row = tl.load({order} + at, mask=row_in, other=0)")
        text.line("tile = tl.program_id(1)")
        text.bind(nest.row, "row", "row_in", depth=inside)
        _emit_segments(text, nest)


def _emit_segments(text: Text, nest: ProductNest) -> None:
    """Writes a tile of the segment that the number of the tile belongs to."""
    if len(nest.segments) == 1:
        _Tile(text, nest, nest.segments[0]).emit()
        return
    for number, segment in enumerate(nest.segments):
        last = number == len(nest.segments) - 1
        if number:
            text.line(f"tile -= (({tile_lanes(nest.segments[number - 1])} + BLOCK - 1) // BLOCK)")
        inside = "" if last else f" & (tile < (({tile_lanes(segment)} + BLOCK - 1) // BLOCK))"
        with text.block(f"if (tile >= 0){inside}:"):
            _Tile(text, nest, segment).emit()


class _Tile:
    """The tiles of one segment."""

    def __init__(self, text: Text, nest: ProductNest, segment: Segment) -> None:
        self.text, self.nest, self.segment = text, nest, segment
        self.parts = 2 if segment.pair else 1

    def emit(self) -> None:
        columns = self._columns("tile * BLOCK + tl.arange(0, BLOCK)[None, :]", self.segment.columns)
        sums = self._sums(columns)
        for number, taken in enumerate(self.segment.outputs):
            own = columns
            if taken.shift or taken.count != self.segment.columns:
                start = f"lane - {taken.shift // self.parts}" if taken.shift else "lane"
                own = self._columns(start, taken.count, f"_{number}")
            for column in own:
                self._output(taken, own, column, sums)

    def _columns(self, start: str, count: int, name: str = "") -> list[Index]:
        """Names the lanes of a tile in the innermost scope, from `start` on; returns each part's column."""
        text, pair, depth = self.text, self.segment.pair, self.text.depth
        lanes = count // self.parts
        text.line(f"lane{name} = {start}")
        below = f"(lane{name} >= 0) & " if name else ""
        text.line(f"lane_in{name} = {below}(lane{name} < {lanes})")
        lane = Lane("column", count)
        if not pair:
            return [text.bind(lane, f"lane{name}", f"lane_in{name}", depth=depth, wide=True)]
        text.line(f"head{name} = lane{name} // {pair // 2}")
        text.line(f"within_head{name} = lane{name} % {pair // 2}")
        parts = [paired(lane, pair, part) for part in range(2)]
        for each in parts[0].lanes:
            text.bind(each, f"{each.name}{name}", f"lane_in{name}", depth=depth, wide=True)
        return parts

    def _sums(self, columns: list[Index]) -> dict[tuple[Matrix, int], str]:
        """Computes x w^T, with bias, for the tile's rows and columns."""
        text, nest, segment = self.text, self.nest, self.segment
        features, depth = nest.features, text.depth
        block, kind = feature_block(features, nest.element), TYPES[nest.element]
        names = {(each, part): text.fresh("sum") for each in segment.matrices for part in range(len(columns))}
        for name in names.values():
            text.line(f"{name} = tl.full([ROWS, BLOCK], 0.0, tl.float32)")
        wide = "" if segment.columns * features < 1 << 31 else ".to(tl.int64)"
        places = [text.fresh("column") for _ in columns]
        for place, column in zip(places, columns, strict=True):
            text.line(f"{place} = ({text.index(column)}){wide} * {features}")
        norm, squares = nest.norm, text.fresh("squares")
        if norm is not None:
            text.line(f"{squares} = tl.full([ROWS, {block}], 0.0, tl.float32)")
        with text.block(f"for start in range(0, {features}, {block}):") as inside:
            text.line(f"feature = start + tl.arange(0, {block})")
            ragged = ["feature_in[None, :]"] if features % block else []
            if ragged:
                text.line(f"feature_in = feature < {features}")
            text.bind(nest.feature, "feature[None, :]", *ragged, depth=inside, wide=True)
            x = text.render(nest.x if norm is None else norm.unscaled)
            x = f"tl.where(feature_in[None, :], {x}, 0.0)" if ragged else x
            if norm is not None:
                text.line(f"unscaled = {x}")
                text.line(f"{squares} = tl.fma(unscaled, unscaled, {squares})")
                x = "unscaled" if norm.gain is None else f"(unscaled * {text.render(norm.gain)})"
            text.line(f"x = {x}.to({kind})")
            for (matrix, part), name in names.items():
                pointer = text.argument(matrix.weight)
                if nest.experts is not None:
                    pointer += f" + expert.to(tl.int64) * {segment.columns * features}"
                mask = "lane_in" + (" & feature_in[:, None]" if ragged else "")
                text.line(f"w = tl.load({pointer} + {places[part]} + feature[:, None], mask={mask}, other=0.0)")
                text.line(f'{name} = tl.dot(x, w, {name}, input_precision="ieee")')
        if norm is not None:
            total = f"row_sum({squares}, ROWS, {block}, {block.bit_length() - 1})"
            scale = text.fresh("scale")
            text.line(f"{scale} = 1.0 / tl.sqrt({total} / {features} + {literal(constant(norm.epsilon))})")
            for name in names.values():
                text.line(f"{name} = {name} * {scale}")
        for (matrix, part), name in names.items():
            if matrix.bias is not None:
                bias = matrix.bias.substitute({segment.column: columns[part]}.get)
                names[matrix, part] = text.let(f"({name} + {text.render(bias)})", depth, "biased")
        return names

    def _output(self, taken: Taken, own: list[Index], column: Index, sums: Mapping[tuple[Matrix, int], str]) -> None:
        """Stores an output at one of its columns."""
        text, taken = self.text, taken.at(column)
        for load in loads(taken.value):
            for matrix in self.segment.matrices:
                if load.buffer != matrix.product:
                    continue
                part = next(at for at, each in enumerate(own) if each.plus(taken.shift) == load.index[-1])
                text.know(load, sums[matrix, part], text.depth)
        if isinstance(taken.to, Choice):
            emit_tile(text, taken.to, column, text.render(taken.value))
            return
        text.write(taken.to, taken.index, taken.value)
