"""raise_norms: x * rsqrt(mean(x * x) + eps), times a weight, becomes one `spec.rms_norm`; of x - mean(x), one
`spec.layer_norm`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.ir import (
    Builder,
    Cast,
    LayerNorm,
    Map,
    PatternRewriter,
    Reduce,
    RewritePattern,
    RMSNorm,
    SpecOperation,
    SSAValue,
    op_type_rewrite_pattern,
    tensor_type,
)
from forerun.passes.base import PassContext, RewritePass, replace
from forerun.passes.matching import defined_by, either_order, is_vector, mapped, number, symbols, used_once


class RaiseRMSNorm(RewritePattern):
    """The norm itself."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Map, rewriter: PatternRewriter) -> None:
        match op.function:
            case "mul":
                orders, root = list(either_order(op)), "rsqrt"
            case "div":
                orders, root = [(op.inputs[0], op.inputs[1])], "sqrt"
            case _:
                return
        for x, inverse in orders:
            denominator = mapped(inverse, root)
            if denominator is None:
                continue
            eps = _mean_square_plus_eps(denominator.inputs[0], x)
            if eps is not None and op.result.type == x.type:
                replace(rewriter, op, RMSNorm.make(x, eps=eps))
                return


def _mean_square_plus_eps(value: SSAValue, x: SSAValue) -> float | None:
    """Returns eps if the value is mean(x * x) + eps over the last dimension."""
    total = mapped(value, "add")
    if total is None:
        return None
    for mean, eps in either_order(total):
        rounded = defined_by(mean, Cast)
        square = _averaged(mean if rounded is None else rounded.x)
        product = None if square is None else mapped(square, "mul")
        if product is not None and number(eps) is not None and all(_alike(each, x) for each in product.inputs):
            return float(number(eps) or 0.0)
    return None


def _averaged(value: SSAValue) -> SSAValue | None:
    """Returns what a value is the mean of, over the last dimension, which stays; None if it is no such mean."""
    reduction = defined_by(value, Reduce)
    if reduction is None or reduction.function != "mean" or not reduction.keep:
        return None
    return reduction.x if reduction.dims == (tensor_type(value).rank - 1,) else None


def _alike(value: SSAValue, x: SSAValue) -> bool:
    """Whether a value is x, or what x is, x = y - mean(y), computed from y in a wider dtype."""
    if value is x:
        return True
    wide, narrow = _centred(value), _centred(x)
    cast = None if wide is None else defined_by(wide, Cast)
    return cast is not None and cast.x is narrow and tensor_type(value).dtype == "f64"


def _centred(value: SSAValue) -> SSAValue | None:
    """Returns y if the value is y - mean(y) over the last dimension, else None."""
    difference = mapped(value, "sub")
    if difference is None or _averaged(difference.inputs[1]) is not difference.inputs[0]:
        return None
    return difference.inputs[0]


class WeightIntoRMSNorm(RewritePattern):
    """A vector that multiplies a norm's result is its weight."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Map, rewriter: PatternRewriter) -> None:
        if op.function != "mul":
            return
        for normed, weight in either_order(op):
            norm = defined_by(normed, RMSNorm)
            if norm is None or norm.weight is not None or not used_once(normed):
                continue
            features = tensor_type(normed).dims[-1]
            if symbols(weight) or not is_vector(weight, features, normed) or op.result.type != normed.type:
                continue
            vector = Builder.before(op, rewriter).reshape(weight, (features,))
            replace(rewriter, op, RMSNorm.make(norm.x, vector, eps=norm.eps))
            return


class LayerNormFromRMSNorm(RewritePattern):
    """A layer norm is the RMS norm of what is left when the mean is subtracted."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: RMSNorm, rewriter: PatternRewriter) -> None:
        x = _centred(op.x)
        if x is not None and op.weight is not None and x.type == op.x.type:
            replace(rewriter, op, LayerNorm.make(x, op.weight, eps=op.eps))


class BiasIntoLayerNorm(RewritePattern):
    """A vector added to a layer norm's result is its bias."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Map, rewriter: PatternRewriter) -> None:
        if op.function != "add":
            return
        for normed, bias in either_order(op):
            norm = defined_by(normed, LayerNorm)
            if norm is None or norm.weight is None or norm.bias is not None or not used_once(normed):
                continue
            features = tensor_type(normed).dims[-1]
            if symbols(bias) or not is_vector(bias, features, normed) or op.result.type != normed.type:
                continue
            vector = Builder.before(op, rewriter).reshape(bias, (features,))
            replace(rewriter, op, LayerNorm.make(norm.x, norm.weight, vector, eps=norm.eps))
            return


@dataclass(frozen=True)
class RaiseNorms(RewritePass):
    """Every model spells out RMS norms; layer norms are one operation in ATen, but decompositions spell them out."""

    name: ClassVar[str] = "raise-norms"

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        return [RaiseRMSNorm(), WeightIntoRMSNorm(), LayerNormFromRMSNorm(), BiasIntoLayerNorm()]

    def declined(self, operation: SpecOperation) -> str | None:
        if not isinstance(operation, Map) or operation.function != "rsqrt":
            return None
        return "a number is divided by a root that is not of a mean of squares over the last dimension plus a number"
