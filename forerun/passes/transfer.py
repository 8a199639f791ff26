"""How each operation passes on what its operands depend on along the sequence: one rule per operation.

A rule says why the result is `global`, if it is, and what else the operation does to the kinds of its operands. The
table is closed: an operation without a rule is refused by name, and never assumed to keep rows apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from typing import Any

from forerun import dims as dimensions
from forerun import ir
from forerun.ir import (
    Attention,
    Concat,
    Dim,
    ExpertLinear,
    Gather,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    Recurrence,
    Reduce,
    Reshape,
    RMSNorm,
    Rotary,
    Scan,
    Slice,
    Softmax,
    SpecOperation,
    SSAValue,
    TakeAlong,
    TopK,
    each_of,
    refused,
    tensor_type,
)
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


Fault = Callable[[Any, Sequence[Along]], str]
"""Why the result of an operation is global, given the kinds of its operands; "" where it is not."""


@dataclass(frozen=True)
class Transfer:
    """What an operation does to kinds: besides `fault`, `kind` is the kind of a result that runs along the sequence,
    given the largest of its operands' kinds; `picks` says that it may take one position out of a sequence."""

    fault: Fault
    kind: Callable[[Any, Kind], Kind] = lambda operation, kind: kind
    picks: bool = False


def _touches(operation: Scan | Softmax | Slice | Concat | TakeAlong, value: SSAValue) -> bool:
    """Whether an operation's `dim` is the value's sequence dimension."""
    return operation.dim - tensor_type(value).rank in sequence_axes(value)


def no_fault(operation: SpecOperation, inputs: Sequence[Along]) -> str:
    """Each row of the result needs only the same row of the operands."""
    return ""


def _aligned(operation: Map | Rotary, inputs: Sequence[Along]) -> str:
    """Broadcasting aligns dimensions from the end: two sequence dimensions that do not meet make a pair."""
    tokens = {each.axis for each in inputs if Kind.ROW_LOCAL <= each.kind <= Kind.CAUSAL}
    return "combines tokens of different positions" if len(tokens) > 1 else ""


def _reduce(operation: Reduce, inputs: Sequence[Along]) -> str:
    rank = tensor_type(operation.x).rank
    over = {dim - rank for dim in operation.dims}
    return "reduces over the whole sequence" if over & set(sequence_axes(operation.x)) else ""


def _softmax(operation: Softmax, inputs: Sequence[Along]) -> str:
    return "takes a softmax over the whole sequence" if _touches(operation, operation.x) else ""


def _topk(operation: TopK, inputs: Sequence[Along]) -> str:
    return "takes the largest values of the whole sequence" if -1 in sequence_axes(operation.x) else ""


def _slice(operation: Slice, inputs: Sequence[Along]) -> str:
    """A slice from the front is a function of the position; one from the end depends on the length."""
    if not _touches(operation, operation.x):
        return ""
    start, stop = operation.start, operation.stop
    size = tensor_type(operation.x).dims[operation.dim]
    if isinstance(start, str):
        return "takes the end of the sequence"
    if isinstance(stop, int):
        return "" if max(each.kind for each in inputs) <= Kind.POSITIONAL else "takes a fixed part of the sequence"
    ahead = dimensions.add(size, dimensions.multiply(stop, -1))
    tokens = max(each.kind for each in inputs) > Kind.POSITIONAL
    return "shifts the sequence towards its end" if tokens and start > 0 and ahead == 0 else ""


def _concat(operation: Concat, inputs: Sequence[Along]) -> str:
    """Constants before a sequence shift positions; anything after it depends on its length."""
    along = [
        _touches(operation, value) or each.kind == Kind.CONSTANT
        for value, each in zip(operation.inputs, inputs, strict=True)
    ]
    running = [dimensions.symbol(tensor_type(value).dims[operation.dim]) == SEQUENCE for value in operation.inputs]
    if not any(running):
        return ""
    return "" if all(along) and running.index(True) == len(running) - 1 else "appends values to the sequence"


def _shifts(operation: Scan | Slice | Concat, kind: Kind) -> Kind:
    """Along the sequence, a row needs other rows, of earlier positions."""
    moved = kind > Kind.POSITIONAL and _touches(operation, operation.operands[0])
    return max(kind, Kind.CAUSAL) if moved else kind


def _reshape(operation: Reshape, inputs: Sequence[Along]) -> str:
    """The sequence must keep its place: the number of elements in front of it must not change."""
    kept = _in_front(tensor_type(operation.x).dims) == _in_front(tensor_type(operation.result).dims)
    return "" if kept else "merges the sequence with another dimension"


def _in_front(dims: Sequence[Dim]) -> list[int]:
    """For each sequence dimension, the number of elements in front of it that are not the sequence's."""
    places = [at for at, dim in enumerate(dims) if dimensions.symbol(dim) == SEQUENCE]
    return [prod(dim for dim in dims[:at] if isinstance(dim, int)) for at in places]


