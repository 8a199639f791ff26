"""A compiled step as a folder: `step.json`, its arrays and its packed weights; its code is kept under its key.

The folder needs neither the model nor the compiler to run, only TVM on a machine like the one it was made on.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from forerun.codegen.tvm import cache
from forerun.codegen.tvm.executable import TvmExecutable
from forerun.codegen.tvm.step import NUMBER, CompiledStep, Kernel, Value
from forerun.errors import CorruptFileError

STEP, ARRAYS, WEIGHTS = "step.json", "arrays.npz", "weights.bin"
ARRAY_FIELDS = ("program", "words")


def save(folder: Path, executable: TvmExecutable) -> None:
    """Write a compiled step into an existing folder. Raises OSError where it cannot."""
    step = executable.step
    plain = {each.name: getattr(step, each.name) for each in fields(step) if each.name not in ARRAY_FIELDS}
    (folder / STEP).write_text(json.dumps(plain, default=vars), encoding="utf-8")
    with (folder / ARRAYS).open("wb") as file:
        np.savez(file, **{name: getattr(step, name) for name in ARRAY_FIELDS})
    executable.weights.numpy().tofile(folder / WEIGHTS)


def load(folder: Path, threads: int | None = None) -> TvmExecutable:
    """The step of a folder, ready to run. Raises `CorruptFileError` where the folder is not whole, or its code gone."""
    try:
        read: dict[str, Any] = json.loads((folder / STEP).read_text(encoding="utf-8"))
        with np.load(folder / ARRAYS) as arrays:
            read |= {name: arrays[name] for name in ARRAY_FIELDS}
        read["symbols"], read["stream"] = tuple(read["symbols"]), tuple(read["stream"])
        read["arguments"], read["returned"] = _values(read["arguments"]), _values(read["returned"])
        read["kernels"] = tuple(map(_kernel, read["kernels"]))
        read["branches"] = tuple((layer, kind) for layer, kind in read["branches"])
        step = CompiledStep(**read)
        weights = _weights(folder / WEIGHTS, step.packed)
    except (OSError, KeyError, TypeError, ValueError, BadZipFile) as error:
        raise CorruptFileError(f"{folder} is not a whole compiled step ({error}): compile the model again.") from error
    if (code := cache.load(step.key)) is None:
        raise CorruptFileError(f"the code of {folder} is no longer kept: compile the model again.")
    return TvmExecutable(step, code, weights, threads)


def _weights(path: Path, count: int) -> torch.Tensor:
    """The packed weights, copied: memory of one's own has larger pages than a mapped file."""
    if path.stat().st_size != count * NUMBER:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {count * NUMBER}")
    weights = torch.empty(count)
    with path.open("rb") as file:
        if file.readinto(weights.numpy().view(np.uint8).data) != weights.nbytes:
            raise ValueError(f"{path.name} has become shorter")
    return weights


def _values(read: list[dict[str, Any]]) -> tuple[Value, ...]:
    return tuple(Value(each["name"], tuple(each["dims"]), each["dtype"], each["offset"]) for each in read)


def _kernel(read: dict[str, Any]) -> Kernel:
    first, last = read["calls"]
    read["calls"] = first, last
    read["results"], read["weights"] = _values(read["results"]), tuple(read["weights"])
    read["moved"] = tuple(tuple(dims) for dims in read["moved"])
    read["streams"] = tuple((column, number) for column, number in read["streams"])
    return Kernel(**read)
