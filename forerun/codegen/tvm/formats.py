"""How the matrix of a linear lies in memory, and how its numbers are loaded as float32.

Every format stores blocks of 32 outputs, feature after feature within a block, so that a block is one stream of bytes.
Loaded numbers are widened exactly: arithmetic does not depend on the weight dtype, and sums have the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from forerun.codegen.tvm.builder import Buffer, Expr, integer, lanes_of, let, like, load, multiply
from forerun.codegen.tvm.target import LANES, OUTPUTS
from forerun.codegen.tvm.untyped import tirx

VECTORS = OUTPUTS // LANES

INFINITE = 0x7F800000
"""The bits of a float32's infinity."""

STEP = 4
"""Features per iteration of the linear's inner loop."""

Column = Callable[[Expr, int], list[Expr]]
"""(turn, part) -> the 32 weights of feature `turn * STEP + part`, counted from where the format was opened, as vectors
of 16 float32. The parts of a `turn` are requested in order."""

Read = Callable[[Expr], Expr]
"""Reads a number of a weight at its place in the weight's memory."""


@dataclass(frozen=True)
class WeightFormat:
    """A format; its subclasses are a closed set. Sizes are in words of 4 bytes."""

    region: ClassVar[str]
    """The view of the weights through which the format is read."""
    prefetched: ClassVar[int] = 3
    """The number of rows of a tile from which its reads are prefetched, as measured."""

    @property
    def span(self) -> int:
        """Features that share scales, a multiple of STEP; 0 if there are none."""
        return 0

    def block_words(self, features: int) -> int:
        """The words of a block of 32 outputs."""
        raise NotImplementedError

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        """Writes a weight to the beginning of `target`, float32; outputs are padded with zeros.

        `weight` is float32 [out, in], or uint8 [out, blocks, bytes], the blocks of a file.
        """
        raise NotImplementedError

    def touched(self, span: Expr, turn: Expr, part: int) -> list[Expr]:
        """The places of the cache lines of a block that are to be read first at a feature (`Column`)."""
        raise NotImplementedError

    def opened(self, block: Buffer, features: int, span: Expr) -> Column:
        """Opens a span of a block and reads its scales; all features are one span if the format has no spans."""
        raise NotImplementedError

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        """The weight of output `32 * block + lane`, lane < 32, and a feature."""
        raise NotImplementedError


def in_blocks(weight: torch.Tensor) -> torch.Tensor:
    """Returns [out, ...] as [out / 32, 2, 16, ...], padded with zeros."""
    missing = -weight.shape[0] % OUTPUTS
    if missing:
        weight = torch.cat((weight, weight.new_zeros(missing, *weight.shape[1:])))
    return weight.view(-1, VECTORS, LANES, *weight.shape[1:])


