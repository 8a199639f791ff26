"""What is planned as text: the bodies of its launches, their grids and first divisions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from forerun import ir
from forerun.codegen.triton.attention import AttentionText
from forerun.codegen.triton.attention_shape import Shape, split_size
from forerun.codegen.triton.expressions import Expressions, Slot, Stored
from forerun.codegen.triton.plan import AttentionLaunch, Surroundings, TopKLaunch
from forerun.codegen.triton.products import Products
from forerun.codegen.triton.recurrence import NumberByNumber, RecurrenceLaunch
from forerun.codegen.triton.rowwise import RowsLaunch
from forerun.codegen.triton.step import Config, Grid
from forerun.codegen.triton.topk import CHUNK, LEAST_BLOCK, Choice, emit_choice, emit_chunks
from forerun.errors import UnsupportedOperationError


class Contexts(Protocol):
    """Makes an empty text that knows what lies in memory."""

    def __call__(self, kind: type[Expressions] = Expressions) -> Expressions: ...


@dataclass(frozen=True)
class Emission:
    """The text of planned launches, one of which may be several behind one another."""

    context: Contexts
    known: Surroundings
    length: int  # positions of a sequence at most

    def of(self, planned: Any) -> list[tuple[str, list[Expressions], Grid, Config, str]]:
        """(kind, the body or a body for each variant, grid, first configuration, in words) of each launch."""
        match planned:
            case Products():
                context = self.context()
                planned.emit(context, self.known)
                kind = "products" if planned.choice is None else "head"
                grid = Grid(kind, (planned.rows,), tuple(each.columns.lanes for each in planned.segments))
                made = (kind, [context], grid, Config(block=LEAST_BLOCK), planned.describe())
                return [made] if planned.choice is None else [made, self._choice(planned.choice)]
            case RowsLaunch():
                context = self.context()
                planned.emit(context, self.known)
                units = tuple(each.unit_dims for each in planned.items)
                grid = Grid("rows", units, tuple(each.lanes for each in planned.items))
                config = Config(planned.block, 1, 4 if planned.block > 128 else 1, 1)
                return [("rows", [context], grid, config, planned.describe())]
            case AttentionLaunch():
                return self._attention(planned)
            case RecurrenceLaunch():
                context = self.context(NumberByNumber)
                planned.emit(context, self.known)
                config = Config(planned.block, 1, 4 if planned.block > 128 else 1, 1)
                return [("recurrence", [context], Grid("recurrence", (("N",),)), config, planned.describe())]
            case _:
                assert isinstance(planned, TopKLaunch)
                return self._topk(planned)

    def _attention(self, planned: AttentionLaunch) -> list[Any]:
        operation = planned.operation
        symbol = operation.symbol
        heads, (groups, dim) = int(ir.tensor_type(operation.query).dims[1]), self.known.states[symbol].shape
        value_dim = operation.value_dim
        if heads % groups:
            raise UnsupportedOperationError(
                f"the cuda target has no Triton template for {heads} heads over {groups} of keys."
            )
        split = split_size(self.length)
        splits = -(-self.length // split)
        path, number = self.known.path, self.known.number
        shape = Shape(heads, groups, dim, value_dim, self.known.block, split, self.known.tables, path, number)
        scratch = tuple(
            Stored(Slot("scratch", (f"{name} of {symbol}", dims)), dims, "f32", "f32")
            for name, dims in (("sums", ("N", heads, splits, value_dim)), ("totals", ("N", heads, splits, 2)))
        )
        text = AttentionText(operation, shape, self.known, (scratch[0], scratch[1]))
        bodies: list[Expressions] = []
        for shared in shape.shared:
            bodies.append(self.context())
            text.emit(bodies[-1], shared)
        combine = self.context()
        text.emit_combine(combine, planned.result)
        grid = Grid("attention", (("N",),), (splits, groups), (shape.rows, shape.head_tiles), shape.shared)
        return [
            ("attention", bodies, grid, Config(64, 16, 4, 3), text.describe()),
            ("combine", [combine], Grid("combine", (("N",),), (heads,)), Config(64, 1, 1, 2), "splits in order"),
        ]

    def _topk(self, planned: TopKLaunch) -> list[Any]:
        choice, chunks = planned.choice, self.context()
        emit_chunks(chunks, choice, planned.logits)
        grid = Grid("chunks", (choice.rows,), (choice.size,))
        return [("chunks", [chunks], grid, Config(CHUNK, 1, 4, 1), choice.describe()), self._choice(choice)]

    def _choice(self, choice: Choice) -> Any:
        context = self.context()
        emit_choice(context, choice)
        warps = min(16, max(4, choice.lanes // 512))
        return "choice", [context], Grid("choice", (choice.rows,)), Config(LEAST_BLOCK, 1, warps, 1), choice.describe()
