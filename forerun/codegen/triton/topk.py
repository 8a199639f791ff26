"""The choice of tokens: each row's k largest logits, and the token that is drawn from it.

A tile chooses among its own columns and writes k candidates, and the best score of a draw; one program a row then
merges the tiles. A tile is one of a product's, which holds logits that memory never sees (`emit_tile` is then the
product's epilogue), or of logits in memory (`emit_chunks`). Largest first, the lower id first among equals: a maximum
and a minimum are exact in any order, so that the division into tiles changes nothing. NaN counts as -inf; where a row
has one, its drawn token says so (`StepResult.drawn`).
"""

from __future__ import annotations

from dataclasses import dataclass

from forerun import ir
from forerun.codegen.triton.expressions import Expressions, Slot, Stored, Term
from forerun.codegen.triton.index import Index, Lane, size_of
from forerun.codegen.triton.step import DRAWING, WORDS

CHUNK = 1024
"""Ids of one program over logits in memory."""
NONE = 2147483647
"""The id of no candidate."""


@dataclass(frozen=True)
class Choice:
    """What is chosen of a value [rows, size], and where it goes.

    k       candidates a row: `values` and `ids` [rows, k]
    drawn   the drawn token of each row [rows]; None where no token is drawn from this value
    columns what the tiles divide: `size`, or the columns of a product of which the value is a part
    block   the smallest tile
    """

    rows: tuple[ir.Dim, ...]
    size: int
    k: int
    values: Stored
    ids: Stored
    drawn: Stored | None
    columns: int
    block: int

    @property
    def tiles(self) -> int:
        """The most tiles that there may be."""
        return -(-self.columns // self.block)

    @property
    def lanes(self) -> int:
        """The lanes of the program that merges them."""
        return 1 << (self.tiles - 1).bit_length()

    def scratch(self, name: str, dims: tuple[ir.Dim, ...], element: str) -> Stored:
        """What tiles leave for the merge; a float64 takes the room of two numbers."""
        room = (*dims, 2) if element == "f64" else dims
        return Stored(Slot("scratch", (f"tiles' {name}", room)), dims, "i32" if element == "i32" else "f32", element)

    @property
    def count(self) -> Stored:
        """[1]: how many tiles there are."""
        return self.scratch("count", (1,), "i32")

    @property
    def candidates(self) -> tuple[Stored, Stored]:
        """Values and ids [rows, k, tiles]."""
        dims = (*self.rows, self.k, self.tiles)
        return self.scratch("values", dims, "f32"), self.scratch("ids", dims, "i32")

    @property
    def draws(self) -> tuple[Stored, Stored]:
        """The best scores and their tokens [rows, tiles]."""
        dims = (*self.rows, self.tiles)
        return self.scratch("scores", dims, "f64"), self.scratch("tokens", dims, "i32")

    @property
    def nans(self) -> Stored:
        """The first id whose logit is NaN [rows, tiles]; NONE where none is."""
        return self.scratch("nans", (*self.rows, self.tiles), "i32")

    def describe(self) -> str:
        return f"the {self.k} largest of {self.size}{' and a drawn token' if self.drawn else ''}"


def emit_tile(context: Expressions, choice: Choice, column: Index, value: Term) -> None:
    """What a tile [ROWS, BLOCK] chooses: `value` at its `row` and at `column`, which may leave lanes of it out."""
    guards = sorted(column.guards | {"row_in"})
    context.line(f"ids = {column.text}")
    context.line(f"free = {' & '.join(guards)}")
    context.line(f'logits = tl.where({value.text} == {value.text}, {value.text}, float("-inf"))')
    values, ids = _pointers(context, choice.candidates)
    place = f"row * {choice.k * choice.tiles} + tile"
    context.line(
        f"keep_largest(logits, ids, free, row_in, {values} + {place}, {ids} + {place}, {choice.k}, {choice.tiles})"
    )
    if choice.drawn is not None:
        (nans,) = _pointers(context, (choice.nans,))
        context.line(f"nan = tl.where(free & ({value.text} != {value.text}), ids, {NONE})")
        context.line(
            f"tl.store({nans} + row * {choice.tiles} + tile, tl.min(nan, axis=1, keep_dims=True), mask=row_in)"
        )
        scores, tokens = _pointers(context, choice.draws)
        inputs = ", ".join(context.argument(Slot("input", each), "i32") for each in ("draws", "positions", "outputs"))
        place = f"row * {choice.tiles} + tile"
        with context.block(f"if tl.load(sizes + {DRAWING}) != 0:"):
            context.line(
                f"keep_drawn(logits, ids, free, row, row_in, tile * BLOCK, {inputs}, {scores} + {place}, "
                f"{tokens} + {place}, BLOCK)"
            )
    (count,) = _pointers(context, (choice.count,))
    with context.block("if (tl.program_id(0) == 0) & (tile == 0):"):
        context.line(f"tl.store({count}, ({choice.columns} + BLOCK - 1) // BLOCK)")


def emit_chunks(context: Expressions, choice: Choice, logits: Stored) -> None:
    """Tiles of one row of logits in memory. Grid (rows, tiles)."""
    rows = rows_text(context, choice.rows)
    (name,) = _pointers(context, (logits,))
    context.line("row = tl.program_id(0) + tl.full([ROWS, 1], 0, tl.int32)")
    context.line(f"row_in = row < {rows}")
    context.line("tile = tl.program_id(1)")
    context.line("lane = tile * BLOCK + tl.arange(0, BLOCK)[None, :]")
    context.line(f"lane_in = lane < {choice.size}")
    place = f"{name} + row.to(tl.int64) * {choice.size} + lane"
    context.line(f"value = tl.load({place}, mask=row_in & lane_in, other=0.0)")
    emit_tile(context, choice, Index.of(Lane("lane", None, frozenset({"lane_in"}), 0, True)), Term("value"))


def emit_choice(context: Expressions, choice: Choice) -> None:
    """The tiles of a row merged: k times the best of what each has next. Grid (rows)."""
    rows, (count,) = rows_text(context, choice.rows), _pointers(context, (choice.count,))
    from_values, from_ids = _pointers(context, choice.candidates)
    to_values, to_ids = _pointers(context, (choice.values, choice.ids))
    context.line("row = tl.program_id(0)")
    context.line(f"tile = tl.arange(0, {choice.lanes})")
    with context.block(f"if row < {rows}:"):
        context.line(f"inside = tile < tl.load({count})")
        context.line(f"place = row * {choice.k * choice.tiles} + tile")
        context.line(f'values = tl.load({from_values} + place, mask=inside, other=float("-inf"))')
        context.line(f"ids = tl.load({from_ids} + place, mask=inside, other={NONE})")
        context.line("drawn = row")
        with context.block(f"for number in range({choice.k}):"):
            context.line("best = tl.max(values, axis=0)")
            context.line(f"chosen = tl.min(tl.where(values == best, ids, {NONE}), axis=0)")
            context.line(f"tl.store({to_values} + row * {choice.k} + number, best)")
            context.line(f"tl.store({to_ids} + row * {choice.k} + number, chosen)")
            context.line("drawn = tl.where(number == 0, chosen, drawn)")
            context.line("taken = inside & (ids == chosen)")
            context.line(f"place += tl.where(taken, {choice.tiles}, 0)")
            context.line(f"more = taken & (number + 1 < {choice.k})")
            context.line(f"values = tl.where(taken, tl.load({from_values} + place, mask=more, other=0.0), values)")
            context.line(f"ids = tl.where(taken, tl.load({from_ids} + place, mask=more, other={NONE}), ids)")
        if choice.drawn is not None:
            _emit_drawn(context, choice, choice.drawn)


def _emit_drawn(context: Expressions, choice: Choice, drawn: Stored) -> None:
    """The best score of the tiles where the row's temperature is above 0, else the first candidate; -1 - a NaN's id."""
    scores, tokens, to = _pointers(context, (*choice.draws, drawn))
    draws = context.argument(Slot("input", "draws"), "i32")
    with context.block(f"if tl.load(sizes + {DRAWING}) != 0:"):
        context.line(f"place = row * {choice.tiles} + tile")
        context.line(f'scores = tl.load({scores} + place, mask=inside, other=float("-inf"))')
        context.line(f"tokens = tl.load({tokens} + place, mask=inside, other={NONE})")
        context.line("best_score = tl.max(scores, axis=0)")
        context.line(f"sampled = tl.min(tl.where(scores == best_score, tokens, {NONE}), axis=0)")
        context.line(f"temperature = load_words({draws} + row * {WORDS} + 4, True).to(tl.float64, bitcast=True)")
        context.line("drawn = tl.where(temperature > 0.0, sampled, drawn)")
    (nans,) = _pointers(context, (choice.nans,))
    context.line(f"nan = tl.min(tl.load({nans} + row * {choice.tiles} + tile, mask=inside, other={NONE}), axis=0)")
    context.line(f"tl.store({to} + row, tl.where(nan < {NONE}, -1 - nan, drawn))")


def _pointers(context: Expressions, stored: tuple[Stored, ...]) -> list[str]:
    return [context.argument(each.slot, each.element) for each in stored]


def rows_text(context: Expressions, dims: tuple[ir.Dim, ...]) -> str:
    """The number of rows of some leading axes."""
    for dim in dims:
        context.size(dim)
    return " * ".join(size_of(dim).text for dim in dims if dim != 1) or "1"
