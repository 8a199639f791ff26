"""reuse_kv_cache: verification does not repeat what `@draft` has computed bit for bit as `@step` would.

Both functions are numbered together: two values have the same number if they are the same operation on operands of the
same numbers and, for reads of a state, if the same was written to it. By row determinism, equal numbers are equal bits.
`@resume` is `@step` from the point where the numbers differ: the last equal values that it needs become its arguments,
and the writes to states before them have been done.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import InvalidOptionError
from forerun.ir import (
    Context,
    Function,
    ModuleOp,
    Rewriter,
    SpecOperation,
    SSAValue,
    WeightProduct,
    functions,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.flow import FLOWS, Flow
from forerun.passes.residual import LAYER, Branch, residual
from forerun.passes.skip_layers import copied

Number = int


@dataclass(frozen=True)
class ReuseKVCache(Pass):
    """`@resume` from `@draft` and `@step`, if the draft's work can be reused."""

    name: ClassVar[str] = "reuse-kv-cache"
    needs: ClassVar[Needs | None] = Needs("draft", ("tokens",), adds_functions=("resume",), before_kernels=True)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        step, draft = function_named(op, "step"), function_named(op, "draft")
        if "resume" in functions(op):
            raise InvalidOptionError("The module has a @resume already; derive one at a time.")
        table: dict[Hashable, Number] = {}
        known = set(number(draft, table).values())
        resume = copied(step, "resume")
        numbers = number(resume, table)
        dependent = on_tokens(resume)
        equal = [each for each in resume.body if each in numbers and numbers[each] in known]
        rest = (each for each in resume.body if each in numbers and numbers[each] not in known)
        parted = next((each for each in rest if dependent.intersection(each.operands)), None)
        linears = [each for each in resume.body if isinstance(each, WeightProduct)]
        spared = sum(isinstance(each, WeightProduct) for each in equal)
        note = pass_context(ctx).note
        shown = "" if parted is None else f"; they diverge {_place(parted, residual(resume).branches)}"
        if spared == 0:
            note(f"@step can use nothing that @draft computes{shown}")
            return
        _enter(resume, set(equal), dependent)
        op.body.block.insert_op_after(resume, step)
        note(f"@resume has {len(linears) - spared} of {len(linears)} linears; @draft computes the others{shown}")


def number(function: Function, table: dict[Hashable, Number]) -> dict[SpecOperation, Number]:
    """The number of each operation of a function except its return; `table` holds the numbers given so far."""

    def of(key: Hashable) -> Number:
        return table.setdefault(key, len(table))

    values: dict[SSAValue, Hashable] = {each: ("argument", each.name_hint) for each in function.block.args}
    written: dict[str, tuple[Number, ...]] = {}
    numbers: dict[SpecOperation, Number] = {}
    for operation in function.body:
        if FLOWS.of(operation) is Flow.ENDS:
            continue
        properties = tuple(sorted((name, str(each)) for name, each in operation.properties.items()))
        seen = tuple(written.get(symbol, ()) for symbol in operation.reads)
        bodies = tuple(map(str, operation.regions))
        own = of((operation.name, properties, bodies, tuple(values[each] for each in operation.operands), seen))
        numbers[operation] = own
        values.update((result, (own, index)) for index, result in enumerate(operation.results))
        for symbol in operation.writes:
            written[symbol] = (*written.get(symbol, ()), own)
    return numbers


def on_tokens(function: Function) -> set[SSAValue]:
    """The values that depend on the tokens: values of positions alone cost nothing to recompute."""
    found: set[SSAValue] = {function.argument("tokens")}
    for operation in function.body:
        if found.intersection(operation.operands) or operation.reads:
            found.update(operation.results)
    return found


def _enter(resume: Function, done: set[SpecOperation], dependent: set[SSAValue]) -> None:
    """Turn finished values into arguments if the rest reads them and they depend on the tokens."""
    for operation in [each for each in resume.body if each in done]:
        for value in operation.results:
            readers = {use.operation for use in value.uses} - done
            if value not in dependent or not readers:
                continue
            argument = resume.block.insert_arg(tensor_type(value), len(resume.block.args))
            argument.name_hint = value.name_hint or "hidden"
            value.replace_all_uses_with(argument)
        if operation.writes:
            Rewriter.erase_op(operation)
    clean(resume)


def _place(operation: SpecOperation, branches: Sequence[Branch]) -> str:
    """Says where in the residual stream an operation is, and which one it is."""
    names = ", ".join(f"%{each.name_hint or '?'}" for each in operation.results)
    shown = f"at {names or operation.name} ({operation.mnemonic})"
    if not branches:
        return shown
    for number, each in enumerate(branches):
        if operation in each.operations:
            part = "" if each.kind == LAYER else f", {each.kind.replace('_', '-')}"
            return f"in branch {number} (layer {each.layer}{part}), {shown}"
    return f"outside the {len(branches)} branches, {shown}"
