"""The input of a code generator. Importing this does not import the IR."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from forerun.codegen.program import DraftPart

if TYPE_CHECKING:
    import torch

    from forerun.ir import ModuleOp


class StepLimits(TypedDict):
    """How large a step may be (`forerun.runtime.executable`)."""

    max_rows: int
    max_outputs: int
    max_path: int
    max_length: int


@dataclass(frozen=True)
class StepParts:
    """The residual branches of a step without kernels, and the part of it that is the module's `@draft`, if any."""

    branches: tuple[tuple[int, str, int], ...]  # layer, kind and bytes of weights
    head_bytes: int  # of the weights outside branches
    draft: DraftPart | None = None


@dataclass(frozen=True)
class PlannedStep:
    """A planned step, from which a program is generated, and the weights that it reads."""

    module: ModuleOp
    weights: Callable[[str], torch.Tensor]  # each is read once
    limits: StepLimits
    storage: str = "f32"  # element type of matrices and of the cache, for back ends that use one for both
    blocks: Mapping[str, torch.Tensor] | None = None  # uint8 [out, blocks, bytes]: a file's, read on demand
    parts: StepParts | None = None  # of a step without kernels
