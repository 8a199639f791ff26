"""Position-aligned tree attention: online softmax over spans of 64 absolute positions, whatever slots they lie in.

Where a row sees all of a span and has committed it, the span's blocks are
read together, each number of a query being loaded once for all of them. Elsewhere they are taken one by one: a block
whose history lies in one cached block, in order, is read in place, any other is first gathered in position order. A
score is one chain over the features and a result one chain over the positions either way, so a row's bits do not
depend on where its history lies. Invisible keys have score -inf, weight exactly 0, and their values are not read.
"""

from dataclasses import dataclass

from forerun import ir
from forerun.codegen.tvm.builder import (
    Buffer,
    Expr,
    across,
    each,
    fma,
    integer,
    let,
    load,
    local,
    multiply,
    number,
    otherwise,
    splat,
    store,
    when,
)
from forerun.codegen.tvm.expressions import Expressions, Stored
from forerun.codegen.tvm.functions import exp, tanh
from forerun.codegen.tvm.records import Layer, Records, padded
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import T, tirx

LOWEST = -3.0e38
"""The running maximum before the first key: finite, so that a score of -inf gives exp(-inf) = 0 and never NaN."""

SPAN = 64
"""Positions that share a running maximum; a longer block is a span of its own."""

ACCUMULATORS = 24
"""Vectors of results, and of scores, that one unit of work keeps in registers."""

TURN = 4
"""Features, or positions, of one turn of the inner loops."""


@dataclass
class Attention:
    """A `spec.tree_attention` of a layer of the cache; `heads` are the queries'."""

    layer: Layer
    operation: ir.TreeAttention
    heads: int
    scale: float

    @property
    def together(self) -> int:
        """Query heads of one key head that one unit of work takes."""
        groups = self.heads // self.layer.heads
        vectors = padded(self.layer.value_dim) // LANES
        return max(
            size
            for size in range(1, groups + 1)
            if groups % size == 0 and (size == 1 or size * vectors <= ACCUMULATORS)
        )


