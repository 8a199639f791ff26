"""Opens everything that a user may compile as a `Source`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers import PreTrainedTokenizerBase

from forerun.errors import InvalidOptionError, NotAModelError
from forerun.frontends.directory import existing
from forerun.frontends.generation_config import Given, require_applied
from forerun.frontends.gguf import is_gguf, load_gguf
from forerun.frontends.gguf_native import NativeWeights
from forerun.frontends.huggingface import (
    eos_token_ids,
    load_directory,
    position_limit,
    prefer_attention,
)
from forerun.frontends.rotary_scaling import LengthLimit, hold_frequencies
from forerun.frontends.tokenizer import load_tokenizer, object_tokenizer
from forerun.frontends.tracing import TokenLogits, check_program, trace_module
from forerun.frontends.weights import floating_dtypes, module_weights, private_copy, program_weights
from forerun.progress import Progress, SilentProgress

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A model that can be traced, with what is known about its text."""

    name: str
    model: TokenLogits | ExportedProgram
    dtype: torch.dtype
    tokenizer: PreTrainedTokenizerBase | None = None
    eos_token_ids: tuple[int, ...] = ()
    limit: LengthLimit | None = None  # positions that the model can have, if it says so
    native: NativeWeights | None = None  # the matrices of a GGUF file, by the names of `weights`
    _programs: dict[int, ExportedProgram] = field(default_factory=dict, repr=False, compare=False)

    def trace(self, max_length: int) -> ExportedProgram:
        """The model as `input_ids[1, T] -> logits[1, T, V]` for every T up to `max_length`; traced once."""
        if max_length not in self._programs:
            self._programs[max_length] = self._trace(max_length)
        return self._programs[max_length]

    @property
    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers under the names that a traced program gives them, sharing the model's memory.

        Constants that only a trace finds are in `program_weights(self.trace(max_length))`.
        """
        if isinstance(self.model, ExportedProgram):
            return program_weights(self.model)
        return module_weights(self.model)

    def _trace(self, max_length: int) -> ExportedProgram:
        if isinstance(self.model, ExportedProgram):
            check_program(self.model, self.name, max_length)
            return self.model
        return trace_module(self.model, self.name, max_length)


def open_source(
    source: Any,
    dtype: str = "float32",
    progress: Progress | None = None,
    native: bool = False,
    generation_config: Given = "model",
    trust_remote_code: bool = False,
) -> Source:
    """Open a directory, a GGUF file, a transformers model, any module or an ExportedProgram.

    With `native`, the source must be a GGUF file, and has its matrices in their own weight dtypes. An object that the
    caller passes is left as it was. `generation_config` is the model's own, the caller's, or None to use none; a field
    that would change a text is refused. Raises `SourceNotFoundError`, `NotAModelError`, `CorruptFileError` or
    `InvalidOptionError`.
    """
    if dtype not in DTYPES:
        raise InvalidOptionError(f"dtype={dtype!r} is not known: use one of {', '.join(DTYPES)}.")
    if generation_config != "model":
        require_applied(generation_config, "the caller")
    progress = progress or SilentProgress()
    if isinstance(source, (str, os.PathLike)):
        return _open_path(existing(source), DTYPES[dtype], progress, native, generation_config, trust_remote_code)
    if native:
        raise _not_quantized(type(source).__name__)
    if isinstance(source, ExportedProgram):
        return _open_program(source, DTYPES[dtype])
    if isinstance(source, nn.Module):
        return _open_module(source, DTYPES[dtype], generation_config, trust_remote_code)
    raise NotAModelError(
        f"{type(source).__name__} is not a model: "
        f"give a directory, a GGUF file, a transformers model, an nn.Module or an ExportedProgram."
    )


def _not_quantized(name: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"dtype='native' keeps the quantized blocks of a GGUF file, but {name} is not one: use float32 or bfloat16."
    )


def _open_path(
    path: Path, dtype: torch.dtype, progress: Progress, native: bool, generation: Given, trust_remote_code: bool
) -> Source:
    if path.is_file() and not is_gguf(path):
        raise NotAModelError(f"{path} is not a GGUF file: give a GGUF file or the directory that holds the model.")
    if native and path.is_dir():
        raise _not_quantized(str(path))
    kept = NativeWeights() if native else None
    with progress.stage("load weights"):
        if path.is_dir():
            model = load_directory(path, dtype, trust_remote_code)
            tokenizer = load_tokenizer(path, trust_remote_code)
        else:
            model, tokenizer = load_gguf(path, dtype, kept)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    opened = _source(name, model, dtype, tokenizer, generation)
    return opened if kept is None else replace(opened, native=kept.renamed(model, opened.weights))


def _open_module(module: nn.Module, dtype: torch.dtype, generation: Given, trust_remote_code: bool) -> Source:
    name = type(module).__name__
    tokenizer = object_tokenizer(module, trust_remote_code)
    return _source(name, private_copy(module, dtype, name), dtype, tokenizer, generation)


def _open_program(program: ExportedProgram, dtype: torch.dtype) -> Source:
    found = floating_dtypes(program_weights(program))
    if found and dtype not in found:
        names = ", ".join(sorted(str(each).removeprefix("torch.") for each in found))
        asked = str(dtype).removeprefix("torch.")
        raise InvalidOptionError(
            f"the ExportedProgram's weights are {names}, but it cannot be read as {asked}: "
            f"export the model again in {asked}."
        )
    return Source("ExportedProgram", program, dtype)


def _source(
    name: str, model: nn.Module, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase | None, generation: Given
) -> Source:
    if generation == "model":
        require_applied(getattr(model, "generation_config", None), name)
    prefer_attention(model)
    ends = eos_token_ids(model, tokenizer, generation)
    declared, held = position_limit(model), hold_frequencies(model)
    limits = [held] if held else []
    if declared:
        limits.append(LengthLimit(declared, "the model's configuration allows no more"))
    limit = min(limits, key=lambda each: each.positions) if limits else None
    return Source(name, TokenLogits(model), dtype, tokenizer, ends, limit)
