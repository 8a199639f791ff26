"""The choice of tokens: each row's k largest logits, and the token sampled from the row.

A tile chooses among its own columns and writes k candidates and the best sampling score; one program per row then
merges the tiles. Tiles are those of a product, whose logits are never written to memory (`emit_tile` is then the
product's epilogue), or of logits in memory (`emit_chunks`). Candidates come largest first, ties lower id first: maxima
and minima are exact in any order, so the division into tiles changes nothing. NaN counts as -inf; if a row has one,
its sampled token says so (`StepResult.drawn`).
"""

from __future__ import annotations

from dataclasses import dataclass

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.index import Index, Lane, volume
from forerun.codegen.loops.nest import Choice, TopKNest
from forerun.codegen.triton.layout import DRAWING, LEAST_BLOCK, WORDS
from forerun.codegen.triton.text import Text

CHUNK = 1024
"""Ids of one program over logits in memory."""
NONE = 2147483647
"""The id that marks a missing candidate."""


@dataclass(frozen=True)
class Tiles:
    """The results of the tiles of a choice, which the merge reads; `block` is the smallest tile."""

    choice: Choice
    block: int

    @property
    def most(self) -> int:
        """The largest number of tiles."""
        return -(-self.choice.columns // self.block)

    @property
    def lanes(self) -> int:
        """The lanes of the program that merges the tiles."""
        return 1 << (self.most - 1).bit_length()

    def _scratch(self, name: str, dims: tuple[ir.Dim, ...], element: str) -> Buffer:
        return Buffer("scratch", f"tiles' {name}", dims, "i32" if element == "i32" else "f32", element)

    @property
    def count(self) -> Buffer:
        """The number of tiles [1]."""
        return self._scratch("count", (1,), "i32")

    @property
    def candidates(self) -> tuple[Buffer, Buffer]:
        """Values and ids [rows, k, tiles]."""
        dims = (*self.choice.rows, self.choice.k, self.most)
        return self._scratch("values", dims, "f32"), self._scratch("ids", dims, "i32")

    @property
    def samples(self) -> tuple[Buffer, Buffer]:
        """The best scores and their tokens [rows, tiles]."""
        dims = (*self.choice.rows, self.most)
        return self._scratch("scores", dims, "f64"), self._scratch("tokens", dims, "i32")

    @property
    def nans(self) -> Buffer:
        """The first id whose logit is NaN [rows, tiles]; NONE if there is none."""
        return self._scratch("nans", (*self.choice.rows, self.most), "i32")


def describe(choice: Choice) -> str:
    return f"the {choice.k} largest of {choice.size}{' and a sampled token' if choice.sampled else ''}"


def _input(name: str) -> Buffer:
    """An input that no operation names."""
    return Buffer("input", name, ("M",), "i32", "i32")


def emit_tile(text: Text, choice: Choice, column: Index, value: str, block: int = LEAST_BLOCK) -> None:
    """A tile's choice among `value` [ROWS, BLOCK] at its `row` and at `column`, which may leave lanes out."""
    tiles = Tiles(choice, block)
    guards = sorted({*text.guards(column.variables), "row_in"})
    text.line(f"ids = {text.index(column)}")
    text.line(f"free = {' & '.join(guards)}")
    text.line(f'logits = tl.where({value} == {value}, {value}, float("-inf"))')
    values, ids = _pointers(text, tiles.candidates)
    place = f"row * {choice.k * tiles.most} + tile"
    text.line(f"keep_largest(logits, ids, free, row_in, {values} + {place}, {ids} + {place}, {choice.k}, {tiles.most})")
    if choice.sampled is not None:
        (nans,) = _pointers(text, (tiles.nans,))
        text.line(f"nan = tl.where(free & ({value} != {value}), ids, {NONE})")
        text.line(f"tl.store({nans} + row * {tiles.most} + tile, tl.min(nan, axis=1, keep_dims=True), mask=row_in)")
        scores, tokens = _pointers(text, tiles.samples)
        inputs = ", ".join(text.argument(_input(each)) for each in ("draws", "positions", "outputs"))
        place = f"row * {tiles.most} + tile"
        with text.block(f"if tl.load(sizes + {DRAWING}) != 0:"):
            text.line(
                f"keep_drawn(logits, ids, free, row, row_in, tile * BLOCK, {inputs}, {scores} + {place}, "
                f"{tokens} + {place}, BLOCK)"
            )
    (count,) = _pointers(text, (tiles.count,))
    with text.block("if (tl.program_id(0) == 0) & (tile == 0):"):
        text.line(f"tl.store({count}, ({choice.columns} + BLOCK - 1) // BLOCK)")


def emit_chunks(text: Text, nest: TopKNest) -> None:
    """Chooses in tiles of one row of logits in memory. Grid (rows, tiles)."""
    choice, rows, name = nest.choice, text.index(volume(nest.choice.rows)), text.argument(nest.logits)
    text.line("row = tl.program_id(0) + tl.full([ROWS, 1], 0, tl.int32)")
    text.line(f"row_in = row < {rows}")
    text.line("tile = tl.program_id(1)")
    text.line("lane = tile * BLOCK + tl.arange(0, BLOCK)[None, :]")
    text.line(f"lane_in = lane < {choice.size}")
    place = f"{name} + row.to(tl.int64) * {choice.size} + lane"
    text.line(f"value = tl.load({place}, mask=row_in & lane_in, other=0.0)")
    emit_tile(text, choice, text.bind(Lane("lane"), "lane", "lane_in", wide=True), "value", CHUNK)


def emit_choice(text: Text, choice: Choice, block: int = LEAST_BLOCK) -> None:
    """Merges the tiles of a row: k times, the best of their next candidates. Grid (rows)."""
    tiles = Tiles(choice, block)
    rows, (count,) = text.index(volume(choice.rows)), _pointers(text, (tiles.count,))
    from_values, from_ids = _pointers(text, tiles.candidates)
    to_values, to_ids = _pointers(text, (choice.values, choice.ids))
    text.line("row = tl.program_id(0)")
    text.line(f"tile = tl.arange(0, {tiles.lanes})")
    with text.block(f"if row < {rows}:"):
        text.line(f"inside = tile < tl.load({count})")
        text.line(f"place = row * {choice.k * tiles.most} + tile")
        text.line(f'values = tl.load({from_values} + place, mask=inside, other=float("-inf"))')
        text.line(f"ids = tl.load({from_ids} + place, mask=inside, other={NONE})")
        text.line("drawn = row")
        with text.block(f"for number in range({choice.k}):"):
            text.line("best = tl.max(values, axis=0)")
            text.line(f"chosen = tl.min(tl.where(values == best, ids, {NONE}), axis=0)")
            text.line(f"tl.store({to_values} + row * {choice.k} + number, best)")
            text.line(f"tl.store({to_ids} + row * {choice.k} + number, chosen)")
            text.line("drawn = tl.where(number == 0, chosen, drawn)")
            text.line("taken = inside & (ids == chosen)")
            text.line(f"place += tl.where(taken, {tiles.most}, 0)")
            text.line(f"more = taken & (number + 1 < {choice.k})")
            text.line(f"values = tl.where(taken, tl.load({from_values} + place, mask=more, other=0.0), values)")
            text.line(f"ids = tl.where(taken, tl.load({from_ids} + place, mask=more, other={NONE}), ids)")
        if choice.sampled is not None:
            _emit_sampled(text, tiles, choice.sampled)


def _emit_sampled(text: Text, tiles: Tiles, sampled: Buffer) -> None:
    """The token of the best score if the row's temperature is above 0, else the first candidate; -1 - id for a NaN."""
    scores, tokens, to = _pointers(text, (*tiles.samples, sampled))
    draws = text.argument(_input("draws"))
    with text.block(f"if tl.load(sizes + {DRAWING}) != 0:"):
        text.line(f"place = row * {tiles.most} + tile")
        text.line(f'scores = tl.load({scores} + place, mask=inside, other=float("-inf"))')
        text.line(f"tokens = tl.load({tokens} + place, mask=inside, other={NONE})")
        text.line("best_score = tl.max(scores, axis=0)")
        text.line(f"sampled = tl.min(tl.where(scores == best_score, tokens, {NONE}), axis=0)")
        text.line(f"temperature = load_words({draws} + row * {WORDS} + 4, True).to(tl.float64, bitcast=True)")
        text.line("drawn = tl.where(temperature > 0.0, sampled, drawn)")
    (nans,) = _pointers(text, (tiles.nans,))
    text.line(f"nan = tl.min(tl.load({nans} + row * {tiles.most} + tile, mask=inside, other={NONE}), axis=0)")
    text.line(f"tl.store({to} + row, tl.where(nan < {NONE}, -1 - nan, drawn))")


def _pointers(text: Text, buffers: tuple[Buffer, ...]) -> list[str]:
    return [text.argument(each) for each in buffers]
