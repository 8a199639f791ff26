"""What `compile` builds from a source or finds on disk: a front half yields a planned step, a back half its code."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from forerun import prebuilt
from forerun.codegen.backends import BACKENDS, FLOAT32, WEIGHT_DTYPES, named
from forerun.codegen.planned import PlannedStep, StepLimits, StepParts
from forerun.codegen.program import DraftPart
from forerun.compile_options import (
    AUTO,
    DEFAULT_LENGTH,
    NATIVE,
    located,
    require_length,
    require_target,
    resolve_arithmetic,
    resolve_target,
)
from forerun.dump_folder import DumpFolder
from forerun.forking import one_at_a_time, with_live_threads
from forerun.frontends.directory import existing
from forerun.frontends.generation_config import Given
from forerun.frontends.gguf_place import is_gguf
from forerun.overrides import check_edits, is_current, with_overrides
from forerun.prebuilt import Built
from forerun.progress import Progress, open_progress
from forerun.runtime.executable import Branch, Executable, Part
from forerun.runtime.model import source_name

if TYPE_CHECKING:
    import torch

    from forerun.frontends.rotary_scaling import LengthLimit
    from forerun.frontends.source import Source
    from forerun.ir import ModuleOp, Weight
    from forerun.passes.base import Pass
    from forerun.passes.pipeline import Observer, PassRecord

MAX_ROWS = 256
"""The rows of the largest step: a chunk of a prompt."""
MAX_OUTPUTS = 64
"""The most rows whose logits a step can give: the largest tree."""
TEXTLESS = ("source", "dump_dir", "progress", "threads")
"""Arguments of `build` that do not affect the text: a kept model is found by the others and its files' bytes."""
BLOCK = 16
CANDIDATES = 8


NO_KERNELS: Mapping[str, str] = MappingProxyType({})


class LengthWarning(UserWarning):
    """A model was compiled for fewer positions than requested."""


Drafting = Callable[[Sequence[Branch]], Part | None]
"""Chooses, from a step's residual branches, the part that drafts."""


def no_part(branches: Sequence[Branch]) -> Part | None:
    """For strategies that draft without the model."""
    return None


@dataclass(frozen=True)
class Opening:
    """What opening a source may depend on besides the source."""

    generation_config: Given = "model"
    trust_remote_code: bool = False


OPENING = Opening()


@dataclass(frozen=True)
class Lowered:
    """A model as IR with a planned `@step`, and what the passes did."""

    source: Source
    module: ModuleOp
    weights: Callable[[str], torch.Tensor]
    stored: Mapping[str, torch.Tensor]  # the weights as imported
    max_length: int
    records: list[PassRecord]
    capped: str | None  # why `max_length` is less than requested


def own_dtype(source: Any) -> str:
    """Returns the weight dtype of a source's own file: "native" for GGUF where the best back end has it."""
    path = located(source)
    native = NATIVE in BACKENDS[resolve_target(AUTO)].weight_dtypes
    return NATIVE if native and isinstance(path, Path) and path.is_file() and is_gguf(path) else "float32"


@with_live_threads
@one_at_a_time
def build(
    source: Any,
    dtype: str,
    target: str,
    max_length: int | None,
    dump_dir: str | os.PathLike[str] | None,
    progress: Progress,
    opening: Opening = OPENING,
    arithmetic: str = AUTO,
    threads: int | None = None,
    tokens: int = 0,
    kernels: Mapping[str, str] = NO_KERNELS,
) -> Built:
    """Runs the front half and the back half; the result for a path is cached on disk and reused.

    kernels     the texts of edited kernels, by file name (`overrides.given_files`)
    """
    kernels = dict(kernels)
    arithmetic = resolve_arithmetic(arithmetic, target, dtype)
    options = {name: value for name, value in locals().items() if name not in TEXTLESS}
    kept = BACKENDS[target].kept if dump_dir is None else None
    source = located(source)
    path = existing(source) if kept is not None and isinstance(source, Path) else None
    folder = None if kept is None or path is None else prebuilt.folder_for(path, options, kept)
    if kept is not None and folder is not None:
        with progress.stage("read compiled model"):
            found = prebuilt.load(folder, kept, threads, partial(is_current, target=target, kernels=kernels))
        if found is not None:
            return found
    backend = BACKENDS[target]
    dump = None if dump_dir is None else DumpFolder.of(Path(dump_dir))
    lowered = lower(
        source,
        dtype,
        max_length,
        progress,
        observer=None if dump is None else dump.observe,
        opening=opening,
        cache_in_memory=backend.cache_in_memory,
        fused=backend.fused,
        arithmetic=arithmetic,
        tokens=tokens,
    )
    executable = generate_code(lowered, target, progress, dtype, threads, dump, kernels)
    if dump is not None:
        dump.finish(source_name(source), options)
    times = None if folder is None else prebuilt.times_file(folder, threads)
    opened = lowered.source
    built = Built(executable, opened.tokenizer, opened.eos_token_ids, lowered.capped, opened.defaults, times)
    if kept is not None and path is not None and folder is not None:
        with progress.stage("keep compiled model"):
            if folder == prebuilt.folder_for(path, options, kept):  # the files have not changed since they were read
                prebuilt.save(folder, built, kept)
    return built


