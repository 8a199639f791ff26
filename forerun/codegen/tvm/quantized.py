"""A GGUF file's blocks in memory (`ir.blocks`): as many bytes as in the file, or up to 3 % more.

A block of 32 outputs is two halves of 16, each a sequence of spans of features. A span is a sequence of vectors of 16
words, one word for each output:

    1 vector   the scale, a float16, in the lower half of a word; above it the minimum, or, where blocks have none, the
               scale of the next block, so that a span is two blocks
    4 vectors  the bytes of the groups' factors and minima, if there are any
    then, for each 32 features, the bits of their numbers, plane by plane: b bits take b vectors

A quartet is a word of four numbers of consecutive features, a byte each: what an integer product takes. Quartets that
share a vector lie b bits apart. Scales have at most 11 bits, factors 7 and numbers 8; products of scales and factors
are exact, and a weight is one fma: unpacking gives the same bits as dequantizing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from forerun import ir
from forerun.codegen.tvm.builder import Buffer, Expr, fma, integer, let, like, load, multiply
from forerun.codegen.tvm.formats import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    VECTORS,
    Column,
    Read,
    WeightFormat,
    half_to_float,
    in_blocks,
    masked,
    shifted,
)
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import tirx
from forerun.ir import CHUNK

QUARTETS = CHUNK // 4
"""Quartets of a chunk, the features whose bits lie together: those that share a row's scale in a product."""
FACTORS = 4
"""Vectors of factors."""

Words = Callable[[Expr], Expr]
"""Reads the 16 words of a half of a block, or one of them, at the place of the first."""


