"""raise_recurrence: derives `@forward` from `@cached`, a model's step over one token with its states.

A state that each step appends to along an axis is what the values appended at all positions are; one that each step
moves on by one place holds the values of the last few positions (`windows`); a state that each step rewrites is the
record of a `spec.recurrence`, whose body is what lies between reading it and leaving the next. All else is computed for
each position by itself (`lifting`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import UnsupportedOperationError
from forerun.ir import (
    INTEGER_DTYPES,
    Block,
    Builder,
    Concat,
    Constant,
    Context,
    Function,
    MatMul,
    ModuleOp,
    Recurrence,
    Region,
    Return,
    Rewriter,
    SpecOperation,
    SSAValue,
    TensorType,
    Yield,
    neighbourhood,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context, rewrite
from forerun.passes.canonicalize import clean
from forerun.passes.late_broadcasts import LateBroadcast
from forerun.passes.lifting import Lifting, grown_axis
from forerun.passes.matching import SEQUENCE
from forerun.passes.recurrence_parts import Part, in_order, recurrence_parts, size_of
from forerun.passes.windows import MovingWindow, windows


@dataclass(frozen=True)
class RaiseRecurrence(Pass):
    """The first argument of `@cached` is the token [1, 1], the others are states; it returns logits and states."""

    name: ClassVar[str] = "raise-recurrence"
    needs: ClassVar[Needs | None] = Needs("cached", adds_functions=("forward",))

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        cached = function_named(op, "cached")
        rewrite(cached, [LateBroadcast()], pass_context(ctx))
        token, *states = cached.block.args
        _, *returned = cached.returned
        rewritten: list[tuple[SSAValue, SSAValue]] = []
        for before, after in zip(states, returned, strict=True):
            if grown_axis(before) is None:
                rewritten.append((before, after))
            elif not _is_appended(before, after):
                raise _refused(cached, before)
        moving = windows(rewritten)
        try:
            nodes = _ordered(cached, rewritten, moving)
        except UnsupportedOperationError:  # a window's value waits for what reads it, so both are in a recurrence
            nodes = _ordered(cached, rewritten, moving := [])
        forward = Function.of("forward", [("input_ids", TensorType.of((1, SEQUENCE), tensor_type(token).dtype))])
        op.body.block.insert_op_before(forward, cached)
        _build(cached, forward, nodes, moving)
        Rewriter.erase_op(cached)
        clean(forward)
        recurrences = sum(isinstance(each, Part) for each in nodes)
        counts = len(states) - len(rewritten), len(moving), len(rewritten) - len(moving), recurrences
        note = "{} states appended to, {} windows, {} rewritten in {} recurrences".format(*counts)
        pass_context(ctx).note(f"{self.name}: {note}")


def _ordered(
    cached: Function, rewritten: Sequence[tuple[SSAValue, SSAValue]], moving: Sequence[MovingWindow]
) -> list[SpecOperation | Part]:
    values = {each.before: each.value for each in moving}
    recurring = [each for each in rewritten if each[0] is not each[1] and each[0] not in values]
    return in_order(cached, recurrence_parts(cached, recurring, list(values.values())), values)


def _is_appended(before: SSAValue, after: SSAValue) -> bool:
    """Whether a step appends one position's value to a state along the axis that grows, and does nothing else to it."""
    operation = after.owner
    if not isinstance(operation, Concat) or operation.dim != grown_axis(before) or len(operation.inputs) != 2:
        return False
    one = tensor_type(operation.inputs[1]).dims[operation.dim] == 1
    return one and operation.inputs[0] is before


def _refused(cached: Function, state: SSAValue) -> UnsupportedOperationError:
    reader = next((use.operation for use in state.uses if not isinstance(use.operation, Return)), cached.body[-1])
    return UnsupportedOperationError(
        f"The state %{state.name_hint} grows with the text, but a step does not just append to it, in "
        f"{reader.name.removeprefix('spec.')}; use a cache that keeps all positions.\n{neighbourhood(reader)}"
    )