def pairs(features: int) -> int:
    """The words that hold the features of an output, two each."""
    return -(-features // 2)


def vectors(index: Expr) -> list[Expr]:
    """The places of the vectors of a feature, or of a pair, in a block that has a word of it for each output."""
    return [index * integer(OUTPUTS) + integer(vector * LANES) for vector in range(VECTORS)]


@dataclass(frozen=True)
class Float32(WeightFormat):
    """float32 [out / 32, in, 32]."""

    region: ClassVar[str] = "weights"
    prefetched: ClassVar[int] = 9

    def block_words(self, features: int) -> int:
        return features * OUTPUTS

    def touched(self, span: Expr, turn: Expr, part: int) -> list[Expr]:
        return vectors(turn * integer(STEP) + integer(part))

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        blocks = in_blocks(weight)
        memory = target[: len(blocks) * self.block_words(weight.shape[1])]
        memory.view(-1, weight.shape[1], VECTORS, LANES).copy_(blocks.permute(0, 3, 1, 2))

    def opened(self, block: Buffer, features: int, span: Expr) -> Column:
        def column(turn: Expr, part: int) -> list[Expr]:
            return [let(load(block, place)) for place in self.touched(span, turn, part)]

        return column

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        return read((block * integer(features) + feature) * integer(OUTPUTS) + lane)


@dataclass(frozen=True)
class Half(WeightFormat):
    """Numbers of 16 bits, two consecutive features to a word, the first in its upper half.

    A matrix whose features are an odd number ends in a zero.
    """

    region: ClassVar[str] = "tables"

    dtype: torch.dtype
    lower: Callable[[Expr], Expr]
    """(word) -> the float32 of the lower half."""
    upper: Callable[[Expr], Expr]

    def block_words(self, features: int) -> int:
        return pairs(features) * OUTPUTS

    def touched(self, span: Expr, turn: Expr, part: int) -> list[Expr]:
        return [] if part % 2 else vectors(turn * integer(STEP // 2) + integer(part // 2))

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        count = pairs(weight.shape[1])
        whole = torch.nn.functional.pad(weight.to(self.dtype).view(torch.int16), (0, 2 * count - weight.shape[1]))
        blocks = in_blocks(whole.view(-1, count, 2).flip(-1))  # the lower half comes first in memory
        halves = target[: len(blocks) * count * OUTPUTS].view(torch.int16)
        halves.view(-1, count, VECTORS, LANES, 2).copy_(blocks.permute(0, 3, 1, 2, 4))

    def opened(self, block: Buffer, features: int, span: Expr) -> Column:
        held: list[Expr] = []

        def column(turn: Expr, part: int) -> list[Expr]:
            if part % 2 == 0:
                held[:] = [let(load(block, place)) for place in self.touched(span, turn, part)]
            return [let((self.lower if part % 2 else self.upper)(word)) for word in held]

        return column

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        pair = tirx.truncdiv(feature, integer(2))
        word = read((block * integer(pairs(features)) + pair) * integer(OUTPUTS) + lane)
        return self.lower(tirx.shift_right(word, (integer(1) - tirx.truncmod(feature, integer(2))) * integer(16)))


def shifted(word: Expr, right: int) -> Expr:
    """Shifts an int32 right arithmetically by a number of bits, or left if it is negative."""
    shift = tirx.shift_right if right > 0 else tirx.shift_left
    return shift(word, like(integer(abs(right)), word)) if right else word


def masked(word: Expr, mask: int) -> Expr:
    return tirx.bitwise_and(word, like(integer(mask), word))


def as_float(word: Expr) -> Expr:
    """The float32 with the same bits."""
    lanes = lanes_of(word)
    return tirx.reinterpret("float32" if lanes == 1 else f"float32x{lanes}", word)


def bits_of(number: Expr) -> Expr:
    """The int32 with the same bits as a float32."""
    return tirx.reinterpret(str(number.ty.dtype).replace("float", "int"), number)


def magnitude_of(bits: Expr) -> Expr:
    """The bits of a float32 without its sign: they are in the order of magnitudes, `INFINITE` below all NaN."""
    return masked(bits, 0x7FFFFFFF)


def half_to_float(bits: Expr) -> Expr:
    """The float32 of a float16 in the lower half of an int32, exactly: bits moved into place, then scaled by 2^112."""
    magnitude = as_float(shifted(masked(bits, 0x7FFF), -13))
    sign = shifted(masked(bits, 0x8000), -16)
    scaled = multiply(magnitude, like(2.0**112, magnitude))
    return as_float(tirx.bitwise_or(bits_of(scaled), sign))


FLOAT32 = Float32()
BFLOAT16 = Half(
    torch.bfloat16, lambda word: as_float(shifted(word, -16)), lambda word: as_float(masked(word, -1 << 16))
)
"""A shift or a mask turns each half into a float32, so a vector of 16 words is widened by two instructions."""
FLOAT16 = Half(torch.float16, half_to_float, lambda word: half_to_float(shifted(word, 16)))
