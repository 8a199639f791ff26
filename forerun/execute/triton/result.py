"""The result of a step: values that the host has waited for, and values fetched from the device on demand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from forerun.execute.branches import StepPart
from forerun.execute.triton.launcher import Launcher
from forerun.execute.triton.memory import InputLayout, State
from forerun.runtime.executable import Float32, Int32, StepResult, nan_of


@dataclass(frozen=True)
class Ran:
    """What a step leaves on the device until the next one."""

    launcher: Launcher
    state: State
    layout: InputLayout
    sizes: dict[str, int]
    part: StepPart
    inputs: torch.Tensor | None = None  # None: the launcher's own

    def logits(self) -> Float32:
        """Returns [M, V], computed from the head's input, which is still there."""
        launcher = self.launcher
        launcher.launch_all(self.state, self.layout, launcher.step.kernels, self.part, self.inputs, on_demand=True)
        return launcher.value(launcher.step.returned[0], self.sizes)

    def hidden(self) -> Float32:
        """[N, D]"""
        return self.launcher.stream(self.part.left or 0, self.sizes["N"])


class DeviceStepResult(StepResult):
    """A step's result; its logits and the stream are fetched on demand, before the next step."""

    def __init__(self, ran: Ran, ids: Int32, best: Float32, drawn: Int32, chosen: Int32 | None) -> None:
        """`chosen`: the token that the step chose for each row, whether or not it sampled."""
        vars(self).update(candidates=ids, candidate_logits=best, drawn=drawn, _chosen=chosen, _ran=ran)

    def first_nan(self, row: int) -> int | None:
        chosen = vars(self)["_chosen"]
        return super().first_nan(row) if chosen is None else nan_of(int(chosen[row]))

    @cached_property
    def logits(self) -> Float32:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[M, V]"""
        return vars(self)["_ran"].logits()

    @cached_property
    def hidden(self) -> Float32:  # pyright: ignore[reportIncompatibleVariableOverride]
        """[N, D]"""
        return vars(self)["_ran"].hidden()
