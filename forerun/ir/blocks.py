"""The block encodings of GGUF files, one description each, and the numbers in their blocks.

A block holds the numbers of consecutive features of one output, and their scales. A number u of a few bits stands for

    weight = scale * (u - offset)    or    scale * u + minimum

where a group of features shares scale and minimum. They are the block's own, or the block's times a small integer of
each group. Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Fields = Mapping[str, torch.Tensor]
"""The bytes of a matrix's blocks by field, uint8 [out, blocks, bytes]."""


@dataclass(frozen=True)
class Plane:
    """Some bits of every number of a block, from bit `shift` of a number on.

    Of `span` bytes side by side, the lowest bits of all belong to the first `span` numbers, the next to the next.
    """

    field: str
    bits: int
    span: int
    shift: int = 0

    def read(self, fields: Fields) -> torch.Tensor:
        """Returns these bits in place, uint8 [out, blocks, numbers]."""
        held = fields[self.field]
        shifts = torch.arange(0, 8, self.bits, dtype=torch.uint8).view(-1, 1)
        parts = held.view(*held.shape[:2], -1, 1, self.span) >> shifts & (1 << self.bits) - 1
        return parts.view(*held.shape[:2], -1) << self.shift


@dataclass(frozen=True)
class Numbers:
    """A matrix as numbers and scales. `factors` and `minima` multiply the scale and the minimum of their block."""

    numbers: torch.Tensor  # uint8 [out, in]
    scale: torch.Tensor  # float16 [out, blocks]
    minimum: torch.Tensor | None  # float16 [out, blocks]
    factors: torch.Tensor | None  # int8 [out, groups]
    minima: torch.Tensor | None  # int8 [out, groups], at least 0


@dataclass(frozen=True)
class Encoding:
    """A block encoding: its fields with their bytes, in order, and what they mean."""

    fields: Mapping[str, int]
    planes: tuple[Plane, ...]
    features: int = 32  # of a block
    group: int = 32  # features that share a factor of the scale
    offset: int = 0  # subtracted from every number
    factors: Callable[[Fields], tuple[torch.Tensor, torch.Tensor | None]] | None = None
    codebook: tuple[int, ...] = ()  # what the stored bits are indices of; numbers are these values plus `offset`

    @property
    def bytes(self) -> int:
        """The bytes of a block."""
        return sum(self.fields.values())

    @property
    def has_minimum(self) -> bool:
        return not self.fields.keys().isdisjoint({"minimum", "subtracted"})

    @property
    def bits(self) -> int:
        """The bits of a number."""
        return 8 if self.codebook else max(each.shift + each.bits for each in self.planes)

    def read(self, blocks: torch.Tensor) -> Numbers:
        """Reads the blocks of a matrix, uint8 [out, in / features, bytes]."""
        parts = torch.split(blocks, list(self.fields.values()), dim=-1)
        fields = dict(zip(self.fields, (each.contiguous() for each in parts), strict=True))
        numbers = sum((each.read(fields) for each in self.planes[1:]), self.planes[0].read(fields))
        if self.codebook:
            numbers = (torch.tensor(self.codebook) + self.offset).to(torch.uint8)[numbers.long()]
        elif "signed" in fields:
            numbers = numbers ^ self.offset  # two's complement
        factors, minima = (None, None) if self.factors is None else self.factors(fields)
        return Numbers(
            numbers.reshape(len(blocks), -1),
            fields["scale"].view(torch.float16)[..., 0],
            fields["minimum"].view(torch.float16)[..., 0] if "minimum" in fields else self._subtracted(fields),
            None if factors is None else factors.view(torch.int8).reshape(len(blocks), -1),
            None if minima is None else minima.view(torch.int8).reshape(len(blocks), -1),
        )

    def _subtracted(self, fields: Fields) -> torch.Tensor | None:
        """The minimum of encodings that subtract it."""
        held = fields.get("subtracted")
        return None if held is None else -held.view(torch.float16)[..., 0]


def _nibbles(fields: Fields) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of scales in the lower halves, of minima in the upper ones."""
    held = fields["factors"]
    return held & 15, held >> 4


def _bytes(fields: Fields) -> tuple[torch.Tensor, None]:
    return fields["factors"], None


def _sixes(fields: Fields) -> tuple[torch.Tensor, None]:
    """16 factors of six bits: 4 lower bits each in the first 8 bytes, 2 upper bits each in the last 4; 32 is zero."""
    held = fields["factors"]
    low = Plane("low", 4, 8).read({"low": held[..., :8].contiguous()})
    high = Plane("high", 2, 4, shift=4).read({"high": held[..., 8:].contiguous()})
    return low + high - 32, None


def _pairs(fields: Fields) -> tuple[torch.Tensor, torch.Tensor]:
    """8 factors and 8 minima of six bits: four of each whole, the others' upper bits in the upper bits of those."""
    first, second, third = torch.split(fields["factors"], 4, dim=-1)
    factors = torch.cat((first & 63, (third & 15) | (first >> 2 & 48)), -1)
    minima = torch.cat((second & 63, (third >> 4) | (second >> 2 & 48)), -1)
    return factors, minima


ENCODINGS: dict[str, Encoding] = {
    "q4_0": Encoding({"scale": 2, "low": 16}, (Plane("low", 4, 16),), offset=8),
    "q4_1": Encoding({"scale": 2, "minimum": 2, "low": 16}, (Plane("low", 4, 16),)),
    "q5_0": Encoding(
        {"scale": 2, "high": 4, "low": 16}, (Plane("low", 4, 16), Plane("high", 1, 1, shift=4)), offset=16
    ),
    "q5_1": Encoding(
        {"scale": 2, "minimum": 2, "high": 4, "low": 16}, (Plane("low", 4, 16), Plane("high", 1, 1, shift=4))
    ),
    "q8_0": Encoding({"scale": 2, "signed": 32}, (Plane("signed", 8, 32),), offset=128),
    "iq4_nl": Encoding(
        {"scale": 2, "low": 16},
        (Plane("low", 4, 16),),
        offset=128,
        codebook=(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    ),
    "q2_k": Encoding(
        {"factors": 16, "low": 64, "scale": 2, "subtracted": 2},
        (Plane("low", 2, 32),),
        features=256,
        group=16,
        factors=_nibbles,
    ),
    "q3_k": Encoding(
        {"high": 32, "low": 64, "factors": 12, "scale": 2},
        (Plane("low", 2, 32), Plane("high", 1, 32, shift=2)),
        features=256,
        group=16,
        offset=4,
        factors=_sixes,
    ),
    "q4_k": Encoding(
        {"scale": 2, "subtracted": 2, "factors": 12, "low": 128},
        (Plane("low", 4, 32),),
        features=256,
        factors=_pairs,
    ),
    "q5_k": Encoding(
        {"scale": 2, "subtracted": 2, "factors": 12, "high": 32, "low": 128},
        (Plane("low", 4, 32), Plane("high", 1, 32, shift=4)),
        features=256,
        factors=_pairs,
    ),
    "q6_k": Encoding(
        {"low": 128, "high": 64, "factors": 16, "scale": 2},
        (Plane("low", 4, 64), Plane("high", 2, 32, shift=4)),
        features=256,
        group=16,
        offset=32,
        factors=_bytes,
    ),
}
"""The encodings by name; GGML's types have the same names in capitals."""