def _build(
    cached: Function, forward: Function, nodes: Sequence[SpecOperation | Part], moving: Sequence[MovingWindow]
) -> None:
    lifting = Lifting(cached, forward)
    waiting = list(moving)
    for node in nodes:
        while ready := [each for each in waiting if lifting.has(each.value)]:
            ready[0].lift(lifting)
            waiting.remove(ready[0])
        if isinstance(node, Part):
            _recurrence(node, lifting)
        elif isinstance(node, Return):
            continue
        else:
            lifting.lift(node)
    logits = lifting.row(cached.returned[0])
    build = lifting.build
    shape = (1, SEQUENCE, tensor_type(logits).dims[-1])
    build.emit(Return.make(build.reshape(logits, shape)))


def _recurrence(part: Part, lifting: Lifting) -> None:
    """Emits the recurrence of a part. Several states that depend on one another are one record, side by side."""
    inputs, outputs = part.inputs(), part.outputs()
    records = [tensor_type(each) for each in part.befores]
    if not outputs:  # such as a count that nothing reads
        return
    for before, kind in zip(part.befores, records, strict=True):
        if kind.dtype in INTEGER_DTYPES:
            raise UnsupportedOperationError(
                f"The state %{before.name_hint} of {kind} is rewritten from its own whole numbers, but states are in "
                "float32; keep floating-point numbers."
            )
    alike = len(records) > 1 and len(set(records)) == 1
    joined = records[0] if len(records) == 1 else _joined(part, alike)
    region = Region(Block(arg_types=[joined, *(tensor_type(each) for each in inputs)]))
    build = Builder(region.block)
    values: dict[SSAValue, SSAValue] = dict(zip(inputs, region.block.args[1:], strict=True))
    start = 0
    for number, (before, kind) in enumerate(zip(part.befores, records, strict=True)):
        value: SSAValue = region.block.args[0]
        if alike:
            value = build.slice(value, 0, number, number + 1)
        elif len(records) > 1:
            value, start = build.slice(value, 0, start, start + size_of(before)), start + size_of(before)
        values[before] = build.reshape(value, kind.dims)
    for operation in part.ordered:
        build.location = operation.location
        for value in operation.operands:
            if value not in values:  # a number
                assert isinstance(value.owner, Constant)
                values[value] = build.emit(value.owner.remade([])).results[0]
        given = [values[each] for each in operation.operands]
        if isinstance(operation, MatMul):
            values[operation.result] = _summed(build, operation, *given)
            continue
        made = build.emit(operation.remade(given))
        values.update(zip(operation.results, made.results, strict=True))
    found: list[SSAValue] = []
    for after, kind in zip(part.afters, records, strict=True):
        shape = (1, *kind.dims) if alike else (size_of(after),) if len(records) > 1 else kind.dims
        found.append(build.reshape(values[after], shape))
    build.emit(Yield.make(build.concat(found, 0), *(values[each] for each in outputs)))
    operands = [lifting.given(each) for each in inputs]
    made = lifting.build.emit(Recurrence.of(operands, region, size=SEQUENCE))
    for value, result in zip(outputs, made.results, strict=True):
        lifting.define(value, result)


def _joined(part: Part, alike: bool) -> TensorType:
    kind = tensor_type(part.befores[0])
    return kind.with_dims((len(part.befores), *kind.dims) if alike else (part.record,))


def _summed(build: Builder, operation: MatMul, a: SSAValue, b: SSAValue) -> SSAValue:
    """A product with a vector as a sum along the axis that they share; other products stay."""
    (*_, rows, inner), columns = tensor_type(a).dims, tensor_type(b).dims[-1]
    rank = len(tensor_type(operation.result).dims)
    if inner == 1:
        return build.map("mul", a, b)
    if columns == 1:
        product = build.map("mul", a, build.transpose(b, _swapped(tensor_type(b).rank)))
        return build.reduce("sum", product, (rank - 1,), keep=True)
    if rows == 1:
        product = build.map("mul", build.transpose(a, _swapped(tensor_type(a).rank)), b)
        return build.reduce("sum", product, (rank - 2,), keep=True)
    return build.add(MatMul, a, b)


def _swapped(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)
