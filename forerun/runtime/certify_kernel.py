"""Checks a version of a kernel against the one that the code generator wrote: bit for bit, and for row determinism.

Steps of random rows run on poisoned memory, kernel by kernel. A version is sound if every result of every kernel has
the generated one's bits, and if each row evaluated alone has the bits that it has among the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import KernelOutput, Rows
from forerun.runtime.kernel_versions import GENERATED, Versions
from forerun.runtime.rows import pick
from forerun.runtime.trial import Trial

COUNTS = (1, 2, 5, 13, 33, 64)
"""Row counts of the steps: below, at and above the sizes of register tiles."""
CONTEXT = 37
REMEDY = "a kernel may choose how it walks its loops, not what it adds or in which order"


def certify_kernel(versions: Versions, version: int, name: str, counts: Sequence[int] = COUNTS, seed: int = 0) -> int:
    """Checks a version; returns the number of rows that were compared.

    Raises `InvalidOptionError`, which names the kernel and the row whose bits differ.
    """
    executable = versions.executable
    if not any(name in (each.source for each in kernel.launches) for kernel in executable.step.kernels):
        raise InvalidOptionError(f"The kernel {name} cannot be checked, as no step runs it; leave its file out.")
    trial = Trial(executable, CONTEXT, seed)
    versions.poison(trial.state)
    trial.begin(lambda rows: versions.trace(GENERATED, trial.state, rows))
    most = min(executable.max_rows, executable.max_outputs, executable.max_length - trial.context - 1)
    compared = 0
    for count in sorted({min(each, most) for each in counts}):
        for rows in (trial.tree(count), trial.prompt(count)):
            found = _traced(versions, version, trial, rows)  # first: what it does not store is not there yet
            expected = _traced(versions, GENERATED, trial, rows)
            for ours, theirs in zip(found, expected, strict=True):
                _compare(name, ours, theirs, f"than the generated kernel gives in a step of {_rows(count)}")
            compared += count
            if count > 1:
                _alone(versions, version, trial, rows, found, name)
    return compared


def _alone(
    versions: Versions, version: int, trial: Trial, rows: Rows, together: Sequence[KernelOutput], name: str
) -> None:
    """Compares each row alone, in order, with what it was among the others."""
    for row in range(len(rows.tokens)):
        alone = pick(rows, np.array([row]), outputs=True)
        for ours, all_ in zip(versions.trace(version, trial.state, alone), together, strict=True):
            if ours.along is None:
                continue
            theirs = KernelOutput(all_.kernel, all_.output, all_.value[row : row + 1], all_.along)
            _compare(name, ours, theirs, f"alone than among {_rows(len(rows.tokens))}", row)


def _traced(versions: Versions, version: int, trial: Trial, rows: Rows) -> list[KernelOutput]:
    """A step's results, on memory that holds none of another step's."""
    versions.poison()
    return [*versions.trace(version, trial.state, rows)]


def _compare(name: str, ours: KernelOutput, theirs: KernelOutput, than: str, row: int | None = None) -> None:
    if ours.value.tobytes() == theirs.value.tobytes():
        return
    differs = [each for each in range(len(ours.value)) if ours.value[each].tobytes() != theirs.value[each].tobytes()]
    number = differs[0] if row is None else row
    raise InvalidOptionError(
        f"The kernel {name} breaks the contract: row {number} has other bits {than} (first in kernel "
        f"{ours.kernel}, {ours.output}); {REMEDY}."
    )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
