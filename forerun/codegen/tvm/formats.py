"""How the matrix of a linear lies in memory, and how its numbers come into registers as float32.

Every format keeps blocks of 32 outputs, feature after feature within a block, so that a block is one stream of bytes.
What a format loads is widened exactly: arithmetic never sees how a weight was kept, and sums have the same order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from forerun.codegen.tvm.builder import Buffer, Expr, integer, integers_like, let, load
from forerun.codegen.tvm.target import LANES, OUTPUTS
from forerun.codegen.tvm.untyped import tirx

VECTORS = OUTPUTS // LANES

Read = Callable[[Expr], Expr]
"""A number of a weight at its place in the weight's memory."""


@dataclass(frozen=True)
class WeightFormat:
    """A format; its subclasses are all there are. Sizes are in words of 4 bytes."""

    name: ClassVar[str]
    region: ClassVar[str]
    """The view of the weights that it is read through."""
    words: ClassVar[int]
    """Words of one feature of a block of outputs."""

    def block_words(self, features: int) -> int:
        """Words of a block of 32 outputs."""
        return features * self.words

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        """Write a weight, float32 [out, in], to the begin of `target`, float32; outputs are padded with zeros."""
        raise NotImplementedError

    def columns(self, block: Buffer, feature: Expr) -> list[Expr]:
        """One feature of a block: its 32 weights, as vectors of 16 float32."""
        raise NotImplementedError

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        """One weight: that of output `32 * block + lane`, lane < 32, and a feature."""
        raise NotImplementedError


@dataclass(frozen=True)
class Float32(WeightFormat):
    """float32 [out / 32, in, 32]."""

    name: ClassVar[str] = "float32"
    region: ClassVar[str] = "weights"
    words: ClassVar[int] = OUTPUTS

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        outputs, features = weight.shape
        whole = outputs // OUTPUTS
        blocks = target[: -(-outputs // OUTPUTS) * OUTPUTS * features].view(-1, features, OUTPUTS)
        blocks[:whole].copy_(weight[: whole * OUTPUTS].reshape(whole, OUTPUTS, features).transpose(1, 2))
        if outputs % OUTPUTS:
            blocks[whole] = _last_block(weight).transpose(0, 1)

    def columns(self, block: Buffer, feature: Expr) -> list[Expr]:
        start = feature * integer(self.words)
        return [let(load(block, start + integer(vector * LANES))) for vector in range(VECTORS)]

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        return read((block * integer(features) + feature) * integer(self.words) + lane)


@dataclass(frozen=True)
class BFloat16(WeightFormat):
    """bfloat16, two to a word, [out / 32, in, 16]: word l has output l in its lower half and output 16 + l above it.

    A shift or a mask makes a float32 of each, so a vector of 16 words is widened by two instructions.
    """

    name: ClassVar[str] = "bfloat16"
    region: ClassVar[str] = "tables"
    words: ClassVar[int] = LANES

    def pack(self, target: torch.Tensor, weight: torch.Tensor) -> None:
        outputs, features = weight.shape
        whole = outputs // OUTPUTS
        halves = target[: -(-outputs // OUTPUTS) * self.block_words(features)].view(torch.int16)
        blocks = halves.view(-1, features, LANES, 2)  # little-endian: the lower half comes first
        bits = weight[: whole * OUTPUTS].to(torch.bfloat16).view(torch.int16)
        blocks[:whole].copy_(bits.reshape(whole, 2, LANES, features).permute(0, 3, 2, 1))
        if outputs % OUTPUTS:
            bits = _last_block(weight).to(torch.bfloat16).view(torch.int16)
            blocks[whole] = bits.view(2, LANES, features).permute(2, 1, 0)

    def columns(self, block: Buffer, feature: Expr) -> list[Expr]:
        word = let(load(block, feature * integer(self.words)))
        lower = tirx.shift_left(word, integers_like(16, word))
        upper = tirx.bitwise_and(word, integers_like(-1 << 16, word))
        return [let(tirx.reinterpret(f"float32x{LANES}", each)) for each in (lower, upper)]

    def element(self, read: Read, features: int, block: Expr, lane: Expr, feature: Expr) -> Expr:
        word = read((block * integer(features) + feature) * integer(self.words) + tirx.truncmod(lane, integer(LANES)))
        half = tirx.shift_right(word, tirx.truncdiv(lane, integer(LANES)) * integer(16))
        return tirx.reinterpret("float32", tirx.shift_left(half, integer(16)))


FLOAT32 = Float32()
FORMATS: dict[str | None, WeightFormat] = {None: FLOAT32, "bf16": BFloat16()}
"""By the storage of a `spec.weight`."""


def _last_block(weight: torch.Tensor) -> torch.Tensor:
    """The outputs behind the last whole block, and zeros, [32, in]."""
    rest = weight.shape[0] % OUTPUTS
    return torch.cat((weight[-rest:], weight.new_zeros(OUTPUTS - rest, weight.shape[1])))


__all__ = ["FLOAT32", "FORMATS", "VECTORS", "WeightFormat"]
