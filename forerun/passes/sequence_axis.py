"""sequence_axis: what each value depends on along the sequence, and the proof that a model decodes incrementally.

    constant    the same for every sequence
    positional  element i is a function of the position i alone
    row-local   element i needs token i
    causal      element i needs tokens up to i
    pairwise    a T x T value that is a function of two positions alone (a mask, a bias)
    global      needs the whole sequence, its length included: nothing incremental can give it

Each value has, beside its kind, the dimension (counted from the end) that runs along the sequence. There is one
transfer rule an operation; a `global` value carries the operation that made it so, and is an error only where the
result needs it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import ClassVar

from forerun.errors import LookAheadError, UnsupportedOperationError
from forerun.ir import (
    Attention,
    Broadcast,
    Concat,
    Context,
    Dim,
    Function,
    Gather,
    Iota,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    ModuleOp,
    Reduce,
    Reshape,
    RMSNorm,
    Scan,
    Slice,
    Softmax,
    SpecOperation,
    SSAValue,
    TakeAlong,
    TopK,
    Transpose,
    neighbourhood,
    tensor_type,
)
from forerun.ir import dims as dimensions
from forerun.passes.base import Pass, function_named, pass_context
from forerun.passes.matching import SEQUENCE


class Kind(IntEnum):
    """Ordered: what combines several values is at least the largest of their kinds."""

    CONSTANT = 0
    POSITIONAL = 1
    ROW_LOCAL = 2
    CAUSAL = 3
    PAIRWISE = 4
    GLOBAL = 5

    @property
    def label(self) -> str:
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True)
class Along:
    """A value's kind, its sequence dimension counted from the end, and for `global` the operation that made it so."""

    kind: Kind
    axis: int | None = None
    cause: SpecOperation | None = None
    reason: str = ""


CONSTANT = Along(Kind.CONSTANT)


def sequence_axes(value: SSAValue) -> list[int]:
    """The dimensions of a value, counted from the end, that run along the sequence (`T`, `T-1`, ...)."""
    dims = tensor_type(value).dims
    return [at - len(dims) for at, dim in enumerate(dims) if dimensions.symbol(dim) == SEQUENCE]


def analyse(function: Function) -> dict[SSAValue, Along]:
    """The kind of every value of a function; its arguments with a sequence dimension are the tokens."""
    known: dict[SSAValue, Along] = {}
    for argument in function.block.args:
        axes = sequence_axes(argument)
        known[argument] = Along(Kind.ROW_LOCAL, axes[0]) if axes else CONSTANT
    for operation in function.body:
        inputs = [known[each] for each in operation.operands]
        for value in operation.results:
            known[value] = _transfer(operation, inputs, value)
    return known


def _transfer(operation: SpecOperation, inputs: Sequence[Along], result: SSAValue) -> Along:
    faults = [each for each in inputs if each.kind == Kind.GLOBAL]
    if faults:
        return faults[0]
    if isinstance(operation, Iota):
        return Along(Kind.POSITIONAL, -1) if sequence_axes(result) else CONSTANT
    kind = max((each.kind for each in inputs), default=Kind.CONSTANT)
    axes = sequence_axes(result)
    if kind == Kind.CONSTANT:
        if not axes and isinstance(operation, Slice) and isinstance(operation.parameter("start"), str):
            return _global(operation, "takes the end of the sequence")  # a row of a table that the length chooses
        return Along(Kind.POSITIONAL, axes[0]) if len(axes) == 1 else Along(Kind.PAIRWISE) if axes else CONSTANT
    if any(dimensions.affine(dim).scale != 1 for dim in tensor_type(result).dims if dimensions.symbol(dim)):
        return _global(operation, "merges the sequence with another dimension")
    rule = RULES.get(type(operation))
    if rule is not None and (fault := rule(operation, inputs)):
        return _global(operation, fault)
    if not axes:
        picked = isinstance(operation, Slice | Gather) and kind == Kind.POSITIONAL
        return CONSTANT if picked else _global(operation, "reduces the sequence to one value")
    if len(axes) > 1:
        tokens = max((each.kind for each in inputs if each.kind != Kind.PAIRWISE), default=Kind.CONSTANT)
        if tokens > Kind.POSITIONAL:
            return _global(operation, "relates tokens to tokens outside an attention")
        return Along(Kind.PAIRWISE)
    if kind == Kind.PAIRWISE and not isinstance(operation, Attention):
        return _global(operation, "reduces a mask or a bias over the sequence")
    if isinstance(operation, Attention):
        return Along(Kind.CAUSAL, axes[0])
    moved = (
        isinstance(operation, Scan | Slice | Concat)
        and kind > Kind.POSITIONAL
        and _touches(operation, operation.inputs[0])
    )
    return Along(Kind.CAUSAL if moved else kind, axes[0])


def _global(operation: SpecOperation, reason: str) -> Along:
    return Along(Kind.GLOBAL, None, operation, reason)


def _touches(operation: SpecOperation, value: SSAValue) -> bool:
    """Whether an operation's `dim` is the value's sequence dimension."""
    return operation.parameter("dim") - tensor_type(value).rank in sequence_axes(value)


