"""Products of integers: a row's features as signed bytes, a matrix's numbers as unsigned ones, sums exact.

32 features of a row share a scale, by that row alone. A sum over a group of features that share a matrix's scale is an
integer, which takes in the offset of encodings without minima; times both scales it is added to the output's sum, group
after group in the order of the features:

    sum = sum + (scale of the matrix * scale of the row) * integer
    sum = sum + minimum of the matrix * (scale of the row * sum x)        for encodings with minima

each with one fma. So a row's bits depend neither on other rows nor on the machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.index import volume
from forerun.codegen.loops.nest import ProductNest
from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import (
    Expr,
    fma,
    integer,
    let,
    like,
    load,
    local,
    multiply,
    number,
    prefetch,
    splat,
    store,
)
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.dots import INT8_DOT
from forerun.codegen.tvm.formats import INFINITE, as_float, bits_of, magnitude_of
from forerun.codegen.tvm.products import Products, input_of
from forerun.codegen.tvm.quantized import FORMATS, QUARTETS, Blocks, Words
from forerun.codegen.tvm.schedules import ProductSchedule
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import T, tirx
from forerun.ir import CHUNK

SCALE = QUARTETS
"""The place of a chunk's scale among its words, after its numbers."""
HALVES = CHUNK // LANES
VECTOR = 4
"""Chunks begin at a multiple of as many words, so that 16 bytes are stored as an aligned vector."""


