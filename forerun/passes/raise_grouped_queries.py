"""raise_grouped_queries: keys and values repeated for each group of heads (arXiv 2305.13245) are read unrepeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.ir import (
    Attention,
    Broadcast,
    Builder,
    Dim,
    PatternRewriter,
    Reshape,
    RewritePattern,
    SSAValue,
    op_type_rewrite_pattern,
    tensor_type,
)
from forerun.passes.base import PassContext, RewritePass, replace
from forerun.passes.matching import defined_by


class ReadUnrepeated(RewritePattern):
    """`spec.attention` lets several heads share a key head, so a repetition in front of it can go."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Attention, rewriter: PatternRewriter) -> None:
        query, _, _, *extra = op.operands
        keys, values = _unrepeated(op.key), _unrepeated(op.value)
        if keys is None or values is None:
            return
        if keys[1][-3] != values[1][-3]:
            return
        build = Builder.before(op, rewriter)
        narrow = [build.reshape(source, dims) for source, dims in (keys, values)]
        replace(rewriter, op, op.remade([query, *narrow, *extra]))


def _unrepeated(value: SSAValue) -> tuple[SSAValue, tuple[Dim, ...]] | None:
    """What a value repeats for each group, and its shape [.., Hkv, T, D]: reshape(broadcast [.., Hkv, g, T, D])."""
    merged = defined_by(value, Reshape)
    wide = None if merged is None else defined_by(merged.x, Broadcast)
    if wide is None:
        return None
    before, after = tensor_type(wide.x).dims, tensor_type(wide.result).dims
    if len(before) != len(after) or len(after) < 4:
        return None
    repeated = [axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
    if repeated != [len(after) - 3]:
        return None
    dims = tensor_type(value).dims
    heads, groups = after[-4], after[-3]
    if (
        not isinstance(heads, int)
        or not isinstance(groups, int)
        or dims[-3] != heads * groups
        or dims[-2:] != after[-2:]
    ):
        return None
    return wide.x, (*dims[:-3], heads, *dims[-2:])


@dataclass(frozen=True)
class RaiseGroupedQueries(RewritePass):
    """Grouped-query expansion, spelled as unsqueeze - expand - reshape, folded into the attention."""

    name: ClassVar[str] = "raise-grouped-queries"

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        return [ReadUnrepeated()]