def _linear(operation: Linear, inputs: Sequence[Along]) -> str:
    if -1 in sequence_axes(operation.x):
        return "mixes positions with a weight"
    return "takes a weight that depends on the sequence" if inputs[1].kind != Kind.CONSTANT else ""


def _expert_linear(operation: ExpertLinear, inputs: Sequence[Along]) -> str:
    if -1 in sequence_axes(operation.x) or -1 in sequence_axes(operation.ids):
        return "mixes positions with a weight"
    weights = [inputs[1], *inputs[3:]]
    return "takes weights that depend on the sequence" if any(each.kind != Kind.CONSTANT for each in weights) else ""


def _matmul(operation: MatMul, inputs: Sequence[Along]) -> str:
    mixed = -1 in sequence_axes(operation.a) or -2 in sequence_axes(operation.b)
    return "mixes positions in a product" if mixed else ""


def _gather(operation: Gather, inputs: Sequence[Along]) -> str:
    """A table along the sequence may be indexed by positions; by tokens it could look anywhere."""
    table, *indices = inputs
    if table.axis is not None and tensor_type(operation.table).rank + table.axis >= len(indices):
        return "" if all(each.kind == Kind.CONSTANT for each in indices) else "indexes along the sequence"
    if table.kind > Kind.POSITIONAL:
        return "picks tokens by index"
    tokens = any(each.kind > Kind.POSITIONAL and each.kind != Kind.PAIRWISE for each in indices)
    return "picks positions by token" if table.kind == Kind.POSITIONAL and tokens else ""


def _take_along(operation: TakeAlong, inputs: Sequence[Along]) -> str:
    return "picks tokens by index" if _touches(operation, operation.x) else ""


def _attention(operation: Attention, inputs: Sequence[Along]) -> str:
    """Causality itself is checked where the mask is evaluated (tabulate-positions)."""
    attended = (operation.query, operation.key, operation.value)
    if any(tensor_type(value).dims[-2] != SEQUENCE for value in attended):
        return "attends along a dimension other than the sequence"
    return "" if operation.causal or operation.mask is not None else "attends to later positions"


def _recurrence(operation: Recurrence, inputs: Sequence[Along]) -> str:
    """Inputs are read at the position, where they run along the sequence, or whole."""
    for value in operation.inputs:
        dims = tensor_type(value).dims
        axes = sequence_axes(value)
        if axes and (axes != [-len(dims)] or dims[0] != operation.size):
            return "reads a part of the sequence at each position"
    return "" if operation.size == SEQUENCE else "recurs along a dimension other than the sequence"


def _window(operation: ir.Window, inputs: Sequence[Along]) -> str:
    leads = sequence_axes(operation.x) == [-tensor_type(operation.x).rank]
    return "" if leads else "reads earlier values along a dimension other than the sequence"


def _norm(operation: RMSNorm | LayerNorm, inputs: Sequence[Along]) -> str:
    return "normalises over the whole sequence" if -1 in sequence_axes(operation.x) else ""


RULES: ir.OperationTable[Transfer] = ir.OperationTable(
    "transfer rules along the sequence",
    {
        ir.Parameter: Transfer(no_fault),
        ir.Constant: Transfer(no_fault),
        ir.Iota: Transfer(no_fault),
        Map: Transfer(_aligned),
        ir.Cast: Transfer(no_fault),
        Reduce: Transfer(_reduce),
        Scan: Transfer(no_fault, _shifts),
        Softmax: Transfer(_softmax),
        TopK: Transfer(_topk),
        Reshape: Transfer(_reshape),
        ir.Broadcast: Transfer(no_fault),
        ir.Transpose: Transfer(no_fault),
        Slice: Transfer(_slice, _shifts, picks=True),
        Concat: Transfer(_concat, _shifts),
        Gather: Transfer(_gather, picks=True),
        TakeAlong: Transfer(_take_along),
        Linear: Transfer(_linear),
        ExpertLinear: Transfer(_expert_linear),
        MatMul: Transfer(_matmul),
        RMSNorm: Transfer(_norm),
        LayerNorm: Transfer(_norm),
        Rotary: Transfer(_aligned),
        Attention: Transfer(_attention, lambda operation, kind: Kind.CAUSAL),
        Recurrence: Transfer(_recurrence, lambda operation, kind: Kind.CAUSAL),
        ir.Window: Transfer(_window, lambda operation, kind: Kind.CAUSAL),
        ir.Return: Transfer(no_fault),
        ir.StepOperation: refused("works on rows; run this analysis before insert-kv-cache"),
        **each_of(refused("hides its operations; run this analysis before fuse-kernels"), ir.Kernel, ir.Yield),
        **each_of(refused("cannot stand in a function"), ir.Function, ir.Weight, ir.State),
    },
)
