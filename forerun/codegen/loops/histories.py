"""The nests of attentions: operations that read states through the histories of rows."""

from __future__ import annotations

from collections.abc import Sequence

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.elements import NeedsMemoryError
from forerun.codegen.loops.index import Index, Lane
from forerun.codegen.loops.nest import AttentionNest, History, Nest
from forerun.codegen.loops.placing import require_narrow
from forerun.codegen.loops.recurrences import RecurrenceSchedule


class HistorySchedule(RecurrenceSchedule):
    """Plans the nests that read what earlier rows have left."""

    def _history_nest(self, operation: ir.TreeAttention | ir.TreeRecurrence, results: Sequence[Buffer]) -> Nest:
        if isinstance(operation, ir.TreeRecurrence):
            return self._recurrence(operation, results)
        (result,) = results
        return self._attention(operation, result)

    def _history(self, operation: ir.TreeAttention, row: Lane) -> History:
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
