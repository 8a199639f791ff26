"""The pipeline: one flat list from a traced forward pass to a planned step."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from time import perf_counter
from typing import Any

from forerun.errors import InvalidOptionError, PassError
from forerun.ir import (
    ArgSpecParseError,
    ModuleOp,
    OutsideTableError,
    VerifyException,
    parse_pipeline,
    verify,
)
from forerun.passes.base import Pass, PassContext
from forerun.passes.canonicalize import Canonicalize
from forerun.passes.changes import Change, census, changes, summary
from forerun.passes.disaggregate import Disaggregate
from forerun.passes.early_exit import EarlyExit
from forerun.passes.fuse_kernels import FuseKernels
from forerun.passes.insert_kv_cache import InsertKVCache
from forerun.passes.join_experts import JoinExperts
from forerun.passes.narrow_products import FLOAT32, NarrowProducts
from forerun.passes.parallel_layers import ParallelLayers
from forerun.passes.plan_memory import PlanMemory
from forerun.passes.raise_attention import RaiseAttention
from forerun.passes.raise_experts import RaiseExperts
from forerun.passes.raise_grouped_queries import RaiseGroupedQueries
from forerun.passes.raise_norms import RaiseNorms
from forerun.passes.raise_recurrence import RaiseRecurrence
from forerun.passes.raise_rotary import RaiseRotaryEmbedding
from forerun.passes.raise_sinks import RaiseSinks
from forerun.passes.raise_softmax import RaiseSoftmax
from forerun.passes.reuse_kv_cache import ReuseKVCache
from forerun.passes.select_outputs import SelectOutputs
from forerun.passes.sequence_axis import SequenceAxis
from forerun.passes.skip_layers import SkipLayers
from forerun.passes.split_outputs import SplitOutputs
from forerun.passes.split_states import SplitStates
from forerun.passes.store_weights import FULL, StoreWeights
from forerun.passes.tabulate_positions import TabulatePositions
from forerun.passes.tree_mask import TreeMask
from forerun.passes.ungroup_experts import UngroupExperts
from forerun.passes.unmerge_sequence import UnmergeSequence

log = logging.getLogger("forerun.passes")
LOGGED = 3
"""The most changes that a line of the log names."""


def step_pipeline(
    max_rows: int,
    max_outputs: int,
    block: int,
    candidates: int,
    storage: str = FULL,
    draft: Sequence[Pass] = (),
    fused: bool = True,
    arithmetic: str = FLOAT32,
    tokens: int = 0,
    cached: bool = False,
) -> list[Pass]:
    """Returns the passes from `@forward` to a planned `@step`, with `storage` as the weight dtype.

    With `cached`, they begin with `@cached`, a step over one token with the model's own states. `arithmetic` is the
    narrowest that products may have. Of the vocabulary, the first `tokens` have logits (0: all).

    `draft` derives `@draft`, and the part of it that verification can reuse, for people who want to see them. Without
    `fused`, the step is left as operations, for back ends that have no kernels of their own.
    """
    kernels: list[Pass] = [FuseKernels(), PlanMemory(max_rows=max_rows, max_outputs=max_outputs)]
    one_token: list[Pass] = [
        Canonicalize(),
        RaiseSoftmax(),
        RaiseAttention(),
        Canonicalize(),
        SplitStates(),
        Canonicalize(),  # what a step leaves in one place meets what it takes from it
        RaiseRecurrence(),  # from here on there is a @forward
    ]
    return [
        *(one_token if cached else ()),
        UngroupExperts(),  # before views meet, between which rows are sorted
        Canonicalize(),  # one spelling, so that the raising patterns stay few
        RaiseNorms(),
        UnmergeSequence(),  # before any pattern that looks for the sequence, which code for experts merges with choices
        Canonicalize(),  # views meet where a dimension was taken apart
        JoinExperts(),
        RaiseExperts(),
        RaiseRotaryEmbedding(),
        RaiseSoftmax(),  # before attention, whose pattern looks for spec.softmax
        RaiseSinks(),  # before attention, whose pattern takes a sink as a column of scores
        RaiseAttention(),  # before grouped queries, whose pattern looks for spec.attention
        Canonicalize(),  # transposes of keys meet, so that a repetition stands in front of the attention
        RaiseGroupedQueries(),
        Canonicalize(),  # removes dead code left by raising before the analysis
        SequenceAxis(),  # from here on the model is known to decode incrementally
        TabulatePositions(),
        Canonicalize(),
        InsertKVCache(block=block),
        TreeMask(),
        SelectOutputs(candidates=candidates, tokens=tokens),
        Canonicalize(),  # transposes meet across the new attention
        *draft,  # before kernels hide the graph's structure
        StoreWeights(storage=storage),  # before kernels hide which operation reads a weight
        NarrowProducts(arithmetic=arithmetic),  # once it is known how matrices are stored
        *(kernels if fused else ()),
    ]


PASSES: dict[str, type[Pass]] = {
    each.name: each
    for each in (
        UngroupExperts,
        Canonicalize,
        RaiseNorms,
        UnmergeSequence,
        JoinExperts,
        RaiseExperts,
        RaiseRotaryEmbedding,
        RaiseSoftmax,
        RaiseSinks,
        RaiseAttention,
        RaiseGroupedQueries,
        SplitStates,
        RaiseRecurrence,
        SequenceAxis,
        TabulatePositions,
        InsertKVCache,
        TreeMask,
        SelectOutputs,
        SkipLayers,
        EarlyExit,
        ParallelLayers,
        ReuseKVCache,
        Disaggregate,
        SplitOutputs,
        StoreWeights,
        NarrowProducts,
        FuseKernels,
        PlanMemory,
    )
}
"""Every pass by name, for forerun-opt."""


def _in_parts() -> dict[str, tuple[Pass, ...]]:
    """The pipeline with the passes' own options, cut before kernels."""
    memory, outputs, cache = PlanMemory(), SelectOutputs(), InsertKVCache()
    whole = step_pipeline(memory.max_rows, memory.max_outputs, cache.block, outputs.candidates)
    cut = next(at for at, each in enumerate(whole) if isinstance(each, StoreWeights))
    return {"step": tuple(whole[:cut]), "kernels": tuple(whole[cut:])}


