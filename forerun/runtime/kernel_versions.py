"""Versions of one kernel, as a back end gives them to be checked and measured (`codegen.backends.Tuning.versions`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from forerun.runtime.executable import KernelOutput, Rows

GENERATED = 0
"""The number of the version that the code generator wrote."""


class Versions(Protocol):
    """Versions of a kernel by number, on one executable's memory; the first is as generated."""

    executable: Any  # `runtime.executable.Executable`

    def poison(self, state: Any = None) -> None:
        """Fills the memory of a step's values, and a state's cache if given, with NaN: what is not written shows."""
        ...

    def trace(self, version: int, state: Any, rows: Rows) -> Sequence[KernelOutput]:
        """Runs a step with a version in the kernel's place; returns a copy of every kernel's results, in order."""
        ...

    def timer(self, version: int, state: Any, rows: Rows) -> Callable[[], float]:
        """Returns what runs all calls of the kernel in a step, and gives the seconds that this took."""
        ...
