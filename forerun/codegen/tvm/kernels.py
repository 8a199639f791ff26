"""Phases to functions: each kind of phase has its template."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forerun import ir
from forerun.codegen.tvm.attention import emit_attention
from forerun.codegen.tvm.builder import Frame, function, integer, when
from forerun.codegen.tvm.expressions import Expressions, Index, Stored
from forerun.codegen.tvm.linear import emit_linear
from forerun.codegen.tvm.phases import AttentionPhase, Phase, Plan, ProductPhase, RecurrencePhase, RowPhase, TopKPhase
from forerun.codegen.tvm.records import Records, emit_write
from forerun.codegen.tvm.recurrence import emit_recurrence
from forerun.codegen.tvm.rowwise import Rows
from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.topk import emit_maxima, emit_topk
from forerun.codegen.tvm.untyped import tirx

Template = Callable[[Expressions, Any, Machine], None]
"""Emits one phase into the function under construction."""


def _count(context: Expressions, dims: Sequence[ir.Dim]) -> Index:
    total: Index = 1
    for dim in dims:
        total = total * context.size(dim)
    return total if not isinstance(total, int) else integer(total)


def rows_template(context: Expressions, phase: RowPhase, machine: Machine) -> None:
    """Rows divided among threads; each row's values one after another."""
    rows = Rows(context)

    def emit(row: Any) -> None:
        for what, where in phase.items:
            if isinstance(what, ir.StateWrite):
                assert isinstance(where, Records)
                emit_write(context, where, what, row)
            else:
                assert isinstance(where, Stored)
                rows.write(what, where, row)

    if phase.rows == 1:
        with when(tirx.EQ(context.frame.part, integer(0))):
            emit(None)
        return
    with context.frame.divided(context.size(phase.rows)) as row:
        emit(row)


def products_template(context: Expressions, phase: ProductPhase, machine: Machine) -> None:
    """Linears, bundle by bundle."""
    for bundle in phase.bundles:
        emit_linear(context, bundle, machine.tile_rows, _count(context, bundle.x.dims[:-1]))


def attention_template(context: Expressions, phase: AttentionPhase, machine: Machine) -> None:
    """Tree attention."""
    emit_attention(context, phase.attention, phase.result)


def recurrence_template(context: Expressions, phase: RecurrencePhase, machine: Machine) -> None:
    """The rows of a state, parents first."""
    emit_recurrence(context, phase)


def topk_template(context: Expressions, phase: TopKPhase, machine: Machine) -> None:
    """The k largest."""
    rows = _count(context, phase.logits.dims[:-1])
    if phase.stage == 0:
        emit_maxima(context, phase.logits, phase.maxima, rows)
    else:
        emit_topk(context, phase.logits, phase.maxima, phase.values, phase.ids, rows)


TEMPLATES: dict[str, Template] = {
    "rows": rows_template,
    "products": products_template,
    "attention": attention_template,
    "recurrence": recurrence_template,
    "topk": topk_template,
}


def kind_of_phase(phase: Phase) -> str:
    """The template's name."""
    match phase:
        case RowPhase():
            return "rows"
        case ProductPhase():
            return "products"
        case AttentionPhase():
            return "attention"
        case RecurrencePhase():
            return "recurrence"
        case TopKPhase():
            return "topk"


def phase_function(
    plan: Plan, phase: Phase, sizes: Sequence[str], machine: Machine, templates: Mapping[str, Template]
) -> Any:
    """The function of one phase."""

    def body(frame: Frame) -> None:
        context = Expressions(frame, dict(plan.stored), plan.records)
        for inner, outer in plan.region.arguments.items():
            if isinstance(outer.owner, ir.Constant) and inner is not outer:
                context.computed[inner] = lambda index, outer=outer: context.element(outer, index)
        context.open_windows(_places(phase))
        templates[kind_of_phase(phase)](context, phase, machine)

    return function(sizes, body)


def _places(phase: Phase) -> list[Stored]:
    """Memory that a phase writes beside the stored values."""
    match phase:
        case RowPhase():
            return [where for _, where in phase.items if isinstance(where, Stored)]
        case TopKPhase():
            return [phase.maxima]
        case RecurrencePhase():
            return [phase.result, *(where for _, where in phase.kept)]
        case _:
            return []


__all__ = ["TEMPLATES", "Template", "kind_of_phase", "phase_function"]