PIPELINES = _in_parts()
"""Passes that have one name together: from `@forward` to `@step`, and from there to planned kernels."""


@dataclass(frozen=True)
class PassRecord:
    """What one pass did: seconds, operations before and after, which those are, how often each of its patterns applied,
    and what it noted."""

    name: str
    seconds: float
    before: int
    after: int
    changes: tuple[Change, ...]
    patterns: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def applied(self) -> str:
        """The patterns that applied, in words."""
        return ", ".join(f"{name} {count} times" for name, count in self.patterns.items())

    def __str__(self) -> str:
        changed = "; ".join([*([self.applied] if self.patterns else []), *summary(self.changes, LOGGED), *self.notes])
        counts = f"{self.name}: {self.before} -> {self.after} operations in {self.seconds * 1e3:.1f} ms"
        return f"{counts}; {changed}" if changed else counts

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON takes it."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return own | {"changes": [asdict(each) for each in self.changes], "patterns": dict(self.patterns)}

    def header(self, changed: bool) -> str:
        """The record as comments above the module."""
        lines = [
            f"pass {self.name}{'' if changed else ' (changed nothing)'}",
            f"operations: {self.before} before, {self.after} after",
            f"time: {self.seconds * 1e3:.1f} ms",
            *([f"patterns: {self.applied}"] if self.patterns else []),
            *map(str, self.changes),
            *self.notes,
        ]
        return "".join(f"// {line}\n" for line in lines)


Observer = Callable[["PassRecord | None", ModuleOp], None]
"""Sees the module as imported, with None, and after every pass."""


def run_pipeline(
    module: ModuleOp,
    passes: Sequence[Pass],
    context: PassContext,
    observer: Observer | None = None,
    check: bool = True,
) -> list[PassRecord]:
    """Runs passes in place, verifying between them. Returns what each did."""
    records: list[PassRecord] = []
    if observer is not None:
        observer(None, module)
    there = census(module)
    for each in passes:
        noted, before = len(context.notes), there
        context.applied.clear()
        start = perf_counter()
        run_pass(each, context, module)
        seconds = perf_counter() - start
        if check:
            verify(module)
        there = census(module)
        record = PassRecord(
            each.name,
            seconds,
            before.total(),
            there.total(),
            tuple(changes(before, there)),
            dict(context.applied),
            tuple(context.notes[noted:]),
        )
        records.append(record)
        log.info("%s", record)
        if observer is not None:
            observer(record, module)
    return records


def run_pass(given: Pass, context: PassContext, module: ModuleOp) -> None:
    """Run one pass. Raises `PassError` if it does not apply to the module."""
    if given.needs is not None:
        given.needs.check(given.name, module)
    try:
        given.apply(context, module)
    except OutsideTableError as error:
        fits = context.max_length - error.excess
        raise InvalidOptionError(
            f"The table {error.table} has {error.size} entries, too few for max_length={context.max_length}; "
            f"compile with max_length={fits} or less."
        ) from error
    except VerifyException as error:  # by a shape rule, while the pass builds operations
        raise PassError(f"{given.name} does not fit this module ({error}); run the passes before it.") from error


def parse_passes(text: str) -> Iterator[Pass]:
    """Parses passes from `name,name{option=value}`; InvalidOptionError for an unknown pass or option."""
    for options in re.findall(r"{([^{}]*)}", text):
        names = Counter(each.replace("-", "_") for each in re.findall(r"([\w-]+)\s*=", options))
        if twice := [name for name, times in names.items() if times > 1]:
            raise InvalidOptionError(f"The option {twice[0]} is given twice in {text!r}; give it once.")
    try:
        specs = list(parse_pipeline(text))
    except ArgSpecParseError as error:
        raise InvalidOptionError(f"{text!r} is not a list of passes; write name,name{{option=value}}.") from error
    for spec in specs:
        if spec.name in PIPELINES:
            if spec.parameters:
                raise InvalidOptionError(f"{spec.name} is several passes and takes no options; list the passes.")
            yield from PIPELINES[spec.name]
            continue
        if spec.name not in PASSES:
            names = ", ".join([*PIPELINES, *PASSES])
            raise InvalidOptionError(f"There is no pass {spec.name!r}; choose from {names}.")
        try:
            yield PASSES[spec.name].from_spec(spec)
        except ValueError as error:
            raise InvalidOptionError(f"The pass {spec.name} does not take these options: {error}.") from error
