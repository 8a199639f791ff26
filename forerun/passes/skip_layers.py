"""skip_layers: derives `@draft` from `@step` by leaving out residual branches; weights and states are shared.

After Zhang et al., "Draft & Verify" (arXiv 2309.08168): a model drafts for itself with some of its attentions and
feed-forward parts skipped. Which ones is the caller's choice.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import InvalidOptionError
from forerun.ir import (
    Builder,
    Context,
    Function,
    InsertPoint,
    ModuleOp,
    Rewriter,
    SpecOperation,
    SSAValue,
    Symbol,
    functions,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, PassContext, function_named, option, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.residual import residual


@dataclass(frozen=True)
class SkipLayers(Pass):
    """`branches`: the residual branches that `@draft` leaves out, by number."""

    name: ClassVar[str] = "skip-layers"
    needs: ClassVar[Needs | None] = Needs("step", ("tokens",), adds_functions=("draft",), before_kernels=True)

    branches: tuple[int, ...] = option((), least=0, most=2**20)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.branches)) < len(self.branches):
            raise InvalidOptionError(
                f"A residual branch can be left out only once; {sorted(self.branches)} lists one twice."
            )

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        derive_draft(op, self.branches, pass_context(ctx))


def derive_draft(module: ModuleOp, skipped: Collection[int], context: PassContext) -> Function:
    """Returns `@draft`: `@step` without the skipped branches. Raises `InvalidOptionError` for an unknown branch."""
    step = function_named(module, "step")
    if "draft" in functions(module):
        raise InvalidOptionError("The module has a @draft already; derive one draft at a time.")
    draft = copied(step, "draft")
    found = residual(draft)
    wrong = sorted(each for each in skipped if each >= len(found.branches))
    if wrong:
        raise InvalidOptionError(f"@step has {len(found.branches)} residual branches and no branch {wrong[0]}.")
    for number in sorted(skipped, reverse=True):  # the last first, so that each is replaced by what is in use
        _replace(found.stream[number + 1], found.stream[number])
    left_out = {each for number in skipped for each in found.branches[number].operations if each.writes}
    clean(draft)  # removes readers of a recurrence that is left out
    for operation in [each for each in draft.body if each in left_out]:
        Rewriter.erase_op(operation)
    module.body.block.insert_op_after(draft, step)
    clean(draft)
    context.note(f"@draft leaves out {len(skipped)} of {len(found.branches)} residual branches")
    return draft


def _replace(value: SSAValue, by: SSAValue) -> None:
    """Use one value of the stream for another, which may have more dimensions of size one."""
    assert isinstance(value.owner, SpecOperation)
    if by.type != value.type:
        by = Builder(InsertPoint.after(value.owner)).reshape(by, tensor_type(value).dims)
    value.replace_all_uses_with(by)


def copied(function: Function, name: str) -> Function:
    """Returns a copy of a function under another name; arguments and values keep their names."""
    copy = function.clone()
    copy.symbol = Symbol(name)
    for old, new in zip(function.block.args, copy.block.args, strict=True):
        new.name_hint = old.name_hint
    return copy
