"""The nests of attentions and recurrences: operations that read states through the histories of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.elements import Elements, NeedsMemoryError
from forerun.codegen.loops.expr import Expr, Load, apply, count, loads, where
from forerun.codegen.loops.index import Computed, Index, Lane
from forerun.codegen.loops.nest import AttentionNest, History, Nest, RecurrenceNest, Store
from forerun.codegen.loops.placing import require_narrow
from forerun.codegen.loops.rows import RowSchedule


class HistorySchedule(RowSchedule):
    """Plans the nests that read histories."""

    def _history_nest(self, operation: ir.TreeAttention | ir.Recurrence, result: Buffer) -> Nest:
        if isinstance(operation, ir.TreeAttention):
            return self._attention(operation, result)
        return self._recurrence(operation, result)

    def _history(self, operation: ir.TreeAttention | ir.Recurrence, row: Lane) -> History:
        at = [Index.of(row)]
        position, sequence, base = (
            self.context.element(each, at) for each in (operation.positions, operation.sequences, operation.bases)
        )
        paths, tables = (self._table(each) for each in (operation.paths, operation.block_tables))
        return History(row, position, sequence, base, paths, tables, operation.block)

    def _table(self, value: ir.SSAValue) -> Buffer:
        if (found := self.in_memory(value)) is None:
            raise NeedsMemoryError(value)
        return found

    def _attention(self, operation: ir.TreeAttention, result: Buffer) -> AttentionNest:
        rows, heads, dim = ir.tensor_type(operation.query).dims
        row, head, feature, place = Lane("row"), Lane("head", int(heads)), Lane("dim", int(dim)), Lane("place")
        element = self.context.element
        query = element(operation.query, [Index.of(row), Index.of(head), Index.of(feature)])
        require_narrow(query, [feature])
        bias, first, sinks = operation.bias, operation.first, operation.sinks
        of_bias = (1, 1) if bias is None else ir.tensor_type(bias).dims
        shared = Index() if of_bias[0] == 1 else Index.of(head)
        return AttentionNest(
            rows,
            int(heads),
            self._history(operation, row),
            head,
            feature,
            place,
            query,
            None if first is None else element(first, [Index.of(row)]),
            None if bias is None else element(bias, [shared, Index.of(place)]),
            of_bias[1],
            operation.bias_by == "key",
            None if sinks is None else element(sinks, [Index.of(head)]),
            self.facts.states[operation.symbol],
            self.facts.states[operation.values],
            operation.scale,
            operation.softcap,
            result,
        )

    def _recurrence(self, operation: ir.Recurrence, result: Buffer) -> RecurrenceNest:
        layout = self.facts.states[operation.symbol]
        for inner in operation.body:
            if isinstance(inner, ir.Parameter):
                self._weight(inner.result, inner)
        step = Lane("step")
        row = Lane("row", None, Computed(self.context.element(operation.order, [Index.of(step)])))
        history = self._history(operation, row)
        parent = Index.computed(_parent(history, row))
        has_parent = history.position > 0
        context = Elements(self.buffers, self.constants, self.facts.states, lambda value: False, inline_products=True)
        shape = [int(dim) for dim in ir.tensor_type(operation.before).dims]

        def before(index: Sequence[Index]) -> Expr:
            return Load(layout.buffer, tuple(layout.index(parent, index)), has_parent)

        def outer(value: ir.SSAValue, by_row: bool) -> Callable[[Sequence[Index]], Expr]:
            lead = [Index.of(row)] if by_row else []
            return lambda index: self.context.element(value, [*lead, *index])

        context.computed[operation.before] = before
        for inner, (value, by_row) in operation.of_rows().items():
            context.computed[inner] = outer(value, by_row)
        axes, index = self._axes(shape)
        value = context.element(operation.after, index)
        own = self.context.record(operation.symbol, operation.slots, [Index.of(row), *index])
        stores = Store(axes, value, result, (Index.of(row), *index)), Store(axes, value, *own)
        found = [each.index for each in loads(value) if each.buffer == layout.buffer]
        places = layout.index(parent, index)
        free = tuple(each for each in axes if _keeps(each.lane, places, found))
        return RecurrenceNest(ir.tensor_type(operation.order).dims[0], step, stores, free)


def _parent(history: History, row: Lane) -> Expr:
    """Returns the slot of the position before the row's own in its history."""
    before = apply("max", history.position - 1, 0)
    block = history.block
    committed = before < history.base
    quotient, remainder = Index.computed(before).divided(block)
    home = Load(history.tables, (Index.computed(history.sequence), quotient), committed)
    step = Index.computed(before - history.base)
    path = Load(history.paths, (Index.of(row), step), apply("ge", before, history.base))
    return where(committed, home * block + count(remainder), path)


def _keeps(lane: Lane, own: Sequence[Index], found: Sequence[Sequence[Index]]) -> bool:
    """Whether all reads of a state are at the record's own index along an axis."""
    axes = [axis for axis, index in enumerate(own) if lane in index.variables]
    return all(index[axis] == own[axis] for index in found for axis in axes)
