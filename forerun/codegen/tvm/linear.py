"""The skinny linear: weights are streamed once in blocks of 32 outputs, rows are in register tiles.

Blocks of outputs are divided among the threads; a block stays in the cache from one tile of rows to the next. With
experts, the blocks are those of all experts that some row chose, and a block's rows are those that chose its expert.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.expr import Load, loads
from forerun.codegen.loops.index import Index, Lane, unflat, volume
from forerun.codegen.loops.nest import Matrix, ProductNest, Segment
from forerun.codegen.tvm.bfloat16_products import Bfloat16Products
from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import integer, let, load, local, splat, store, when
from forerun.codegen.tvm.code import Code, Term
from forerun.codegen.tvm.experts import Grouped
from forerun.codegen.tvm.float_products import FloatProducts
from forerun.codegen.tvm.formats import VECTORS, WeightFormat
from forerun.codegen.tvm.integer_products import IntegerProducts
from forerun.codegen.tvm.products import Products
from forerun.codegen.tvm.schedules import ProductSchedule
from forerun.codegen.tvm.target import LANES, OUTPUTS, Machine
from forerun.codegen.tvm.untyped import T, tirx

PRODUCTS: dict[str | None, type[Products]] = {
    None: FloatProducts,
    ir.BFLOAT16: Bfloat16Products,
    ir.INT8: IntegerProducts,
}
"""How products are computed, by their arithmetic."""


def held(nest: ProductNest) -> list[Buffer]:
    """Buffers of products that are combined with later ones: in memory, as registers are too few for several sums."""
    dims = (*nest.rows, max(each.columns for each in nest.segments))
    most = max(len(each.matrices) for each in nest.segments) - 1
    return [Buffer("scratch", f"product {number}", dims, "f32", "f32") for number in range(most)]


def emit_rounded(code: Code, nest: ProductNest, machine: Machine, schedule: None) -> None:
    """Rounds all rows as the arithmetic of the products requires."""
    PRODUCTS[nest.arithmetic].emit_rounded(code, nest)


def emit_products(code: Code, nest: ProductNest, machine: Machine, schedule: ProductSchedule) -> None:
    """Computes all rows of all segments."""
    dot = PRODUCTS[nest.arithmetic].dot
    with nullcontext() if dot is None else dot.known(machine.processor.features):
        for segment in nest.segments:
            with code.scope():
                emit_segment(code, nest, segment, schedule)


def emit_segment(code: Code, nest: ProductNest, segment: Segment, schedule: ProductSchedule) -> None:
    """Computes the products of one segment, one block of outputs after another."""
    frame, tile, blocks = code.frame, _Tile(code, nest, segment, schedule), -(-segment.columns // OUTPUTS)
    tile_rows = schedule.tile_rows
    if nest.experts is None:
        with frame.divided(blocks) as block:
            weights = [tile.window(each, block) for each in segment.matrices]
            _emit_rows(tile, weights, block, tile_rows, code.index(volume(nest.rows)), lambda row: row)
        return
    grouped = Grouped(code, nest)
    with frame.divided(grouped.used() * integer(blocks)) as piece:
        number = let(tirx.truncdiv(piece, integer(blocks)))
        block = let(piece - number * integer(blocks))
        expert = grouped.expert(number)
        first, count = grouped.rows(expert)
        weights = [tile.window(each, expert * integer(blocks) + block) for each in segment.matrices]
        _emit_rows(tile, weights, block, tile_rows, count, lambda row: grouped.row(first + row))


def _emit_rows(
    tile: "_Tile", weights: Sequence[Memory], block: Term, tile_rows: int, count: Term, row: Callable[[Term], Term]
) -> None:
    """Computes a block of outputs for `count` rows in tiles; `row` gives a row of the nest by its number."""
    sizes = smaller_tiles(tile_rows)
    largest = sizes[-1] if sizes else 0

    def emit(size: int, first: Term) -> None:
        numbers = [let(tirx.min(first + integer(each), count - integer(1))) for each in range(size)]
        tile.emit(weights, block, [row(each) for each in numbers])

    turns = let(tirx.truncdiv(count + integer(tile_rows - 1 - largest), integer(tile_rows)))
    with T.serial(0, turns) as turn:
        emit(tile_rows, let(turn * tile_rows))
    rest = let(count - turns * tile_rows)
    for below, size in zip([0, *sizes], sizes, strict=False):
        with when(tirx.And(rest > integer(below), rest <= integer(size))):
            emit(size, let(turns * tile_rows))


def smaller_tiles(tile_rows: int) -> list[int]:
    """Tile sizes for the last rows, ascending. Too large a tile recomputes its last row, with the same result."""
    return [size for size in (1, 2, 4, 6, 8) if size < tile_rows]


class _Tile:
    """A few rows of one block of outputs."""

    def __init__(self, code: Code, nest: ProductNest, segment: Segment, schedule: ProductSchedule) -> None:
        self.code, self.nest, self.segment = code, nest, segment
        self.features, self.outputs, self.held = nest.features, segment.columns, held(nest)
        self.products = PRODUCTS[nest.arithmetic](code, nest, schedule)

    def form(self, matrix: Matrix) -> WeightFormat:
        """The weight's format in memory."""
        return self.code.formats[matrix.weight.element]

    def window(self, matrix: Matrix, block: Term) -> Memory:
        """A block of a matrix's weights; those of an expert follow those of the expert before it."""
        form, frame = self.form(matrix), self.code.frame
        words = integer(form.block_words(self.features), "int64")
        slot = frame.slot(self.code.slots[matrix.weight])
        return frame.window(form.region, slot + block.astype("int64") * words)

    def emit(self, weights: Sequence[Memory], block: Term, rows: Sequence[Term]) -> None:
        inputs, experts = rows, self.nest.experts
        if experts is not None and experts.shared > 1:
            inputs = [let(tirx.truncdiv(row, integer(experts.shared))) for row in rows]
        for number, (matrix, weight) in enumerate(zip(self.segment.matrices, weights, strict=True)):
            self._results(number, self._sums(self.form(matrix), weight, inputs), block, rows)

    def _sums(self, form: WeightFormat, weight: Memory, rows: Sequence[Term]) -> list[list[Memory]]:
        """Computes x w^T of the tile."""
        sums = [[local(LANES) for _ in range(VECTORS)] for _ in rows]
        for row in sums:
            for vector in row:
                store(vector, splat(0.0), 0)
        self.products.add(form, weight, rows, sums)
        return sums

    def _results(self, number: int, sums: list[list[Memory]], block: Term, rows: Sequence[Term]) -> None:
        """Stores a matrix's sums until the last one's are ready, or, for the last, writes what is computed from all."""
        code, unit, lane = self.code, Lane("block", -(-self.outputs // OUTPUTS)), Lane("lane", LANES)
        code.bound[unit] = block
        for row, at in enumerate(rows):
            for vector in range(VECTORS):
                start = Index.of(unit).times(OUTPUTS).plus(vector * LANES)

                def one(here: Index, total: Term, start: Index = start, at: Term = at) -> None:
                    code.bound[self.nest.row] = at
                    self._outputs(number, total, start.plus(here))

                self._lanes(vector, code.index(start), sums[row][vector], lane, one)

    def _outputs(self, number: int, total: Term, column: Index) -> None:
        """A matrix's row at a column: stores the sum, or, for the last matrix, writes all outputs."""
        code, segment = self.code, self.segment
        place = (*unflat(self.nest.rows, Index.of(self.nest.row)), column)
        matrix, others = segment.matrices[number], self.held[: len(segment.matrices) - 1]
        if matrix.bias is not None:
            total = total + code.render(matrix.bias.substitute({segment.column: column}.get))
        if matrix is not segment.matrices[-1]:
            code.write(others[number], place, total)
            return
        products: dict[Buffer, Term] = {matrix.product: let(total)}
        for other, buffer in zip(segment.matrices, others, strict=False):
            products[other.product] = code.render(Load(buffer, place))
        for taken in segment.outputs:
            assert isinstance(taken.to, Buffer)
            here = taken.at(column)
            for load_ in loads(here.value):
                if load_.buffer in products:
                    code.know(load_, products[load_.buffer])
            code.write(taken.to, here.index, code.render(here.value))

    def _lanes(self, vector: int, start: Term, sums: Memory, lane: Lane, one: Callable[[Index, Term], None]) -> None:
        """All lanes at once where the vector is whole; a loop over those that exist where the outputs end inside it."""
        code, here = self.code, Index.of(lane)

        def whole() -> None:
            with code.vectorized(lane) as at:
                one(here, sums[at])

        if self.outputs % OUTPUTS == 0:
            whole()
            return
        if self.outputs >= (vector + 1) * LANES:
            with when(start + integer(LANES) <= integer(self.outputs)):
                whole()
        last, rest = divmod(self.outputs % OUTPUTS, LANES)
        if rest and vector == last:
            with when(tirx.EQ(start, integer(self.outputs - rest))):
                copied = local(LANES)  # the sums themselves stay in registers, as no index into them varies
                store(copied, load(sums, 0), 0)
                with code.serial(lane, 0, rest) as at:
                    one(here, copied[at])
