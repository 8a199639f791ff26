"""GGUF files: a transformers model with the file's weights, dequantized.

What a name in the file means, and how llama.cpp reordered a tensor, transformers knows; the reading is ours, so that
loading takes seconds and needs no accelerate.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from forerun.errors import CorruptFileError, NotAModelError, UnsupportedOperationError
from forerun.frontends.gguf_cache import Conversion, cached_conversion
from forerun.frontends.gguf_header import MAGIC, GgufHeader, TensorEntry, read_header
from forerun.frontends.gguf_native import NativeWeights
from forerun.frontends.huggingface import LOADING, check_complete
from forerun.frontends.quiet import first_sentence, quiet_libraries

ROTARY_FACTORS = "rope_freqs.weight"  # each rotary frequency is divided by its factor


def is_gguf(path: Path) -> bool:
    """Whether the file is a GGUF by its first bytes, or was meant to be by its name."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC or path.suffix == ".gguf"


def load_gguf(
    path: Path, dtype: torch.dtype, native: NativeWeights | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The file's model, in `dtype`, and its tokenizer if it holds one; `native` learns how the file keeps its matrices.

    Raises `CorruptFileError`, `NotAModelError` or `UnsupportedOperationError`.
    """
    header = read_header(path)
    _check_header(header)
    parsed, tokenizer = cached_conversion(header.digest, lambda: _read_metadata(path))
    with quiet_libraries():
        skeleton = _skeleton(parsed, header)
        tensors = _converted_tensors(header, parsed, skeleton, native)
        factors = tensors.pop(ROTARY_FACTORS, None)
        # The class's own loading from tensors in memory: ties weights and rebuilds the buffers that no file stores.
        loaded: Any = type(skeleton).from_pretrained(
            None, config=skeleton.config, state_dict=tensors, dtype=dtype, **LOADING
        )
    model, report = loaded
    check_complete(report, str(path))
    if factors is not None:
        _scale_rotary(model, factors)
    return model, tokenizer


def _check_header(header: GgufHeader) -> None:
    if header.architecture is None or not header.tensors:
        raise NotAModelError(f"{header.path} names no architecture or holds no tensors: give a GGUF file of a model.")
    if header.metadata.get("split.count", 0) > 1:
        raise NotAModelError(
            f"{header.path} is one of {header.metadata['split.count']} parts of a model: "
            f"join them with llama.cpp's gguf-split --merge."
        )


def _read_metadata(path: Path) -> Conversion:
    """The transformers configuration that the file's metadata describes, as a dictionary, and the tokenizer."""
    try:
        reader = _PlainReader(path)
        # transformers would open a reader of its own for each of the two.
        with quiet_libraries(), mock.patch.object(gguf, "GGUFReader", return_value=reader):
            config = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
            return config, _read_tokenizer(path)
    except Exception as error:
        raise NotAModelError(
            f"transformers has no model for {path} ({first_sentence(error)}): "
            f"give the directory of the original model, or a GGUF of a known architecture."
        ) from error


def _read_tokenizer(path: Path) -> PreTrainedTokenizerBase | None:
    try:
        return AutoTokenizer.from_pretrained(
            path.parent, gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )
    except Exception:
        return None


class _PlainReader(gguf.GGUFReader):
    """The gguf package's reader over a plain array: it slices once a string, and slicing a memmap is slow."""

    @property
    def data(self) -> NDArray[np.uint8]:
        return self._data

    @data.setter
    def data(self, mapped: NDArray[np.uint8]) -> None:
        self._data = np.asarray(mapped).view(np.ndarray)


def _skeleton(parsed: Mapping[str, Any], header: GgufHeader) -> PreTrainedModel:
    """The module without weights."""
    try:
        config = AutoConfig.for_model(**parsed)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise NotAModelError(
            f"{header.path} holds a {header.architecture}, for which transformers has no causal language model "
            f"({first_sentence(error)}): give a GGUF file of a decoder."
        ) from error


def _converted_tensors(
    header: GgufHeader, parsed: Mapping[str, Any], skeleton: nn.Module, native: NativeWeights | None
) -> dict[str, Tensor]:
    """Every tensor, dequantized, under transformers' name and in transformers' order of rows."""
    processor = TENSOR_PROCESSORS.get(header.architecture or "", TensorProcessor)(config=dict(parsed))
    names = get_gguf_hf_weights_map(_Outline(skeleton), processor)
    tensors: dict[str, Tensor] = {}
    unused: list[str] = []
    blocks = header.blocks()
    for entry, values in _dequantized(header):
        if entry.name == ROTARY_FACTORS:
            tensors[ROTARY_FACTORS] = torch.from_numpy(values)
            continue
        stored = processor.process(
            weights=values, name=entry.name, tensor_key_mapping=names, parsed_parameters={"tensors": tensors}
        )
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


def _dequantized(header: GgufHeader) -> Iterator[tuple[TensorEntry, NDArray[np.float32]]]:
    blocks = header.blocks()

    def decode(entry: TensorEntry) -> NDArray[np.float32]:
        try:
            return dequantize(blocks[entry.name], entry.encoding)
        except NotImplementedError as error:
            raise UnsupportedOperationError(
                f"{header.path} stores {entry.name} as {entry.encoding.name}, which the gguf package cannot decode: "
                f"requantize the file, to Q8_0 for example."
            ) from error
        except ValueError as error:
            raise CorruptFileError(f"{header.path} holds {entry.name} damaged: download it again.") from error

    with ThreadPoolExecutor() as pool:
        yield from zip(header.tensors, pool.map(decode, header.tensors), strict=True)


def _scale_rotary(model: nn.Module, factors: Tensor) -> None:
    """Divide the rotary frequencies `[head size / 2]` by the file's factors, as llama.cpp does."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq") and buffer.shape == factors.shape:
            buffer.div_(factors.to(buffer))


class _Outline:
    """What transformers' name table asks of a module, without descending into lists of layers.

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
