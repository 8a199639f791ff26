"""The reference back end's program: sizes, and functions of tensors that evaluate a module operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from forerun.signature import Signature

State = dict[str, torch.Tensor]


class EvaluateStep(Protocol):
    """Evaluates `@step` with some residual branches skipped."""

    def __call__(
        self,
        inputs: Sequence[torch.Tensor],
        state: State,
        evaluated: Sequence[int],
        earlier: Mapping[int, int],
        stream: torch.Tensor | None,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Returns the step's results, and the stream after the last of the branches `evaluated`; `stream` [N, D] is the
        input of a part that starts at a later branch. A branch in `earlier` reads the stream as it was before that
        branch, and adds to the last value."""
        ...


@dataclass(frozen=True)
class ReferenceProgram:
    """The result of code generation for a module; its functions own the weights."""

    entries: Mapping[str, Signature]
    new_states: Callable[[int, int, int], State]  # for a given number of slots, requests and rows
    step: EvaluateStep
    evaluate: Callable[[str, Sequence[torch.Tensor], State], Sequence[torch.Tensor]]  # another entry, by name
    record_bytes: Mapping[str, int]  # of the states per position, row and request
    of_positions: frozenset[str]  # the states per position
    of_rows: frozenset[str]
    branches: tuple[tuple[int, str, int], ...]  # layer, kind and bytes of weights of each residual branch
    head_bytes: int
    width: int
    vocabulary: int
    candidates: int
    block: int
    max_rows: int
    max_outputs: int
    max_path: int
    max_length: int
