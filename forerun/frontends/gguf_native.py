"""A GGUF file's matrices in its weight dtypes, under the names and in the row order of the model's weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor, from_numpy, nn

from forerun.ir import ENCODINGS

STORAGES = {GGMLQuantizationType[name.upper()]: name for name in ENCODINGS}
"""Encodings whose blocks are kept."""
HALVES = {GGMLQuantizationType.F16: "f16", GGMLQuantizationType.BF16: "bf16"}

FULL = frozenset({GGMLQuantizationType.F32, GGMLQuantizationType.F64})
"""Encodings that stay float32; a matrix in any other is rounded to bfloat16."""


@dataclass
class NativeWeights:
    """The weight dtypes of a file's matrices: `storages` by name, and the blocks if the storage is quantized."""

    storages: dict[str, str] = field(default_factory=dict[str, str])
    blocks: dict[str, Tensor] = field(default_factory=dict[str, Tensor])  # uint8 [out, blocks, bytes]

    def add(
        self,
        name: str,
        encoding: GGMLQuantizationType,
        stored: NDArray[np.uint8],
        raw: NDArray[np.float32],
        placed: NDArray[np.float32],
    ) -> None:
        """A matrix of the file: its bytes [out, row bytes], what they stand for [out, in], and what the model has."""
        if placed.ndim != 2 or encoding in FULL:
            return
        order = row_order(raw, placed) if encoding in STORAGES else None
        if order is None:
            self.storages[name] = HALVES.get(encoding, "bf16")
            return
        chosen = stored if np.array_equal(order, np.arange(len(order))) else stored[order]
        self.storages[name] = STORAGES[encoding]
        self.blocks[name] = from_numpy(chosen).view(len(chosen), -1, GGML_QUANT_SIZES[encoding][1])

    def renamed(self, loaded: nn.Module, traced: Mapping[str, Tensor]) -> "NativeWeights":
        """The same matrices under the names of a traced program, which may use another name of a tensor."""
        own = {tensor.data_ptr(): name for name, tensor in loaded.state_dict().items() if name in self.storages}
        found = NativeWeights()
        for name, tensor in traced.items():
            known = own.get(tensor.data_ptr())
            if known is not None:
                found.storages[name] = self.storages[known]
                if known in self.blocks:
                    found.blocks[name] = self.blocks[known]
        return found


def row_order(raw: NDArray[np.float32], placed: NDArray[np.float32]) -> NDArray[np.intp] | None:
    """`order` with raw[order] == placed, or None if there is none: some models' rows are reordered when loaded.

    Blocks lie along a row, so that rows move with their blocks.
    """
    if raw.shape != placed.shape:
        return None
    if np.array_equal(raw, placed):
        return np.arange(len(raw))
    where = {row.tobytes(): index for index, row in enumerate(np.ascontiguousarray(raw))}
    found = [where.get(row.tobytes(), -1) for row in np.ascontiguousarray(placed)]
    return None if -1 in found else np.array(found, np.intp)
