"""select_outputs: runs the head only for the rows whose logits are wanted, and gives each row's best candidates.

`@step` gets the argument `outputs[M]` and returns logits [M, V], the ids of the k largest [M, k], and their logits.
Of a prompt's rows, only the last one's logits are needed.

A draft's head is a large part of what it reads, and need not know every token: with `tokens`, only the first ones of
the vocabulary have logits. Byte-pair tokenizers number tokens in the order of their merges, the most frequent first
(FR-Spec, arXiv 2502.14856, ranks them by counting).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import PassError
from forerun.ir import (
    Builder,
    Cast,
    Context,
    Gather,
    InsertPoint,
    LayerNorm,
    Linear,
    Map,
    ModuleOp,
    Reshape,
    Return,
    Rewriter,
    RMSNorm,
    Slice,
    SpecOperation,
    SSAValue,
    TopK,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, option, pass_context, step_argument
from forerun.passes.canonicalize import clean
from forerun.passes.matching import symbols, used_once
from forerun.passes.substitute import clone_with

ROW_LOCAL = (Cast, Map, Reshape, Linear, RMSNorm, LayerNorm)


@dataclass(frozen=True)
class SelectOutputs(Pass):
    """`candidates` is k; `tokens` the most that have logits, 0 for all."""

    name: ClassVar[str] = "select-outputs"
    needs: ClassVar[Needs | None] = Needs("step", results=1, adds_arguments=("outputs",), before_kernels=True)

    candidates: int = option(8, least=1, most=2**16)
    tokens: int = option(0, least=0, most=2**31 - 1)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        step = function_named(op, "step")
        found = tensor_type(step.returned[0])
        if found.rank != 2 or found.dims[0] != "N" or not isinstance(found.dims[1], int):
            raise PassError(f"select-outputs works on a @step that returns logits [N, V], not {found}.")
        outputs = step.block.insert_arg(step_argument("outputs"), len(step.block.args))
        outputs.name_hint = "outputs"
        last = step.block.last_op
        assert isinstance(last, Return)
        (logits,) = last.inputs
        build = Builder(InsertPoint.before(last))
        top, chain = _head(logits)
        dims = tensor_type(top).dims
        rows = build.reshape(top, [dim for dim in dims if dim != 1])
        selected = build.add(Gather, rows, outputs)
        values = {top: build.reshape(selected, ["M" if dim == "N" else dim for dim in dims])}
        head = None
        if 0 < self.tokens < found.dims[1] and (head := _product(chain)) is None:
            pass_context(ctx).note(f"{self.name}: all {found.dims[1]} tokens have logits, as no product ends in them")
        after = [] if head is None else chain[: chain.index(head)]
        for operation in reversed(chain):
            values |= {each: each for each in operation.operands if each not in values}
            if head is not None and operation is head:
                rows = [each for each in (head.weight, head.bias) if each is not None]
                values |= {each: build.add(Slice, each, dim=0, start=0, stop=self.tokens) for each in rows}
            if operation in after and isinstance(operation, Reshape):
                dims = ["M" if dim == "N" else dim for dim in operation.shape]
                values[operation.result] = build.reshape(values[operation.x], [*dims[:-1], self.tokens])
            else:
                clone_with(operation, values, {"N": "M"}, build)
        build.location = last.location
        chosen = build.cast(values[logits], "f32")
        vocabulary = tensor_type(chosen).dims[-1]
        assert isinstance(vocabulary, int)
        best = TopK.make(chosen, k=min(self.candidates, vocabulary), index_dtype="i32")
        build.emit(best)
        build.emit(Return.make(chosen, best.indices, best.values))
        Rewriter.erase_op(last)
        clean(step)


def _head(logits: SSAValue) -> tuple[SSAValue, list[SpecOperation]]:
    """The earliest value from which the logits are computed row by row, and the operations from there, last first."""
    value, chain = logits, list[SpecOperation]()
    while isinstance(value.owner, ROW_LOCAL) and (not chain or used_once(value)):
        operation = value.owner
        rows = [each for each in operation.operands if "N" in symbols(each)]
        if len(rows) != 1 or not _rows_lead(rows[0]):
            break
        chain.append(operation)
        value = rows[0]
    return value, chain


def _product(chain: list[SpecOperation]) -> Linear | None:
    """The product whose columns the logits are, whatever is computed from each; `chain` ends in it, last first."""
    head = next((each for each in chain if isinstance(each, Linear)), None)
    if head is None or not all(_keeps_columns(each) for each in chain[: chain.index(head)]):
        return None
    return head


def _keeps_columns(operation: SpecOperation) -> bool:
    """Whether each column of the result is computed from that column alone, and from numbers that all share."""
    if isinstance(operation, Reshape):
        return tensor_type(operation.x).dims[-1] == operation.shape[-1]
    others = (each for each in operation.operands if "N" not in symbols(each))
    return isinstance(operation, Map | Cast) and all(set(tensor_type(each).dims) <= {1} for each in others)


def _rows_lead(value: SSAValue) -> bool:
    """Whether all dimensions before the rows are 1, so that rows can be selected."""
    dims = [dim for dim in tensor_type(value).dims if dim != 1]
    return dims[:1] == ["N"]