def emit_attention(context: Expressions, attention: Attention, result: Stored) -> None:
    """All rows and heads; a unit of work is a row and the heads that are taken together.

    The rows of a head follow one another, so that they find its keys and values in the processor's cache.
    """
    rows = let(context.size(result.dims[0]))
    with context.frame.divided(rows * integer(attention.heads // attention.together)) as unit:
        head = let(tirx.truncdiv(unit, rows) * integer(attention.together))
        _Unit(context, attention, let(tirx.truncmod(unit, rows)), head).emit(result)


class _Unit:
    """One row, several query heads of one key head."""

    def __init__(self, context: Expressions, attention: Attention, row: Expr, head: Expr) -> None:
        self.context, self.attention, self.row, self.head = context, attention, row, head
        layer = self.layer = attention.layer
        self.count = attention.together
        self.blocks = max(1, SPAN // layer.block)
        self.span = self.blocks * layer.block
        self.key_head = let(tirx.truncdiv(head, integer(attention.heads // layer.heads)))
        element = context.element
        operation = self.operation = attention.operation
        self.position = let(element(operation.positions, [row]))
        self.sequence = let(element(operation.sequences, [row]))
        self.base = let(element(operation.bases, [row]))
        first = operation.first
        self.first = integer(0) if first is None else let(tirx.max(element(first, [row]), integer(0)))
        self.vectors = padded(layer.value_dim) // LANES
        self.query = local(self.count * layer.key_dim)
        self.keys = local(self.blocks * layer.key_dim * layer.block)
        self.values = local(self.span * padded(layer.value_dim))
        self.homes = local(self.blocks, "int32")
        self.weights = [local(self.span) for _ in range(self.count)]
        self.largest = [local(1) for _ in range(self.count)]
        self.total = [local(1) for _ in range(self.count)]
        self.results = [[local(LANES) for _ in range(self.vectors)] for _ in range(self.count)]

    def emit(self, result: Stored) -> None:
        frame, layer, zero = self.context.frame, self.layer, integer(0)
        for index in range(self.count):
            with frame.serial(0, layer.key_dim) as dim:
                element = self.context.element(self.operation.query, [self.row, self.head + integer(index), dim])
                store(self.query, element, integer(index * layer.key_dim) + dim, 1)
            if self.operation.sinks is not None:
                sink = self.context.element(self.operation.sinks, [self.head + integer(index)])
                store(self.largest[index], sink, zero, 1)
                store(self.total[index], number(1.0), zero, 1)
            else:
                store(self.largest[index], number(LOWEST), zero, 1)
                store(self.total[index], number(0.0), zero, 1)
            for vector in self.results[index]:
                store(vector, splat(0.0), 0)
        start = let(tirx.truncdiv(self.first, integer(self.span)))
        stop = let(tirx.truncdiv(self.position, integer(self.span)) + integer(1))
        with frame.serial(start, stop) as span:
            self._span(let(span * integer(self.span)))
        for index in range(self.count):
            factor = let(self.total[index][zero])
            for vector in range(self.vectors):
                self._write(result, index, vector, factor)

    def _write(self, result: Stored, index: int, vector: int, total: Expr) -> None:
        size = min(LANES, self.layer.value_dim - vector * LANES)
        buffer = self.results[index][vector]

        def one(lane: Expr) -> None:
            at = [self.row, self.head + integer(index), lane + integer(vector * LANES)]
            self.context.write(result, at, buffer[lane] / total)

        if size == LANES:
            with self.context.frame.vectorized() as lane:
                one(lane)
            return
        for lane in range(size):
            one(integer(lane))

    def _span(self, begin: Expr) -> None:
        """The positions from `begin` on."""
        end = begin + integer(self.span)
        committed = let(tirx.min(self.base, self.position + integer(1)))
        whole = let(tirx.And(self.first <= begin, end <= committed))
        with when(tirx.And(tirx.EQ(self.row, integer(0)), end + integer(self.span) <= committed)):
            self._prefetch(end)
        otherwise(whole, lambda: self._scores_of_whole(begin), lambda: self._scores_of_part(begin))
        self._softmax(begin)
        otherwise(whole, lambda: self._values_of_whole(begin), lambda: self._values_of_part(begin))

    # --- a span that the row sees and has committed as a whole

    def _committed(self, records: Records, begin: Expr) -> list[Buffer]:
        """The cached blocks of the span."""
        first = let(tirx.truncdiv(begin, integer(self.layer.block)))
        tables = self.operation.block_tables
        numbers = [self.context.element(tables, [self.sequence, first + integer(b)]) for b in range(self.blocks)]
        return [records.window(self.context, let(each)) for each in numbers]

    def _scores_of_whole(self, begin: Expr) -> None:
        start = let(self.layer.key_place(self.key_head, integer(0), integer(0)))
        self._scores([(window, start) for window in self._committed(self.layer.keys, begin)], integer(0))

    def _values_of_whole(self, begin: Expr) -> None:
        start = let(self.layer.value_place(self.key_head, integer(0), integer(0)))
        block = self.layer.block
        for number_, window in enumerate(self._committed(self.layer.values, begin)):
            with self.context.frame.serial(0, block // TURN) as turn:
                for part in range(TURN):
                    lane = let(turn * integer(TURN) + integer(part))
                    self._value(window, start, lane, integer(number_ * block) + lane)

    def _prefetch(self, begin: Expr) -> None:
        """Ask for the keys and values of a span; the first row does, for the others find them in the cache."""
        for records, source, size in self._halves():
            origin = let(source)
            for window in self._committed(records, begin):
                with self.context.frame.serial(0, size // LANES) as line:
                    place = tirx.address_of(window[origin + line * integer(LANES)])
                    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", place, 0, 2, 1))

    def _halves(self) -> list[tuple[Records, Expr, int]]:
        """Keys and values, each with where those of the head begin in a block, and the numbers of a block."""
        layer, zero = self.layer, integer(0)
        keys, values = layer.key_place(self.key_head, zero, zero), layer.value_place(self.key_head, zero, zero)
        sizes = layer.key_dim * layer.block, layer.block * padded(layer.value_dim)
        return [(layer.keys, keys, sizes[0]), (layer.values, values, sizes[1])]

    # --- a span block by block

    def _scores_of_part(self, begin: Expr) -> None:
        with self.context.frame.serial(0, self.blocks) as block:
            low, high = self._visible(begin, block)
            with when(low < high):
                self._scores_of_block(block, let(begin + block * integer(self.layer.block)), low, high)

    def _visible(self, begin: Expr, block: Expr) -> tuple[Expr, Expr]:
        """The first visible position of a block, and the one behind the last, counted within the block."""
        origin = let(begin + block * integer(self.layer.block))
        low = let(tirx.max(self.first - origin, integer(0)))
        return low, let(tirx.min(self.position - origin + integer(1), integer(self.layer.block)))

    def _scores_of_block(self, block: Expr, begin: Expr, low: Expr, high: Expr) -> None:
        """In place where the block lies in one cached block in order (its home), else gathered (home -1)."""
        layer, zero = self.layer, integer(0)
        origin = let(self._slot(begin + low) - low)
        aligned = let(tirx.EQ(tirx.truncmod(origin, integer(layer.block)), zero))
        scattered = local(1, "int32")
        store(scattered, tirx.Select(aligned, zero, integer(1)), zero, 1)
        path = let(tirx.max(low, self.base - begin))
        with (
            self.context.frame.serial(path, tirx.max(path, high)) as lane,
            when(tirx.NE(self._slot(begin + lane), origin + lane)),
        ):
            store(scattered, integer(1), zero, 1)

        def in_place() -> None:
            home = let(tirx.truncdiv(origin, integer(layer.block)))
            store(self.homes, home, block, 1)
            start = let(layer.key_place(self.key_head, zero, zero))
            self._scores([(layer.keys.window(self.context, home), start)], block)

        def gathered() -> None:
            store(self.homes, integer(-1), block, 1)
            with when(aligned):
                self._copy_block(block, let(tirx.truncdiv(origin, integer(layer.block))))
            with self.context.frame.serial(low, high) as lane:
                slot = self._slot(begin + lane)
                with when(tirx.Or(tirx.NE(slot, origin + lane), tirx.Not(aligned))):
                    self._copy_lane(block, lane, slot)
            self._scores([(self.keys, let(block * integer(layer.key_dim * layer.block)))], block)

        otherwise(tirx.EQ(scattered[zero], zero), in_place, gathered)

    def _slot(self, position: Expr) -> Expr:
        """The slot of a position of the row's history."""
        layer = self.layer
        found = local(1, "int32")

        def committed() -> None:
            block = self.context.element(
                self.operation.block_tables, [self.sequence, tirx.truncdiv(position, integer(layer.block))]
            )
            store(found, block * integer(layer.block) + tirx.truncmod(position, integer(layer.block)), integer(0), 1)

        def path() -> None:
            store(found, self.context.element(self.operation.paths, [self.row, position - self.base]), integer(0), 1)

        otherwise(position < self.base, committed, path)
        return let(found[integer(0)])

    def _copy_block(self, block: Expr, home: Expr) -> None:
        """A cached block's keys and values to the gathered ones."""
        for target, (records, source, size) in zip((self.keys, self.values), self._halves(), strict=True):
            origin, window = let(source), records.window(self.context, home)
            with self.context.frame.serial(0, size // LANES) as chunk:
                there = block * integer(size) + chunk * integer(LANES)
                store(target, load(window, origin + chunk * integer(LANES)), there)

    def _copy_lane(self, block: Expr, lane: Expr, slot: Expr) -> None:
        """A cached slot's key and value to a lane of the gathered ones."""
        layer = self.layer
        home, own = layer.keys.home(slot)
        keys, values = (each.window(self.context, home) for each in (layer.keys, layer.values))
        with self.context.frame.serial(0, layer.key_dim) as dim:
            place = (block * integer(layer.key_dim) + dim) * integer(layer.block) + lane
            store(self.keys, keys[layer.key_place(self.key_head, dim, own)], place, 1)
        for vector in range(self.vectors):
            column = integer(vector * LANES)
            place = (block * integer(layer.block) + lane) * integer(padded(layer.value_dim)) + column
            store(self.values, load(values, layer.value_place(self.key_head, own, column)), place)

    def _values_of_part(self, begin: Expr) -> None:
        layer, zero = self.layer, integer(0)

        def add(values: Buffer, start: Expr, block: Expr, low: Expr, high: Expr) -> None:
            with self.context.frame.serial(low, high) as lane:
                self._value(values, start, lane, block * integer(layer.block) + lane)

        with self.context.frame.serial(0, self.blocks) as block:
            low, high = self._visible(begin, block)

            def in_place(block: Expr = block, low: Expr = low, high: Expr = high) -> None:
                window = layer.values.window(self.context, let(self.homes[block]))
                add(window, let(layer.value_place(self.key_head, zero, zero)), block, low, high)

            def gathered(block: Expr = block, low: Expr = low, high: Expr = high) -> None:
                add(self.values, let(block * integer(layer.block * padded(layer.value_dim))), block, low, high)

            with when(low < high):
                otherwise(self.homes[block] >= zero, in_place, gathered)

    # --- the arithmetic

    def _scores(self, blocks: list[tuple[Buffer, Expr]], first: Expr) -> None:
        """scale * q k for whole blocks, from block `first` of the span on: one chain over the features for each key."""
        layer = self.layer
        vectors = layer.block // LANES
        together = max(1, ACCUMULATORS // (len(blocks) * vectors))
        for start in range(0, self.count, together):
            heads = range(start, min(start + together, self.count))
            sums = {(head, b, v): local(LANES) for head in heads for b in range(len(blocks)) for v in range(vectors)}
            for held in sums.values():
                store(held, splat(0.0), 0)
            turn = next(size for size in (TURN, 2, 1) if layer.key_dim % size == 0)
            with self.context.frame.serial(0, layer.key_dim // turn) as step:
                for part in range(turn):
                    dim = let(step * integer(turn) + integer(part))
                    columns = {
                        (b, v): let(load(keys, origin + dim * integer(layer.block) + integer(v * LANES)))
                        for b, (keys, origin) in enumerate(blocks)
                        for v in range(vectors)
                    }
                    for head in heads:
                        query = splat(self.query[integer(head * layer.key_dim) + dim])
                        for (b, v), column in columns.items():
                            held = sums[head, b, v]
                            store(held, fma(query, column, load(held, 0)), 0)
            for (head, b, v), held in sums.items():
                place = (first + integer(b)) * integer(layer.block) + integer(v * LANES)
                store(self.weights[head], multiply(load(held, 0), splat(self.attention.scale)), place)

    def _softmax(self, begin: Expr) -> None:
        """Scores to weights, and the running maximum, total and results rescaled."""
        zero = integer(0)
        for head in range(self.count):
            scores = [local(LANES) for _ in range(self.span // LANES)]
            for vector, buffer in enumerate(scores):
                with self.context.frame.vectorized() as lane:
                    place = lane + integer(vector * LANES)
                    position = begin + place
                    score = self._adjusted(self.weights[head][place], head, position)
                    visible = tirx.And(position >= self.first, position <= self.position)
                    store(buffer, tirx.Select(visible, score, number(-float("inf"))), lane, 1)
            peak = local(LANES)
            store(peak, each([load(buffer, 0) for buffer in scores], lambda x, y: let(tirx.max(x, y))), 0)
            before = let(self.largest[head][zero])
            largest = let(tirx.max(before, across(peak, tirx.max)))
            decay = exp(before - largest)
            store(self.largest[head], largest, zero, 1)
            for vector, buffer in enumerate(scores):
                weight = exp(load(buffer, 0) - splat(largest))
                store(buffer, weight, 0)
                store(self.weights[head], weight, vector * LANES)
            total = local(LANES)
            store(total, each([load(buffer, 0) for buffer in scores], lambda x, y: let(x + y)), 0)
            added = across(total, lambda x, y: x + y)
            store(self.total[head], fma(self.total[head][zero], decay, added), zero, 1)
            for vector in self.results[head]:
                store(vector, multiply(load(vector, 0), splat(decay)), 0)

    def _adjusted(self, score: Expr, head: int, position: Expr) -> Expr:
        """The score with softcap and bias."""
        cap, bias = self.operation.softcap, self.operation.bias
        if cap is not None:
            score = multiply(tanh(score / number(cap)), number(cap))
        if bias is None:
            return score
        dims = ir.tensor_type(bias).dims
        own = integer(0) if dims[0] == 1 else self.head + integer(head)
        index = position if self.operation.bias_by == "key" else self.position - position
        length = self.context.size(dims[1])
        last = integer(length - 1) if isinstance(length, int) else length - integer(1)
        return score + self.context.element(bias, [own, tirx.max(tirx.min(index, last), integer(0))])

    def _value(self, values: Buffer, start: Expr, lane: Expr, place: Expr) -> None:
        """Add one position's value, of a weight at `place` of the span; positions come in order."""
        width = integer(padded(self.layer.value_dim))
        row = [let(load(values, start + lane * width + integer(v * LANES))) for v in range(self.vectors)]
        for head in range(self.count):
            weight = splat(self.weights[head][place])
            for vector in range(self.vectors):
                held = self.results[head][vector]
                store(held, fma(weight, row[vector], load(held, 0)), 0)