def _map(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    """Broadcasting aligns dimensions from the end: two sequence dimensions that do not meet make a pair."""
    tokens = {each.axis for each in inputs if Kind.ROW_LOCAL <= each.kind <= Kind.CAUSAL}
    return "lays tokens against tokens" if len(tokens) > 1 else ""


def _reduce(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    rank = tensor_type(operation.inputs[0]).rank
    over = {dim - rank for dim in operation.parameter("dims")}
    return "reduces over the whole sequence" if over & set(sequence_axes(operation.inputs[0])) else ""


def _along(what: str) -> Callable[[SpecOperation, Sequence[Along]], str]:
    def rule(operation: SpecOperation, inputs: Sequence[Along]) -> str:
        return f"{what} over the whole sequence" if _touches(operation, operation.inputs[0]) else ""

    return rule


def _softmax(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    return _along("takes a softmax")(operation, inputs)


def _topk(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    return "takes the largest over the whole sequence" if -1 in sequence_axes(operation.inputs[0]) else ""


def _slice(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    """A slice from the front is a function of the position; one from the end depends on the length."""
    if not _touches(operation, operation.inputs[0]):
        return ""
    start, stop = operation.parameter("start"), operation.parameter("stop")
    size = tensor_type(operation.inputs[0]).dims[operation.parameter("dim")]
    if isinstance(start, str):
        return "takes the end of the sequence"
    if isinstance(stop, int):
        return "" if max(each.kind for each in inputs) <= Kind.POSITIONAL else "takes a fixed part of the sequence"
    ahead = dimensions.add(size, dimensions.multiply(stop, -1))
    tokens = max(each.kind for each in inputs) > Kind.POSITIONAL
    return "shifts the sequence towards its end" if tokens and start > 0 and ahead == 0 else ""


def _concat(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    """Constants in front shift positions; anything behind a sequence depends on its length."""
    along = [
        _touches(operation, value) or each.kind == Kind.CONSTANT
        for value, each in zip(operation.inputs, inputs, strict=True)
    ]
    dim = operation.parameter("dim")
    running = [dimensions.symbol(tensor_type(value).dims[dim]) == SEQUENCE for value in operation.inputs]
    if not any(running):
        return ""
    return "" if all(along) and running.index(True) == len(running) - 1 else "puts values behind the sequence"


def _reshape(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    """The sequence must keep its place: as many elements in front of it as before."""
    before, after = tensor_type(operation.inputs[0]).dims, tensor_type(operation.result).dims
    kept = _in_front(before) == _in_front(after)
    return "" if kept else "merges the sequence with another dimension"


def _in_front(dims: Sequence[Dim]) -> list[int]:
    """For each sequence dimension, the number of elements in front of it that are not the sequence's."""
    places = [at for at, dim in enumerate(dims) if dimensions.symbol(dim) == SEQUENCE]
    return [prod(dim for dim in dims[:at] if isinstance(dim, int)) for at in places]


def _linear(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    if -1 in sequence_axes(operation.inputs[0]):
        return "mixes positions with a weight"
    return "takes a weight that depends on the sequence" if inputs[1].kind != Kind.CONSTANT else ""


def _matmul(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    a, b = operation.inputs
    return "mixes positions in a product" if -1 in sequence_axes(a) or -2 in sequence_axes(b) else ""


def _gather(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    """A table along the sequence may be indexed by positions; by tokens it could look anywhere."""
    table, *indices = inputs
    if table.axis is not None and tensor_type(operation.inputs[0]).rank + table.axis >= len(indices):
        return "" if all(each.kind == Kind.CONSTANT for each in indices) else "picks by index along the sequence"
    if table.kind > Kind.POSITIONAL:
        return "picks tokens by index"
    tokens = any(each.kind > Kind.POSITIONAL and each.kind != Kind.PAIRWISE for each in indices)
    return "picks positions by token" if table.kind == Kind.POSITIONAL and tokens else ""


def _take_along(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    return "picks tokens by index" if _touches(operation, operation.inputs[0]) else ""


def _attention(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    """Causality itself is checked where the mask is evaluated (tabulate-positions)."""
    if any(tensor_type(value).dims[-2] != SEQUENCE for value in operation.inputs[:3]):
        return "attends across something that is not the sequence"
    extra = operation.parameter("extra", ())
    return "" if operation.parameter("causal") or "mask" in extra else "attends to later positions"


def _norm(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    return "normalises over the whole sequence" if -1 in sequence_axes(operation.inputs[0]) else ""


def _transparent(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    return ""


RULES: dict[type[SpecOperation], Callable[[SpecOperation, Sequence[Along]], str]] = {
    Map: _map,
    Reduce: _reduce,
    Softmax: _softmax,
    TopK: _topk,
    Slice: _slice,
    Concat: _concat,
    Reshape: _reshape,
    Transpose: _transparent,
    Broadcast: _transparent,
    Linear: _linear,
    MatMul: _matmul,
    Gather: _gather,
    TakeAlong: _take_along,
    Attention: _attention,
    RMSNorm: _norm,
    LayerNorm: _norm,
}


def require_incremental(function: Function) -> dict[SSAValue, Along]:
    """The kinds of a function whose results can be given position by position; LookAheadError otherwise."""
    known = analyse(function)
    for value in function.returned:
        along = known[value]
        if along.kind == Kind.GLOBAL and along.cause is not None:
            raise _unraised(function, along.cause) or look_ahead(along.cause, along.reason)
    return known


def _unraised(function: Function, cause: SpecOperation) -> UnsupportedOperationError | None:
    """Scores of tokens against tokens that go into a softmax are an attention that no pattern knew, causal or not."""
    if not isinstance(cause, MatMul):
        return None
    softmax = next(
        (each for each in function.body if isinstance(each, Softmax) and -1 in sequence_axes(each.result)), None
    )
    if softmax is None:
        return None
    return UnsupportedOperationError(
        f"The softmax at {place(softmax)} is no attention that raise-attention knows, softmax(scale * q k^T + mask) v; "
        f"spell it so, or with scaled_dot_product_attention.\n{neighbourhood(softmax)}"
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
