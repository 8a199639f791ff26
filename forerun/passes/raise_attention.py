"""raise_attention: matmul - softmax - matmul becomes one `spec.attention`, with its scale, softcap and mask."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun import dims as dimensions
from forerun.ir import (
    Attention,
    Broadcast,
    Builder,
    Cast,
    Concat,
    Dim,
    Map,
    MatMul,
    Parameter,
    PatternRewriter,
    Reduce,
    Reshape,
    RewritePattern,
    Slice,
    Softmax,
    SSAValue,
    Transpose,
    op_type_rewrite_pattern,
    tensor_type,
)
from forerun.passes.base import PassContext, RewritePass, replace
from forerun.passes.key_terms import KeyTermIntoKeys
from forerun.passes.matching import HIDDEN, SEQUENCE, defined_by, either_order, mapped, number, symbols


@dataclass(frozen=True)
class ScoreMask:
    """factor * value, added to the scores; for i1, a key is seen where it is `visible`, else it gets `low`.

    With `kept`, numbers that the scores are multiplied by as well: a key is seen where they are 1, if all are 0 or 1.
    """

    value: SSAValue
    visible: bool = True
    factor: float = 1.0
    low: float = HIDDEN
    kept: bool = False


@dataclass(frozen=True)
class Scores:
    """scale * query key^T (capped), plus the masks. Nothing is built before the whole pattern has matched."""

    query: SSAValue  # [..., T, D]
    key: SSAValue  # [..., D, T]
    scale: float = 1.0
    softcap: float | None = None
    masks: tuple[ScoreMask, ...] = ()


def peel(value: SSAValue) -> Scores | None:
    """The scores a softmax's operand is made of, walking up to the product; None if it is spelled otherwise."""
    operation = value.owner
    if isinstance(operation, MatMul):
        query, key = operation.a, operation.b
        return Scores(query, key) if symbols(key) else None
    if isinstance(operation, Cast | Reshape):
        return peel(operation.x)
    if not isinstance(operation, Map):
        return None
    match operation.function:
        case "mul":
            return _peel_product(operation)
        case "div":
            scores, factor = peel(operation.inputs[0]), number(operation.inputs[1])
            return None if scores is None or not factor else _scaled(scores, 1.0 / factor)
        case "add":
            if (scores := _peel_kept(operation)) is not None:
                return scores
            for inner, mask in either_order(operation):
                if (scores := peel(inner)) is not None:
                    return dataclasses.replace(scores, masks=(*scores.masks, ScoreMask(mask)))
            return None
        case "max":
            low = number(operation.inputs[1])
            return peel(operation.inputs[0]) if low is not None and low <= HIDDEN else None
        case "where":
            condition, kept, other = operation.inputs
            for inner, hidden, visible in ((kept, other, True), (other, kept, False)):
                low = number(hidden)
                if low is None or low > HIDDEN or (scores := peel(inner)) is None:
                    continue
                return dataclasses.replace(scores, masks=(*scores.masks, ScoreMask(condition, visible, low=float(low))))
            return None
        case _:
            return None


def _peel_kept(operation: Map) -> Scores | None:
    """scores * kept + low * (1 - kept)."""
    for inner, outer in either_order(operation):
        product, hidden = mapped(inner, "mul"), mapped(outer, "mul")
        for scores, kept in either_order(product) if product is not None else ():
            for low, rest in either_order(hidden) if hidden is not None else ():
                value, other = number(low), mapped(rest, "sub")
                if value is None or value > HIDDEN or other is None or number(other.inputs[0]) != 1:
                    continue
                if other.inputs[1] is kept and (found := peel(scores)) is not None:
                    return dataclasses.replace(
                        found, masks=(*found.masks, ScoreMask(kept, low=float(value), kept=True))
                    )
    return None


def _peel_product(operation: Map) -> Scores | None:
    for inner, factor in either_order(operation):
        value = number(factor)
        if value is None:
            continue
        if (cap := mapped(inner, "tanh")) is not None:
            scores = peel(cap.inputs[0])
            if scores is None or scores.masks or scores.softcap is not None:
                return None
            return dataclasses.replace(scores, scale=scores.scale * value, softcap=float(value))
        scores = peel(inner)
        return None if scores is None else _scaled(scores, value)
    return None


def _scaled(scores: Scores, factor: float) -> Scores | None:
    """A factor behind a mask scales the mask too; a value that hid a key must still hide it."""
    if scores.softcap is not None:
        return None
    masks = tuple(
        dataclasses.replace(mask, factor=mask.factor * factor, low=mask.low * factor) for mask in scores.masks
    )
    if any(mask.low > HIDDEN for mask in masks if mask.kept or tensor_type(mask.value).dtype == "i1"):
        return None
    return dataclasses.replace(scores, scale=scores.scale * factor, masks=masks)


