"""Position-aligned tree attention: online softmax over blocks of P absolute positions, whatever slots they lie in.

The cache keeps, for each block of P slots and each layer, keys as [Hkv, D, P] (P keys side by side: scores need no sum
across lanes) and values as [Hkv, P, Dv]. A block whose history lies in one cached block, in order, is read in place;
any other is first gathered in position order. The arithmetic after that is the same, so a row's bits do not depend on
where its history lies. Invisible keys have score -inf, weight exactly 0, and their values are not read.
"""

from dataclasses import dataclass, field

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
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import tirx

LOWEST = -3.0e38
"""The running maximum before the first key: finite, so that a score of -inf gives exp(-inf) = 0 and never NaN."""

ACCUMULATORS = 24
"""Vectors of results that one unit of work keeps."""

CHAINS = 8
"""Independent fma chains that hide the latency of the scores' sums."""


def words_of(heads: int, key_dim: int, value_dim: int, block: int) -> int:
    """float32 numbers that one layer's keys and values of one block take."""
    return heads * block * (key_dim + padded(value_dim))


def padded(size: int) -> int:
    """Whole vectors."""
    return -(-size // LANES) * LANES


@dataclass(frozen=True)
class Layer:
    """One layer's cache: `slot` holds its offset inside a block's record, `record` the numbers of a whole record."""

    heads: int
    key_dim: int
    value_dim: int
    block: int
    slot: int
    record: int

    def key_place(self, head: Expr, dim: Expr, lane: Expr) -> Expr:
        return (head * integer(self.key_dim) + dim) * integer(self.block) + lane

    def value_place(self, head: Expr, lane: Expr, dim: Expr) -> Expr:
        keys = integer(self.heads * self.key_dim * self.block)
        return keys + (head * integer(self.block) + lane) * integer(padded(self.value_dim)) + dim


def layer_window(context: Expressions, layer: Layer, block: Expr) -> Buffer:
    """The layer's keys and values of one block."""
    frame = context.frame
    return frame.window("state", block.astype("int64") * frame.slot(layer.record) + frame.slot(layer.slot))


def emit_cache_write(context: Expressions, layer: Layer, operands: list[ir.SSAValue], row: Expr) -> None:
    """Write one row's keys and values to its slot."""
    keys, values, slots = operands
    frame = context.frame
    slot = let(context.element(slots, [row]))
    window = layer_window(context, layer, let(tirx.truncdiv(slot, integer(layer.block))))
    lane = let(tirx.truncmod(slot, integer(layer.block)))
    with frame.serial(0, layer.heads) as head:
        with frame.serial(0, layer.key_dim) as dim:
            store(window, context.element(keys, [row, head, dim]), layer.key_place(head, dim, lane), 1)
        with frame.serial(0, layer.value_dim) as dim:
            store(window, context.element(values, [row, head, dim]), layer.value_place(head, lane, dim), 1)
        for dim in range(layer.value_dim, padded(layer.value_dim)):
            store(window, number(0.0), layer.value_place(head, lane, integer(dim)), 1)


@dataclass
class Attention:
    """A `spec.tree_attention`: its operands and options."""

    layer: Layer
    query: ir.SSAValue
    positions: ir.SSAValue
    sequences: ir.SSAValue
    bases: ir.SSAValue
    paths: ir.SSAValue
    tables: ir.SSAValue
    heads: int
    scale: float
    softcap: float | None
    bias_by: str | None
    extra: dict[str, ir.SSAValue] = field(default_factory=dict[str, ir.SSAValue])

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
    """All rows and heads; a unit of work is a row and the heads that are taken together."""
    units = attention.heads // attention.together
    with context.frame.divided(context.size(result.dims[0]) * integer(units)) as unit:
        row = let(tirx.truncdiv(unit, integer(units)))
        head = let(tirx.truncmod(unit, integer(units)) * integer(attention.together))
        _Unit(context, attention, row, head).emit(result)


class _Unit:
    """One row, several query heads of one key head."""

    def __init__(self, context: Expressions, attention: Attention, row: Expr, head: Expr) -> None:
        self.context, self.attention, self.row, self.head = context, attention, row, head
        layer = self.layer = attention.layer
        self.count = attention.together
        self.key_head = let(tirx.truncdiv(head, integer(attention.heads // layer.heads)))
        element = context.element
        self.position = let(element(attention.positions, [row]))
        self.sequence = let(element(attention.sequences, [row]))
        self.base = let(element(attention.bases, [row]))
        self.first = (
            let(tirx.max(element(attention.extra["first"], [row]), integer(0)))
            if "first" in attention.extra
            else integer(0)
        )
        self.query = local(self.count * layer.key_dim)
        self.keys = local(layer.key_dim * layer.block)
        self.values = local(layer.block * padded(layer.value_dim))
        self.weights = [local(layer.block) for _ in range(self.count)]
        self.scores = [[local(LANES) for _ in range(layer.block // LANES)] for _ in range(self.count)]
        self.largest = [local(1) for _ in range(self.count)]
        self.total = [local(1) for _ in range(self.count)]
        self.vectors = padded(layer.value_dim) // LANES
        self.results = [[local(LANES) for _ in range(self.vectors)] for _ in range(self.count)]

    def emit(self, result: Stored) -> None:
        frame, layer, zero = self.context.frame, self.layer, integer(0)
        for index in range(self.count):
            with frame.serial(0, layer.key_dim) as dim:
                element = self.context.element(self.attention.query, [self.row, self.head + integer(index), dim])
                store(self.query, element, integer(index * layer.key_dim) + dim, 1)
            if "sinks" in self.attention.extra:
                store(
                    self.largest[index],
                    self.context.element(self.attention.extra["sinks"], [self.head + integer(index)]),
                    zero,
                    1,
                )
                store(self.total[index], number(1.0), zero, 1)
            else:
                store(self.largest[index], number(LOWEST), zero, 1)
                store(self.total[index], number(0.0), zero, 1)
            for vector in self.results[index]:
                store(vector, splat(0.0), 0)
        start = let(tirx.truncdiv(self.first, integer(layer.block)))
        stop = let(tirx.truncdiv(self.position, integer(layer.block)) + integer(1))
        with frame.serial(start, stop) as block:
            self._block(block)
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

    def _slot(self, position: Expr) -> Expr:
        """The slot of a position of the row's history."""
        layer = self.layer
        found = local(1, "int32")

        def committed() -> None:
            block = self.context.element(
                self.attention.tables, [self.sequence, tirx.truncdiv(position, integer(layer.block))]
            )
            store(found, block * integer(layer.block) + tirx.truncmod(position, integer(layer.block)), integer(0), 1)

        def path() -> None:
            store(found, self.context.element(self.attention.paths, [self.row, position - self.base]), integer(0), 1)

        otherwise(position < self.base, committed, path)
        return let(found[integer(0)])

    def _block(self, block: Expr) -> None:
        """One block of positions: in place where it lies in one cached block in order, else gathered."""
        layer, zero = self.layer, integer(0)
        begin = let(block * integer(layer.block))
        low = let(tirx.max(self.first - begin, zero))
        high = let(tirx.min(self.position - begin + integer(1), integer(layer.block)))
        origin = let(self._slot(begin + low) - low)
        scattered = local(1, "int32")
        store(
            scattered,
            tirx.Select(tirx.NE(tirx.truncmod(origin, integer(layer.block)), zero), integer(1), zero),
            zero,
            1,
        )
        path = let(tirx.max(low, self.base - begin))
        with (
            self.context.frame.serial(path, tirx.max(path, high)) as lane,
            when(tirx.NE(self._slot(begin + lane), origin + lane)),
        ):
            store(scattered, integer(1), zero, 1)

        def in_place() -> None:
            window = layer_window(self.context, layer, tirx.truncdiv(origin, integer(layer.block)))
            keys, values = layer.key_place(self.key_head, zero, zero), layer.value_place(self.key_head, zero, zero)
            self._scores(window, let(keys))
            self._softmax(begin, low, high)
            self._values(window, let(values), low, high)

        def gathered() -> None:
            self._gather(begin, low, high)
            self._scores(self.keys, zero)
            self._softmax(begin, low, high)
            self._values(self.values, zero, low, high)

        otherwise(tirx.EQ(scattered[zero], zero), in_place, gathered)

    def _gather(self, begin: Expr, low: Expr, high: Expr) -> None:
        frame, layer = self.context.frame, self.layer
        with frame.serial(0, layer.key_dim * layer.block // LANES) as chunk:
            store(self.keys, splat(0.0), chunk * integer(LANES))
        with frame.serial(low, high) as lane:
            slot = self._slot(begin + lane)
            window = layer_window(self.context, layer, let(tirx.truncdiv(slot, integer(layer.block))))
            own = let(tirx.truncmod(slot, integer(layer.block)))
            with frame.serial(0, layer.key_dim) as dim:
                store(self.keys, window[layer.key_place(self.key_head, dim, own)], dim * integer(layer.block) + lane, 1)
            for vector in range(self.vectors):
                place = layer.value_place(self.key_head, own, integer(vector * LANES))
                store(
                    self.values, load(window, place), lane * integer(padded(layer.value_dim)) + integer(vector * LANES)
                )

    def _scores(self, keys: Buffer, start: Expr) -> None:
        """q k for P keys: features are summed in `chains` interleaved chains, then as a tree."""
        layer = self.layer
        vectors = layer.block // LANES
        chains = 1
        while chains * 2 * self.count * vectors <= CHAINS and layer.key_dim % (chains * 2) == 0:
            chains *= 2
        sums = [[[local(LANES) for _ in range(chains)] for _ in range(vectors)] for _ in range(self.count)]
        for head in sums:
            for vector in head:
                for chain in vector:
                    store(chain, splat(0.0), 0)
        with self.context.frame.serial(0, layer.key_dim // chains) as step:
            for chain in range(chains):
                dim = step * integer(chains) + integer(chain)
                columns = [
                    let(load(keys, start + dim * integer(layer.block) + integer(vector * LANES)))
                    for vector in range(vectors)
                ]
                for head in range(self.count):
                    query = splat(self.query[integer(head * layer.key_dim) + dim])
                    for vector in range(vectors):
                        held = sums[head][vector][chain]
                        store(held, fma(query, columns[vector], load(held, 0)), 0)
        for head in range(self.count):
            for vector in range(vectors):
                total = each([load(chain, 0) for chain in sums[head][vector]], lambda x, y: let(x + y))
                store(self.scores[head][vector], multiply(total, splat(self.attention.scale)), 0)

    def _softmax(self, begin: Expr, low: Expr, high: Expr) -> None:
        """Scores to weights, and the running maximum, total and results rescaled."""
        zero = integer(0)
        for head in range(self.count):
            scores = self.scores[head]
            for vector, buffer in enumerate(scores):
                with self.context.frame.vectorized() as lane:
                    place = lane + integer(vector * LANES)
                    score = self._adjusted(buffer[lane], head, begin + place)
                    visible = tirx.And(place >= low, place < high)
                    store(buffer, tirx.Select(visible, score, number(-float("inf"))), lane, 1)
            best = each([load(buffer, 0) for buffer in scores], lambda x, y: let(tirx.max(x, y)))
            peak = local(LANES)
            store(peak, best, 0)
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
        if self.attention.softcap is not None:
            cap = self.attention.softcap
            score = multiply(tanh(score / number(cap)), number(cap))
        if "bias" not in self.attention.extra:
            return score
        bias = self.attention.extra["bias"]
        dims = ir.tensor_type(bias).dims
        own = integer(0) if dims[0] == 1 else self.head + integer(head)
        index = position if self.attention.bias_by == "key" else self.position - position
        length = self.context.size(dims[1])
        last = integer(length - 1) if isinstance(length, int) else length - integer(1)
        return score + self.context.element(bias, [own, tirx.max(tirx.min(index, last), integer(0))])

    def _values(self, values: Buffer, start: Expr, low: Expr, high: Expr) -> None:
        """Add the visible keys' values, in order of position."""
        width = integer(padded(self.layer.value_dim))
        with self.context.frame.serial(low, high) as lane:
            row = [let(load(values, start + lane * width + integer(v * LANES))) for v in range(self.vectors)]
            for head in range(self.count):
                weight = splat(self.weights[head][lane])
                for vector in range(self.vectors):
                    held = self.results[head][vector]
                    store(held, fma(weight, row[vector], load(held, 0)), 0)
