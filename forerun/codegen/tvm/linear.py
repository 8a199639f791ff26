"""The skinny linear: weights in blocks of 32 outputs streamed once, rows in register tiles.

Each output is one chain of fma over the input features in order, in every tile, so a row's bits do not depend on how
many rows there are. Blocks of outputs are divided among the threads; a block stays in the cache from one tile of rows
to the next. Where a tile has many rows for the bytes it reads, so that the processor's own prefetching falls behind the
arithmetic, reads run 6 KiB ahead of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from forerun import ir
from forerun.codegen.tvm.builder import Buffer, Expr, fma, integer, let, load, local, splat, store, when
from forerun.codegen.tvm.expressions import Expressions, Index, Stored
from forerun.codegen.tvm.formats import STEP, VECTORS, Column, WeightFormat
from forerun.codegen.tvm.target import LANES, OUTPUTS
from forerun.codegen.tvm.untyped import T, tirx

AHEAD = 1536
"""Words between a prefetch and its use: 6 KiB."""

NEAREST = 4
"""LLVM's locality of a prefetch into the first-level cache is 3, into the second 2."""

LINE = 16
"""Words of a cache line."""


@dataclass
class Product:
    """One `spec.linear` of a bundle; `raw` is where its result is kept, if it is."""

    value: ir.SSAValue
    weight: Stored
    bias: Stored | None
    raw: Stored | None

    @property
    def form(self) -> WeightFormat:
        """How the weight lies in memory."""
        assert self.weight.format is not None
        return self.weight.format


@dataclass
class Bundle:
    """Products of one input over the same outputs, and the values computed from them in the same pass."""

    x: Stored
    products: list[Product]
    epilogues: list[tuple[ir.SSAValue, Stored]] = field(default_factory=list[tuple[ir.SSAValue, Stored]])


