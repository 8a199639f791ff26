"""Lowers a module to a program of the GPU back end: a Triton source for each structure, and launches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from forerun import ir
from forerun.codegen.backends import WEIGHT_DTYPES
from forerun.codegen.loops.emitter import Emitted, Emitter
from forerun.codegen.loops.lowering import Lowering
from forerun.codegen.loops.nest import (
    AttentionNest,
    Choice,
    Experts,
    Nest,
    ProductNest,
    RecurrenceNest,
    RowNest,
    TopKNest,
)
from forerun.codegen.loops.placing import Traits
from forerun.codegen.loops.states import StateLayout, state_layout
from forerun.codegen.planned import PlannedStep
from forerun.codegen.program import Config, Grid
from forerun.codegen.triton.assembly import Bodies, assemble, body_key
from forerun.codegen.triton.attention import AttentionText
from forerun.codegen.triton.attention_shape import Shape
from forerun.codegen.triton.experts import ROWS, emit_grouped
from forerun.codegen.triton.layout import ALIGNMENT, LEAST_BLOCK, SIZES, STEP_SIZES, TritonProgram
from forerun.codegen.triton.products import describe as describe_products
from forerun.codegen.triton.products import emit_experts, emit_products, tile_lanes
from forerun.codegen.triton.rows import block_of, division, emit_recurrence, emit_rows, items
from forerun.codegen.triton.text import Text
from forerun.codegen.triton.topk import CHUNK, Tiles, emit_choice, emit_chunks
from forerun.codegen.triton.topk import describe as describe_choice
from forerun.errors import UnsupportedOperationError
from forerun.signature import STEP


class TritonEmitter(Emitter):
    """Writes the text of kernels."""

    traits = Traits("cuda", tiles=True, prologues=True, deferred=frozenset({"f32", "bf16"}))
    storages = ("bf16", "f16")
    alignment = ALIGNMENT
    floats_in_arena = False
    first_input = SIZES

    def __init__(self, planned: PlannedStep, block: int) -> None:
        self.storage, self.limits = planned.storage, planned.limits
        self.tables = -(-self.limits["max_length"] // block)

    def widths(self) -> dict[str, int]:
        return {"D": self.limits["max_path"], "B": self.tables}

    def sizes(self, entry: str, symbols: Sequence[str]) -> tuple[str, ...]:
        return STEP_SIZES if entry == STEP else tuple(symbols)

    def state(self, state: ir.State, block: int, read_as_keys: bool) -> StateLayout:
        return state_layout(state, block, self.storage if state.per == "position" else "f32")

    def arithmetic(self, nest: ProductNest) -> str:
        """A matrix's own element type; rows are rounded to it."""
        return next(name for name, element in WEIGHT_DTYPES.items() if element == nest.element)

    def kernels(self, nest: Nest, sizes: Sequence[str]) -> list[Emitted]:
        match nest:
            case RowNest():
                return [self._rows(nest, sizes)]
            case ProductNest():
                return self._products(nest, sizes)
            case AttentionNest():
                return self._attention(nest, sizes)
            case RecurrenceNest():
                return [self._recurrence(nest, sizes)]
            case TopKNest():
                return self._topk(nest, sizes)

    def _rows(self, nest: RowNest, sizes: Sequence[str]) -> Emitted:
        found = items(nest)
        grid = Grid("rows", tuple(each.unit_dims for each in found), tuple(each.lanes for each in found))
        block = block_of(found)
        bodies = {1: _written(emit_rows, nest)}
        words = f"rows of {', '.join(str([axis.dim for axis in each.store.axes]) for each in found)}"
        return _emitted("rows", bodies, sizes, grid, Config(block, 1, 4 if block > 128 else 1, 1), words)

    def _products(self, nest: ProductNest, sizes: Sequence[str]) -> list[Emitted]:
        if nest.experts is not None:
            return self._experts(nest, nest.experts, sizes)
        text = _written(emit_products, nest)
        kind = "products" if nest.choice is None else "head"
        grid = Grid(kind, (nest.rows,), tuple(map(tile_lanes, nest.segments)))
        made = _emitted(kind, {1: text}, sizes, grid, Config(block=LEAST_BLOCK), describe_products(nest))
        return [made] if nest.choice is None else [made, self._choice(nest.choice, sizes, LEAST_BLOCK)]

    def _experts(self, nest: ProductNest, experts: Experts, sizes: Sequence[str]) -> list[Emitted]:
        grouped, text = _written(emit_grouped, nest), _written(emit_experts, nest)
        words, columns = f"rows by one of {experts.count} experts", tuple(map(tile_lanes, nest.segments))
        return [
            _emitted("grouped", {1: grouped}, sizes, Grid("grouped", (nest.rows,)), Config(1, ROWS, 4, 1), words),
            _emitted(
                "experts",
                {1: text},
                sizes,
                Grid("experts", (nest.rows,), columns, experts=experts.count),
                Config(LEAST_BLOCK, ROWS, 4, 3),
                describe_products(nest),
            ),
        ]

    def _attention(self, nest: AttentionNest, sizes: Sequence[str]) -> list[Emitted]:
        if nest.heads % nest.groups:
            raise UnsupportedOperationError(
                f"the cuda target has no Triton template for {nest.heads} heads over {nest.groups} of keys."
            )
        shape = Shape(nest, self.tables, self.limits["max_path"], self.limits["max_length"])
        writer = AttentionText(nest, shape)
        bodies = {shared: _written(writer.emit, shared) for shared in shape.shared}
        combine = _written(writer.emit_combine)
        rows = ((nest.rows,),)
        grid = Grid("attention", rows, (shape.splits, nest.groups), (shape.rows, shape.head_tiles), shape.shared)
        made = _emitted("attention", bodies, sizes, grid, Config(64, 16, 4, 3), writer.describe())
        combine_grid = Grid("combine", rows, (nest.heads,))
        return [made, _emitted("combine", {1: combine}, sizes, combine_grid, Config(64, 1, 1, 2), "splits in order")]

    def _recurrence(self, nest: RecurrenceNest, sizes: Sequence[str]) -> Emitted:
        text = _written(emit_recurrence, nest)
        own = division(nest)
        grid = Grid("recurrence", ((nest.rows,),), (-(-own.size // own.share),))
        config = Config(own.lanes, 1, min(8, max(1, own.lanes // 128)), 1)
        words = f"a recurrence over records of {[axis.dim for axis in nest.stores[0].axes]}"
        return _emitted("recurrence", {1: text}, sizes, grid, config, words)

    def _topk(self, nest: TopKNest, sizes: Sequence[str]) -> list[Emitted]:
        text, choice = _written(emit_chunks, nest), nest.choice
        grid = Grid("chunks", (choice.rows,), (choice.size,))
        made = _emitted("chunks", {1: text}, sizes, grid, Config(CHUNK, 1, 4, 1), describe_choice(choice))
        return [made, self._choice(choice, sizes, CHUNK)]

    def _choice(self, choice: Choice, sizes: Sequence[str], block: int) -> Emitted:
        text = _written(emit_choice, choice, block)
        warps = min(16, max(4, Tiles(choice, block).lanes // 512))
        config = Config(LEAST_BLOCK, 1, warps, 1)
        return _emitted("choice", {1: text}, sizes, Grid("choice", (choice.rows,)), config, describe_choice(choice))


def _written(template: Callable[..., None], *given: Any) -> Text:
    """Returns the text that a template writes."""
    text = Text()
    template(text, *given)
    return text


def _emitted(kind: str, bodies: Bodies, sizes: Sequence[str], grid: Grid, config: Config, words: str) -> Emitted:
    first, *others = bodies.values()
    for other in others:
        for buffer in other.arguments:
            first.argument(buffer)

    def source(name: str) -> str:
        return assemble(name, words, bodies, sizes)

    key = f"{kind} {body_key(bodies, sizes)}"
    return Emitted(kind, key, list(first.arguments), source, words, grid, config, kind not in ("choice", "grouped"))


def emit(planned: PlannedStep) -> TritonProgram:
    """Generates the program of a planned `@step`."""
    return TritonProgram(Lowering(planned, lambda block: TritonEmitter(planned, block)).program, planned.weights)