class RaiseSpelledAttention(RewritePattern):
    """softmax(scores) value, in three dimensions [heads, T, T] or with a batch of one in front."""

    def __init__(self, context: PassContext) -> None:
        self.context = context

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: MatMul, rewriter: PatternRewriter) -> None:
        weights, value = _unwrapped(op.a), op.b
        kept = _first_keys(weights)
        weights = weights if kept is None else _unwrapped(kept.x)
        softmax, chosen = defined_by(weights, Softmax), mapped(weights, "where")
        if chosen is not None and any(defined_by(each, Softmax) for each in chosen.inputs):
            self.decline(f"a softmax at {op.location} is behind a where that is no guard of rows without keys")
            return
        if softmax is None or softmax.dim != tensor_type(weights).rank - 1:
            return
        logits = _unshifted(softmax.x)
        joined = None if kept is None else _with_sinks(logits)
        scores = None if kept is not None and joined is None else peel(joined[0] if joined else logits)
        if scores is None:
            self.decline(f"a softmax at {op.location} is not in a softmax(scale * q k^T + mask) v")
            return
        if not _fit(*(_three(each) for each in (scores.query, scores.key, value))):
            self.decline(f"the heads of the softmax at {op.location} have an unknown form")
            return
        sinks = None if joined is None else joined[1]
        if sinks is not None and tensor_type(sinks).dims != _three(scores.query)[:1]:
            self.decline(f"the sinks of the softmax at {op.location} are not one for each head")
            return
        if not all(self._is_zero_or_one(mask.value) for mask in scores.masks if mask.kept):
            self.decline(f"the scores at {op.location} are multiplied by numbers that are not all 0 or 1")
            return
        build = Builder.before(op, rewriter)
        query, value = _heads_first(scores.query, build), _heads_first(value, build)
        key = build.transpose(_heads_first(scores.key, build), (0, 2, 1))
        mask = combined(scores.masks, build)
        result = build.add(
            Attention, query, key, value, scale=scores.scale, softcap=scores.softcap, mask=mask, sinks=sinks
        )
        replace(rewriter, op, build.reshape(result, tensor_type(op.result).dims))

    def _is_zero_or_one(self, value: SSAValue) -> bool:
        """Whether a value is a part of a weight of zeros and ones."""
        while isinstance(view := value.owner, Slice | Reshape | Broadcast | Transpose):
            value = view.x
        weight = defined_by(value, Parameter)
        if weight is None:
            return False
        numbers = self.context.weights(weight.symbol)
        return bool(((numbers == 0) | (numbers == 1)).all())

    def decline(self, why: str) -> None:
        self.context.note(f"raise-attention: {why}")


def _unwrapped(weights: SSAValue) -> SSAValue:
    """Returns what views, casts and the guard of a row without a visible key are around, the softmax in the pattern.

    The guard gives such a row zeros. There is no such row: each is found to see itself when the mask is evaluated.
    Scores that are not numbers give logits that are not, which is an error when a token is chosen.
    """
    while True:
        if isinstance(weights.owner, Cast | Reshape):
            weights = weights.owner.x
        elif (guard := mapped(weights, "where")) is not None and _is_guard(guard):
            weights = guard.inputs[2]
        else:
            return weights


def _is_guard(guard: Map) -> bool:
    """where(w != w, 0, w), which exporters write, or where(all(scores == -inf), 0, softmax(scores)), which torch's own
    attention is decomposed to."""
    test, nothing, weights = guard.inputs
    if number(nothing) != 0:
        return False
    if (differs := mapped(test, "ne")) is not None:
        return all(each is weights for each in differs.inputs)
    softmax, every = defined_by(weights, Softmax), defined_by(test, Reduce)
    if softmax is None or every is None or every.function != "all" or every.dims != (softmax.dim,):
        return False
    hidden = mapped(every.x, "eq")
    return hidden is not None and hidden.inputs[0] is softmax.x and number(hidden.inputs[1]) == -math.inf


def _first_keys(weights: SSAValue) -> Slice | None:
    """The slice that leaves all weights but the last, which is that of a sink."""
    kept = defined_by(weights, Slice)
    if kept is None or kept.dim != tensor_type(kept.x).rank - 1 or kept.start != 0 or kept.step != 1:
        return None
    return kept if dimensions.add(kept.stop, 1) == tensor_type(kept.x).dims[-1] else None