@dataclass(frozen=True)
class Blocks(WeightFormat):
    """An encoding as it lies in memory."""

    region: ClassVar[str] = "tables"

    encoding: ir.Encoding

    @property
    def span(self) -> int:
        return self.encoding.group

    @property
    def paired(self) -> bool:
        """Whether a span is two blocks."""
        return self.encoding.features == CHUNK and not self.encoding.has_minimum

    @property
    def planes(self) -> list[tuple[int, int]]:
        """The bits of each plane, and the first of them in a number."""
        bits = self.encoding.bits
        return [(bits, 0)] if bits & (bits - 1) == 0 else [(low := 1 << bits.bit_length() - 1, 0), (bits - low, low)]

    @property
    def chunks(self) -> int:
        """Chunks of a span."""
        return 2 if self.paired else self.encoding.features // CHUNK

    @property
    def header(self) -> int:
        """Words before the numbers of a span."""
        return LANES * (1 + FACTORS * (self.encoding.factors is not None))

    @property
    def chunk_words(self) -> int:
        return LANES * self.encoding.bits

    @property
    def span_words(self) -> int:
        return self.header + self.chunks * self.chunk_words

    def half_words(self, features: int) -> int:
        return -(-features // (self.chunks * CHUNK)) * self.span_words

    def block_words(self, features: int) -> int:
        return VECTORS * self.half_words(features)

    # --- writing

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        read, chunks = self.encoding.read(weight), self.chunks
        spans = -(-read.numbers.shape[1] // (chunks * CHUNK))
        numbers = in_blocks(_padded(read.numbers, spans * chunks * CHUNK)).unflatten(-1, (spans, chunks, QUARTETS, 4))
        words = target[: len(numbers) * VECTORS * spans * self.span_words].view(torch.uint8)
        memory = words.view(len(numbers), VECTORS, spans, -1, LANES, 4)
        scales = [read.scale, read.minimum] if read.minimum is not None else [read.scale]
        if self.paired:
            scales = list(_padded(read.scale, spans * 2).unflatten(-1, (spans, 2)).unbind(-1))
        for part, each in enumerate(scales):
            halves = in_blocks(each.contiguous().view(torch.uint8).unflatten(-1, (spans, 2)))
            memory[:, :, :, 0, :, 2 * part : 2 * part + 2] = halves.transpose(2, 3)
        if read.factors is not None:
            held = in_blocks(self._factors(read).unflatten(-1, (spans, FACTORS, 4)))
            memory[:, :, :, 1 : 1 + FACTORS] = held.permute(0, 1, 3, 4, 2, 5)
        vectors = memory[:, :, :, self.header // LANES :].unflatten(3, (chunks, self.encoding.bits))
        first = 0
        for bits, shift in self.planes:
            held = numbers >> shift & (1 << bits) - 1  # [blocks, 2, 16, spans, chunks, quartets, 4]
            shifts = torch.arange(0, 8, bits, dtype=torch.uint8).view(-1, 1)
            merged = (held.unflatten(-2, (bits, 8 // bits)) << shifts).sum(-2, dtype=torch.uint8)
            vectors[:, :, :, :, first : first + bits] = merged.permute(0, 1, 3, 4, 5, 2, 6)
            first += bits

    @property
    def factor_bits(self) -> int:
        """The bits of a factor, of the 16 bytes that the factors of a block have: 8, or 4 if there are too many."""
        return 8 * 4 * FACTORS // ((1 + self.encoding.has_minimum) * self._groups)

    def _factors(self, read: ir.Numbers) -> torch.Tensor:
        """The factors' bytes, uint8 [out, 16 for each block]."""
        assert read.factors is not None
        if read.minima is None:
            return read.factors.view(torch.uint8)
        if self.factor_bits == 4:
            return (read.factors | read.minima << 4).view(torch.uint8)
        return torch.stack((read.factors, read.minima), -1).view(torch.uint8).flatten(1)

    # --- reading

    def touched(self, span: Expr, turn: Expr, part: int) -> list[Expr]:
        if part % 2:
            return []
        return [self.place(span * integer(self.span)) + turn * integer(LANES)]

    def lines(self, chunk: Expr) -> list[Expr]:
        """The places of cache lines of a half, so that those of all chunks are the whole half."""
        start = tirx.truncdiv(chunk * integer(self.span_words), integer(self.chunks))
        return [start + integer(word) for word in range(0, -(-self.span_words // self.chunks), LANES)]

    def place(self, feature: Expr) -> Expr:
        """The place of a feature's chunk in its half."""
        chunk = tirx.truncdiv(feature, integer(CHUNK))
        return self._span(feature) + integer(self.header) + self._chunk(chunk) * integer(self.chunk_words)

    def _span(self, feature: Expr) -> Expr:
        return tirx.truncdiv(feature, integer(self.chunks * CHUNK)) * integer(self.span_words)

    def _chunk(self, chunk: Expr) -> Expr:
        return tirx.truncmod(chunk, integer(self.chunks))

    def scales(self, words: Words, feature: Expr) -> tuple[Expr, Expr | None]:
        """The scale of the group of a feature, as float32, and the minimum if the encoding has minima."""
        encoding, start = self.encoding, self._span(feature)
        held = let(words(start))
        lower = held
        if self.paired:
            lower = _right(held, self._chunk(tirx.truncdiv(feature, integer(CHUNK))) * integer(16))
        scale = let(half_to_float(lower))
        minimum = let(half_to_float(shifted(held, 16))) if encoding.has_minimum else None
        if encoding.factors is not None:
            group = tirx.truncmod(tirx.truncdiv(feature, integer(encoding.group)), integer(self._groups))
            each = FACTORS * 4 // self._groups  # bytes
            place = start + integer(LANES) + tirx.truncdiv(group * integer(each), integer(4)) * integer(LANES)
            held = let(_right(words(place), tirx.truncmod(group * integer(each), integer(4)) * integer(8)))
            scale = let(multiply(scale, _factor(held, 0, self.factor_bits)))
            if minimum is not None:
                minimum = let(multiply(minimum, _factor(held, 1, self.factor_bits)))
        return scale, minimum

    def _weights(self, words: Words, feature: Expr) -> Callable[[Expr], Expr]:
        """What turns the numbers of the group of a feature, as float32, into weights."""
        scale, minimum = self.scales(words, feature)
        lowest = let(multiply(scale, like(-float(self.encoding.offset), scale))) if minimum is None else minimum
        return lambda numbers: fma(numbers, scale, lowest)

    @property
    def _groups(self) -> int:
        return self.encoding.features // self.encoding.group

    def quartet(self, words: Words, chunk: Expr, number: Expr) -> Expr:
        """The numbers of four consecutive features, a byte each: a quartet of the chunk at a place."""
        found, first = None, 0
        for bits, shift in self.planes:
            shared = 8 // bits  # quartets of a vector
            place = chunk + (integer(first) + tirx.truncdiv(number, integer(shared))) * integer(LANES)
            word = words(place)
            if shared > 1:
                word = masked(_right(word, tirx.truncmod(number, integer(shared)) * integer(bits)), _in_bytes(bits))
            found = word if found is None else tirx.bitwise_or(found, shifted(word, -shift))
            first += bits
        assert found is not None
        return found

    def opened(self, block: Buffer, features: int, span: Expr) -> Column:
        group = self.encoding.group
        feature = let(span * integer(group))
        inside = let(tirx.truncdiv(tirx.truncmod(feature, integer(CHUNK)), integer(4)))
        chunk = let(self.place(feature))
        halves = [self.half(block, features, half) for half in range(VECTORS)]
        weights = [self._weights(each, feature) for each in halves]
        held: list[Expr] = []

        def column(turn: Expr, part: int) -> list[Expr]:
            if part == 0:
                held[:] = [let(self.quartet(each, chunk, inside + turn)) for each in halves]
            numbers = [masked(shifted(each, 8 * part), 255).astype(f"float32x{LANES}") for each in held]
            return [let(of(each)) for each, of in zip(numbers, weights, strict=True)]

        return column

    def half(self, block: Buffer, features: int, half: int) -> Words:
        """Reads vectors of a half of a block."""
        return lambda place: load(block, place + integer(half * self.half_words(features)))

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        half = block * integer(VECTORS) + tirx.truncdiv(lane, integer(LANES))
        start = let(half * integer(self.half_words(features)) + tirx.truncmod(lane, integer(LANES)))

        def words(place: Expr) -> Expr:
            return read(start + place)

        inside = tirx.truncmod(feature, integer(CHUNK))
        quartet = self.quartet(words, self.place(feature), tirx.truncdiv(inside, integer(4)))
        number = masked(_right(quartet, tirx.truncmod(inside, integer(4)) * integer(8)), 255)
        return self._weights(words, feature)(number.astype("float32"))


def _padded(values: torch.Tensor, columns: int) -> torch.Tensor:
    """Returns [rows, columns], zeros after the values."""
    return torch.nn.functional.pad(values, (0, columns - values.shape[1]))


def _right(word: Expr, shift: Expr) -> Expr:
    """Shifts words right by a computed number of bits."""
    return tirx.shift_right(word, like(shift, word))


def _factor(word: Expr, number: int, bits: int) -> Expr:
    """The first or second factor in a word as float32: a signed byte, or four bits."""
    held = masked(shifted(word, 4 * number), 15) if bits == 4 else shifted(shifted(word, 8 * number - 24), 24)
    return held.astype(str(word.ty.dtype).replace("int", "float"))


def _in_bytes(bits: int) -> int:
    """A mask of the lowest bits of every byte."""
    return ((1 << bits) - 1) * 0x01010101


FORMATS: dict[str, WeightFormat] = {
    "packed f32": FLOAT32,
    "bf16": BFLOAT16,
    "f16": FLOAT16,
    **{name: Blocks(each) for name, each in ir.ENCODINGS.items()},
}
"""The formats, by the storage of a `spec.weight`, or float32 in blocks of outputs."""
