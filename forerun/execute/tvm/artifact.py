"""A compiled step on disk: `step.json` and its packed weights, in a kept entry or in a bundle.

Running it needs neither the model nor the compiler, only TVM's runtime on a machine like the one that it was made for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from forerun.available import require_memory
from forerun.codegen.program import Program
from forerun.codegen.tvm.layout import Float32, needed_bytes, weight_places, zeros
from forerun.entries import Entry
from forerun.errors import CorruptFileError
from forerun.execute.tvm import code
from forerun.execute.tvm.executable import TvmExecutable

STEP, WEIGHTS = "step.json", "weights.bin"


class Files(Protocol):
    """A folder whose files are checked while they are read; both raise `CorruptFileError`."""

    folder: Path

    def read(self, name: str) -> bytes | bytearray: ...

    def read_into(self, name: str, buffer: memoryview) -> None: ...


def write_step(folder: Path, step: Program, write: Callable[[BinaryIO], None]) -> None:
    """Writes a step, and its weights by `write`, into an existing folder. Raises OSError where it cannot."""
    (folder / STEP).write_text(step.text(), encoding="utf-8")
    with (folder / WEIGHTS).open("wb") as file:
        write(file)


def read_step(files: Files) -> tuple[Program, Float32]:
    """Returns a step and its weights. Raises `CorruptFileError` if they are not whole, and `DeviceMemoryError`."""
    try:
        step = Program.read(files.read(STEP).decode())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{files.folder} holds no compiled step ({error}): make it again.") from error
    require_memory(needed_bytes(step))
    weights = zeros(weight_places(step)[1])  # copied: memory of one's own has larger pages than a mapped file
    files.read_into(WEIGHTS, weights.view(np.uint8).data)
    return step, weights


def save(folder: Path, executable: TvmExecutable) -> None:
    """Writes a compiled step into an existing folder. Raises OSError where it cannot."""
    write_step(folder, executable.step, executable.weights.tofile)


def size(executable: TvmExecutable) -> int:
    """Returns the bytes of a compiled step on disk, except for its few names and numbers."""
    return executable.weight_bytes


def load(entry: Entry, threads: int | None = None) -> TvmExecutable:
    """Returns the step of an entry, ready to run; its code is stored under its key.

    Raises `CorruptFileError` if it is incomplete or its code is missing, and `DeviceMemoryError`.
    """
    step, weights = read_step(entry)
    if (found := code.load(step.key)) is None:
        raise CorruptFileError(f"the code of {entry.folder} is no longer kept: compile the model again.")
    return TvmExecutable(step, found, weights, threads)
