"""Bundles of the format "triton": kernels as Triton's source and as cubins, launches, and weights (docs/bundle.md)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from forerun.artifacts.bundle import Bundle
from forerun.artifacts.written import Exportable, Written
from forerun.codegen.program import Program, Weight
from forerun.codegen.triton.layout import TritonProgram
from forerun.errors import CorruptFileError
from forerun.execute.soundness import require_sound
from forerun.execute.triton.build import executable
from forerun.execute.triton.executable import TritonExecutable
from forerun.execute.triton.gpu import needed_bytes, require_gpu, require_memory, require_triton
from forerun.execute.triton.memory import TORCH, stored
from forerun.execute.triton.sources import INTERPRET

STEP, WEIGHTS, CUBINS = "step.json", "weights.bin", "cubins"
ROWS = (1, 32)
"""Rows for whose first divisions there are cubins: one tile of 16 rows, and several."""
ALIGNMENT = 256
"""Every weight begins at a multiple of this many bytes."""


def write(folder: Path, exportable: Exportable) -> Written:
    """Writes the files of a bundle; no GPU is needed. Raises `DeviceError` without Triton, and OSError."""
    require_triton()
    step, weights = _parts(exportable)
    progress = exportable.progress
    with progress.stage("cubins"):
        kernels = _write_cubins(folder, step)
    with progress.stage("weights"):
        (folder / STEP).write_text(step.text(), encoding="utf-8")
        places = _write_weights(folder / WEIGHTS, step, weights)
    content = {"program": STEP, "weights": {"file": WEIGHTS, "places": places}, "kernels": kernels}
    return Written.of(step, content)


def load(bundle: Bundle, threads: int | None = None) -> TritonExecutable:
    """Returns the step of a bundle, ready to run on this machine's GPU; with TRITON_INTERPRET=1 on the CPU.

    Raises `DeviceError` without a GPU, `CorruptFileError` if the bundle is not whole, and `DeviceMemoryError`.
    """
    interpreted = os.environ.get(INTERPRET) == "1"
    if interpreted:
        require_triton()
    else:
        require_gpu()
    try:
        step = Program.read(bundle.read(STEP).decode())
        content: Any = bundle.manifest.content["weights"]
        name, places = str(content["file"]), {each: int(content["places"][each]) for each in step.weights}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{bundle.folder} holds no compiled step ({error}): export the model again.") from error
    require_sound(step, bundle.manifest, str(bundle.folder))
    if not interpreted:
        require_memory(needed_bytes(step))
    device = "cpu" if interpreted else "cuda"
    file = torch.empty(sum(map(_room, step.weights.values())), dtype=torch.uint8)
    bundle.read_into(name, file.numpy().data)
    weights = {each: _weight(step.weights[each], file, place).to(device) for each, place in places.items()}
    return executable(step, weights, device)


def _parts(exportable: Exportable) -> tuple[Program, Callable[[str], torch.Tensor]]:
    own: TritonExecutable | None = exportable.executable
    if own is not None:
        return own.step, lambda name: own.launcher.weights[name].cpu()
    program: TritonProgram = exportable.program()
    return program.program, program.weights


def _write_cubins(folder: Path, step: Program) -> list[dict[str, Any]]:
    """Compiles every kernel for every architecture; returns what a caller of the driver needs to launch them."""
    from forerun.execute.triton import compilation  # Triton's compiler: loading a bundle need not wait for it

    (folder / CUBINS).mkdir()
    found: list[dict[str, Any]] = []
    for name, config, shared in compilation.first_divisions(step, step.sources, ROWS):
        for capability in compilation.CAPABILITIES:
            made = compilation.compiled(step.sources[name], config, capability, shared)
            told = hashlib.sha256(f"{config} {shared}".encode()).hexdigest()[:8]
            path = Path(CUBINS, f"{name}.{told}.sm_{capability}.cubin")
            (folder / path).write_bytes(made.asm["cubin"])
            found.append(
                {
                    "source": name,
                    "capability": capability,
                    "tiles_together": shared,
                    "config": asdict(config),
                    "cubin": path.as_posix(),
                    "function": str(made.metadata.name),
                    "shared_bytes": int(made.metadata.shared),
                }
            )
    return found


def _write_weights(path: Path, step: Program, weights: Callable[[str], torch.Tensor]) -> dict[str, int]:
    """Writes the weights one at a time; returns where each begins, in bytes."""
    places: dict[str, int] = {}
    with path.open("wb") as file:
        for name in step.weights:
            places[name] = file.tell()
            content = stored(step, name, weights(name)).reshape(-1).view(torch.uint8).numpy()
            file.write(content.data)
            file.write(bytes(_room(step.weights[name]) - content.nbytes))
    return places


def _room(weight: Weight) -> int:
    """Returns the bytes that a weight takes in the file."""
    return -(-weight.bytes // ALIGNMENT) * ALIGNMENT


def _weight(weight: Weight, file: torch.Tensor, place: int) -> torch.Tensor:
    return file[place : place + weight.bytes].view(TORCH[weight.element]).view(weight.shape)
