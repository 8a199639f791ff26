"""Scores with a term of the key's token alone: q k^T scale + b(k) is [q, 1 / scale] [k, b]^T scale.

The keys in the cache hold the term then, as one more feature. What is left of the mask is a function of positions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from forerun.ir import (
    Attention,
    Broadcast,
    Builder,
    Cast,
    Gather,
    Map,
    Parameter,
    PatternRewriter,
    Reshape,
    RewritePattern,
    SpecOperation,
    SSAValue,
    op_type_rewrite_pattern,
    tensor_type,
)
from forerun.passes.base import PassContext, replace
from forerun.passes.matching import HIDDEN, SEQUENCE, is_constant, number

LOWEST = -1e9
"""A score to which a term adds nothing: at most this, instead of the score, is a key that is hidden."""
UNBOUNDED = ("log", "log1p", "div", "pow", "rsqrt")
"""Functions that may give -inf."""


@dataclass(frozen=True)
class Step:
    """An operation between the term and the mask, with the place of the operand that the term is in."""

    operation: SpecOperation
    place: int


class KeyTermIntoKeys(RewritePattern):
    """A mask that is a term [..., 1, T] of tokens, behind views and sums with what depends on positions alone."""

    def __init__(self, context: PassContext) -> None:
        self.context = context

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Attention, rewriter: PatternRewriter) -> None:
        if op.mask is None or op.softcap is not None or not op.scale:
            return
        if tensor_type(op.query).dims[-2] != SEQUENCE or is_constant(op.mask):
            return
        found = _reached(op.mask)
        if found is None or _hides(found[0], self.context.weights):
            return
        build = Builder.before(op, rewriter)
        column = _column(*found, build)
        _, key, value, *_ = op.operands
        heads = tensor_type(column).dims[-3:-2] or (1,)
        if heads[0] not in (1, tensor_type(key).dims[-3]):
            key, value = (_repeated(each, int(heads[0]), build) for each in (key, value))
        query = _with_feature(op.query, build.constant(1.0 / op.scale, tensor_type(op.query).dtype), build)
        key = _with_feature(key, column, build)
        rest = _rest(*found, build)
        result = build.add(Attention, query, key, value, rest, op.first, op.bias, op.sinks, **op.decoded())
        replace(rewriter, op, result)


def _reached(mask: SSAValue) -> tuple[SSAValue, list[Step]] | None:
    """The term in a mask and the operations from it to the mask, or None if they are of another kind."""
    steps = list[Step]()
    while not _is_of_keys(mask):
        operation = mask.owner
        if not isinstance(operation, SpecOperation) or (place := _place(operation)) is None:
            return None
        steps.insert(0, Step(operation, place))
        mask = operation.operands[place]
    return mask, steps


def _is_of_keys(value: SSAValue) -> bool:
    """Whether a value has one number for each key, the same for all queries."""
    *lead, last = tensor_type(value).dims
    return last == SEQUENCE and lead[-1:] in ([], [1]) and all(isinstance(dim, int) for dim in lead)


def _place(operation: SpecOperation) -> int | None:
    """The operand to which an operation only adds what depends on positions, or None."""
    match operation:
        case Cast():
            return 0
        case Reshape() | Broadcast():
            dims, shape = (tensor_type(each).dims for each in (operation.x, operation.result))
            apart = len(shape) > 1 and dims[-1] == shape[-1] == SEQUENCE and dims[-2:-1] in (shape[-2:-1], (1,), ())
            return 0 if apart else None
        case Map(function="add"):
            return next((1 - at for at, other in enumerate(operation.inputs) if is_constant(other)), None)
        case Map(function="where") if is_constant(operation.inputs[0]):
            lows = (number(each) for each in operation.inputs[1:])
            return next((2 - at for at, low in enumerate(lows) if low is not None and low <= LOWEST), None)
        case _:
            return None


def _hides(term: SSAValue, weights: Callable[[str], torch.Tensor]) -> bool:
    """Whether a token may hide its key by a term: a row that sees no key then is a case of its own in each model."""
    pending, seen = [term], {term}
    while pending:
        operation = pending.pop().owner
        if isinstance(operation, Gather) and isinstance(operation.table.owner, Parameter):
            if bool((weights(operation.table.owner.symbol) <= HIDDEN).any()):
                return True
            continue
        if isinstance(operation, Map) and operation.function in UNBOUNDED:
            return True
        if not isinstance(operation, Map | Cast | Reshape | Broadcast):
            continue
        if any((low := number(each)) is not None and low <= HIDDEN for each in operation.operands):
            return True
        pending += [each for each in operation.operands if each not in seen]
        seen.update(operation.operands)
    return False


def _column(term: SSAValue, steps: list[Step], build: Builder) -> SSAValue:
    """The term [..., T, 1] with the heads that it has in the mask."""
    column = build.reshape(term, (*tensor_type(term).dims[:-2], SEQUENCE, 1))
    for step in steps:
        kind = tensor_type(step.operation.results[0])
        dims = (*kind.dims[:-2], SEQUENCE, 1)
        view = build.reshape if isinstance(step.operation, Reshape) else build.broadcast
        column = build.cast(view(column, dims), kind.dtype)
    return column


def _rest(term: SSAValue, steps: list[Step], build: Builder) -> SSAValue | None:
    """The mask with zeros for the term: heads that are the same stay one; None if nothing is left."""
    rest = build.constant(0, tensor_type(term).dtype)
    for step in steps:
        operation = step.operation
        if not isinstance(operation, Reshape | Broadcast):
            operands = [*operation.operands]
            operands[step.place] = rest
            rest = build.emit(operation.remade(operands)).results[0]
            dims = tensor_type(rest).dims
            rest = build.reshape(rest, dims[-2:]) if all(dim == 1 for dim in dims[:-2]) else rest
        elif tensor_type(rest).rank > 2:
            rest = build.broadcast(rest, tensor_type(operation.operands[0]).dims)
            rest = build.emit(operation.remade([rest])).results[0]
    return rest if tensor_type(rest).rank else None


def _repeated(value: SSAValue, heads: int, build: Builder) -> SSAValue:
    """Keys or values [..., Hkv, T, D] with one for each query head."""
    *lead, groups, length, width = tensor_type(value).dims
    apart = build.reshape(value, (*lead, groups, 1, length, width))
    wide = build.broadcast(apart, (*lead, groups, heads // int(groups), length, width))
    return build.reshape(wide, (*lead, heads, length, width))


def _with_feature(value: SSAValue, feature: SSAValue, build: Builder) -> SSAValue:
    """A value [..., T, D] with one more feature, which is spread over its heads and rows."""
    kind = tensor_type(value)
    feature = build.broadcast(build.cast(feature, kind.dtype), (*kind.dims[:-1], 1))
    return build.concat([value, feature], kind.rank - 1)
