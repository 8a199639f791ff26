"""How weights lie in the weight file, and the nodes that widen them to float32.

Half-precision weights keep their two bytes. Of a file's quantized blocks, those that are a scale times a small integer
are kept, as `DequantizeLinear` with a block size reads them; blocks with a minimum have no standard operator, and
become float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from onnx import StringStringEntryProto, TensorProto, numpy_helper

from forerun import ir
from forerun.codegen.onnx.graph import ELEMENTS, Graph
from forerun.codegen.onnx.program import ALIGNMENT, WEIGHTS, StoredTensor

BITS = {"f64": 64, "f32": 32, "bf16": 16, "f16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i1": 8, "i4": 4}
BLOCKS = {"q8_0": "i8", "q4_0": "i4"}
"""The element types of the quantized blocks that are kept."""


@dataclass
class WeightFile:
    """The tensors of all graphs; each is written once, however many graphs read it."""

    module: ir.ModuleOp
    values: Callable[[str], torch.Tensor]
    blocks: Mapping[str, torch.Tensor]
    tensors: dict[str, StoredTensor] = field(default_factory=dict[str, StoredTensor])
    end: int = 0
    expanded: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # names, by their storage

    def read(self, graph: Graph, name: str) -> str:
        """Returns a weight in the dtype of its type."""
        weight = ir.weights(self.module)[name]
        dims = [int(dim) for dim in weight.type.dims]
        storage = weight.storage
        if storage in BLOCKS and name in self.blocks:
            return self._dequantized(graph, name, dims, storage)
        if storage in ("bf16", "f16"):
            held = self._stored(graph, name, storage, dims, lambda: _half(self.values(name), storage))
            return graph.node("Cast", held, to=ELEMENTS[weight.dtype], hint=f"{name}.wide")
        if weight.dtype in ir.INTEGER_DTYPES and len(dims) < 2:  # shape inference wants to see them
            values = _plain(self.values(name), weight.dtype).reshape(dims)
            return graph.initializer(numpy_helper.from_array(values, name))
        if storage is not None and name not in self.tensors:
            self.expanded.setdefault(storage, []).append(name)
        return self._stored(graph, name, weight.dtype, dims, lambda: _plain(self.values(name), weight.dtype))

    def _dequantized(self, graph: Graph, name: str, dims: list[int], storage: str) -> str:
        """Numbers [.., out, in] times scales [.., out, blocks]."""
        encoding, element = ir.ENCODINGS[storage], BLOCKS[storage]
        numbers = self._stored(graph, name, element, dims, lambda: _numbers(encoding, self.blocks[name], element))
        spans = [*dims[:-1], dims[-1] // encoding.features]
        scales = self._stored(
            graph,
            f"{name}.scales",
            "f16",
            spans,
            lambda: encoding.read(_matrix(self.blocks[name])).scale.contiguous().numpy(),
        )
        wide = graph.node("Cast", scales, to=ELEMENTS["f32"], hint=f"{name}.wide_scales")
        return graph.node(
            "DequantizeLinear", numbers, wide, axis=len(dims) - 1, block_size=encoding.features, hint=f"{name}.wide"
        )

    def _stored(self, graph: Graph, name: str, dtype: str, dims: list[int], make: Callable[[], NDArray[Any]]) -> str:
        """Returns an initializer whose bytes lie in the weight file."""
        if name not in self.tensors:
            size = -(-prod(dims) * BITS[dtype] // 8)
            self.tensors[name] = StoredTensor(self.end, size, make)
            self.end += -(-size // ALIGNMENT) * ALIGNMENT
        place = self.tensors[name]
        tensor = TensorProto(name=name, data_type=ELEMENTS[dtype], dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in {"location": WEIGHTS, "offset": place.offset, "length": place.bytes}.items():
            tensor.external_data.append(StringStringEntryProto(key=key, value=str(value)))
        return graph.initializer(tensor)

    @property
    def notes(self) -> list[str]:
        """What was expanded, for people who count on the file's size."""
        return [
            f"{len(names)} matrices of {storage} are stored as float32: standard ONNX has no such blocks."
            for storage, names in self.expanded.items()
        ]


def _plain(tensor: torch.Tensor, dtype: str) -> NDArray[Any]:
    return tensor.detach().to(ir.torch_dtype(dtype)).contiguous().numpy().reshape(-1)


def _half(tensor: torch.Tensor, storage: str) -> NDArray[Any]:
    """Rounded to nearest, as bytes: numpy has no bfloat16."""
    return tensor.detach().to(ir.torch_dtype(storage)).contiguous().view(torch.int16).numpy().reshape(-1)


def _matrix(blocks: torch.Tensor) -> torch.Tensor:
    """The blocks of all experts' outputs, one expert after another: [outputs, blocks, bytes]."""
    return blocks.flatten(0, -3)


def _numbers(encoding: ir.Encoding, blocks: torch.Tensor, element: str) -> NDArray[Any]:
    """The integers of blocks in the order of the features, in two's complement; two of four bits to a byte."""
    numbers = encoding.read(_matrix(blocks)).numbers ^ encoding.offset  # the offset is the sign's bit
    if element == "i4":
        numbers = numbers[..., 0::2] | numbers[..., 1::2] << 4
    return numbers.contiguous().numpy().reshape(-1)
