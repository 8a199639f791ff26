"""GGUF files: a transformers model, and the file's tensors as its weights.

transformers knows the names of tensors, `gguf_layout` what converters did to their rows, and `gguf_keys` has the
meaning of the metadata. forerun reads the file itself, one tensor at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from forerun.errors import CorruptFileError, NotAModelError, first_sentence
from forerun.forking import BUILDING
from forerun.frontends.gguf_cache import Conversion, cached_conversion
from forerun.frontends.gguf_config import configuration
from forerun.frontends.gguf_header import GgufHeader
from forerun.frontends.gguf_parts import read_model
from forerun.frontends.gguf_rotary import FREQUENCY_FACTORS
from forerun.frontends.gguf_tensors import StoredTensor, numbers, stored_tensors
from forerun.frontends.gguf_tokenizer import read_tokenizer
from forerun.frontends.huggingface import LOADING, check_complete
from forerun.frontends.quiet import quiet_libraries
from forerun.frontends.weights import without_values


@dataclass(frozen=True)
class GgufModel:
    """A file's model: a module whose parameters have no values, and where their values are."""

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    tensors: Mapping[str, StoredTensor]  # by the names of the parameters; tied ones have several


def open_gguf(path: Path, dtype: torch.dtype) -> GgufModel:
    """The file's model in `dtype`, with its tokenizer if it holds one. No weight is read.

    Raises `SourceNotFoundError`, `CorruptFileError`, `NotAModelError` or `UnsupportedOperationError`.
    """
    header = _model_header(path)
    tokenizer = _tokenizer(header)
    with BUILDING, quiet_libraries():
        skeleton, tensors = _skeleton(header)
        parameters = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
        held = {
            name: torch.zeros((), dtype=dtype).expand(each.shape) if name in parameters else each.values()
            for name, each in tensors.items()
        }
        module = _filled(skeleton, held, dtype, header)
        named = list(module.named_parameters(remove_duplicate=False))
        stored = {id(each): tensors[name] for name, each in named if name in tensors}
        found = {name: stored[id(each)] for name, each in named if id(each) in stored}
        without_values(module, found)
    return GgufModel(module, tokenizer, found)


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The file's model in `dtype` with all its weights in memory, and its tokenizer. Raises as `open_gguf` does."""
    header = _model_header(path)
    tokenizer = _tokenizer(header)
    with BUILDING, quiet_libraries():
        skeleton, tensors = _skeleton(header)
        return _filled(skeleton, {name: each.values() for name, each in tensors.items()}, dtype, header), tokenizer


def _model_header(path: Path) -> GgufHeader:
    header = read_model(path)
    if header.architecture is None or not header.tensors:
        raise NotAModelError(f"{header.path} names no architecture or holds no tensors: give a GGUF file of a model.")
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise NotAModelError(f"{header.path} holds no model (general.type = {kind!r}): give a GGUF file of a model.")
    return header


def _tokenizer(header: GgufHeader) -> PreTrainedTokenizerBase | None:
    """The header's tokenizer, from the cache if it was built before: recovering merges from scores takes seconds."""

    def convert() -> Conversion:
        return {}, read_tokenizer(header)

    return cached_conversion(header.digest, convert)[1]


def _skeleton(header: GgufHeader) -> tuple[PreTrainedModel, dict[str, StoredTensor]]:
    """The module on the meta device, and the tensors of the file that fill it, whose sizes are its own."""
    parameters = configuration(header)
    try:
        config = AutoConfig.for_model(**parameters)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise NotAModelError(
            f"transformers cannot build {header.architecture} from the metadata of {header.path} "
            f"({first_sentence(error)}): give the directory of the original model."
        ) from error
    tensors = stored_tensors(header, parameters, skeleton)
    sizes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    misfits = [name for name, each in tensors.items() if name in sizes and each.shape != sizes[name]]
    check_complete({"missing_keys": [], "mismatched_keys": misfits}, str(header.path))
    return skeleton, tensors


def _filled(
    skeleton: PreTrainedModel, tensors: dict[str, Tensor], dtype: torch.dtype, header: GgufHeader
) -> PreTrainedModel:
    """The class's own loading from tensors in memory: ties weights and rebuilds the buffers that no file stores."""
    try:
        loaded: Any = type(skeleton).from_pretrained(
            None, config=skeleton.config, state_dict=tensors, dtype=dtype, **LOADING
        )
    except Exception as error:
        raise NotAModelError(
            f"transformers cannot load the weights of {header.path} ({first_sentence(error)}): "
            f"give the directory of the original model."
        ) from error
    model, report = loaded
    check_complete(report, str(header.path))
    _scale_rotary(model, header)
    return model


def _scale_rotary(model: nn.Module, header: GgufHeader) -> None:
    """Divide the rotary frequencies `[turned features / 2]` by the file's factors, if any, as llama.cpp does."""
    entry = next((each for each in header.tensors if each.name == FREQUENCY_FACTORS), None)
    if entry is None:
        return
    factors = torch.from_numpy(numbers(entry))
    frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    if not frequencies or any(buffer.shape != factors.shape for buffer in frequencies):
        raise CorruptFileError(
            f"{header.path}: {FREQUENCY_FACTORS} has {list(factors.shape)} factors, not one for each rotary "
            f"frequency; convert the model again."
        )
    for buffer in frequencies:
        buffer.div_(factors.to(buffer))
