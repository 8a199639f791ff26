"""Position-aligned tree attention: online softmax over spans of 64 absolute positions, whatever slots they lie in.

If a row sees all of a span and has committed it, the span's blocks are read together, and each number of a query is
loaded once for all of them. Otherwise blocks are handled one by one: a block whose history lies in one cached block, in
order, is read in place, any other is first gathered in position order. Either way a score is one chain over the
features and a result one chain over the positions, so a row's bits do not depend on where its history lies. Invisible
keys have score -inf and weight exactly 0, and their values are not read.
"""

from forerun.codegen.loops.index import size_of
from forerun.codegen.loops.nest import AttentionNest
from forerun.codegen.loops.states import StateLayout
from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import (
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
    vectorized,
    when,
)
from forerun.codegen.tvm.code import Code, Term
from forerun.codegen.tvm.schedules import AttentionSchedule, padded
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import T, tirx

LOWEST = -3.0e38
"""The running maximum before the first key: finite, so that a score of -inf gives exp(-inf) = 0 and never NaN."""

SPAN = 64
"""Positions that share a running maximum; a longer block is its own span."""


def emit_attention(code: Code, nest: AttentionNest, machine: Machine, schedule: AttentionSchedule) -> None:
    """Computes all rows and heads; a unit of work is a row and several heads (`AttentionSchedule.heads`).

    The rows of a head are consecutive, so that its keys and values stay in the processor's cache.
    """
    count, rows = schedule.heads, let(code.index(size_of(nest.rows)))
    with code.frame.divided(rows * integer(nest.heads // count)) as unit, code.scope():
        head = let(tirx.truncdiv(unit, rows) * integer(count))
        _Unit(code, nest, schedule, let(tirx.truncmod(unit, rows)), head).emit()


class _Unit:
    """One row and several query heads of one key head."""

    def __init__(self, code: Code, nest: AttentionNest, schedule: AttentionSchedule, row: Term, head: Term) -> None:
        self.code, self.nest, self.schedule, self.row, self.head = code, nest, schedule, row, head
        self.history = history = nest.history
        self.block, self.width = history.block, padded(nest.value_dim)
        self.count = schedule.heads
        self.blocks = max(1, SPAN // self.block)
        self.span = self.blocks * self.block
        self.key_head = let(tirx.truncdiv(head, integer(nest.heads // nest.groups)))
        code.bound[history.row] = row
        self.position, self.sequence, self.base = (
            let(code.render(each)) for each in (history.position, history.sequence, history.base)
        )
        self.first = integer(0) if nest.first is None else let(tirx.max(code.render(nest.first), integer(0)))
        self.vectors = self.width // LANES
        self.query = local(self.count * nest.key_dim)
        self.keys = local(self.blocks * nest.key_dim * self.block)
        self.values = local(self.span * self.width)
        self.homes = local(self.blocks, "int32")
        self.weights = [local(self.span) for _ in range(self.count)]
        self.largest = [local(1) for _ in range(self.count)]
        self.total = [local(1) for _ in range(self.count)]
        self.results = [[local(LANES) for _ in range(self.vectors)] for _ in range(self.count)]

    def emit(self) -> None:
        code, nest, zero = self.code, self.nest, integer(0)
        for index in range(self.count):
            head = self.head + integer(index)
            with code.serial(nest.dim, 0, nest.key_dim) as dim:
                store(self.query, code.at(nest.query, {nest.head: head}), integer(index * nest.key_dim) + dim, 1)
            largest = number(LOWEST) if nest.sinks is None else code.at(nest.sinks, {nest.head: head})
            store(self.largest[index], largest, zero, 1)
            store(self.total[index], number(0.0 if nest.sinks is None else 1.0), zero, 1)
            for vector in self.results[index]:
                store(vector, splat(0.0), 0)
        start = let(tirx.truncdiv(self.first, integer(self.span)))
        stop = let(tirx.truncdiv(self.position, integer(self.span)) + integer(1))
        with T.serial(start, stop) as span, code.scope():
            self._span(let(span * integer(self.span)))
        for index in range(self.count):
            factor = let(self.total[index][zero])
            for vector in range(self.vectors):
                self._write(index, vector, factor)

    # --- where keys and values lie in the records of a block

    def key_place(self, dim: Term, lane: Term) -> Term:
        return (self.key_head * integer(self.nest.key_dim) + dim) * integer(self.block) + lane

    def value_place(self, lane: Term, dim: Term) -> Term:
        return (self.key_head * integer(self.block) + lane) * integer(self.width) + dim

    def _write(self, index: int, vector: int, total: Term) -> None:
        size = min(LANES, self.nest.value_dim - vector * LANES)
        buffer = self.results[index][vector]

        def one(lane: Term) -> None:
            at = (self.row * integer(self.nest.heads) + self.head + integer(index)) * integer(self.nest.value_dim)
            place = at + lane + integer(vector * LANES)
            store(self.code.window(self.nest.result), buffer[lane] / total, place, 1)

        if size == LANES:
            with vectorized() as lane:
                one(lane)
            return
        for lane in range(size):
            one(integer(lane))

    def _span(self, begin: Term) -> None:
        """Processes the span of positions from `begin` on."""
        end = begin + integer(self.span)
        committed = let(tirx.min(self.base, self.position + integer(1)))
        whole = let(tirx.And(self.first <= begin, end <= committed))
        if (spans := self.schedule.prefetch) > 0:
            ahead = end if spans == 1 else let(begin + integer(spans * self.span))
            with when(tirx.And(tirx.EQ(self.row, integer(0)), ahead + integer(self.span) <= committed)):
                self._prefetch(ahead)
        otherwise(whole, lambda: self._scores_of_whole(begin), lambda: self._scores_of_part(begin))
        self._softmax(begin)
        otherwise(whole, lambda: self._values_of_whole(begin), lambda: self._values_of_part(begin))

    # --- a span that the row sees and has committed entirely

    def _committed(self, records: StateLayout, begin: Term) -> list[Memory]:
        """Returns the cached blocks of the span."""
        first, tables = let(tirx.truncdiv(begin, integer(self.block))), self.history.tables
        numbers = [self.code.get(tables, self.sequence, first + integer(b)) for b in range(self.blocks)]
        return [self.code.block_window(records.buffer, each) for each in numbers]

    def _scores_of_whole(self, begin: Term) -> None:
        start = let(self.key_place(integer(0), integer(0)))
        self._scores([(window, start) for window in self._committed(self.nest.keys, begin)], integer(0))

    def _values_of_whole(self, begin: Term) -> None:
        start = let(self.value_place(integer(0), integer(0)))
        block = self.block
        for number_, window in enumerate(self._committed(self.nest.values, begin)):
            unroll = self.schedule.turn(block)
            with T.serial(0, block // unroll) as turn:
                for part in range(unroll):
                    lane = let(turn * integer(unroll) + integer(part))
                    self._value(window, start, lane, integer(number_ * block) + lane)

    def _prefetch(self, begin: Term) -> None:
        """Prefetches the keys and values of a span; only the first row does: the others find them in the cache."""
        for records, source, size in self._halves():
            origin = let(source)
            for window in self._committed(records, begin):
                with T.serial(0, size // LANES) as line:
                    place = tirx.address_of(window[origin + line * integer(LANES)])
                    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", place, 0, 2, 1))

    def _halves(self) -> list[tuple[StateLayout, Term, int]]:
        """Keys and values, each with the offset of the head's in a block, and their size in a block."""
        zero, nest = integer(0), self.nest
        sizes = nest.key_dim * self.block, self.block * self.width
        return [
            (nest.keys, self.key_place(zero, zero), sizes[0]),
            (nest.values, self.value_place(zero, zero), sizes[1]),
        ]

    # --- a span block by block

    def _scores_of_part(self, begin: Term) -> None:
        with T.serial(0, self.blocks) as block:
            low, high = self._visible(begin, block)
            with when(low < high):
                self._scores_of_block(block, let(begin + block * integer(self.block)), low, high)

    def _visible(self, begin: Term, block: Term) -> tuple[Term, Term]:
        """The first visible position of a block, and the one after the last, relative to the block."""
        origin = let(begin + block * integer(self.block))
        low = let(tirx.max(self.first - origin, integer(0)))
        return low, let(tirx.min(self.position - origin + integer(1), integer(self.block)))

    def _scores_of_block(self, block: Term, begin: Term, low: Term, high: Term) -> None:
        """Scores of a block: in place if it lies in one cached block in order (its home), else gathered (home -1)."""
        zero = integer(0)
        origin = let(self._slot(begin + low) - low)
        aligned = let(tirx.EQ(tirx.truncmod(origin, integer(self.block)), zero))
        scattered = local(1, "int32")
        store(scattered, tirx.Select(aligned, zero, integer(1)), zero, 1)
        path = let(tirx.max(low, self.base - begin))
        with (
            T.serial(path, tirx.max(path, high)) as lane,
            when(tirx.NE(self._slot(begin + lane), origin + lane)),
        ):
            store(scattered, integer(1), zero, 1)

        def in_place() -> None:
            home = let(tirx.truncdiv(origin, integer(self.block)))
            store(self.homes, home, block, 1)
            start = let(self.key_place(zero, zero))
            self._scores([(self.code.block_window(self.nest.keys.buffer, home), start)], block)

        def gathered() -> None:
            store(self.homes, integer(-1), block, 1)
            with when(aligned):
                self._copy_block(block, let(tirx.truncdiv(origin, integer(self.block))))
            with T.serial(low, high) as lane:
                slot = self._slot(begin + lane)
                with when(tirx.Or(tirx.NE(slot, origin + lane), tirx.Not(aligned))):
                    self._copy_lane(block, lane, slot)
            self._scores([(self.keys, let(block * integer(self.nest.key_dim * self.block)))], block)

        otherwise(tirx.EQ(scattered[zero], zero), in_place, gathered)

    def _slot(self, position: Term) -> Term:
        """The slot of a position of the row's history."""
        found = local(1, "int32")

        def committed() -> None:
            block = self.code.get(self.history.tables, self.sequence, tirx.truncdiv(position, integer(self.block)))
            store(found, block * integer(self.block) + tirx.truncmod(position, integer(self.block)), integer(0), 1)

        def path() -> None:
            store(found, self.code.get(self.history.paths, self.row, position - self.base), integer(0), 1)

        otherwise(position < self.base, committed, path)
        return let(found[integer(0)])

    def _copy_block(self, block: Term, home: Term) -> None:
        """Copies a cached block's keys and values to the gathered ones."""
        for target, (records, source, size) in zip((self.keys, self.values), self._halves(), strict=True):
            origin, window = let(source), self.code.block_window(records.buffer, home)
            with T.serial(0, size // LANES) as chunk:
                there = block * integer(size) + chunk * integer(LANES)
                store(target, load(window, origin + chunk * integer(LANES)), there)

    def _copy_lane(self, block: Term, lane: Term, slot: Term) -> None:
        """Copies a cached slot's key and value to a lane of the gathered ones."""
        nest, size = self.nest, integer(self.block)
        home, own = let(tirx.truncdiv(slot, size)), let(tirx.truncmod(slot, size))
        keys, values = (self.code.block_window(each.buffer, home) for each in (nest.keys, nest.values))
        with T.serial(0, nest.key_dim) as dim:
            place = (block * integer(nest.key_dim) + dim) * size + lane
            store(self.keys, keys[self.key_place(dim, own)], place, 1)
        for vector in range(self.vectors):
            column = integer(vector * LANES)
            place = (block * size + lane) * integer(self.width) + column
            store(self.values, load(values, self.value_place(own, column)), place)

    def _values_of_part(self, begin: Term) -> None:
        zero = integer(0)

        def add(values: Memory, start: Term, block: Term, low: Term, high: Term) -> None:
            with T.serial(low, high) as lane:
                self._value(values, start, lane, block * integer(self.block) + lane)

        with T.serial(0, self.blocks) as block:
            low, high = self._visible(begin, block)

            def in_place(block: Term = block, low: Term = low, high: Term = high) -> None:
                window = self.code.block_window(self.nest.values.buffer, let(self.homes[block]))
                add(window, let(self.value_place(zero, zero)), block, low, high)

            def gathered(block: Term = block, low: Term = low, high: Term = high) -> None:
                add(self.values, let(block * integer(self.block * self.width)), block, low, high)

            with when(low < high):
                otherwise(self.homes[block] >= zero, in_place, gathered)

    # --- the arithmetic

    def _scores(self, blocks: list[tuple[Memory, Term]], first: Term) -> None:
        """scale * q k for whole blocks from block `first` of the span on: one chain over the features for each key."""
        nest, vectors = self.nest, self.block // LANES
        together = max(1, self.schedule.scores // (len(blocks) * vectors))
        for start in range(0, self.count, together):
            heads = range(start, min(start + together, self.count))
            sums = {(head, b, v): local(LANES) for head in heads for b in range(len(blocks)) for v in range(vectors)}
            for held in sums.values():
                store(held, splat(0.0), 0)
            turn = self.schedule.turn(nest.key_dim)
            with T.serial(0, nest.key_dim // turn) as step:
                for part in range(turn):
                    dim = let(step * integer(turn) + integer(part))
                    columns = {
                        (b, v): let(load(keys, origin + dim * integer(self.block) + integer(v * LANES)))
                        for b, (keys, origin) in enumerate(blocks)
                        for v in range(vectors)
                    }
                    for head in heads:
                        query = splat(self.query[integer(head * nest.key_dim) + dim])
                        for (b, v), column in columns.items():
                            held = sums[head, b, v]
                            store(held, fma(query, column, load(held, 0)), 0)
            for (head, b, v), held in sums.items():
                place = (first + integer(b)) * integer(self.block) + integer(v * LANES)
                store(self.weights[head], multiply(load(held, 0), splat(nest.scale)), place)

    def _softmax(self, begin: Term) -> None:
        """Turns scores into weights, and rescales the running maximum, total and results."""
        zero = integer(0)
        for head in range(self.count):
            scores = [local(LANES) for _ in range(self.span // LANES)]
            for vector, buffer in enumerate(scores):
                with vectorized() as lane:
                    place = lane + integer(vector * LANES)
                    position = begin + place
                    score = self._adjusted(self.weights[head][place], head, position)
                    visible = tirx.And(position >= self.first, position <= self.position)
                    store(buffer, tirx.Select(visible, score, number(-float("inf"))), lane, 1)
            peak = local(LANES)
            store(peak, each([load(buffer, 0) for buffer in scores], lambda x, y: let(tirx.max(x, y))), 0)
            before = let(self.largest[head][zero])
            largest = let(tirx.max(before, across(peak, tirx.max)))
            decay = self.code.call("exp", before - largest)
            store(self.largest[head], largest, zero, 1)
            for vector, buffer in enumerate(scores):
                weight = let(self.code.call("exp", load(buffer, 0) - splat(largest)))  # before the buffer changes
                store(buffer, weight, 0)
                store(self.weights[head], weight, vector * LANES)
            total = local(LANES)
            store(total, each([load(buffer, 0) for buffer in scores], lambda x, y: let(x + y)), 0)
            added = across(total, lambda x, y: x + y)
            store(self.total[head], fma(self.total[head][zero], decay, added), zero, 1)
            for vector in self.results[head]:
                store(vector, multiply(load(vector, 0), splat(decay)), 0)

    def _adjusted(self, score: Term, head: int, position: Term) -> Term:
        """The score with softcap and bias."""
        nest, code = self.nest, self.code
        if nest.softcap is not None:
            score = multiply(code.call("tanh", score / number(nest.softcap)), number(nest.softcap))
        if nest.bias is None:
            return score
        index = position if nest.bias_by_key else self.position - position
        last = code.index(size_of(nest.bias_length)) - integer(1)
        place = tirx.max(tirx.min(index, last), integer(0))
        return score + code.at(nest.bias, {nest.head: self.head + integer(head), nest.place: place})

    def _value(self, values: Memory, start: Term, lane: Term, place: Term) -> None:
        """Adds one position's value times the weight at `place` of the span; positions come in order."""
        width = integer(self.width)
        row = [let(load(values, start + lane * width + integer(v * LANES))) for v in range(self.vectors)]
        for head in range(self.count):
            weight = splat(self.weights[head][place])
            for vector in range(self.vectors):
                held = self.results[head][vector]
                store(held, fma(weight, row[vector], load(held, 0)), 0)
