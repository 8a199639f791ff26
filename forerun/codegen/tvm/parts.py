"""Parts of a step: the calls of its program that remain where residual branches are left out.

The stream's values take turns in two buffers. With a branch left out, the kernels behind it find the stream in the
other buffer, so that a part is a choice of the program's rows with some of their offsets exchanged.
"""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.codegen.tvm.step import CompiledStep, Kernel
from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Part


@dataclass(frozen=True)
class PartProgram:
    """What runs a part."""

    calls: NDArray[np.int64]  # [calls, 1 + slots]
    given: int | None  # where the stream lies that it begins with; None where the tokens' embedding does
    left: int | None  # where it leaves the stream


def part_program(step: CompiledStep, part: Part) -> PartProgram:
    """The program of a part. Raises `InvalidOptionError` where the step has no such part."""
    evaluated = part.branches(len(step.branches))
    if part.enter and not any(kernel.begins for kernel in step.kernels):
        raise InvalidOptionError("the stream begins in a kernel that gives more: enter at branch 0")
    kept = [kernel for kernel in step.kernels if _remains(kernel, part, evaluated)]
    rows: list[NDArray[np.int64]] = []
    for kernel in kept:
        calls = step.program[slice(*kernel.calls)].copy()
        for column, number in kernel.streams:
            calls[:, column] = step.stream[_turn(evaluated, number)]
        rows.append(calls)
    calls = np.concatenate(rows) if rows else step.program[:0]
    given = step.stream[0] if part.enter else None
    return PartProgram(calls, given, step.stream[len(evaluated) % 2] if step.stream else None)


def _remains(kernel: Kernel, part: Part, evaluated: list[int]) -> bool:
    if kernel.branch is not None:
        return kernel.branch in evaluated
    return not (part.enter and kernel.begins)


def _turn(evaluated: list[int], number: int) -> int:
    """The buffer of the stream's value `number`: they change with each branch that is evaluated."""
    return bisect_left(evaluated, number) % 2
