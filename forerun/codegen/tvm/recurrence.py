"""A recurrence: the rows of a step in order, parents first, each record computed from its parent's.

The plain form: one thread, one row after another. A row's record is written to its result, and from there to its slot.
"""

from collections.abc import Sequence

from forerun import ir
from forerun.codegen.tvm.builder import Expr, integer, let, local, number, otherwise, store, when
from forerun.codegen.tvm.expressions import Expressions, Index
from forerun.codegen.tvm.phases import RecurrencePhase
from forerun.codegen.tvm.records import each_number
from forerun.codegen.tvm.rowwise import Rows
from forerun.codegen.tvm.untyped import tirx


def emit_recurrence(context: Expressions, phase: RecurrencePhase) -> None:
    """All rows, on the first thread."""
    with (
        when(tirx.EQ(context.frame.part, integer(0))),
        context.frame.serial(0, context.size(ir.tensor_type(phase.operation.order).dims[0])) as step,
    ):
        _row(context, phase, let(context.element(phase.operation.order, [step])))


def _row(context: Expressions, phase: RecurrencePhase, row: Expr) -> None:
    operation, records, form = phase.operation, phase.records, phase.records.form
    position = let(context.element(operation.positions, [row]))
    memory = context.frame.memories[form.region]  # one name for all blocks: a row reads what an earlier one has written
    block, lane = records.home(_parent(context, operation, row, let(tirx.max(position - integer(1), integer(0)))))
    origin = let(records.origin(context, block))

    def before(index: Sequence[Index]) -> Expr:
        at = records.place([integer(each) if isinstance(each, int) else each for each in index], lane)
        return tirx.Select(position > integer(0), memory[origin + at.astype("int64")], number(0.0))

    context.computed[operation.before] = before
    for inner, (outer, by_row) in operation.of_rows().items():
        lead = [row] if by_row else []
        context.computed[inner] = lambda index, outer=outer, lead=lead: context.element(outer, [*lead, *index])
    rows = Rows(context)
    for value, stored in phase.kept:
        context.stored[value] = stored
        rows.write(value, stored, None)

    home, own = records.home(let(context.element(operation.slots, [row])))
    target = let(records.origin(context, home))

    def finish(index: list[Expr], spare: bool) -> None:
        if not spare:
            context.write(phase.result, [row, *index], context.element(operation.after, index))

    def leave(index: list[Expr], spare: bool) -> None:
        value = number(0.0) if spare else context.read(phase.result, [row, *index])
        store(memory, value, target + records.place(index, own).astype("int64"), 1)

    each_number(context, form, finish)
    each_number(context, form, leave)


def _parent(context: Expressions, operation: ir.Recurrence, row: Expr, before: Expr) -> Expr:
    """The slot of position `before` of the row's history."""
    base = let(context.element(operation.bases, [row]))
    found = local(1, "int32")
    block = integer(operation.block)

    def committed() -> None:
        sequence = context.element(operation.sequences, [row])
        home = context.element(operation.block_tables, [sequence, tirx.truncdiv(before, block)])
        store(found, home * block + tirx.truncmod(before, block), integer(0), 1)

    def path() -> None:
        store(found, context.element(operation.paths, [row, before - base]), integer(0), 1)

    otherwise(before < base, committed, path)
    return let(found[integer(0)])
