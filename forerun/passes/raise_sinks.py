"""raise_sinks: an attention scaled by sigmoid(logsumexp(scores) - sink) gets one more column of scores instead.

softmax(s)_i * sigmoid(log(sum exp(s)) - z) is exp(s_i) over sum exp(s) + exp(z): the weight of a key beside a sink z.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun import dims as dimensions
from forerun.ir import (
    Broadcast,
    Builder,
    Cast,
    Map,
    MatMul,
    PatternRewriter,
    Reduce,
    Reshape,
    RewritePattern,
    Softmax,
    SSAValue,
    op_type_rewrite_pattern,
    tensor_type,
)
from forerun.passes.base import PassContext, RewritePass, replace
from forerun.passes.matching import defined_by, either_order, mapped


class SinksIntoScores(RewritePattern):
    """matmul(softmax(scores), values) * sigmoid(logsumexp(scores) - sinks), with scores [..., H, T, T]."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Map, rewriter: PatternRewriter) -> None:
        if op.function != "mul":
            return
        for attended, factor in either_order(op):
            product, gate = defined_by(_plain(attended), MatMul), mapped(_plain(factor), "sigmoid")
            softmax = None if product is None else defined_by(_plain(product.a), Softmax)
            if product is None or gate is None or softmax is None:
                continue
            dims = tensor_type(softmax.x).dims
            difference = mapped(_plain(gate.inputs[0]), "sub")
            if difference is None or softmax.dim != len(dims) - 1 or _summed(difference.inputs[0]) is not softmax.x:
                continue
            if tensor_type(product.a).dims != dims:
                continue
            sinks = difference.inputs[1]
            if [each for each in tensor_type(sinks).dims if each != 1] != [dims[-3]]:
                continue
            build = Builder.before(op, rewriter)
            column = build.reshape(build.cast(sinks, tensor_type(softmax.x).dtype), (dims[-3], 1, 1))
            column = build.broadcast(column, (*dims[:-1], 1))
            weights = build.add(Softmax, build.concat([softmax.x, column], len(dims) - 1), dim=len(dims) - 1)
            last = tensor_type(weights).dims[-1]
            weights = build.slice(weights, len(dims) - 1, 0, dimensions.add(last, -1))
            weights = build.cast(weights, tensor_type(product.a).dtype)
            found = build.add(MatMul, weights, product.b)
            result = tensor_type(op.result)
            replace(rewriter, op, build.cast(build.reshape(found, result.dims), result.dtype))
            return


def _plain(value: SSAValue) -> SSAValue:
    """What views and casts are around."""
    while isinstance(value.owner, Cast | Reshape | Broadcast):
        value = value.owner.x
    return value


def _summed(value: SSAValue) -> SSAValue | None:
    """The scores of log(sum(exp(scores - max))) + max along the last dimension, or None."""
    total = mapped(_plain(value), "add")
    for logarithm, largest in () if total is None else either_order(total):
        log, most = mapped(_plain(logarithm), "log"), defined_by(_plain(largest), Reduce)
        added = None if log is None else defined_by(_plain(log.inputs[0]), Reduce)
        exponential = None if added is None or added.function != "sum" else mapped(added.x, "exp")
        shifted = None if exponential is None else mapped(exponential.inputs[0], "sub")
        if added is None or shifted is None or most is None or most.function != "max":
            continue
        scores, subtracted = shifted.inputs
        rank = tensor_type(scores).rank
        if most.x is scores and _plain(subtracted) is most.result and added.dims == most.dims == (rank - 1,):
            return scores
    return None


@dataclass(frozen=True)
class RaiseSinks(RewritePass):
    """A model may scale what it attends to by the weight that a sink leaves, instead of adding the sink's score."""

    name: ClassVar[str] = "raise-sinks"

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        return [SinksIntoScores()]
