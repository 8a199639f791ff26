"""Formats that keep a GGUF file's blocks: 32 features of an output share a scale, and a minimum if there is one.

A block of outputs is a sequence of spans of 32 features: the scales of its 32 outputs, then their numbers. Scales are
float16 of at most 11 bits, numbers of at most 8, so that their product is exact in float32: unpacking gives the same
bits as dequantizing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from forerun.codegen.tvm.builder import Buffer, Expr, fma, integer, let, like, load, multiply
from forerun.codegen.tvm.formats import (
    FLOAT32,
    STEP,
    VECTORS,
    BFloat16,
    Column,
    Read,
    WeightFormat,
    as_float,
    in_blocks,
    masked,
    shifted,
)
from forerun.codegen.tvm.target import LANES, OUTPUTS
from forerun.codegen.tvm.untyped import tirx

SPAN = 32
"""Features of a block of the file."""
SCALE = 2
"""Bytes of a float16."""


def half_to_float(bits: Expr) -> Expr:
    """The float32 of a float16 in the lower half of an int32, exactly: bits moved into place, then scaled by 2^112."""
    magnitude = as_float(shifted(masked(bits, 0x7FFF), -13))
    sign = shifted(masked(bits, 0x8000), -16)
    scaled = multiply(magnitude, like(2.0**112, magnitude))
    return as_float(tirx.bitwise_or(tirx.reinterpret(str(bits.ty.dtype), scaled), sign))


@dataclass(frozen=True)
class FourBits(WeightFormat):
    """Q4_1, and Q4_0 with a minimum of -8 scales: weight = number * scale + minimum.

    A span is 32 words of scale (lower half) and minimum, then 8 vectors of 16 words, each of 4 features: the nibble
    2 p + h of word l is feature p of output 16 h + l.
    """

    region: ClassVar[str] = "tables"
    words: ClassVar[int] = 4
    span: ClassVar[int] = SPAN
    level: ClassVar[int] = 1
    scales: ClassVar[int] = OUTPUTS

    minimum: bool

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        blocks = in_blocks(weight)
        count, _, _, spans, _ = blocks.shape
        words = target[: count * self.block_words(spans * SPAN)].view(torch.uint8)
        memory = words.view(count, spans, self.scales + SPAN * self.words, 4)
        scale = blocks[..., :SCALE]
        if self.minimum:
            least = blocks[..., SCALE : 2 * SCALE]
        else:
            least = (scale.contiguous().view(torch.float16) * -8).view(torch.uint8)
        pairs = torch.cat((scale, least), -1)  # [count, 2, 16, spans, 4]
        memory[:, :, : self.scales] = pairs.flatten(1, 2).transpose(1, 2)
        packed = blocks[..., 2 * SCALE if self.minimum else SCALE :]
        numbers = torch.cat((packed & 15, packed >> 4), -1).view(count, VECTORS, LANES, spans, SPAN // STEP, STEP)
        both = numbers[:, 0] | numbers[:, 1] << 4  # [count, 16, spans, 8, 4]
        memory[:, :, self.scales :] = both.permute(0, 2, 3, 1, 4).reshape(count, spans, -1, 4)

    def opened(self, block: Buffer, span: Expr) -> Column:
        start = self.start(span)
        words = [let(load(block, start - integer(self.scales - half * LANES))) for half in range(VECTORS)]
        scales = [let(half_to_float(each)) for each in words]
        minima = [let(half_to_float(shifted(each, 16))) for each in words]
        held: list[Expr] = []

        def column(turn: Expr, part: int) -> list[Expr]:
            if part == 0:
                held[:] = [let(load(block, start + turn * integer(LANES)))]
            numbers = [masked(shifted(held[0], 4 * (2 * part + half)), 15) for half in range(VECTORS)]
            return [
                let(fma(each.astype(f"float32x{LANES}"), scale, least))
                for each, scale, least in zip(numbers, scales, minima, strict=True)
            ]

        return column

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        start, inside = _place(self, features, block, feature)
        half, column = tirx.truncdiv(lane, integer(LANES)), tirx.truncmod(lane, integer(LANES))
        word = read(start + shifted(inside, 2) * integer(LANES) + column)
        nibble = masked(inside, 3) * integer(2) + half
        number = masked(tirx.shift_right(word, nibble * integer(4)), 15).astype("float32")
        scale = let(read(start - integer(self.scales) + lane))
        return fma(number, half_to_float(scale), half_to_float(shifted(scale, 16)))


@dataclass(frozen=True)
class EightBits(WeightFormat):
    """Q8_0: weight = number * scale.

    A span is 16 words of scales, that of output l in the lower half and that of 16 + l above it, then 16 vectors of 16
    words, each of 2 features: the byte 2 p + h of word l is feature p of output 16 h + l.
    """

    region: ClassVar[str] = "tables"
    words: ClassVar[int] = 8
    span: ClassVar[int] = SPAN
    level: ClassVar[int] = 1
    scales: ClassVar[int] = LANES

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        blocks = in_blocks(weight)
        count, _, _, spans, _ = blocks.shape
        words = target[: count * self.block_words(spans * SPAN)].view(torch.uint8)
        memory = words.view(count, spans, self.scales + SPAN * self.words, 4)
        scale = blocks[..., :SCALE].permute(0, 3, 2, 1, 4)  # [count, spans, 16, 2, bytes]
        memory[:, :, : self.scales] = scale.reshape(count, spans, LANES, 4)
        numbers = blocks[..., SCALE:].reshape(count, VECTORS, LANES, spans, SPAN // 2, 2)
        memory[:, :, self.scales :] = numbers.permute(0, 3, 4, 2, 5, 1).reshape(count, spans, -1, 4)

    def opened(self, block: Buffer, span: Expr) -> Column:
        start = self.start(span)
        word = let(load(block, start - integer(self.scales)))
        scales = [let(half_to_float(shifted(word, 16 * half))) for half in range(VECTORS)]
        held: list[Expr] = []

        def column(turn: Expr, part: int) -> list[Expr]:
            if part % 2 == 0:
                held[:] = [let(load(block, start + (turn * integer(STEP // 2) + integer(part // 2)) * integer(LANES)))]
            places = [8 * (2 * (part % 2) + half) for half in range(VECTORS)]
            numbers = [shifted(shifted(held[0], place - 24), 24) for place in places]
            return [
                let(multiply(each.astype(f"float32x{LANES}"), scale))
                for each, scale in zip(numbers, scales, strict=True)
            ]

        return column

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        start, inside = _place(self, features, block, feature)
        half, column = tirx.truncdiv(lane, integer(LANES)), tirx.truncmod(lane, integer(LANES))
        word = read(start + shifted(inside, 1) * integer(LANES) + column)
        byte = masked(inside, 1) * integer(2) + half
        number = shifted(tirx.shift_left(word, integer(24) - byte * integer(8)), 24).astype("float32")
        scale = tirx.shift_right(read(start - integer(self.scales) + column), half * integer(16))
        return multiply(number, half_to_float(scale))


def _place(form: WeightFormat, features: int, block: Expr, feature: Expr) -> tuple[Expr, Expr]:
    """Returns the place of the numbers of a feature's span, and the feature within the span."""
    return block * integer(form.block_words(features)) + form.start(shifted(feature, 5)), masked(feature, SPAN - 1)


FORMATS: dict[str, WeightFormat] = {
    "packed f32": FLOAT32,
    "bf16": BFloat16(),
    "q4_0": FourBits(minimum=False),
    "q4_1": FourBits(minimum=True),
    "q8_0": EightBits(),
}
"""The formats, by the storage of a `spec.weight`, or float32 in blocks of outputs."""
