"""Products of bfloat16 numbers in float32: rows are rounded, as a bfloat16 model rounds them itself.

A word holds two consecutive features, of a row as of an output of a matrix, the first in its upper half; a matrix whose
features are an odd number ends in a zero.
"""

from collections.abc import Sequence

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.index import volume
from forerun.codegen.loops.nest import ProductNest
from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import Expr, integer, let, like, load, prefetch, splat, store, when
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.dots import BFLOAT16_DOT
from forerun.codegen.tvm.formats import INFINITE, Half, bits_of, magnitude_of, masked, pairs, shifted, vectors
from forerun.codegen.tvm.products import Products, input_of
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import T, tirx

STEP = 2
"""Words per iteration of the inner loop."""


class Bfloat16Products(Products):
    """One chain for each output, a word of two features after another."""

    dot = BFLOAT16_DOT

    @classmethod
    def rounded(cls, nest: ProductNest) -> Buffer:
        return Buffer("scratch", "rounded", (*nest.inputs, pairs(nest.features)), "i32", "i32")

    @classmethod
    def emit_rounded(cls, code: Code, nest: ProductNest) -> None:
        x, rounded = code.window(input_of(nest)), code.window(cls.rounded(nest))
        features, whole = nest.features, nest.features // (2 * LANES)
        chunks = -(-features // (2 * LANES))
        with code.frame.divided(code.index(volume(nest.inputs)) * integer(chunks)) as piece:
            row = let(tirx.truncdiv(piece, integer(chunks)))
            chunk = let(piece - row * integer(chunks))
            start = let(row * integer(features) + chunk * integer(2 * LANES))
            place = let(row * integer(pairs(features)) + chunk * integer(LANES))
            with when(chunk < integer(whole)):
                both = let(tirx.reinterpret(f"int64x{LANES}", _rounded(load(x, start, 2 * LANES))))
                first, second = (shifted(both, bits).astype(f"int32x{LANES}") for bits in (0, 32))
                store(rounded, _joined(first, second), place)
            if rest := features % (2 * LANES):
                with when(tirx.EQ(chunk, integer(whole))):
                    numbers = [_rounded(x[start + integer(each)]) for each in range(rest)]
                    for word in range(pairs(rest)):
                        first, *second = numbers[2 * word : 2 * word + 2]
                        both = _joined(first, second[0] if second else integer(0))
                        T.buffer_store(rounded, both, [place + integer(word)])

    def add(self, form: Half, weight: Memory, rows: Sequence[Expr], sums: Sequence[Sequence[Memory]]) -> None:
        words = pairs(self.features)
        starts = [let(row * integer(words)) for row in rows]

        def turn(word: Expr) -> None:
            places = vectors(word)
            if self.schedule.fetches(len(rows), form.prefetched):
                for place in places:
                    prefetch(weight, place, self.schedule.prefetch)
            columns = [let(load(weight, place)) for place in places]
            for row, start in enumerate(starts):
                x = splat(self.x[start + word])
                for total, column in zip(sums[row], columns, strict=True):
                    store(total, BFLOAT16_DOT(load(total, 0), column, x), 0)

        def whole(step: Expr) -> None:
            for part in range(STEP):
                turn(step * integer(STEP) + integer(part))

        self.turns(words // STEP, whole)
        for part in range(words % STEP):
            turn(integer(words // STEP * STEP + part))


def _rounded(x: Expr) -> Expr:
    """The bits of float32 numbers, whose upper halves are the nearest bfloat16; ties go to the even ones."""
    bits = let(bits_of(x))
    nan = magnitude_of(bits) > like(integer(INFINITE), bits)
    nearest = bits + like(integer(0x7FFF), bits) + masked(shifted(bits, 16), 1)
    return tirx.Select(nan, tirx.bitwise_or(bits, like(integer(1 << 22), bits)), nearest)


def _joined(first: Expr, second: Expr) -> Expr:
    """A word of two numbers, of their bits' upper halves."""
    return tirx.bitwise_or(masked(first, -1 << 16), masked(shifted(second, 16), 0xFFFF))