@with_live_threads
@one_at_a_time
def lower(
    source: Any,
    dtype: str = "float32",
    max_length: int | None = None,
    progress: Progress | None = None,
    draft: Sequence[Pass] = (),
    observer: Observer | None = None,
    opening: Opening = OPENING,
    cache_in_memory: bool = True,
    fused: bool = True,
    arithmetic: str = FLOAT32,
    tokens: int = 0,
) -> Lowered:
    """The front half of `compile`: imports, and runs the pass pipeline and the passes that derive a draft."""
    # The front half is imported only here: a start that finds a kept model waits for neither xDSL nor a frontend.
    from forerun.frontends.cached_step import CACHED
    from forerun.frontends.source import open_source
    from forerun.ir import functions, with_derived
    from forerun.passes.base import PassContext
    from forerun.passes.pipeline import run_pipeline, step_pipeline

    progress = progress or open_progress()
    require_target(AUTO, dtype)
    max_length = require_length(max_length)
    opened = open_source(
        located(source), "float32", progress, dtype == NATIVE, opening.generation_config, opening.trust_remote_code
    )
    capped = length_capped(opened.limit, max_length)
    max_length = length_within(opened.limit, max_length)
    module, stored = opened.import_(max_length)
    native = opened.native
    storages = None if native is None else native.storages
    context = PassContext(stored.__getitem__, max_length, storages, cache_in_memory)
    storage = WEIGHT_DTYPES[dtype]
    cached = CACHED in functions(module)
    passes = step_pipeline(MAX_ROWS, MAX_OUTPUTS, BLOCK, CANDIDATES, storage, draft, fused, arithmetic, tokens, cached)
    with progress.stage("passes"):
        records = run_pipeline(module, passes, context, observer)
    weights = with_derived(module, stored.__getitem__)
    return Lowered(opened, module, weights, stored, max_length, records, capped)


def generate_code(
    lowered: Lowered,
    target: str,
    progress: Progress,
    dtype: str = "float32",
    threads: int | None = None,
    dump: DumpFolder | None = None,
    kernels: Mapping[str, str] = NO_KERNELS,
) -> Executable:
    """The back half: generates a program with the back end's code generator and binds it to this machine."""
    with progress.stage("kernels"):
        generated = emit(lowered, target, dtype)
        program = with_overrides(generated, target, kernels)
        if dump is not None:
            dump.kernels(program, texts_of(program, target))
        executable = bound(program, target, threads)
    if kernels:
        with progress.stage("check edited kernels"):
            check_edits(generated, target, executable, kernels)
    return executable


def bound(program: Any, target: str, threads: int | None = None) -> Any:
    """Returns the executable of a back end's program."""
    bind = named(BACKENDS[target].bind)
    return bind(program, threads) if BACKENDS[target].threads else bind(program)


def emit(lowered: Lowered, target: str, dtype: str = "float32", drafting: Drafting = no_part) -> Any:
    """Returns the program of a lowered model, which the back end's `bind` takes.

    drafting    chooses the part of a step without kernels that becomes its `@draft`, or none
    """
    native = lowered.source.native
    blocks = None if native is None else _with_parts(lowered.module, native.blocks)
    parts = None if BACKENDS[target].fused else _parts(lowered.module, drafting)
    planned = PlannedStep(lowered.module, lowered.weights, limits_of(lowered), WEIGHT_DTYPES[dtype], blocks, parts)
    return named(BACKENDS[target].emit)(planned)


def _with_parts(module: ModuleOp, blocks: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
    """The blocks of a file, and of the weights that are parts of its matrices."""
    from forerun.frontends.weights import OnDemand
    from forerun.ir import weights

    def part(weight: Weight, source: str) -> torch.Tensor:
        return weight.part_of(blocks[source])

    found = {name: partial(blocks.__getitem__, name) for name in blocks}
    for name, each in weights(module).items():
        if each.source in found:
            found[name] = partial(part, each, str(each.source))
    return OnDemand(found)


def _parts(module: ModuleOp, drafting: Drafting) -> StepParts:
    """Adds `@draft` to a module without kernels, if there is to be one, and returns the step's branches."""
    from forerun.passes.base import PassContext
    from forerun.passes.pipeline import run_pass
    from forerun.passes.residual import measured
    from forerun.passes.skip_layers import SkipLayers

    branches, head = measured(module)
    part = drafting([Branch(*each) for each in branches])
    if part is None:
        return StepParts(tuple(branches), head)
    kept = part.branches(len(branches))
    left_out = tuple(each for each in range(len(branches)) if each not in kept)
    run_pass(SkipLayers(left_out), PassContext(), module)
    return StepParts(tuple(branches), head, DraftPart(part.leave, tuple(sorted(part.skipped))))


def texts_of(program: Any, target: str) -> Mapping[str, str]:
    """Returns the loop nest and the text of every kernel by the name of a file, if the back end has texts."""
    texts = BACKENDS[target].texts
    return {} if texts is None else named(texts)(program)


def length_within(limit: LengthLimit | None, asked: int | None) -> int:
    """Returns the positions to compile for."""
    wanted = asked or DEFAULT_LENGTH
    return wanted if limit is None else min(wanted, limit.positions)


def length_capped(limit: LengthLimit | None, asked: int | None) -> str | None:
    """Returns why a model has fewer positions than requested, for `warn_of_length`."""
    if limit is None or asked is None or asked <= limit.positions:
        return None
    return f"max_length={asked} was capped at {limit.positions}: {limit.reason}"


def warn_of_length(capped: str | None, whose: str = "") -> None:
    """Warns the caller's caller with `LengthWarning` if a model has fewer positions than requested."""
    if capped is not None:
        warnings.warn(f"{whose}{capped}", LengthWarning, stacklevel=3)


def limits_of(lowered: Lowered) -> StepLimits:
    """Returns how large the steps of a lowered model are."""
    return StepLimits(max_rows=MAX_ROWS, max_outputs=MAX_OUTPUTS, max_path=MAX_OUTPUTS, max_length=lowered.max_length)
