"""Versions of one kernel beside each other: executables of one step that share weights and differ in one source."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from forerun.codegen.triton.layout import TritonProgram
from forerun.errors import ForerunError, InvalidOptionError, first_sentence
from forerun.execute.triton.build import edited
from forerun.execute.triton.executable import TritonExecutable
from forerun.execute.triton.memory import State
from forerun.execute.triton.timing import timer
from forerun.runtime.executable import KernelOutput, Rows


class TritonVersions:
    """Versions of the kernel `name`, by number."""

    def __init__(self, program: TritonProgram, executable: TritonExecutable, name: str, texts: Sequence[str]) -> None:
        """`texts`: the files of the versions; `""` is the program's own."""
        self.executable, self._name = executable, name
        self._each: list[TritonExecutable] = []
        for text in texts:
            step = edited(program, {f"{name}.py": text}).program if text else program.program
            launcher = executable.launcher
            self._each.append(TritonExecutable(step, launcher.weights, launcher.device, launcher.tuner))

    def poison(self, state: State | None = None) -> None:
        """Fills the arenas, and a state's cache if given, with NaN, so that what a kernel does not write shows."""
        for each in self._each:
            each.launcher.arena.fill_(math.nan)
        if state is not None:
            state.numbers.fill_(math.nan)

    def trace(self, version: int, state: State, rows: Rows) -> list[KernelOutput]:
        """Runs a step, with a version in the kernel's place; returns a copy of every result in order."""
        try:
            return self._each[version].trace(state, self.executable.placed(rows))
        except ForerunError:
            raise
        except Exception as error:  # of the user's code, or of Triton, which compiles it
            raise InvalidOptionError(
                f"The edited kernel {self._name} fails ({first_sentence(error)}); correct its file."
            ) from error

    def timer(self, version: int, state: State, rows: Rows) -> Callable[[], float]:
        """Returns what runs all of the kernel's launches of a step, and gives the seconds that this took."""
        executable = self._each[version]
        placed: Any = self.executable.placed(rows)
        executable.chosen_launches(state, placed, executable.step.kernels)()
        own = [
            replace(kernel, launches=tuple(each for each in kernel.launches if each.source == self._name))
            for kernel in executable.step.kernels
        ]
        return timer(executable, executable.chosen_launches(state, placed, [each for each in own if each.launches]))
