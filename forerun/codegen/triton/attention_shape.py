"""The sizes of a tree attention: lanes of a tile, positions of a block and of a split, tiles that share a load."""

from __future__ import annotations

from dataclasses import dataclass

from forerun.codegen.loops.nest import AttentionNest

LANES = 16
"""Rows of one mma instruction."""
KEYS = {"f32": 32, "bf16": 64, "f16": 64}
"""Positions of a block, by the element type of the cache. There is no mma unit for float32, so operands of a `tl.dot`
are entirely in registers: blocks are smaller, and features are processed 32 at a time."""
FEATURES = {"f32": 32, "bf16": 256, "f16": 256}
SMALLEST = 64
"""Positions of the smallest split."""
SPLITS = 64
"""The approximate number of splits of the longest sequence."""
TOGETHER = (1, 2, 4, 8)
"""Tiles that may share a load."""


@dataclass(frozen=True)
class Shape:
    """The sizes of one tree attention."""

    nest: AttentionNest
    tables: int  # most blocks of a sequence: the width of the block tables
    path: int  # the width of the paths
    length: int  # most positions of a sequence

    @property
    def split(self) -> int:
        """The positions of a split, fixed for a compiled model: a power of two from 64 to 2048."""
        return max(SMALLEST, min(2048, 1 << max(0, (self.length // SPLITS - 1)).bit_length()))

    @property
    def splits(self) -> int:
        """The splits of the longest sequence."""
        return -(-self.length // self.split)

    @property
    def element(self) -> str:
        """The element type of the cache."""
        return self.nest.keys.buffer.element

    @property
    def shared(self) -> tuple[int, ...]:
        """The numbers of tiles that may share a load, within the registers of every GPU."""
        return TOGETHER if self.element != "f32" and self.nest.key_dim > 64 else TOGETHER[:3]

    @property
    def keys(self) -> int:
        """Positions of a block."""
        return KEYS[self.element]

    @property
    def parts(self) -> list[tuple[int, int]]:
        """The first feature of each `tl.dot`, and its number of features."""
        size = min(padded(self.nest.key_dim), FEATURES[self.element])
        return [(start, size) for start in range(0, padded(self.nest.key_dim), size)]

    @property
    def members(self) -> int:
        """Query heads of a key head."""
        return self.nest.heads // self.nest.groups

    @property
    def together(self) -> int:
        """The query heads in a tile for each of its rows."""
        return min(LANES, self.members)

    @property
    def rows(self) -> int:
        """Rows of a tile."""
        return LANES // self.together

    @property
    def head_tiles(self) -> int:
        """The number of tiles for the heads of one row."""
        return -(-self.members // self.together)


def padded(size: int) -> int:
    """The size of a key or a value, padded for `tl.dot`."""
    return max(16, 1 << (size - 1).bit_length())
