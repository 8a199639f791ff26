"""GGUF files: a transformers model with the file's weights, dequantized.

transformers knows the names of tensors and how llama.cpp reordered their rows; `gguf_keys` has the meaning of the
metadata. forerun reads the file itself, so that loading takes seconds and does not need accelerate.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

from forerun.errors import CorruptFileError, NotAModelError, UnsupportedOperationError, first_sentence
from forerun.forking import BUILDING
from forerun.frontends.gguf_cache import Conversion, cached_conversion
from forerun.frontends.gguf_config import configuration
from forerun.frontends.gguf_header import MAGIC, GgufHeader, TensorEntry
from forerun.frontends.gguf_layout import tensor_processor
from forerun.frontends.gguf_native import NativeWeights
from forerun.frontends.gguf_parts import read_model
from forerun.frontends.gguf_rotary import FREQUENCY_FACTORS, TABLES
from forerun.frontends.gguf_tokenizer import read_tokenizer
from forerun.frontends.huggingface import LOADING, check_complete
from forerun.frontends.quiet import quiet_libraries


def is_gguf(path: Path) -> bool:
    """Whether the file is a GGUF by its first bytes, or is named as one."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC or path.suffix == ".gguf"


def load_gguf(
    path: Path, dtype: torch.dtype, native: NativeWeights | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The file's model, in `dtype`, and its tokenizer if it holds one; `native` receives the file's own matrices.

    Raises `SourceNotFoundError`, `CorruptFileError`, `NotAModelError` or `UnsupportedOperationError`.
    """
    header = read_model(path)
    if header.architecture is None or not header.tensors:
        raise NotAModelError(f"{header.path} names no architecture or holds no tensors: give a GGUF file of a model.")
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise NotAModelError(f"{header.path} holds no model (general.type = {kind!r}): give a GGUF file of a model.")
    parameters = configuration(header)
    tokenizer = _tokenizer(header)
    with BUILDING, quiet_libraries():
        skeleton = _skeleton(parameters, header)
        tensors = _converted_tensors(header, parameters, skeleton, native)
        factors = tensors.pop(FREQUENCY_FACTORS, None)
        _check_shapes(skeleton, tensors, header)
        model = _filled(skeleton, tensors, dtype, header)
    if factors is not None:
        _scale_rotary(model, factors, header)
    return model, tokenizer


def _tokenizer(header: GgufHeader) -> PreTrainedTokenizerBase | None:
    """The header's tokenizer, from the cache if it was built before: recovering merges from scores takes seconds."""

    def convert() -> Conversion:
        return {}, read_tokenizer(header)

    return cached_conversion(header.digest, convert)[1]


def _skeleton(parameters: Mapping[str, Any], header: GgufHeader) -> PreTrainedModel:
    """The module without weights."""
    try:
        config = AutoConfig.for_model(**parameters)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise NotAModelError(
            f"transformers cannot build {header.architecture} from the metadata of {header.path} "
            f"({first_sentence(error)}): give the directory of the original model."
        ) from error


def _check_shapes(skeleton: nn.Module, tensors: Mapping[str, Tensor], header: GgufHeader) -> None:
    """Compare sizes before memory is allocated: a misfit would be created anew, in the size of the metadata."""
    sizes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    misfits = [name for name, tensor in tensors.items() if name in sizes and tensor.shape != sizes[name]]
    check_complete({"missing_keys": [], "mismatched_keys": misfits}, str(header.path))


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
    return model


def _converted_tensors(
    header: GgufHeader, parameters: Mapping[str, Any], skeleton: nn.Module, native: NativeWeights | None
) -> dict[str, Tensor]:
    """Every tensor, dequantized, under transformers' name and in transformers' order of rows."""
    processor = tensor_processor(header.architecture or "", parameters)
    names = get_gguf_hf_weights_map(_Outline(skeleton), processor)
    tensors: dict[str, Tensor] = {}
    unused: list[str] = []
    blocks = header.blocks()
    for entry, values in _dequantized(header, blocks):
        if entry.name in TABLES:
            if entry.name == FREQUENCY_FACTORS:
                tensors[FREQUENCY_FACTORS] = torch.from_numpy(values)
            continue
        try:
            stored = processor.process(
                weights=values, name=entry.name, tensor_key_mapping=names, parsed_parameters={"tensors": tensors}
            )
        except (KeyError, ValueError, RuntimeError) as error:
            raise CorruptFileError(
                f"{entry.path} holds {entry.name} of shape {list(entry.shape)}, which does not fit its "
                f"{header.architecture} ({first_sentence(error)}): download it again."
            ) from error
        if stored.name in names:
            placed = np.ascontiguousarray(stored.weights)
            tensors[names[stored.name]] = torch.from_numpy(placed)
            if native is not None:
                native.add(names[stored.name], entry.encoding, blocks[entry.name], values, placed)
        elif stored.name:  # empty when the processor has placed the tensor itself
            unused.append(entry.name)
    if unused:
        raise UnsupportedOperationError(
            f"{header.path} holds tensors that transformers' {header.architecture} model does not use "
            f"({', '.join(unused[:3])}), so its text would differ: give the directory of the original model."
        )
    return tensors


def _dequantized(
    header: GgufHeader, blocks: Mapping[str, NDArray[np.uint8]]
) -> Iterator[tuple[TensorEntry, NDArray[np.float32]]]:
    def decode(entry: TensorEntry) -> NDArray[np.float32]:
        try:
            return dequantize(blocks[entry.name], entry.encoding)
        except NotImplementedError as error:
            raise UnsupportedOperationError(
                f"{entry.path} stores {entry.name} as {entry.encoding.name}, which the gguf package cannot decode: "
                f"requantize the file, to Q8_0 for example."
            ) from error
        except ValueError as error:
            raise CorruptFileError(f"{entry.name} in {entry.path} is damaged: download the file again.") from error

    with ThreadPoolExecutor() as pool:
        yield from zip(header.tensors, pool.map(decode, header.tensors), strict=True)


def _scale_rotary(model: nn.Module, factors: Tensor, header: GgufHeader) -> None:
    """Divide the rotary frequencies `[turned features / 2]` by the file's factors, as llama.cpp does."""
    frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    if not frequencies or any(buffer.shape != factors.shape for buffer in frequencies):
        raise CorruptFileError(
            f"{header.path}: {FREQUENCY_FACTORS} has {list(factors.shape)} factors, not one for each rotary "
            f"frequency; convert the model again."
        )
    for buffer in frequencies:
        buffer.div_(factors.to(buffer))


class _Outline:
    """The part of a module that transformers' name table reads, without descending into lists of layers.

    The table is rebuilt for every module visited, and inside a layer no name can match it.
    """

    def __init__(self, module: nn.Module, config: Any = None) -> None:
        self.module = module
        self.config = config or getattr(module, "config", None)

    def state_dict(self) -> dict[str, Any]:
        return self.module.state_dict()

    def named_children(self) -> list[tuple[str, "_Outline"]]:
        children = self.module.named_children()
        return [(name, _Outline(child, self.config)) for name, child in children if not _is_layers(child)]


def _is_layers(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or not any(True for _ in module.children())
