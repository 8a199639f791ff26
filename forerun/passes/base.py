"""What every pass is: a frozen dataclass with a name, options as fields, valid IR in and valid IR out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from forerun.errors import InvalidOptionError
from forerun.ir import (
    Context,
    Function,
    GreedyRewritePatternApplier,
    ModuleOp,
    ModulePass,
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    SpecOperation,
    SSAValue,
    functions,
    load_dialects,
)

Pass = ModulePass


def no_weights(name: str) -> torch.Tensor:
    raise InvalidOptionError(f"This pass reads the values of weight @{name}, and the IR came without weights.")


class PassContext(Context):
    """What passes share: the weight store, how the source keeps its matrices, the length that positions are tabulated
    to, whether the cache will lie in this machine's memory, and notes for the dump."""

    def __init__(
        self,
        weights: Callable[[str], torch.Tensor] = no_weights,
        max_length: int = 2048,
        storages: Mapping[str, str] | None = None,
        cache_in_memory: bool = True,
    ) -> None:
        super().__init__()
        load_dialects(self)
        self.weights = weights
        self.max_length = max_length
        self.storages = storages or {}
        self.cache_in_memory = cache_in_memory
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Something a reader of the dump wants to know: what was found, or why a pattern declined."""
        if text not in self.notes:
            self.notes.append(text)


def pass_context(given: Context) -> PassContext:
    """The context as forerun's own; passes run from bare xDSL get one without weights."""
    return given if isinstance(given, PassContext) else PassContext()


def function_named(module: ModuleOp, name: str) -> Function:
    """The function a pass works on; InvalidOptionError where the module has none of that name."""
    if name not in functions(module):
        raise InvalidOptionError(f"This pass works on @{name}, which the module lacks; run the passes before it.")
    return functions(module)[name]


def rewrite(target: ModuleOp | Function, patterns: Sequence[RewritePattern]) -> bool:
    """Apply patterns until none matches; whether anything changed."""
    walker = PatternRewriteWalker(GreedyRewritePatternApplier(list(patterns), dce_enabled=False))
    if isinstance(target, ModuleOp):
        return walker.rewrite_module(target)
    return walker.rewrite_region(target.regions[0])


def replace(rewriter: PatternRewriter, old: SpecOperation, new: SpecOperation | SSAValue) -> None:
    """Put an operation, which inherits the location, or a value in the place of an operation with one result."""
    if isinstance(new, SpecOperation):
        new.location = old.location
        rewriter.replace(old, new)
    else:
        rewriter.replace(old, [], [new])


@dataclass(frozen=True)
class RewritePass(ModulePass):
    """A pass that is a list of patterns."""

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        raise NotImplementedError

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        rewrite(op, self.patterns(pass_context(ctx)))
