"""split_states: takes apart states of `@cached` that hold a state for each layer side by side.

A state whose places along an axis are read and rewritten one by one, as where a model keeps all layers' states in one
tensor, becomes one state for each place: no place waits for another's layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.ir import (
    Builder,
    Concat,
    Context,
    Function,
    InsertPoint,
    ModuleOp,
    Return,
    Rewriter,
    Slice,
    SSAValue,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context
from forerun.passes.canonicalize import clean


@dataclass(frozen=True)
class SplitStates(Pass):
    """The first argument of `@cached` is the token, the others are states, which it returns behind the logits."""

    name: ClassVar[str] = "split-states"
    needs: ClassVar[Needs | None] = Needs("cached")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        cached = function_named(op, "cached")
        _, *states = cached.block.args
        for before in states:
            after = cached.returned[before.index]
            for axis, size in enumerate(tensor_type(before).dims):
                if not isinstance(size, int) or size == 1 or not _is_read_in_places(before, axis):
                    continue
                places = [_place(after, axis, at) for at in range(size)]
                if all(value is not before or at == own for own, (value, at) in enumerate(places)):
                    _split(cached, before, axis, places)
                    pass_context(ctx).note(f"{self.name}: %{before.name_hint} holds {size} states along axis {axis}")
                    break
        clean(cached)


def _is_read_in_places(state: SSAValue, axis: int) -> bool:
    readers = [use.operation for use in state.uses if not isinstance(use.operation, Return)]
    return bool(readers) and all(isinstance(each, Slice) and (each.dim, each.step) == (axis, 1) for each in readers)


def _place(value: SSAValue, axis: int, at: int) -> tuple[SSAValue, int]:
    """The value that a place along an axis is taken from, and its place there."""
    operation = value.owner
    if isinstance(operation, Slice) and (operation.dim, operation.step) == (axis, 1):
        start = operation.start
        return _place(operation.x, axis, at + start) if isinstance(start, int) else (value, at)
    if isinstance(operation, Concat) and operation.dim == axis:
        start = 0
        for each in operation.inputs:
            size = tensor_type(each).dims[axis]
            if not isinstance(size, int):
                return value, at
            if at < start + size:
                return _place(each, axis, at - start)
            start += size
    return value, at


def _split(cached: Function, before: SSAValue, axis: int, places: list[tuple[SSAValue, int]]) -> None:
    """Puts a state for each place in the place of one."""
    block = cached.block
    index = list(block.args).index(before)  # pyright: ignore[reportArgumentType]
    dims = list(tensor_type(before).dims)
    kind = tensor_type(before).with_dims((*dims[:axis], 1, *dims[axis + 1 :]))
    own: list[SSAValue] = []
    for number in range(len(places)):
        own.append(block.insert_arg(kind, index + 1 + number))
        own[-1].name_hint = f"{before.name_hint}_{number}"
    last = block.last_op
    assert isinstance(last, Return)
    build = Builder(InsertPoint.before(last))
    kept = [
        own[number] if value is before else build.slice(value, axis, at, at + 1)
        for number, (value, at) in enumerate(places)
    ]
    results = list(last.inputs)
    build.emit(Return.make(*results[:index], *kept, *results[index + 1 :]))
    Rewriter.erase_op(last)
    for use in list(before.uses):
        reader = use.operation
        assert isinstance(reader, Slice)
        parts = Builder(InsertPoint.before(reader)).concat(own[int(reader.start) : int(reader.stop)], axis)
        reader.result.replace_all_uses_with(parts)
        Rewriter.erase_op(reader)
    block.erase_arg(before)  # pyright: ignore[reportArgumentType]
