"""sequence_axis: what each value depends on along the sequence, and the proof that a model decodes incrementally.

    constant    the same for every sequence
    positional  element i is a function of the position i alone
    row-local   element i needs token i
    causal      element i needs tokens up to i
    pairwise    a T x T value that is a function of two positions alone (a mask, a bias)
    global      needs the whole sequence, including its length: it cannot be computed incrementally

Besides its kind, each value has the dimension (counted from the end) that runs along the sequence. There is one
transfer rule per operation; a `global` value carries the operation that made it so, and is an error only if the
result needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun import dims as dimensions
from forerun.errors import LookAheadError, UnsupportedOperationError
from forerun.ir import (
    Attention,
    Context,
    Function,
    MatMul,
    ModuleOp,
    Slice,
    Softmax,
    SpecOperation,
    SSAValue,
    neighbourhood,
    tensor_type,
)
from forerun.passes.base import Pass, function_named, pass_context
from forerun.passes.transfer import CONSTANT, RULES, Along, Kind, Transfer, sequence_axes


def analyse(function: Function) -> dict[SSAValue, Along]:
    """The kind of every value of a function; its arguments with a sequence dimension are the tokens.

    Raises UnsupportedOperationError for an operation without a transfer rule.
    """
    known: dict[SSAValue, Along] = {}
    for argument in function.block.args:
        axes = sequence_axes(argument)
        known[argument] = Along(Kind.ROW_LOCAL, axes[0]) if axes else CONSTANT
    for operation in function.body:
        rule = RULES.of(operation)
        inputs = [known[each] for each in operation.operands]
        for value in operation.results:
            known[value] = _transfer(rule, operation, inputs, value)
    return known


def _transfer(rule: Transfer, operation: SpecOperation, inputs: Sequence[Along], result: SSAValue) -> Along:
    faults = [each for each in inputs if each.kind == Kind.GLOBAL]
    if faults:
        return faults[0]
    kind = max((each.kind for each in inputs), default=Kind.CONSTANT)
    axes = sequence_axes(result)
    if kind == Kind.CONSTANT:
        if not axes and isinstance(operation, Slice) and isinstance(operation.start, str):
            return _global(operation, "takes the end of the sequence")  # a row of a table that the length chooses
        return Along(Kind.POSITIONAL, axes[0]) if len(axes) == 1 else Along(Kind.PAIRWISE) if axes else CONSTANT
    if any(dimensions.affine(dim).scale != 1 for dim in tensor_type(result).dims if dimensions.symbol(dim)):
        return _global(operation, "merges the sequence with another dimension")
    if fault := rule.fault(operation, inputs):
        return _global(operation, fault)
    if not axes:
        picked = rule.picks and kind == Kind.POSITIONAL
        return CONSTANT if picked else _global(operation, "reduces the sequence to one value")
    if len(axes) > 1:
        tokens = max((each.kind for each in inputs if each.kind != Kind.PAIRWISE), default=Kind.CONSTANT)
        if tokens > Kind.POSITIONAL:
            return _global(operation, "relates tokens to tokens outside an attention")
        return Along(Kind.PAIRWISE)
    if kind == Kind.PAIRWISE and not isinstance(operation, Attention):
        return _global(operation, "reduces a mask or a bias over the sequence")
    return Along(rule.kind(operation, kind), axes[0])


def _global(operation: SpecOperation, reason: str) -> Along:
    return Along(Kind.GLOBAL, None, operation, reason)


def require_incremental(function: Function) -> dict[SSAValue, Along]:
    """The kinds of a function whose results can be computed position by position; LookAheadError otherwise."""
    known = analyse(function)
    for value in function.returned:
        along = known[value]
        if along.kind == Kind.GLOBAL and along.cause is not None:
            raise _unraised(function, along.cause) or look_ahead(along.cause, along.reason)
    return known


def _unraised(function: Function, cause: SpecOperation) -> UnsupportedOperationError | None:
    """Scores of tokens against tokens that feed a softmax are an attention that no pattern matched, causal or not."""
    if not isinstance(cause, MatMul):
        return None
    softmax = next(
        (each for each in function.body if isinstance(each, Softmax) and -1 in sequence_axes(each.result)), None
    )
    if softmax is None:
        return None
    return UnsupportedOperationError(
        f"The softmax at {place(softmax)} is not part of an attention that raise-attention recognizes; write it as "
        f"softmax(scale * q k^T + mask) v, or use scaled_dot_product_attention.\n{neighbourhood(softmax)}"
    )


def place(operation: SpecOperation) -> str:
    """The source line an operation comes from."""
    return str(operation.location).removeprefix('loc("').removesuffix(":0)").replace('"', "")


def look_ahead(operation: SpecOperation, reason: str) -> LookAheadError:
    return LookAheadError(
        f"The model cannot be decoded position by position: {operation.mnemonic} at {place(operation)} {reason}; "
        f"compile a causal decoder instead.\n{neighbourhood(operation)}"
    )


@dataclass(frozen=True)
class SequenceAxis(Pass):
    """Proves that `@forward` decodes incrementally and notes how many values there are of each kind."""

    name: ClassVar[str] = "sequence-axis"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        known = require_incremental(function_named(op, "forward"))
        counts = Counter(each.kind for each in known.values())
        shown = ", ".join(f"{kind.label} {counts[kind]}" for kind in Kind if counts[kind])
        pass_context(ctx).note(f"sequence-axis: {shown}")
