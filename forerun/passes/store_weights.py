"""store_weights: stores the matrices of products, and tables that tokens index, in fewer bytes.

A step of a few rows takes as long as reading its weights once, so fewer bytes mean less time. Norms, biases and
position tables are a small part of them and keep their dtype. Activations and sums are not touched: a stored
weight is widened to its dtype where it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from forerun import ir
from forerun.errors import InvalidOptionError
from forerun.ir import (
    BLOCK_STORAGES,
    STORAGES,
    Context,
    ExpertLinear,
    Function,
    Gather,
    Linear,
    ModuleOp,
    Parameter,
    SpecOperation,
    SSAValue,
    WeightProduct,
    backward_slice,
    each_of,
    first_of,
    refused,
    tensor_type,
    weights,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context

FULL = "f32"
"""Every weight in its own dtype."""
NATIVE = "native"
"""Every matrix as its source keeps it (`PassContext.storages`); in its own dtype, where the source does not say."""


@dataclass(frozen=True)
class StoreWeights(Pass):
    """Matrices get `storage`: one dtype for all, or "native" for that of their source; "f32" sets none."""

    name: ClassVar[str] = "store-weights"
    needs: ClassVar[Needs | None] = Needs("step", before_kernels=True)

    storage: str = FULL

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        known = (FULL, NATIVE, *(each for each in STORAGES if each not in BLOCK_STORAGES))
        if self.storage not in known:
            raise InvalidOptionError(f"There is no storage {self.storage!r} for all weights; use {', '.join(known)}.")
        if self.storage == FULL:
            return
        context, declared = pass_context(ctx), weights(op)
        chosen = dict.fromkeys(matrices(function_named(op, "step")), self.storage)
        if self.storage == NATIVE:
            sources = {name: declared[name].source or name for name in chosen}
            chosen = {name: context.storages[each] for name, each in sources.items() if each in context.storages}
        for name, storage in chosen.items():
            declared[name].storage = storage
        for storage, count in Counter(chosen.values()).items():
            context.note(f"store-weights: {count} of {len(declared)} weights as {storage}")


def matrices(step: Function) -> Iterator[str]:
    """The float32 matrices that a linear or an expert multiplies with, or whose rows tokens choose."""
    tokens = next((each for each in step.block.args if each.name_hint == "tokens"), None)
    for operation in step.body:
        matrix = MATRICES.of(operation)(operation, tokens)
        if matrix is None:
            continue
        kind = tensor_type(matrix)
        if isinstance(matrix.owner, Parameter) and kind.rank in (2, 3) and kind.dtype == "f32":
            yield matrix.owner.symbol


def _made_of(value: SSAValue, argument: SSAValue | None) -> bool:
    return argument is not None and (
        value is argument or any(argument in each.operands for each in backward_slice(value))
    )


def _none(operation: SpecOperation, tokens: SSAValue | None) -> SSAValue | None:
    """The operation reads no matrix, or reads one other than row by row."""
    return None


def _linear(operation: WeightProduct, tokens: SSAValue | None) -> SSAValue | None:
    return first_of(operation.weight)


def _gather(operation: Gather, tokens: SSAValue | None) -> SSAValue | None:
    return operation.table if any(_made_of(each, tokens) for each in operation.indices) else None


MATRICES: ir.OperationTable[Callable[[Any, SSAValue | None], SSAValue | None]] = ir.OperationTable(
    "matrices that are stored",
    {
        **each_of(_linear, Linear, ExpertLinear),
        Gather: _gather,
        **each_of(_none, ir.Computation, ir.StepOperation, ir.Return),
        **each_of(refused("hides which matrices are read; store weights before fuse-kernels"), ir.Kernel, ir.Yield),
        **each_of(refused("cannot stand in a function"), ir.Function, ir.Weight, ir.State),
    },
)
"""For each operation, the matrix that it reads row by row, given the tokens."""
