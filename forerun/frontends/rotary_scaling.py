"""Rotary embeddings whose frequencies change with the length of the sequence, held where they are constant.

Under dynamic NTK scaling and longrope (arXiv 2402.13753) transformers chooses the frequencies by the length of the
whole sequence, in every forward pass. Up to a model's original length they are constant; where a sequence grows past
it they switch, while the keys in the cache keep the old ones, so positions have no single meaning. forerun compiles
such a model up to that length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

HELD = "default"
"""The type under which transformers leaves the frequencies as they are."""


@dataclass(frozen=True)
class LengthLimit:
    """The largest number of positions that a model can have, and why."""

    positions: int
    reason: str


def hold_frequencies(model: nn.Module) -> LengthLimit | None:
    """Keep rotary frequencies at those of short sequences; returns the length up to which that is exact.

    Changes the modules of `model`, which the caller must be free to change.
    """
    limits: list[LengthLimit] = []
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        if isinstance(types, str) and (limit := _limit(module, types, None)):
            setattr(module, "rope_type", HELD)  # noqa: B010 (torch types attributes as tensors)
            limits.append(limit)
        elif isinstance(types, Mapping):
            held = {layer: _limit(module, str(kind), str(layer)) for layer, kind in types.items()}
            setattr(module, "rope_type", {layer: HELD if held[layer] else kind for layer, kind in types.items()})  # noqa: B010
            limits.extend(each for each in held.values() if each)
    return min(limits, key=lambda each: each.positions, default=None)


def _limit(module: nn.Module, kind: str, layer: str | None) -> LengthLimit | None:
    if "dynamic" in kind:
        length = getattr(module, "original_max_seq_len", None)
    elif kind == "longrope":
        length = next(_original_lengths(module, layer), None)
    else:
        return None
    if not isinstance(length, int):
        return None
    return LengthLimit(length, f"{kind} rotary scaling changes with the length of the sequence from there on")


def _original_lengths(module: nn.Module, layer: str | None) -> Iterator[int]:
    parameters: Any = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
    for each in (parameters.get(layer) if layer else None, parameters):
        length = each.get("original_max_position_embeddings") if isinstance(each, Mapping) else None
        if isinstance(length, int):
            yield length
