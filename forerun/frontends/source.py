"""Opens everything that a user may compile as a `Source`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import PreTrainedTokenizerBase

from forerun.errors import InvalidOptionError, NotAModelError
from forerun.frontends.directory import MLIR, existing
from forerun.frontends.generation_config import Given, applied_fields
from forerun.frontends.gguf import open_gguf
from forerun.frontends.gguf_native import NativeWeights, native_weights
from forerun.frontends.gguf_place import is_gguf
from forerun.frontends.huggingface import (
    eos_token_ids,
    first_ends,
    load_directory,
    position_limit,
    prefer_traceable,
)
from forerun.frontends.importer import Imported, Importer
from forerun.frontends.mlir_model import MlirModel, open_file, open_object
from forerun.frontends.mlir_text import is_module_object
from forerun.frontends.onnx_file import read_onnx
from forerun.frontends.onnx_model import OnnxModel, read_beside
from forerun.frontends.onnx_place import folder_of, is_onnx, onnx_in
from forerun.frontends.rotary_scaling import LengthLimit, hold_frequencies
from forerun.frontends.tokenizer import load_tokenizer, object_tokenizer
from forerun.frontends.traced import TracedModel
from forerun.frontends.tracing import INNER, TokenLogits
from forerun.frontends.weights import OnDemand, private_copy, program_weights, require_dtype
from forerun.progress import Progress, SilentProgress

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A model that can be imported, with what is known about its text."""

    name: str
    importer: Importer
    tokenizer: PreTrainedTokenizerBase | None = None
    eos_token_ids: tuple[int, ...] = ()
    limit: LengthLimit | None = None  # positions that the model can have, if it says so
    native: NativeWeights | None = None  # the matrices of a GGUF file, by the names of its weights
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])  # keywords of `generate` that apply by default

    def import_(self, max_length: int) -> Imported:
        """Returns the model as IR, with its weights: see `Importer`."""
        return self.importer.import_(max_length)


def open_source(
    source: Any,
    dtype: str = "float32",
    progress: Progress | None = None,
    native: bool = False,
    generation_config: Given = "model",
    trust_remote_code: bool = False,
) -> Source:
    """Open a directory, a GGUF, ONNX or .mlir file, a transformers model, any module, an ExportedProgram or a module of
    torch-mlir.

    With `native`, the source must be a GGUF file, and has its matrices in their own weight dtypes. An object that the
    caller passes is left as it was. `generation_config` is the model's own, the caller's, or None to use none; a field
    that would change a text and cannot be applied is refused. Raises `SourceNotFoundError`, `NotAModelError`,
    `CorruptFileError` or `InvalidOptionError`.
    """
    if dtype not in DTYPES:
        raise InvalidOptionError(f"dtype={dtype!r} is not known: use one of {', '.join(DTYPES)}.")
    progress = progress or SilentProgress()
    if generation_config != "model":
        defaults = applied_fields(generation_config, "the caller")
        opened = _open(source, dtype, progress, native, generation_config, trust_remote_code)
        return replace(opened, defaults=defaults)
    return _open(source, dtype, progress, native, generation_config, trust_remote_code)


def _open(
    source: Any, dtype: str, progress: Progress, native: bool, generation_config: Given, trust_remote_code: bool
) -> Source:
    if isinstance(source, (str, os.PathLike)):
        return _open_path(existing(source), DTYPES[dtype], progress, native, generation_config, trust_remote_code)
    if native:
        raise _not_quantized(type(source).__name__)
    if isinstance(source, ExportedProgram):
        return _open_program(source, DTYPES[dtype], progress)
    if isinstance(source, nn.Module):
        return _open_module(source, DTYPES[dtype], progress, generation_config, trust_remote_code)
    if is_module_object(source):
        return _mlir_source(open_object(source, DTYPES[dtype], progress))
    raise NotAModelError(
        f"{type(source).__name__} is not a model: give a directory, a GGUF, ONNX or .mlir file, a transformers model, "
        f"an nn.Module, an ExportedProgram or a torch-mlir module."
    )


def _not_quantized(name: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"dtype='native' keeps the quantized blocks of a GGUF file, but {name} is not one: use float32 or bfloat16."
    )