@dataclass(frozen=True)
class Chunks:
    """The words of a chunk of a row: its numbers, its scale, and what its groups add, for each kind of encoding.

    For encodings with an offset, that is the beginning of a group's integer, - offset * sum x; for those with minima
    it is the float32 scale * sum x.
    """

    kinds: Mapping[tuple[int, int | None], int]  # (features of a group, offset or None) -> the place of the first group
    words: int

    @staticmethod
    def of(nest: ProductNest) -> "Chunks":
        elements = dict.fromkeys(each.weight.element for segment in nest.segments for each in segment.matrices)
        kinds: dict[tuple[int, int | None], int] = {}
        end = SCALE + 1
        for element in elements:
            form = FORMATS[element]
            assert isinstance(form, Blocks)
            if kinds.setdefault(kind_of(form), end) == end:
                end += CHUNK // form.span
        return Chunks(kinds, -(-end // VECTOR) * VECTOR)


def kind_of(form: Blocks) -> tuple[int, int | None]:
    return form.span, None if form.encoding.has_minimum else form.encoding.offset


class IntegerProducts(Products):
    """Chunk after chunk of 32 features, one half of the block of outputs after the other."""

    dot = INT8_DOT

    def __init__(self, code: Code, nest: ProductNest, schedule: ProductSchedule) -> None:
        super().__init__(code, nest, schedule)
        self.chunks = Chunks.of(nest)

    @classmethod
    def rounded(cls, nest: ProductNest) -> Buffer:
        words = nest.features // CHUNK * Chunks.of(nest).words
        return Buffer("scratch", "rounded", (*nest.inputs, words), "i32", "i32")

    @classmethod
    def emit_rounded(cls, code: Code, nest: ProductNest) -> None:
        chunks = Chunks.of(nest)
        x, rounded = code.window(input_of(nest)), code.window(cls.rounded(nest))
        with code.frame.divided(code.index(volume(nest.inputs)) * integer(nest.features // CHUNK)) as chunk:
            place = let(chunk * integer(chunks.words))
            parts = [let(load(x, chunk * integer(CHUNK) + integer(half * LANES))) for half in range(HALVES)]
            largest = let(_across("smax", tirx.max(*(magnitude_of(bits_of(each)) for each in parts))))
            finite = largest < integer(INFINITE)
            scale = let(tirx.Select(finite, multiply(as_float(largest), number(1 / 127)), number(float("nan"))))
            inverse = let(tirx.Select(largest > integer(0), number(127.0) / as_float(largest), number(0.0)))
            sums: list[Expr] = []
            for half, each in enumerate(parts):
                numbers = let(tirx.nearbyint(multiply(each, splat(inverse))).astype(f"int32x{LANES}"))
                _store_bytes(rounded, place + integer(half * QUARTETS // HALVES), numbers)
                sums.append(let(_across("add", numbers)))
            T.buffer_store(rounded, bits_of(scale), [place + integer(SCALE)])
            for (span, offset), first in chunks.kinds.items():
                for group, total in enumerate(sums if span < CHUNK else [sums[0] + sums[1]], first):
                    scaled = bits_of(multiply(scale, total.astype("float32")))
                    value = scaled if offset is None else total * integer(-offset)
                    T.buffer_store(rounded, value, [place + integer(group)])

    def add(self, form: Blocks, weight: Memory, rows: Sequence[Expr], sums: Sequence[Sequence[Memory]]) -> None:
        chunks = self.features // CHUNK
        starts = [let(row * integer(chunks * self.chunks.words)) for row in rows]
        for half, first in enumerate(range(0, 2 * form.half_words(self.features), form.half_words(self.features))):
            read = form.half(weight, self.features, half)

            def turn(chunk: Expr, first: int = first, read: Words = read, half: int = half) -> None:
                if self.schedule.fetches(len(rows), 1):
                    for place in form.lines(chunk):
                        prefetch(weight, place + integer(first), self.schedule.prefetch)
                words = [let(start + chunk * integer(self.chunks.words)) for start in starts]
                self._chunk(form, read, chunk, words, [each[half] for each in sums])

            self.turns(chunks, turn)

    def _chunk(self, form: Blocks, read: Words, chunk: Expr, words: Sequence[Expr], sums: Sequence[Memory]) -> None:
        feature = let(chunk * integer(CHUNK))
        place = let(form.place(feature))
        groups = range(CHUNK // form.span)
        scales = [form.scales(read, feature + integer(group * form.span)) for group in groups]
        totals = [[local(LANES, "int32") for _ in groups] for _ in words]
        added = self.chunks.kinds[kind_of(form)]
        for each, start in zip(totals, words, strict=True):
            for group, total in zip(groups, each, strict=True):
                begin = integer(0) if form.encoding.has_minimum else self.x[start + integer(added + group)]
                store(total, splat(begin), 0)
        for quartet in range(QUARTETS):
            numbers = let(form.quartet(read, place, integer(quartet)))
            group = quartet * len(groups) // QUARTETS
            for total, start in zip(totals, words, strict=True):
                x = splat(self.x[start + integer(quartet)])
                store(total[group], INT8_DOT(load(total[group], 0), numbers, x), 0)
        for total, start, out in zip(totals, words, sums, strict=True):
            row_scale = let(as_float(self.x[start + integer(SCALE)]))
            for group, (scale, minimum) in enumerate(scales):
                whole = load(total[group], 0).astype(f"float32x{LANES}")
                both = let(multiply(scale, like(row_scale, scale)))
                store(out, fma(whole, both, load(out, 0)), 0)
                if minimum is not None:
                    row_sum = as_float(self.x[start + integer(added + group)])
                    store(out, fma(minimum, like(row_sum, minimum), load(out, 0)), 0)


def _across(combine: str, values: Expr) -> Expr:
    """Combines the lanes of a vector of integers by an LLVM reduction."""
    return tirx.call_llvm_pure_intrin("int32", f"llvm.vector.reduce.{combine}", values)


def _store_bytes(words: Memory, place: Expr, values: Expr) -> None:
    """Stores the lanes' lowest bytes side by side, from a word on."""
    pointer = T.Bind(tirx.address_of(words[place]))
    memory = T.decl_buffer((1 << 30,), "int8", data=pointer)
    store(memory, values.astype(f"int8x{LANES}"), integer(0))
