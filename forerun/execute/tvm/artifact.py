"""A compiled step in an entry: `step.json` and its packed weights; its code is stored under its key.

Running it needs neither the model nor the compiler, only TVM on a machine like the one that made it.
"""

from pathlib import Path

import numpy as np

from forerun.available import require_memory
from forerun.codegen.program import Program
from forerun.codegen.tvm.layout import needed_bytes, weight_places, zeros
from forerun.entries import Entry
from forerun.errors import CorruptFileError
from forerun.execute.tvm import code
from forerun.execute.tvm.executable import TvmExecutable

STEP, WEIGHTS = "step.json", "weights.bin"


def save(folder: Path, executable: TvmExecutable) -> None:
    """Write a compiled step into an existing folder. Raises OSError where it cannot."""
    (folder / STEP).write_text(executable.step.text(), encoding="utf-8")
    executable.weights.tofile(folder / WEIGHTS)


def size(executable: TvmExecutable) -> int:
    """Returns the bytes of a compiled step on disk, except for its few names and numbers."""
    return executable.weight_bytes


def load(entry: Entry, threads: int | None = None) -> TvmExecutable:
    """Returns the step of an entry, ready to run. Raises `CorruptFileError` if it is incomplete or its code is missing,
    and `DeviceMemoryError`."""
    step = _step(entry)
    require_memory(needed_bytes(step))
    weights = zeros(weight_places(step)[1])  # copied: memory of one's own has larger pages than a mapped file
    entry.read_into(WEIGHTS, weights.view(np.uint8).data)
    if (found := code.load(step.key)) is None:
        raise CorruptFileError(f"the code of {entry.folder} is no longer kept: compile the model again.")
    return TvmExecutable(step, found, weights, threads)


def _step(entry: Entry) -> Program:
    try:
        return Program.read(entry.read(STEP).decode())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{entry.folder} holds no compiled step ({error}): compile the model again.") from error
