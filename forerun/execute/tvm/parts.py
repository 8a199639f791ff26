"""Parts of a step: the calls of its program that remain when residual branches are left out.

The stream's values alternate between two buffers. If a branch is left out, later kernels find the stream in the other
buffer. A part is therefore a selection of the program's rows with some of their offsets exchanged.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.codegen.tvm.step import CompiledStep
from forerun.execute.branches import remaining, turn
from forerun.runtime.executable import Part


@dataclass(frozen=True)
class PartProgram:
    """The program that runs a part."""

    calls: NDArray[np.int64]  # [calls, 1 + slots]
    given: int | None  # where the stream lies at entry; None if it begins with the tokens' embedding
    left: int | None  # where it leaves the stream


def part_program(step: CompiledStep, part: Part) -> PartProgram:
    """Returns the program of a part. Raises `InvalidOptionError` if the step has no such part."""
    kept, evaluated = remaining(step.kernels, part, len(step.branches))
    rows: list[NDArray[np.int64]] = []
    for kernel in kept:
        calls = step.program[slice(*kernel.calls)].copy()
        for column, number in kernel.streams:
            calls[:, column] = step.stream[turn(evaluated, number)]
        rows.append(calls)
    calls = np.concatenate(rows) if rows else step.program[:0]
    given = step.stream[0] if part.enter else None
    return PartProgram(calls, given, step.stream[len(evaluated) % 2] if step.stream else None)
