"""Broadcasts as late as possible: what is computed of a value that repeats is computed once, and then repeated."""

from __future__ import annotations

from forerun.ir import (
    Broadcast,
    Builder,
    Cast,
    Map,
    PatternRewriter,
    RewritePattern,
    broadcast_dims,
    op_type_rewrite_pattern,
    tensor_type,
)
from forerun.passes.base import replace


class LateBroadcast(RewritePattern):
    """f(broadcast(x), y) is f(x, y), broadcast."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Map | Cast, rewriter: PatternRewriter) -> None:
        narrow = [each.owner.x if isinstance(each.owner, Broadcast) else each for each in op.operands]
        if not any(isinstance(each.owner, Broadcast) for each in op.operands):
            return
        build = Builder.before(op, rewriter)
        result = tensor_type(op.result)
        dims = broadcast_dims([tensor_type(each).dims for each in narrow])
        made = build.emit(op.remade(narrow)).results[0]
        padded = build.reshape(made, ((1,) * (result.rank - len(dims)) + tuple(dims)))
        replace(rewriter, op, build.broadcast(padded, result.dims))
