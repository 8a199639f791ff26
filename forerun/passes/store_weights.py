"""store_weights: the matrices of linears, and tables that tokens are looked up in, are kept in fewer bytes.

A step of a few rows takes the time of reading its weights once, so bytes of weights are time. Norms, biases and
position tables are a small part of them and keep their dtype. Activations and sums are not touched: what is stored is
widened to the weight's dtype where it is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import InvalidOptionError
from forerun.ir import (
    BLOCK_STORAGES,
    STORAGES,
    Context,
    Function,
    Gather,
    Linear,
    ModuleOp,
    Parameter,
    SSAValue,
    backward_slice,
    encode,
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
    """Matrices get `storage`: one for all, "native" for their source's; with "f32" none gets any."""

    name: ClassVar[str] = "store-weights"
    needs: ClassVar[Needs | None] = Needs("step", ("tokens",), before_kernels=True)

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
            chosen = {name: context.storages[name] for name in chosen if name in context.storages}
        for name, storage in chosen.items():
            declared[name].attributes["storage"] = encode(storage)
        for storage, count in Counter(chosen.values()).items():
            context.note(f"store-weights: {count} of {len(declared)} weights as {storage}")


def matrices(step: Function) -> Iterator[str]:
    """The float32 matrices that a linear multiplies with, or whose rows tokens choose."""
    tokens = step.argument("tokens")
    for operation in step.body:
        if isinstance(operation, Linear):
            matrix = operation.operands[1]
        elif isinstance(operation, Gather) and any(_made_of(each, tokens) for each in operation.operands[1:]):
            matrix = operation.operands[0]
        else:
            continue
        kind = tensor_type(matrix)
        if isinstance(matrix.owner, Parameter) and kind.rank == 2 and kind.dtype == "f32":
            yield matrix.owner.parameter("symbol")


def _made_of(value: SSAValue, argument: SSAValue) -> bool:
    return value is argument or any(argument in each.operands for each in backward_slice(value))
