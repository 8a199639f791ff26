"""early_exit: derives `@draft` from `@step` as a prefix of its residual branches with the model's own norm and head.

After Elhoushi et al., "LayerSkip" (arXiv 2404.16710): drafting stops after a layer, verification runs the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import InvalidOptionError
from forerun.ir import Context, ModuleOp
from forerun.passes.base import Needs, Pass, function_named, option, pass_context
from forerun.passes.residual import residual
from forerun.passes.skip_layers import derive_draft


@dataclass(frozen=True)
class EarlyExit(Pass):
    """`layers`: the number of first layers that `@draft` keeps."""

    name: ClassVar[str] = "early-exit"
    needs: ClassVar[Needs | None] = Needs("step", ("tokens",), adds_functions=("draft",), before_kernels=True)

    layers: int = option(1, least=0, most=2**20)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        branches = residual(function_named(op, "step")).branches
        count = 1 + max((each.layer for each in branches), default=-1)
        if not 0 <= self.layers <= count:
            raise InvalidOptionError(f"@step has {count} layers; it cannot exit after {self.layers}.")
        left_out = [number for number, each in enumerate(branches) if each.layer >= self.layers]
        derive_draft(op, left_out, pass_context(ctx))
