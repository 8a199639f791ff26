"""raise_softmax: exp(x - max(x)) over its sum becomes one `spec.softmax`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun.ir import (
    Map,
    PatternRewriter,
    Reduce,
    RewritePattern,
    Softmax,
    SpecOperation,
    SSAValue,
    op_type_rewrite_pattern,
)
from forerun.passes.base import PassContext, RewritePass, replace
from forerun.passes.matching import defined_by, mapped


class RaiseSpelledSoftmax(RewritePattern):
    """Along one dimension, which the maximum and the sum keep."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: Map, rewriter: PatternRewriter) -> None:
        if op.function != "div":
            return
        numerator, denominator = op.inputs
        total = _reduced(denominator, "sum")
        if total is None or total.x is not numerator:
            return
        exponential = mapped(numerator, "exp")
        shifted = None if exponential is None else mapped(exponential.inputs[0], "sub")
        if shifted is None:
            return
        x, subtracted = shifted.inputs
        largest = _reduced(subtracted, "max")
        if largest is None or largest.x is not x or largest.dims != total.dims:
            return
        replace(rewriter, op, Softmax.make(x, dim=total.dims[0]))


def _reduced(value: SSAValue, function: str) -> Reduce | None:
    """Returns the reduction by that function along one dimension, which stays, that defines the value, or None."""
    found = defined_by(value, Reduce)
    fits = found is not None and found.function == function and found.keep and len(found.dims) == 1
    return found if fits else None


@dataclass(frozen=True)
class RaiseSoftmax(RewritePass):
    """A softmax is one operation in ATen; decompositions spell it out."""

    name: ClassVar[str] = "raise-softmax"

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        return [RaiseSpelledSoftmax()]

    def declined(self, operation: SpecOperation) -> str | None:
        if not isinstance(operation, Map) or operation.function != "exp":
            return None
        sums = [use.operation for use in operation.result.uses if isinstance(use.operation, Reduce)]
        if not any(each.function == "sum" for each in sums):
            return None
        return "exponentials are summed, but are not exp(x - max(x)) over that sum"
