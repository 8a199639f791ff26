"""Products of integers: a row's features as signed bytes, a matrix's numbers as unsigned ones, sums exact.

32 features of a row share a scale, by that row alone. A sum over a group of features that share a matrix's scale is an
integer; times both scales it is added to the output's sum, group after group in the order of the features:

    sum = sum + (scale of the matrix * scale of the row) * integer + minimum of the matrix * (scale of the row * sum x)

each with one fma. So a row's bits depend neither on other rows nor on the machine.
"""

from collections.abc import Sequence
from operator import add

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.expr import Load
from forerun.codegen.loops.index import volume
from forerun.codegen.loops.nest import ProductNest
from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import across, fma, integer, let, like, load, local, multiply, number, splat, store
from forerun.codegen.tvm.code import Code, Term
from forerun.codegen.tvm.dots import DOT
from forerun.codegen.tvm.quantized import QUARTETS, Blocks, Words
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import T, tirx
from forerun.ir import CHUNK

FIGURES = 4
"""Numbers of a row's chunk: its scale, and the scale times the sum of its first half, its second, and both."""
HALVES = CHUNK // LANES


def quantized(nest: ProductNest) -> tuple[Buffer, Buffer]:
    """The input of a product as integers: words of four features, and figures of each chunk of 32."""
    chunks = nest.features // CHUNK
    words = Buffer("scratch", "words", (*nest.rows, chunks * QUARTETS), "i32", "i32")
    return words, Buffer("scratch", "figures", (*nest.rows, chunks * FIGURES), "f32", "f32")


def emit_quantized(code: Code, nest: ProductNest, machine: Machine) -> None:
    """Rounds the input to integers, one chunk of a row after another."""
    assert isinstance(nest.x, Load)
    x, (words, figures) = code.window(nest.x.buffer), (code.window(each) for each in quantized(nest))
    chunks = nest.features // CHUNK
    with code.frame.divided(code.index(volume(nest.rows)) * integer(chunks)) as chunk:
        parts = [let(load(x, chunk * integer(CHUNK) + integer(half * LANES))) for half in range(HALVES)]
        lanes = local(LANES)
        store(lanes, tirx.max(*(tirx.abs(each) for each in parts)), 0)
        largest = across(lanes, tirx.max)
        store(lanes, (parts[0] + parts[1]) * splat(0.0), 0)
        poison = across(lanes, add)  # NaN if any number is, or is infinite
        scale = let(multiply(largest, number(1 / 127)) + poison)
        inverse = let(tirx.Select(largest > number(0.0), number(127.0) / largest, number(0.0)))
        sums: list[Term] = []
        for half, each in enumerate(parts):
            rounded = let(tirx.nearbyint(multiply(each, splat(inverse))).astype(f"int32x{LANES}"))
            _store_bytes(words, chunk * integer(QUARTETS) + integer(half * QUARTETS // HALVES), rounded)
            held = local(LANES, "int32")
            store(held, rounded, 0)
            sums.append(across(held, add))
        for place, total in enumerate((None, *sums, sums[0] + sums[1])):
            value = scale if total is None else multiply(scale, total.astype("float32"))
            store(figures, value, chunk * integer(FIGURES) + integer(place), 1)


def _store_bytes(words: Memory, place: Term, values: Term) -> None:
    """Stores the lanes' lowest bytes side by side, from a word on."""
    pointer = T.Bind(tirx.address_of(words[place]))
    memory = T.decl_buffer((1 << 30,), "int8", data=pointer)
    store(memory, values.astype(f"int8x{LANES}"), integer(0))


class IntegerInput:
    """The input of a product as integers."""

    def __init__(self, code: Code, nest: ProductNest) -> None:
        self.chunks = nest.features // CHUNK
        self.features = nest.features
        self.words, self.figures = (code.window(each) for each in quantized(nest))

    def sums(self, form: Blocks, weight: Memory, rows: Sequence[Term], sums: list[list[Memory]]) -> None:
        """Adds x w^T of some rows to their sums, one half of the block of outputs after the other."""
        words = [let(row * integer(self.chunks * QUARTETS)) for row in rows]
        figures = [let(row * integer(self.chunks * FIGURES)) for row in rows]
        for half in range(len(sums[0])):
            read = form.half(weight, self.features, half)
            with T.serial(0, self.chunks) as chunk:
                self._chunk(form, read, chunk, words, figures, [each[half] for each in sums])

    def _chunk(
        self, form: Blocks, read: Words, chunk: Term, words: list[Term], figures: list[Term], sums: list[Memory]
    ) -> None:
        feature = let(chunk * integer(CHUNK))
        place = let(form.place(feature))
        groups = CHUNK // form.span
        scales = [form.scales(read, feature + integer(group * form.span)) for group in range(groups)]
        totals = [[local(LANES, "int32") for _ in range(groups)] for _ in words]
        for each in totals:
            for total in each:
                store(total, splat(integer(0)), 0)
        for quartet in range(QUARTETS):
            numbers = let(form.quartet(read, place, integer(quartet)))
            group = quartet * groups // QUARTETS
            for total, start in zip(totals, words, strict=True):
                x = splat(self.words[start + chunk * integer(QUARTETS) + integer(quartet)])
                dot = tirx.call_extern(f"int32x{LANES}", DOT, load(total[group], 0), numbers, x)
                store(total[group], dot, 0)
        for row, start in enumerate(figures):
            figure = [let(self.figures[start + chunk * integer(FIGURES) + integer(each)]) for each in range(FIGURES)]
            for group, (scale, minimum) in enumerate(scales):
                whole = load(totals[row][group], 0).astype(f"float32x{LANES}")
                both = let(multiply(scale, like(figure[0], scale)))
                total = figure[FIGURES - 1] if groups == 1 else figure[1 + group]
                store(sums[row], fma(whole, both, load(sums[row], 0)), 0)
                store(sums[row], fma(minimum, like(total, minimum), load(sums[row], 0)), 0)
