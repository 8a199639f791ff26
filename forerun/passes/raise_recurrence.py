"""raise_recurrence: derives `@forward` from `@cached`, a model's step over one token with its states.

A state that each step appends to along an axis is what the values appended at all positions are; a state that each step
rewrites is the record of a `spec.recurrence`, whose body is what lies between reading it and leaving the next. All else
is computed for each position by itself (`lifting`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import UnsupportedOperationError
from forerun.ir import (
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
from forerun.passes.recurrence_parts import Part, in_order, recurrence_parts


@dataclass(frozen=True)
class RaiseRecurrence(Pass):
    """The first argument of `@cached` is the token [1, 1], the others are states; it returns logits and states."""

    name: ClassVar[str] = "raise-recurrence"
    needs: ClassVar[Needs | None] = Needs("cached", adds_function="forward")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        cached = function_named(op, "cached")
        rewrite(cached, [LateBroadcast()])
        token, *states = cached.block.args
        _, *returned = cached.returned
        grown: dict[SSAValue, Concat] = {}
        rewritten: list[tuple[SSAValue, SSAValue]] = []
        for before, after in zip(states, returned, strict=True):
            if grown_axis(before) is None:
                rewritten.append((before, after))
            elif (appended := _appended(before, after)) is not None:
                grown[before] = appended
            else:
                raise _refused(cached, before)
        parts = recurrence_parts(cached, [each for each in rewritten if each[0] is not each[1]])
        forward = Function.of("forward", [("input_ids", TensorType.of((1, SEQUENCE), tensor_type(token).dtype))])
        op.body.block.insert_op_before(forward, cached)
        _build(cached, forward, parts)
        Rewriter.erase_op(cached)
        clean(forward)
        note = f"{len(grown)} states appended to, {len(rewritten)} rewritten in {len(parts)} recurrences"
        pass_context(ctx).note(f"{self.name}: {note}")


def _appended(before: SSAValue, after: SSAValue) -> Concat | None:
    """The operation that appends one position's value to a state along the axis that grows."""
    operation = after.owner
    if not isinstance(operation, Concat) or operation.dim != grown_axis(before) or len(operation.inputs) != 2:
        return None
    one = tensor_type(operation.inputs[1]).dims[operation.dim] == 1
    return operation if one and operation.inputs[0] is before else None


def _refused(cached: Function, state: SSAValue) -> UnsupportedOperationError:
    reader = next((use.operation for use in state.uses if not isinstance(use.operation, Return)), cached.body[-1])
    return UnsupportedOperationError(
        f"The state %{state.name_hint} grows with the text, but a step does not just append to it, in "
        f"{reader.name.removeprefix('spec.')}; use a cache that keeps all positions.\n{neighbourhood(reader)}"
    )


def _build(cached: Function, forward: Function, parts: list[Part]) -> None:
    lifting = Lifting(cached, forward)
    for node in in_order(cached, parts):
        if isinstance(node, Part):
            _recurrence(cached, node, lifting)
        elif isinstance(node, Return):
            continue
        else:
            lifting.lift(node)
    logits = lifting.row(cached.returned[0])
    build = lifting.build
    shape = (1, SEQUENCE, tensor_type(logits).dims[-1])
    build.emit(Return.make(build.reshape(logits, shape)))


def _recurrence(cached: Function, part: Part, lifting: Lifting) -> None:
    """Emits the recurrence of a part. Several states that depend on one another are one record, side by side."""
    inputs, outputs = part.inputs(), part.outputs(cached)
    records = [tensor_type(each) for each in part.befores]
    alike = len(records) > 1 and len(set(records)) == 1
    joined = records[0] if len(records) == 1 else _joined(records, alike)
    region = Region(Block(arg_types=[joined, *(tensor_type(each) for each in inputs)]))
    build = Builder(region.block)
    values: dict[SSAValue, SSAValue] = dict(zip(inputs, region.block.args[1:], strict=True))
    start = 0
    for number, (before, kind) in enumerate(zip(part.befores, records, strict=True)):
        value: SSAValue = region.block.args[0]
        if alike:
            value = build.slice(value, 0, number, number + 1)
        elif len(records) > 1:
            value, start = build.slice(value, 0, start, start + _size(kind)), start + _size(kind)
        values[before] = build.reshape(value, kind.dims)
    for operation in part.sorted(cached):
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
        shape = (1, *kind.dims) if alike else (_size(kind),) if len(records) > 1 else kind.dims
        found.append(build.reshape(values[after], shape))
    build.emit(Yield.make(build.concat(found, 0), *(values[each] for each in outputs)))
    operands = [lifting.given(each) for each in inputs]
    made = lifting.build.emit(Recurrence.of(operands, region, size=SEQUENCE))
    for value, result in zip(outputs, made.results, strict=True):
        lifting.define(value, result)


def _joined(records: list[TensorType], alike: bool) -> TensorType:
    if alike:
        return records[0].with_dims((len(records), *records[0].dims))
    return records[0].with_dims((sum(map(_size, records)),))


def _size(kind: TensorType) -> int:
    size = 1
    for dim in kind.sizes({}):
        size *= dim
    return size


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
