"""parallel_layers: derives `@draft` from `@step`, with the attentions of consecutive layers on the same input.

After Wu et al., "EasySpec: Layer-Parallel Speculative Decoding for Efficient Multi-GPU Utilization" (arXiv 2502.02493):
a draft's attentions need not wait for each other if those of a group of layers all read the stream as it was where the
group began. Each still adds to the stream where it did before, and the feed-forward parts read it as it then is. A
layer whose attention and feed-forward part add to one value (a parallel residual) reads the group's input for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import InvalidOptionError
from forerun.ir import (
    Builder,
    Context,
    InsertPoint,
    Map,
    ModuleOp,
    Operation,
    Reshape,
    SpecOperation,
    SSAValue,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, option, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.residual import FEED_FORWARD, Branch, residual, viewed
from forerun.passes.skip_layers import copied


@dataclass(frozen=True)
class ParallelLayers(Pass):
    """`layers`: how many consecutive layers are a group."""

    name: ClassVar[str] = "parallel-layers"
    needs: ClassVar[Needs | None] = Needs("step", ("tokens",), adds_functions=("draft",), before_kernels=True)

    layers: int = option(4, least=1, most=2**20)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        step = function_named(op, "step")
        draft = copied(step, "draft")
        found = residual(draft)
        attentions = sum(each.kind != FEED_FORWARD for each in found.branches)
        if not attentions:
            raise InvalidOptionError(
                "@step has no attention in a residual branch, so no layers that could read the same input; derive "
                "another draft."
            )
        inputs = group_inputs(found.branches, self.layers)
        for number, first in inputs.items():
            _read(found.stream[number], found.stream[first], found.stream[number + 1], found.branches[number])
        op.body.block.insert_op_after(draft, step)
        clean(draft)
        pass_context(ctx).note(
            f"@draft evaluates {len(inputs)} of {attentions} attentions from an earlier input, that of their group of "
            f"{self.layers} layers"
        )


def group_inputs(branches: Sequence[Branch], layers: int) -> dict[int, int]:
    """Returns, by branch, the number of the stream's value that it reads, if that is not its own: of each attention
    in a group of layers, the value before the group's first branch."""
    first: dict[int, int] = {}
    begins = {number: first.setdefault(each.layer // layers, number) for number, each in enumerate(branches)}
    return {
        number: begin for number, begin in begins.items() if begin < number and branches[number].kind != FEED_FORWARD
    }


def _read(value: SSAValue, instead: SSAValue, after: SSAValue, branch: Branch) -> None:
    """Has a branch read another value of the stream, which may have more or fewer dimensions of size one; the sum
    that is the stream's value `after` it keeps its addend."""
    assert isinstance(value.owner, SpecOperation)
    if instead.type != value.type:
        instead = Builder(InsertPoint.after(value.owner)).reshape(instead, tensor_type(value).dims)
    _replace_uses(value, instead, branch, _additions(after, value))


def _replace_uses(value: SSAValue, instead: SSAValue, branch: Branch, kept: set[Operation]) -> None:
    for use in list(value.uses):
        reader = use.operation
        if reader in kept or reader not in branch.operations:
            continue
        if isinstance(reader, Reshape):  # the sum may read it too
            view = Builder(InsertPoint.before(reader)).reshape(instead, tensor_type(reader.result).dims)
            _replace_uses(reader.result, view, branch, kept)
        else:
            reader.operands[use.index] = instead


def _additions(after: SSAValue, before: SSAValue) -> set[Operation]:
    """The additions through which a value of the stream is an addend of the next: the last, and partial sums."""
    owner = after.owner
    if not (isinstance(owner, Map) and owner.function == "add"):
        return set()
    for operand in owner.inputs:
        if viewed(operand) is before:
            return {owner}
        if len(list(operand.uses)) == 1 and (inner := _additions(operand, before)):
            return {owner, *inner}
    return set()