def emit_linear(context: Expressions, bundle: Bundle, tile_rows: int, rows: Index) -> None:
    """All rows of a bundle's products."""
    frame = context.frame
    features = bundle.x.dims[-1]
    outputs = bundle.products[0].weight.dims[0]
    assert isinstance(features, int)
    assert isinstance(outputs, int)
    blocks = -(-outputs // OUTPUTS)
    tile = _Tile(context, bundle, features, outputs)
    with frame.divided(blocks) as block:
        weights = [tile.window(each, block) for each in bundle.products]
        count = integer(rows) if isinstance(rows, int) else rows
        sizes = smaller_tiles(tile_rows)
        largest = sizes[-1] if sizes else 0
        turns = let(tirx.truncdiv(count + integer(tile_rows - 1 - largest), integer(tile_rows)))
        with frame.serial(0, turns) as turn:
            tile.emit(weights, block, tile_rows, let(turn * tile_rows), count)
        rest = let(count - turns * tile_rows)
        for below, size in zip([0, *sizes], sizes, strict=False):
            with when(tirx.And(rest > integer(below), rest <= integer(size))):
                tile.emit(weights, block, size, let(turns * tile_rows), count)


def smaller_tiles(tile_rows: int) -> list[int]:
    """Tiles for the last rows, ascending. A tile that is too large computes its last row again, to the same effect."""
    return [size for size in (1, 2, 4, 6, 8) if size < tile_rows]


class _Tile:
    """A few rows of one block of outputs."""

    def __init__(self, context: Expressions, bundle: Bundle, features: int, outputs: int) -> None:
        self.context, self.bundle, self.features, self.outputs = context, bundle, features, outputs
        self.x = context.window(bundle.x)

    def window(self, product: Product, block: Expr) -> Buffer:
        """A product's block of weights."""
        form, frame = product.form, self.context.frame
        words = integer(form.block_words(self.features), "int64")
        return frame.window(form.region, frame.slot(product.weight.slot) + block.astype("int64") * words)

    def emit(self, weights: Sequence[Buffer], block: Expr, size: int, first: Expr, count: Expr) -> None:
        rows = [let(tirx.min(first + integer(row), count - integer(1))) for row in range(size)]
        *inner, last = self.bundle.products
        for product, weight in zip(inner, weights, strict=False):
            sums = self._sums(product.form, weight, rows)
            self._results(product, sums, block, rows, [])
        sums = self._sums(last.form, weights[-1], rows)
        self._results(last, sums, block, rows, self.bundle.epilogues)

    def _sums(self, form: WeightFormat, weight: Buffer, rows: Sequence[Expr]) -> list[list[Buffer]]:
        """x w^T of the tile: one chain over the features for each row and output."""
        sums = [[local(LANES) for _ in range(VECTORS)] for _ in rows]
        for row in sums:
            for vector in row:
                store(vector, splat(0.0), 0)
        starts = [let(row * integer(self.features)) for row in rows]

        locality = NEAREST - form.level

        def turn(column: Column, span: Expr, step: Expr, part: int) -> None:
            if len(rows) >= form.prefetched:
                for word in range(part * form.words, (part + 1) * form.words):
                    if word % LINE == 0:
                        here = form.start(span) + step * integer(STEP * form.words)
                        ahead = weight[here + integer(AHEAD + word)]
                        T.evaluate(tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(ahead), 0, locality, 1))
            columns = column(step, part)
            feature = span * integer(form.span) + step * integer(STEP) + integer(part)
            for row, start in enumerate(starts):
                x = splat(self.x[start + feature])
                for vector in range(VECTORS):
                    store(sums[row][vector], fma(x, columns[vector], load(sums[row][vector], 0)), 0)

        def features(count: int, span: Expr) -> None:
            column = form.opened(weight, span)
            with self.context.frame.serial(0, count // STEP) as step:
                for part in range(STEP):
                    turn(column, span, step, part)
            for part in range(count % STEP):
                turn(column, span, integer(count // STEP), part)

        if form.span:
            with self.context.frame.serial(0, self.features // form.span) as span:
                features(form.span, span)
        else:
            features(self.features, integer(0))
        return sums

    def _results(
        self,
        product: Product,
        sums: list[list[Buffer]],
        block: Expr,
        rows: Sequence[Expr],
        epilogues: Sequence[tuple[ir.SSAValue, Stored]],
    ) -> None:
        """Write the sums, with bias, and what is computed from them."""
        written = [(product.value, product.raw)] if product.raw is not None else []
        for row, at in enumerate(rows):
            for vector in range(VECTORS):
                start = let(block * integer(OUTPUTS) + integer(vector * LANES))

                def one(lane: Index, sums: Buffer = sums[row][vector], start: Expr = start, at: Expr = at) -> None:
                    output = self.context.frame.simplify(start + lane)
                    result = sums[lane]
                    if product.bias is not None:
                        result = result + self.context.window(product.bias)[output]
                    result = let(result)
                    self.context.computed[product.value] = lambda index: result
                    for _, destination in written:
                        self.context.write(
                            destination, [*self.context.unflat(destination.dims[:-1], at), output], result
                        )
                    for value, destination in epilogues:
                        index = [*self.context.unflat(destination.dims[:-1], at), output]
                        self.context.write(destination, index, self.context.definition(value, index))
                    del self.context.computed[product.value]

                self._lanes(start, one)

    def _lanes(self, start: Expr, one: object) -> None:
        """All lanes at once where the vector is whole, the existing ones singly where outputs end inside it."""
        assert callable(one)
        if self.outputs % LANES == 0 and self.outputs % OUTPUTS == 0:
            with self.context.frame.vectorized() as lane:
                one(lane)
            return
        with when(start + integer(LANES) <= integer(self.outputs)), self.context.frame.vectorized() as lane:
            one(lane)
        if rest := self.outputs % LANES:
            with when(tirx.EQ(start, integer(self.outputs - rest))):
                for lane in range(rest):
                    one(integer(lane))
