"""What every pass is: a frozen dataclass with a name, options as fields, valid IR in and valid IR out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import ClassVar, TypeVar, cast

import torch

from forerun.errors import InvalidOptionError, PassError
from forerun.ir import (
    Context,
    Function,
    GreedyRewritePatternApplier,
    Kernel,
    ModuleOp,
    ModulePass,
    Operation,
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    SpecOperation,
    SSAValue,
    TensorType,
    functions,
    load_dialects,
    only_reads,
    tensor_type,
)
from forerun.passes.changes import source_line
from forerun.signature import STEP_ARGUMENTS


@dataclass(frozen=True)
class Needs:
    """What a pass requires in a module, and what it adds, which must not be there yet."""

    function: str
    arguments: tuple[str, ...] = ()  # names that must be among its arguments
    inputs: int | None = None  # the total number of arguments
    dimension: str | None = None  # a dimension of its first argument
    results: int | None = None
    adds_arguments: tuple[str, ...] = ()
    adds_functions: tuple[str, ...] = ()
    before_kernels: bool = False  # whether the operations must not be in kernels yet

    def check(self, name: str, module: ModuleOp) -> None:
        """Raise `PassError` if the pass `name` does not apply to a module."""
        found = functions(module)
        if self.function not in found:
            raise PassError(f"{name} works on @{self.function}, which the module lacks; run the passes before it.")
        function = found[self.function]
        named = {each.name_hint for each in function.block.args}
        if missing := [each for each in self.arguments if each not in named]:
            raise PassError(f"{name} needs the argument {missing[0]} of @{self.function}; run the passes before it.")
        for what, number, given in (
            ("arguments", self.inputs, len(function.block.args)),
            ("results", self.results, len(function.returned)),
        ):
            if number not in (None, given):
                raise PassError(f"{name} works on a @{self.function} of {number} {what}, not {given}.")
        if self.dimension is not None and self.dimension not in tensor_type(function.block.args[0]).dims:
            raise PassError(f"{name} needs the dimension {self.dimension} in the argument of @{self.function}.")
        if present := [each for each in self.adds_arguments if each in named]:
            raise PassError(f"@{self.function} has the argument {present[0]} already; run {name} once.")
        if there := [each for each in self.adds_functions if each in found]:
            raise PassError(f"The module has a @{there[0]} already; run {name} on one without.")
        if self.before_kernels and any(isinstance(each, Kernel) for each in function.body):
            raise PassError(f"{name} runs before fuse-kernels, but the operations of @{self.function} are in kernels.")


Numbers = TypeVar("Numbers", int, tuple[int, ...])


def option(default: Numbers, least: int, most: int) -> Numbers:
    """A field of a pass: an integer in [least, most], or several."""
    return field(default=default, metadata={"least": least, "most": most})


@dataclass(frozen=True)
class Pass(ModulePass):
    """A transformation of a module. Its fields are its options, checked when it is made (`InvalidOptionError`)."""

    needs: ClassVar[Needs | None] = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value, least = getattr(self, each.name), each.metadata.get("least")
            parts = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
            if any(isinstance(part, bool) for part in parts):
                raise InvalidOptionError(f"{self.name} needs numbers for {each.name}, not {value}.")
            if least is not None and not all(least <= cast(int, part) <= each.metadata["most"] for part in parts):
                span = f"from {least} to {each.metadata['most']}"
                raise InvalidOptionError(f"{self.name} needs {each.name} to be {span}, not {value}.")


def step_argument(name: str) -> TensorType:
    """The type of an argument of `@step`."""
    known = STEP_ARGUMENTS[name]
    return TensorType.of(known.dims, known.dtype)


def no_weights(name: str) -> torch.Tensor:
    raise InvalidOptionError(f"This pass reads the values of weight @{name}, but the IR came without weights.")


class PassContext(Context):
    """What passes share: the weight store, the weight dtypes of the source, the length that positions are tabulated
    to, whether the cache will lie in this machine's memory, and, for the dump, notes and how often patterns applied."""

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
        self.applied = Counter[str]()

    def note(self, text: str) -> None:
        """Add a note for readers of the dump: what was found, or why a pattern declined."""
        if text not in self.notes:
            self.notes.append(text)


def pass_context(given: Context) -> PassContext:
    """The context as forerun's own; passes run from bare xDSL get one without weights."""
    return given if isinstance(given, PassContext) else PassContext()


def function_named(module: ModuleOp, name: str) -> Function:
    """Returns the function that a pass works on; InvalidOptionError if the module has none of that name."""
    if name not in functions(module):
        raise InvalidOptionError(f"This pass works on @{name}, which the module lacks; run the passes before it.")
    return functions(module)[name]


class Counted(RewritePattern):
    """A pattern, and how often it applied."""

    def __init__(self, pattern: RewritePattern, applied: Counter[str]) -> None:
        self.pattern, self.applied = pattern, applied

    def match_and_rewrite(self, op: Operation, rewriter: PatternRewriter) -> None:
        self.pattern.match_and_rewrite(op, rewriter)
        if rewriter.has_done_action:
            self.applied[type(self.pattern).__name__] += 1


def rewrite(target: ModuleOp | Function, patterns: Sequence[RewritePattern], context: PassContext) -> bool:
    """Apply patterns until none matches; returns whether anything changed. The context learns how often each did."""
    counted: list[RewritePattern] = [Counted(each, context.applied) for each in patterns]
    walker = PatternRewriteWalker(GreedyRewritePatternApplier(counted, dce_enabled=False))
    if isinstance(target, ModuleOp):
        return walker.rewrite_module(target)
    return walker.rewrite_region(target.regions[0])


def live(function: Function) -> list[SpecOperation]:
    """The operations of a function without those that have no effect and no use."""
    found: dict[SpecOperation, None] = {}
    for each in reversed(function.body):
        used = any(use.operation in found for value in each.results for use in value.uses)
        if used or each.ends_body or not only_reads(each):
            found[each] = None
    return [*reversed(found)]


def replace(rewriter: PatternRewriter, old: SpecOperation, new: SpecOperation | SSAValue) -> None:
    """Replace an operation with one result by a value, or by an operation, which inherits the location."""
    if isinstance(new, SpecOperation):
        new.location = old.location
        rewriter.replace(old, new)
    else:
        rewriter.replace(old, [], [new])


@dataclass(frozen=True)
class RewritePass(Pass):
    """A pass that is a list of patterns."""

    def patterns(self, context: PassContext) -> Sequence[RewritePattern]:
        raise NotImplementedError

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        context = pass_context(ctx)
        rewrite(op, self.patterns(context), context)
        reasons = Counter(
            (why, source_line(each))
            for function in functions(op).values()
            for each in live(function)
            if (why := self.declined(each)) is not None
        )
        for (why, line), count in reasons.items():
            times = f" ({count} times)" if count > 1 else ""
            context.note(f"{self.name}: {f'at {line}, ' if line else ''}{why}{times}")

    def declined(self, operation: SpecOperation) -> str | None:
        """Why an operation that the patterns begin with is still there; None if it is not one of them."""
        return None
