"""Versions of one kernel beside each other, compiled apart from the step, and run in its kernel's place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby

import numpy as np

from forerun.codegen.tvm.layout import TvmProgram
from forerun.execute.tvm.calls import FUNCTION
from forerun.execute.tvm.executable import Runner, State, TvmExecutable
from forerun.execute.tvm.library import Module, Tensor
from forerun.runtime.executable import KernelOutput, Rows


class TvmVersions:
    """Versions of the kernel `name`, by number, on the memory of an executable."""

    def __init__(self, program: TvmProgram, executable: TvmExecutable, name: str, texts: Sequence[str]) -> None:
        """`texts`: the schedule files of the versions; `""` is the program's own."""
        self.executable = executable
        # One team of threads serves all versions, so that the machine treats them alike.
        self._runner = Runner(Module.of(program.kernels.versions(name, texts).module), executable.runner.threads)
        calls, number = executable.calls.array, [*executable.step.sources].index(name)
        self._step = executable.calls.of_entry(executable.step.step.name)
        self._own = (calls[:, 0] & FUNCTION) == number
        inside = [at for at in range(*self._step) if self._own[at]]
        self._whole: list[Tensor] = []  # for each version, all calls, of which the kernel's have the version's number
        self._alone: list[Tensor] = []  # and the kernel's calls of a step
        for version in range(len(texts)):
            renumbered = calls.copy()
            renumbered[self._own, 0] = version
            self._whole.append(Tensor(renumbered))
            self._alone.append(Tensor(np.ascontiguousarray(renumbered[inside])))

    def poison(self, state: State | None = None) -> None:
        """Fills the arena, and a state's cache if given, with NaN, so that what a kernel does not write shows."""
        self.executable.lanes[0].arena.fill(np.nan)
        if state is not None:
            state.numbers.fill(np.nan)

    def trace(self, version: int, state: State, rows: Rows) -> list[KernelOutput]:
        """Runs a step, with a version in the kernel's place; returns a copy of every result in order."""
        executable = self.executable
        executable.memory.load(executable.placed(rows))
        found: list[KernelOutput] = []
        spans = executable.calls.spans[executable.step.step.name]
        for kernel, span in zip(executable.step.kernels, spans, strict=True):
            for own, places in groupby(range(*span), key=lambda at: bool(self._own[at])):
                first, *rest = places
                last = rest[-1] if rest else first
                if own:
                    executable.call(state, first, last + 1, self._whole[version], runner=self._runner)
                else:
                    executable.call(state, first, last + 1)
            found += executable.memory.outputs(kernel)
        return found

    def timer(self, version: int, state: State, rows: Rows) -> Callable[[], float]:
        """Returns what runs all of the kernel's calls of a step, and gives the seconds that this took.

        The time of an empty launch is subtracted. A step runs first, so that the memory is a step's.
        """
        executable, calls, runner = self.executable, self._alone[version], self._runner
        placed = executable.placed(rows)
        executable.memory.load(placed)
        executable.call(state, *self._step)

        def run() -> float:
            executable.memory.load(placed)
            start = time.perf_counter()
            executable.call(state, 0, len(calls.array), calls, runner=runner)
            middle = time.perf_counter()
            executable.call(state, 0, 0, calls, runner=runner)
            return max(0.0, 2 * middle - start - time.perf_counter())

        return run


def times(executable: TvmExecutable, state: State, rows: Rows) -> list[float]:
    """Returns the seconds of every kernel of a step, in order, each run once by itself in the order of the step."""
    return [each.seconds for each in executable.time_kernels(state, rows, rounds=1)]
