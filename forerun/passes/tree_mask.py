"""tree_mask: limits a row's history to its ancestors: committed blocks below `bases`, slots of its path above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.ir import Ancestors, Context, ModuleOp, TreeAttention
from forerun.passes.base import Needs, Pass, function_named, step_argument
from forerun.passes.canonicalize import clean


@dataclass(frozen=True)
class TreeMask(Pass):
    """`@step` gets two more arguments: `bases[N]` and `paths[N, D]` (position-aligned tree attention)."""

    name: ClassVar[str] = "tree-mask"
    needs: ClassVar[Needs | None] = Needs(
        "step", ("tokens", "block_tables"), adds_arguments=("bases", "paths"), before_kernels=True
    )

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        step = function_named(op, "step")
        at = len(step.block.args) - 1
        bases, paths = (
            step.block.insert_arg(step_argument(name), at + index) for index, name in enumerate(("bases", "paths"))
        )
        bases.name_hint, paths.name_hint = "bases", "paths"
        for operation in step.body:
            if isinstance(operation, TreeAttention | Ancestors):
                operation.replace_operand("bases", bases)
                operation.replace_operand("paths", paths)
        clean(step)
