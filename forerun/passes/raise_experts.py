"""raise_experts: products with matrices that rows choose by number become `spec.expert_linear`.

A gathered matrix is a copy of an expert's weights for every row that chose it. The operation names the experts instead,
so that a kernel can read each expert once for all rows that chose it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.ir import (
    Broadcast,
    Builder,
    ExpertLinear,
    Gather,
    Iota,
    Map,
    MatMul,
    PatternRewriter,
    Reshape,
    RewritePattern,
    SSAValue,
    Transpose,
    op_type_rewrite_pattern,
    tensor_type,
)
from forerun.passes.base import PassContext, RewritePass, replace
from forerun.passes.matching import defined_by, either_order, symbols, used_once


@dataclass(frozen=True)
class Chosen:
    """Weights [E, ...] at ids [...]."""

    weight: SSAValue
    ids: SSAValue
    swapped: bool = False  # whether the last two dimensions of each matrix have changed places


def chosen(value: SSAValue, rank: int) -> Chosen | None:
    """What a value gathers by ids from a weight of that rank that no position changes, or None."""
    swapped = False
    dims = tensor_type(value).rank
    if (turned := defined_by(value, Transpose)) is not None:
        if turned.permutation != (*range(dims - 2), dims - 1, dims - 2):
            return None
        value, swapped = turned.x, True
    found = defined_by(value, Gather)
    if found is None or len(found.indices) != 1 or tensor_type(found.table).rank != rank or symbols(found.table):
        return None
    (ids,) = found.indices
    return Chosen(found.table, ids, swapped) if symbols(ids) else None


class RaiseGatheredProduct(RewritePattern):
    """w[ids] x and x w[ids], for one vector x each, are an expert's linear."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: MatMul, rewriter: PatternRewriter) -> None:
        for matrix, vector, left in ((op.a, op.b, True), (op.b, op.a, False)):
            found = chosen(matrix, 3)
            if found is None or tensor_type(vector).dims[-1 if left else -2] != 1:
                continue
            lead, rows = tensor_type(vector).dims[:-2], tensor_type(matrix).dims[:-2]
            if lead not in (rows, (*rows[:-1], 1)):
                continue
            build = Builder.before(op, rewriter)
            size = tensor_type(vector).dims[-2 if left else -1]
            x = build.reshape(vector, (*lead, size))
            weight = found.weight if left != found.swapped else build.transpose(found.weight, (0, 2, 1))
            result = self.expert_linear(build, x, weight, found.ids)
            replace(rewriter, op, build.reshape(result, tensor_type(op.result).dims))
            return

    @staticmethod
    def expert_linear(build: Builder, x: SSAValue, weight: SSAValue, ids: SSAValue) -> SSAValue:
        """x [..., in] at ids [...]: the last dimension of ids are a row's choices if its size is known."""
        dims = tensor_type(ids).dims
        if not isinstance(dims[-1], int):
            ids = build.reshape(ids, (*dims, 1))
            return build.add(ExpertLinear, x, weight, ids)
        shared = _shared(build, x)
        return build.add(ExpertLinear, x if shared is None else shared, weight, ids)


def _shared(build: Builder, x: SSAValue) -> SSAValue | None:
    """What x [..., k, in] repeats for all k, or None."""
    dims = tensor_type(x).dims
    if dims[-2] == 1:
        return build.reshape(x, (*dims[:-2], dims[-1]))
    x = _with_units(x)
    wide = defined_by(x, Broadcast)
    if wide is None:
        return None
    narrow = tensor_type(wide.x).dims
    missing = tensor_type(x).rank - len(narrow)
    full = (1,) * missing + narrow
    kept = [(old, new) for old, new in zip(full, tensor_type(x).dims, strict=True) if new != 1]
    repeated = [place for place, (old, new) in enumerate(kept) if old != new]
    return build.reshape(wide.x, (*dims[:-2], dims[-1])) if repeated == [len(kept) - 2] else None


def _with_units(x: SSAValue) -> SSAValue:
    """What a value is a view of that only moves dimensions of one."""
    while isinstance(x.owner, Reshape) and _without_units(x.owner.x) == _without_units(x):
        x = x.owner.x
    return x


def _without_units(value: SSAValue) -> list[int | str]:
    return [dim for dim in tensor_type(value).dims if dim != 1]


class RaiseBatchedProduct(RewritePattern):
    """x[E, T, in] w[E, in, out], all experts for all rows, are the products of rows that each chose all experts."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: MatMul, rewriter: PatternRewriter) -> None:
        x, weight = op.a, op.b
        dims, result = tensor_type(x).dims, tensor_type(op.result).dims
        if tensor_type(weight).rank != 3 or symbols(weight) or len(dims) < 3:
            return
        (experts, *_), rows = tensor_type(weight).dims, dims[-2]
        if experts == 1 or not isinstance(rows, str) or dims[-3] not in (1, experts):
            return
        if symbols(x) != {rows} or any(dim != 1 for dim in result[:-3]):
            return
        build = Builder.before(op, rewriter)
        wide = defined_by(_with_units(x), Broadcast)
        if wide is not None and symbols(wide.x) == {rows} and _without_units(wide.x) == [rows, dims[-1]]:
            x = build.reshape(wide.x, (1, rows, dims[-1]))  # the same for all experts
        each = build.transpose(build.reshape(x, (tensor_type(x).dims[-3:])), (1, 0, 2))
        shared = _shared(build, each) if tensor_type(each).dims[1] == 1 else None
        ids = build.broadcast(build.add(Iota, size=experts), (rows, experts))
        turned = build.transpose(weight, (0, 2, 1))
        product = build.add(ExpertLinear, each if shared is None else shared, turned, ids)
        replace(rewriter, op, build.reshape(build.transpose(product, (1, 0, 2)), result))


class BiasIntoExperts(RewritePattern):
    """A vector of the chosen expert, added to its product, is its bias."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Map, rewriter: PatternRewriter) -> None:
        if op.function != "add":
            return
        for product, bias in either_order(op):
            linear, found = defined_by(_viewed(product), ExpertLinear), chosen(_viewed(bias), 2)
            if linear is None or found is None or linear.bias is not None or not _alone(product):
                continue
            if _viewed(found.ids) is not _viewed(linear.ids) or op.result.type != product.type:
                continue
            if tensor_type(found.weight).dims != tensor_type(linear.weight).dims[:2]:
                continue
            if _without_units(bias) != _without_units(product):
                continue
            build = Builder.before(op, rewriter)
            result = build.add(ExpertLinear, linear.x, linear.weight, linear.ids, found.weight)
            replace(rewriter, op, build.reshape(result, tensor_type(op.result).dims))
            return


def _viewed(value: SSAValue) -> SSAValue:
    while isinstance(value.owner, Reshape):
        value = value.owner.x
    return value


def _alone(value: SSAValue) -> bool:
    """Whether nothing else reads a value, or what it is a view of."""
    while used_once(value) and isinstance(value.owner, Reshape):
        value = value.owner.x
    return used_once(value)


@dataclass(frozen=True)
class RaiseExperts(RewritePass):
    """Products with gathered matrices, and with all of them, name the experts that each row chose."""

    name: ClassVar[str] = "raise-experts"

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        return [RaiseGatheredProduct(), RaiseBatchedProduct(), BiasIntoExperts()]