def _unshifted(logits: SSAValue) -> SSAValue:
    """A softmax does not change when one number is subtracted from a whole row, often its maximum."""
    while (shifted := mapped(logits, "sub")) is not None and tensor_type(shifted.inputs[1]).dims[-1:] == (1,):
        logits = shifted.inputs[0]
    return logits


def _with_sinks(logits: SSAValue) -> tuple[SSAValue, SSAValue] | None:
    """The scores and the sinks [H] of concat(scores, a column of one sink for each head)."""
    joined = defined_by(logits, Concat)
    if joined is None or joined.dim != tensor_type(logits).rank - 1 or len(joined.inputs) != 2:
        return None
    scores, column = joined.inputs
    dims = tensor_type(column).dims
    if dims[-1] != 1 or len(dims) < 3:
        return None
    heads = dims[-3]
    while isinstance(view := column.owner, Broadcast | Reshape | Cast):
        column = view.x
        dims = tensor_type(column).dims
        if dims == (heads,):
            return scores, column
        apart = dims[-3:] in ((heads, 1, 1), (heads, SEQUENCE, 1))
        if not apart and (isinstance(view, Broadcast) or [each for each in dims if each != 1] != [heads]):
            return None
    return None


def _three(value: SSAValue) -> tuple[Dim, ...]:
    """A value's dimensions with a batch of one dropped and missing leading dimensions added; more than three stay."""
    dims = tensor_type(value).dims
    while len(dims) > 3 and dims[0] == 1:
        dims = dims[1:]
    return (1,) * (3 - len(dims)) + dims


def _fit(query: tuple[Dim, ...], key: tuple[Dim, ...], value: tuple[Dim, ...]) -> bool:
    """query [H, T, D], key [Hkv, D, T], value [Hkv, T, Dv] with H a multiple of Hkv, or the query of one token."""
    if not len(query) == len(key) == len(value) == 3:
        return False
    heads, groups = query[0], key[0]
    if not isinstance(heads, int) or not isinstance(groups, int) or heads % groups or value[0] != groups:
        return False
    return key[2] == value[1] and bool(dimensions.symbol(key[2])) and query[1] in (1, key[2])


def _heads_first(value: SSAValue, build: Builder) -> SSAValue:
    return build.reshape(value, _three(value))


def combined(masks: Sequence[ScoreMask], build: Builder) -> SSAValue | None:
    """Combines several masks into one: all i1 masks must hold, the others add up."""
    total: SSAValue | None = None
    visible: SSAValue | None = None
    for mask in masks:
        value = _heads_first(mask.value, build)
        dtype = tensor_type(value).dtype
        if mask.kept:
            value, dtype = build.map("ne", value, build.constant(0, dtype)), "i1"
        if dtype == "i1":
            value = value if mask.visible else build.map("not", value)
            visible = value if visible is None else build.map("and", visible, value)
        else:
            value = value if mask.factor == 1.0 else build.map("mul", value, build.constant(mask.factor, dtype))
            total = value if total is None else build.map("add", total, build.cast(value, tensor_type(total).dtype))
    if total is None or visible is None:
        return visible if total is None else total
    return build.map("where", visible, total, build.constant(-math.inf, tensor_type(total).dtype))


class ScaleIntoAttention(RewritePattern):
    """A number that multiplies the queries or the keys, also in front of views, is part of the scale."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Attention, rewriter: PatternRewriter) -> None:
        build = Builder.before(op, rewriter)
        for place, value in enumerate((op.query, op.key)):
            found = _factor(value)
            if found is None:
                continue
            plain, factor, views = found
            for view in reversed(views):
                plain = build.emit(view.remade([plain])).results[0]
            operands = [*op.operands]
            operands[place] = plain
            replace(rewriter, op, op.remade(operands, scale=op.scale * factor))
            return


def _factor(value: SSAValue) -> tuple[SSAValue, float, list[Reshape | Transpose]] | None:
    """What is multiplied by a number, the number, and the views between the product and the value, the last first."""
    views = list[Reshape | Transpose]()
    while isinstance(view := value.owner, Reshape | Transpose):
        views.append(view)
        value = view.x
    product = mapped(value, "mul")
    for plain, factor in () if product is None else either_order(product):
        if (scale := number(factor)) is not None and plain.type == value.type:
            return plain, float(scale), views
    return None


@dataclass(frozen=True)
class RaiseAttention(RewritePass):
    """Raises attention that a model spells out to the operation that torch's own attention becomes."""

    name: ClassVar[str] = "raise-attention"

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        return [RaiseSpelledAttention(context), ScaleIntoAttention(), KeyTermIntoKeys(context)]
