"""The schedules of the embedded back end's templates: what of a kernel's loops may vary, and its bounds.

The order of every sum is the template's own. A schedule says how many rows or heads share a load, how far loops are
unrolled and how far ahead memory is fetched, so a row's bits are the same under all schedules.
"""

from __future__ import annotations

from dataclasses import dataclass

from forerun.codegen.loops.nest import AttentionNest, Nest, ProductNest
from forerun.codegen.schedule import Setting, Space
from forerun.codegen.tvm.layout import SPARE
from forerun.codegen.tvm.quantized import FORMATS
from forerun.codegen.tvm.target import LANES, Machine

AHEAD = 2048
"""Words between a prefetch and its use: 8 KiB, as measured."""

ACCUMULATORS = 24
"""Vectors of results, and of scores, that one unit of an attention keeps in registers."""


@dataclass(frozen=True)
class ProductSchedule:
    """How products walk rows and features."""

    tile_rows: int
    unroll: int = 1
    prefetch: int = AHEAD
    prefetch_rows: int = 0

    def fetches(self, rows: int, measured: int) -> bool:
        """Whether a tile of `rows` rows prefetches; a weight's format was `measured` to gain from so many on."""
        return self.prefetch > 0 and rows >= (self.prefetch_rows or measured)


@dataclass(frozen=True)
class AttentionSchedule:
    """How an attention walks heads and positions."""

    heads: int
    scores: int = ACCUMULATORS
    unroll: int = 4
    prefetch: int = 1

    def turn(self, count: int) -> int:
        """Returns how many of `count` features or positions an iteration has: `unroll`, halved until it divides."""
        size = self.unroll
        while count % size:
            size //= 2
        return size


@dataclass(frozen=True)
class RowSchedule:
    """How rows are written."""

    unroll: int = 8


DEFAULT_ROWS = RowSchedule()


def space_of(kind: str, nest: Nest, machine: Machine) -> Space | None:
    """Returns the schedules of a template's kernel; None if it has only one."""
    if kind == "products":
        assert isinstance(nest, ProductNest)
        return _products(nest, machine)
    if kind == "attention":
        assert isinstance(nest, AttentionNest)
        return _attention(nest)
    if kind in ("rows", "recurrence"):
        unroll = Setting(range(65), (0, 4, 8, 16, 32, 64), "a row of up to so many vectors of 16 numbers has no loop")
        return Space(DEFAULT_ROWS, {"unroll": unroll})
    return None


def _products(nest: ProductNest, machine: Machine) -> Space:
    formats = [FORMATS[matrix.weight.element] for segment in nest.segments for matrix in segment.matrices]
    measured = {1 if nest.arithmetic == "int8" else each.prefetched for each in formats}
    default = ProductSchedule(machine.tile_rows, prefetch_rows=measured.pop() if len(measured) == 1 else 0)
    settings = {
        "tile_rows": Setting(range(1, 17), (2, 4, 6, 8, 10, 12, 14), "rows of a register tile, which share a load"),
        "unroll": Setting(range(1, 9), (1, 2, 4, 8), "turns of the loop over features that an iteration has"),
        "prefetch": Setting(
            range(SPARE // 2 + 1),
            (0, 512, 1024, 2048, 4096, 8192),
            "words of 4 bytes that weights are prefetched ahead, 0 for none",
        ),
        "prefetch_rows": Setting(
            range(17),
            (1, 2, 3, 6, 9, 12),
            "rows of a tile from which on it prefetches, 0 for what suits the format",
        ),
    }
    return Space(default, settings)


def _attention(nest: AttentionNest) -> Space:
    members = nest.heads // nest.groups
    divisors = tuple(size for size in range(1, members + 1) if members % size == 0)
    vectors = padded(nest.value_dim) // LANES
    fitting = max(size for size in divisors if size == 1 or size * vectors <= ACCUMULATORS)
    settings = {
        "heads": Setting(divisors, divisors, "query heads of one key head that a unit of work has"),
        "scores": Setting(range(1, 33), (4, 8, 16, 24, 32), "vectors of scores that are added up side by side"),
        "unroll": Setting((1, 2, 4, 8, 16), (1, 2, 4, 8, 16), "features, or positions, that an iteration has"),
        "prefetch": Setting(range(9), (0, 1, 2, 4), "spans of positions that prefetches run ahead, 0 for none"),
    }
    return Space(AttentionSchedule(fitting), settings)


def padded(size: int) -> int:
    """Rounds a size up to whole vectors."""
    return -(-size // LANES) * LANES
