"""The weight dtype in memory, if it is not the dtype of the type: the `storage` of a `spec.weight`.

Storage is a property of the weight, not of the arithmetic: a stored weight is widened to its dtype wherever it is read.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from xdsl.dialects.builtin import ModuleOp

from forerun.ir.blocks import ENCODINGS
from forerun.ir.structure import weights

BLOCK_STORAGES = tuple(ENCODINGS)
"""The source's own quantized blocks; the tensor holds what they stand for."""

STORAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "bf16": lambda tensor: tensor.to(torch.bfloat16).to(tensor.dtype),
    "f16": lambda tensor: tensor.to(torch.float16).to(tensor.dtype),
    **dict.fromkeys(BLOCK_STORAGES, lambda tensor: tensor),
}
"""The values that a tensor has once it is stored. bf16 and f16 round to nearest, ties to even."""


def as_stored(module: ModuleOp, values: Callable[[str], torch.Tensor]) -> Callable[[str], torch.Tensor]:
    """The weights of a module with the values that remain after storage in their weight dtype."""
    storages = {name: each.storage for name, each in weights(module).items()}

    def weight(name: str) -> torch.Tensor:
        storage = storages.get(name)
        return values(name) if storage is None else STORAGES[storage](values(name))

    return weight
