"""The model's tensors in a GGUF file, under transformers' names. Nothing is read before it is asked for."""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import nn
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from forerun.errors import CorruptFileError, UnsupportedOperationError, first_sentence
from forerun.frontends.gguf_header import GgufHeader, TensorEntry
from forerun.frontends.gguf_layout import Layout, Order, layout_of
from forerun.frontends.gguf_rotary import TABLES

CHUNK = 1 << 20
"""Numbers that are dequantized at a time: the gguf package needs several times their memory."""


def numbers(entry: TensorEntry) -> NDArray[np.float32]:
    """A tensor of the file, dequantized, in the file's shape."""
    stored, kind = entry.stored(), entry.encoding
    if kind == GGMLQuantizationType.F32:
        return dequantize(stored, kind)  # a view of the mapped file
    rows = stored.reshape(-1, entry.row_bytes)
    values = np.empty((len(rows), entry.shape[-1]), np.float32)
    step = max(1, CHUNK // entry.shape[-1])

    def expand(first: int) -> None:
        values[first : first + step] = dequantize(rows[first : first + step], kind)

    with ThreadPoolExecutor() as pool:
        list(pool.map(expand, range(0, len(rows), step)))
    return values.reshape(entry.shape)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the model as the file holds it."""

    parts: tuple[TensorEntry, ...]  # one, or the matrices whose outputs follow each other, for each expert
    layout: Layout
    order: Order | None
    shape: tuple[int, ...]  # in the model

    @property
    def keeps_rows(self) -> bool:
        """Whether its rows are rows of the file, so that they may stay encoded."""
        return not (self.layout.transposed or self.layout.added)

    def values(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Its numbers, read and dequantized now."""
        values = self._in_order([numbers(each) for each in self.parts])
        values = values.T if self.layout.transposed else values
        values = values + np.float32(self.layout.added) if self.layout.added else values
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(self.shape).to(dtype)

    def blocks(self) -> torch.Tensor:
        """The blocks of its encoding, uint8 [..., features / block features, bytes], read now."""
        stored = self._in_order([each.stored() for each in self.parts])
        features, size = GGML_QUANT_SIZES[self.parts[0].encoding]
        return torch.from_numpy(stored).reshape(*self.shape[:-1], self.shape[-1] // features, size)

    def _in_order(self, parts: list[NDArray[Any]]) -> NDArray[Any]:
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-2)
        return joined if self.order is None else joined[self.order]


def stored_tensors(header: GgufHeader, parameters: Mapping[str, Any], skeleton: nn.Module) -> dict[str, StoredTensor]:
    """Every tensor of the model by its name.

    Raises `UnsupportedOperationError` for an encoding that cannot be read and for a tensor that the model does not use,
    and `CorruptFileError` for one whose rows do not fit the configuration.
    """
    architecture = header.architecture or ""
    names = get_gguf_hf_weights_map(_Outline(skeleton), TENSOR_PROCESSORS.get(architecture, TensorProcessor)())
    found: dict[str, list[TensorEntry]] = {}
    unused: list[str] = []
    for entry in header.tensors:
        target = names.get(entry.name) or names.get(entry.name.removesuffix(".weight"))  # the latter for experts
        if target is not None:
            found.setdefault(target, []).append(entry)
        elif entry.name not in TABLES:
            unused.append(entry.name)
    if unused:
        raise UnsupportedOperationError(
            f"{header.path} holds tensors that transformers' {header.architecture} model does not use "
            f"({', '.join(unused[:3])}), so its text would differ: give the directory of the original model."
        )
    for entry in {each.encoding: each for each in header.tensors}.values():
        _require_readable(entry)
    return {name: _stored(architecture, entries, parameters) for name, entries in found.items()}


def _stored(architecture: str, entries: list[TensorEntry], parameters: Mapping[str, Any]) -> StoredTensor:
    parts = tuple(sorted(entries, key=lambda each: each.name))  # the gate's matrices come before the others
    entry = parts[0]
    layout = layout_of(architecture, entry.name)
    try:
        order = layout.order(entry.shape[0], parameters)
        shape = _shape(parts, layout)
    except ValueError as error:
        raise CorruptFileError(
            f"{entry.path} holds {entry.name} of shape {list(entry.shape)}, which does not fit its "
            f"{architecture} ({first_sentence(error)}): download it again."
        ) from error
    return StoredTensor(parts, layout, order, shape)


def _shape(parts: tuple[TensorEntry, ...], layout: Layout) -> tuple[int, ...]:
    shape = parts[0].shape
    if len(parts) > 1:
        around = {(*each.shape[:-2], each.shape[-1]) for each in parts}
        if len(shape) < 2 or len(around) > 1:
            raise ValueError(f"{parts[1].name} has shape {list(parts[1].shape)}")
        shape = (*shape[:-2], sum(each.shape[-2] for each in parts), shape[-1])
    if layout.transposed:
        shape = shape[::-1]
    return (1, math.prod(shape)) if layout.is_row else shape


def _require_readable(entry: TensorEntry) -> None:
    """Raises `UnsupportedOperationError` for an encoding that the gguf package does not decode, by decoding a block."""
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[entry.encoding][1]), np.uint8), entry.encoding)
    except NotImplementedError as error:
        raise UnsupportedOperationError(
            f"{entry.path} stores {entry.name} as {entry.encoding.name}, which the gguf package cannot decode: "
            f"requantize the file, to Q8_0 for example."
        ) from error


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