def _open_path(
    path: Path, dtype: torch.dtype, progress: Progress, native: bool, generation: Given, trust_remote_code: bool
) -> Source:
    graph = onnx_in(path) if path.is_dir() else path if is_onnx(path) else None
    if graph is not None:
        return _open_onnx(graph, dtype, progress, native, generation, trust_remote_code)
    if path.is_file() and path.suffix == MLIR:
        return _open_mlir(path, dtype, progress, native)
    if path.is_file() and not is_gguf(path):
        raise NotAModelError(
            f"{path} is not a GGUF file, an ONNX model or an {MLIR} file: "
            f"give one, or the directory that holds the model."
        )
    if native and path.is_dir():
        raise _not_quantized(str(path))
    name = path.resolve().stem if path.is_file() else path.resolve().name
    if path.is_file():
        return _open_gguf(path, name, dtype, progress, native, generation)
    with progress.stage("load weights"):
        model = load_directory(path, dtype, trust_remote_code)
        tokenizer = load_tokenizer(path, trust_remote_code)
    return _source(_traced(name, model, progress), model, tokenizer, generation)


def _open_gguf(path: Path, name: str, dtype: torch.dtype, progress: Progress, native: bool, given: Given) -> Source:
    with progress.stage("open file"):
        opened = open_gguf(path, dtype)
    model = opened.module
    tensors = {INNER + own: each for own, each in opened.tensors.items()}
    dtypes = {INNER + own: model.get_parameter(own).dtype for own in opened.tensors}
    values = OnDemand({each: partial(stored.values, dtypes[each]) for each, stored in tensors.items()})
    kept = native_weights(tensors) if native else None
    return _source(_traced(name, model, progress, values), model, opened.tokenizer, given, kept)


def _open_onnx(
    path: Path, dtype: torch.dtype, progress: Progress, native: bool, generation: Given, trust_remote_code: bool
) -> Source:
    if native:
        raise _not_quantized(str(path))
    if dtype != torch.float32:
        raise InvalidOptionError(f"{path} is an ONNX model, which is imported in float32 only: use dtype='float32'.")
    name = path.resolve().stem
    with progress.stage("load weights"):
        file = read_onnx(path)
        tokenizer, beside = load_tokenizer(folder_of(path), trust_remote_code), read_beside(path)
    defaults = applied_fields(beside.generation, name) if generation == "model" else {}
    own = [getattr(each, "eos_token_id", None) for each in (generation, tokenizer)]
    ends = first_ends([own[0], *beside.ends, own[1]])
    return Source(name, OnnxModel(name, file, progress), tokenizer, ends, beside.limit, defaults=defaults)


def _open_module(
    module: nn.Module, dtype: torch.dtype, progress: Progress, generation: Given, trust_remote_code: bool
) -> Source:
    name = type(module).__name__
    tokenizer = object_tokenizer(module, trust_remote_code)
    model = private_copy(module, dtype, name)
    return _source(_traced(name, model, progress), model, tokenizer, generation)


def _open_program(program: ExportedProgram, dtype: torch.dtype, progress: Progress) -> Source:
    require_dtype("ExportedProgram", program_weights(program), dtype)
    return Source("ExportedProgram", TracedModel("ExportedProgram", program, progress))


def _open_mlir(path: Path, dtype: torch.dtype, progress: Progress, native: bool) -> Source:
    if native:
        raise _not_quantized(str(path))
    return _mlir_source(open_file(path, dtype, progress))


def _mlir_source(model: MlirModel) -> Source:
    return Source(model.module.name, model)


def _traced(name: str, model: nn.Module, progress: Progress, values: Mapping[str, Tensor] | None = None) -> TracedModel:
    prefer_traceable(model)
    return TracedModel(name, TokenLogits(model), progress, values)


def _source(
    traced: TracedModel,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    generation: Given,
    native: NativeWeights | None = None,
) -> Source:
    own = getattr(model, "generation_config", None) if generation == "model" else None
    defaults = applied_fields(own, traced.name)
    ends = eos_token_ids(model, tokenizer, generation)
    declared, held = position_limit(model), hold_frequencies(model)
    limits = [held] if held else []
    if declared:
        limits.append(LengthLimit(declared, "the model's configuration allows no more"))
    limit = min(limits, key=lambda each: each.positions) if limits else None
    return Source(traced.name, traced, tokenizer, ends, limit, native, defaults)
