"""A compiled step in an entry: `step.json`, its arrays and its packed weights; its code is stored under its key.

Running it needs neither the model nor the compiler, only TVM on a machine like the one that made it.
"""

import json
from dataclasses import fields
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from forerun.available import require_memory
from forerun.codegen.tvm.step import CompiledStep, Kernel, Value
from forerun.codegen.tvm.step import Entry as CompiledEntry
from forerun.entries import Entry
from forerun.errors import CorruptFileError
from forerun.execute.tvm import code
from forerun.execute.tvm.executable import TvmExecutable

STEP, ARRAYS, WEIGHTS = "step.json", "arrays.npz", "weights.bin"
ARRAY_FIELDS = ("program", "words")


def save(folder: Path, executable: TvmExecutable) -> None:
    """Writes a compiled step into an existing folder. Raises OSError if it cannot."""
    step = executable.step
    plain = {each.name: getattr(step, each.name) for each in fields(step) if each.name not in ARRAY_FIELDS}
    (folder / STEP).write_text(json.dumps(plain, default=vars), encoding="utf-8")
    with (folder / ARRAYS).open("wb") as file:
        np.savez(file, **{name: getattr(step, name) for name in ARRAY_FIELDS})
    executable.weights.numpy().tofile(folder / WEIGHTS)


def size(executable: TvmExecutable) -> int:
    """Returns the bytes of a compiled step on disk, except for its few names and numbers."""
    return executable.weight_bytes


def load(entry: Entry, threads: int | None = None) -> TvmExecutable:
    """Returns the step of an entry, ready to run. Raises `CorruptFileError` if it is incomplete or its code is missing,
    and `DeviceMemoryError`."""
    step = _step(entry)
    require_memory(step.needed_bytes())
    weights = torch.empty(step.packed)  # copied: private memory has larger pages than a mapped file
    entry.read_into(WEIGHTS, weights.numpy().view(np.uint8).data)
    if (found := code.load(step.key)) is None:
        raise CorruptFileError(f"the compiled code of {entry.folder} no longer exists: compile the model again.")
    return TvmExecutable(step, found, weights, threads)


def _step(entry: Entry) -> CompiledStep:
    try:
        read: dict[str, Any] = json.loads(entry.read(STEP))
        with np.load(BytesIO(entry.read(ARRAYS))) as arrays:
            read |= {name: arrays[name] for name in ARRAY_FIELDS}
        read["symbols"], read["stream"] = tuple(read["symbols"]), tuple(read["stream"])
        read["arguments"], read["returned"] = _values(read["arguments"]), _values(read["returned"])
        read["entries"] = tuple(map(_entry, read["entries"]))
        read["kernels"] = tuple(map(_kernel, read["kernels"]))
        read["branches"] = tuple((layer, kind) for layer, kind in read["branches"])
        return CompiledStep(**read)
    except (KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:
        raise CorruptFileError(
            f"{entry.folder} does not hold a compiled step ({error}): compile the model again."
        ) from error


def _values(read: list[dict[str, Any]]) -> tuple[Value, ...]:
    return tuple(Value(each["name"], tuple(each["dims"]), each["dtype"], each["offset"]) for each in read)


def _entry(read: dict[str, Any]) -> CompiledEntry:
    first, last = read["calls"]
    return CompiledEntry(read["name"], _values(read["arguments"]), _values(read["returned"]), (first, last))


def _kernel(read: dict[str, Any]) -> Kernel:
    first, last = read["calls"]
    read["calls"] = first, last
    read["results"], read["weights"] = _values(read["results"]), tuple(read["weights"])
    read["moved"] = tuple(tuple(dims) for dims in read["moved"])
    read["streams"] = tuple((column, number) for column, number in read["streams"])
    return Kernel(**read)
