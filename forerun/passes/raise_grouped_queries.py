"""raise_grouped_queries: keys and values repeated for each group of heads (arXiv 2305.13245) are read unrepeated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.ir import (
    Attention,
    Broadcast,
    Builder,
    Concat,
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
        found = [_parts(each) for each in (op.key, op.value)]
        counts = {dims[-3] for parts in found for _, dims in parts} - {1} or {1}
        if len(counts) != 1 or not all(found):
            return
        (heads,) = counts
        build = Builder.before(op, rewriter)
        narrow = [[_with_heads(part, heads, build) for part in parts] for parts in found]
        rank = tensor_type(query).rank
        replace(rewriter, op, op.remade([query, *(build.concat(each, rank - 1) for each in narrow), *extra]))


Part = tuple[SSAValue, tuple[Dim, ...]]
"""A value to be viewed in a shape [.., Hkv, T, D]."""


def _with_heads(part: Part, heads: Dim, build: Builder) -> SSAValue:
    source, dims = part
    return build.broadcast(build.reshape(source, dims), (*dims[:-3], heads, *dims[-2:]))


def _parts(value: SSAValue) -> list[Part]:
    """What a value, or each of those whose features it joins, repeats for each group; empty if one does not."""
    joined = defined_by(value, Concat)
    if joined is None or joined.dim != tensor_type(value).rank - 1:
        found = [_unrepeated(value)]
    else:
        found = [_unrepeated(each) or _same_for_heads(each) for each in joined.inputs]
    return [] if None in found else [each for each in found if each is not None]


def _same_for_heads(value: SSAValue) -> Part | None:
    """What a value repeats for all heads."""
    wide = defined_by(value, Broadcast)
    dims = tensor_type(value).dims
    one = (*dims[:-3], 1, *dims[-2:])
    return None if wide is None or tensor_type(wide.x).dims != one else (wide.x, one)


def _unrepeated(value: SSAValue) -> Part | None:
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
