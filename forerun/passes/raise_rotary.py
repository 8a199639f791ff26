"""raise_rotary: x * cos + concat(-x[d/2:], x[:d/2]) * sin becomes one `spec.rotary`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.ir import (
    Concat,
    Map,
    PatternRewriter,
    RewritePattern,
    Rotary,
    Slice,
    SpecOperation,
    SSAValue,
    op_type_rewrite_pattern,
    tensor_type,
)
from forerun.passes.base import PassContext, RewritePass, replace
from forerun.passes.matching import defined_by, either_order, mapped


class RaiseRotary(RewritePattern):
    """The half style; the interleaved style stays as it is spelled."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Map, rewriter: PatternRewriter) -> None:
        if op.function != "add":
            return
        for straight, turned in either_order(op):
            first, second = mapped(straight, "mul"), mapped(turned, "mul")
            if first is None or second is None:
                continue
            for rotated, sin in either_order(second):
                x = _rotated_half(rotated)
                if x is None:
                    continue
                for value, cos in either_order(first):
                    if value is x and cos.type == sin.type and tensor_type(cos).dims[-1] == tensor_type(x).dims[-1]:
                        replace(rewriter, op, Rotary.make(x, cos, sin))
                        return


def _rotated_half(value: SSAValue) -> SSAValue | None:
    """Returns x if the value is concat(-x[d/2:], x[:d/2]) over the last dimension."""
    concat = defined_by(value, Concat)
    if concat is None or len(concat.inputs) != 2 or concat.dim != tensor_type(value).rank - 1:
        return None
    negated = mapped(concat.inputs[0], "neg")
    right = None if negated is None else defined_by(negated.inputs[0], Slice)
    left = defined_by(concat.inputs[1], Slice)
    if left is None or right is None or left.x is not right.x:
        return None
    size = tensor_type(value).dims[-1]
    if not isinstance(size, int) or any(each.dim != concat.dim for each in (left, right)):
        return None
    halves = (left.start, left.stop, right.start, right.stop)
    return left.x if halves == (0, size // 2, size // 2, size) else None


@dataclass(frozen=True)
class RaiseRotaryEmbedding(RewritePass):
    """Raises each rotary embedding in the half style to one operation."""

    name: ClassVar[str] = "raise-rotary"

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        return [RaiseRotary()]

    def declined(self, operation: SpecOperation) -> str | None:
        if not isinstance(operation, Concat) or _rotated_half(operation.result) is None:
            return None
        return "halves are turned, but not in x * cos + turned * sin with tables as wide as x"
