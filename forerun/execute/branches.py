"""Parts of a step, for every back end: which kernels remain when residual branches are left out.

The stream's values alternate between two buffers. If a branch is left out, later kernels find the stream in the other
buffer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol, TypeVar

from forerun.codegen.program import Program
from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Branch, Part


class BranchKernel(Protocol):
    """A kernel of a step."""

    @property
    def branch(self) -> int | None:
        """The residual branch to which the kernel belongs."""
        ...

    @property
    def begins(self) -> bool:
        """Whether the stream's first value is the kernel's only result."""
        ...


K = TypeVar("K", bound=BranchKernel)


def remaining(kernels: Sequence[K], part: Part, branches: int) -> tuple[list[K], list[int]]:
    """Returns the kernels that a part runs and which of the `branches` branches it evaluates.

    Raises `InvalidOptionError` if the step has no such part.
    """
    evaluated = part.branches(branches)
    if part.enter and not any(kernel.begins for kernel in kernels):
        raise InvalidOptionError(
            "the residual stream begins in a kernel that computes other values too: enter at branch 0"
        )
    return [each for each in kernels if _remains(each, part, evaluated)], evaluated


def _remains(kernel: BranchKernel, part: Part, evaluated: list[int]) -> bool:
    if kernel.branch is not None:
        return kernel.branch in evaluated
    return not (part.enter and kernel.begins)


def turn(evaluated: list[int], number: int) -> int:
    """Returns the buffer of the stream's value `number`: the buffer changes with each evaluated branch."""
    return bisect_left(evaluated, number) % 2


def read_bytes(program: Program) -> tuple[tuple[Branch, ...], int]:
    """Returns the branches with the weight bytes that each reads, and those that kernels outside of branches read.

    There are no branches if the stream begins in a kernel with other results: no part could be entered behind branch 0.
    """
    read: dict[int | None, int] = {}
    for kernel in program.kernels:
        read[kernel.branch] = read.get(kernel.branch, 0) + program.weight_bytes(kernel.matrices)
    if not any(kernel.begins for kernel in program.kernels):
        return (), sum(read.values())
    return tuple(Branch(*each, read.get(number, 0)) for number, each in enumerate(program.branches)), read.get(None, 0)


def check_hidden(part: Part, given: bool) -> None:
    """Raises `InvalidOptionError` unless `hidden` is given if and only if the part enters behind branch 0."""
    if given != (part.enter > 0):
        raise InvalidOptionError(
            f"a part that enters at branch {part.enter} {'needs' if part.enter else 'does not take'} hidden states"
        )
