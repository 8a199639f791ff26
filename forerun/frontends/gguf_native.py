"""A GGUF file's matrices in its weight dtypes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gguf.constants import GGMLQuantizationType
from torch import Tensor

from forerun.frontends.gguf_tensors import StoredTensor
from forerun.frontends.weights import OnDemand
from forerun.ir import ENCODINGS

STORAGES = {GGMLQuantizationType[name.upper()]: name for name in ENCODINGS}
"""Encodings whose blocks are kept."""
HALVES = {GGMLQuantizationType.F16: "f16", GGMLQuantizationType.BF16: "bf16"}

FULL = frozenset({GGMLQuantizationType.F32, GGMLQuantizationType.F64})
"""Encodings that stay float32; a matrix in any other is rounded to bfloat16."""


@dataclass(frozen=True)
class NativeWeights:
    """The weight dtypes of a file's matrices: `storages` by name, and the blocks if the storage is quantized."""

    storages: Mapping[str, str]
    blocks: Mapping[str, Tensor]  # uint8 [.., out, in / block features, bytes], read on demand


def native_weights(tensors: Mapping[str, StoredTensor]) -> NativeWeights:
    """The matrices among the tensors of a file, and its experts, in its encodings where blocks are kept, else in
    bfloat16."""
    storages: dict[str, str] = {}
    blocks: dict[str, Callable[[], Tensor]] = {}
    for name, each in tensors.items():
        encodings = {part.encoding for part in each.parts}
        if len(each.shape) not in (2, 3) or encodings <= FULL:
            continue
        kept = [STORAGES.get(encoding) for encoding in encodings] if each.keeps_rows else []
        storage = kept[0] if len(kept) == 1 else None
        storages[name] = storage or (HALVES.get(min(encodings), "bf16") if len(encodings) == 1 else "bf16")
        if storage is not None:
            blocks[name] = each.blocks
    return NativeWeights(storages, OnDemand(blocks))
