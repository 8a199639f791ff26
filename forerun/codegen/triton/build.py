"""From a planned step to something that runs, or to files that show what would."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from forerun import ir
from forerun.codegen.triton.gpu import cache_blocks, needed_bytes, require_gpu, require_memory
from forerun.codegen.triton.loop_calls import loop_source
from forerun.codegen.triton.lowering import Lowering
from forerun.codegen.triton.memory import load_weights
from forerun.codegen.triton.sources import overridden
from forerun.codegen.triton.step import TritonStep
from forerun.storage import write_atomically

if TYPE_CHECKING:
    from forerun.codegen.triton.executable import TritonExecutable


TUNE = "FORERUN_TUNE"


def compile_step(
    module: ir.ModuleOp,
    weights: Callable[[str], torch.Tensor],
    *,
    storage: str = "f32",
    device: str = "cuda",
    tune: bool | None = None,
    max_rows: int = 256,
    max_outputs: int = 64,
    max_path: int = 64,
    max_length: int = 2048,
) -> TritonExecutable:
    """A planned step on a GPU, ready to run; `device="cpu"` runs its kernels in Triton's interpreter.

    `tune` measures how launches are best divided, the first time each is met; unless `$FORERUN_TUNE` is 0, by default.
    Nothing is allocated before the model, the GPU and its memory are known to fit.
    """
    if device != "cpu":
        require_gpu()
    lowering = Lowering(
        module,
        storage=storage,
        max_rows=max_rows,
        max_outputs=max_outputs,
        max_path=max_path,
        max_length=max_length,
    )
    step = lowering.step
    if device != "cpu":
        require_memory(needed_bytes(step, ir.weights(module), cache_blocks(step)))
    from forerun.codegen.triton.executable import TritonExecutable

    kept = load_weights(step, weights, torch.device(device))
    tuner = None
    if device != "cpu" and (os.environ.get(TUNE, "1") != "0" if tune is None else tune):
        from forerun.codegen.triton.tuning import Autotuner

        tuner = Autotuner(torch.cuda.get_device_name())
    return TritonExecutable(step, kept, device, tuner)


def write_sources(step: TritonStep, folder: Path) -> None:
    """The file of every kernel, those replaced by the user's included, as it would run."""
    for name, source in overridden({**step.sources, "loop": loop_source()}).items():
        write_atomically(folder / f"{name}.py", source.text)


@dataclass(frozen=True)
class Report:
    """What `forerun dump --target cuda` lists."""

    resources: list[dict[str, Any]]
    choices: dict[str, str]  # by GPU and kernel: what the autotuner chose


def report(step: TritonStep, rows: Sequence[int] = (1, 32)) -> Report:
    """Every kernel compiled ahead of time, and what was measured on the GPUs that this machine has met."""
    from forerun.codegen.triton import compilation
    from forerun.codegen.triton.tuning import known_choices

    sources = overridden(step.sources)
    found = [*compilation.compile_step(step, sources, rows, compilation.CAPABILITIES)]
    if step.loops:
        found += compilation.compile_loop(step, rows, compilation.CAPABILITIES)
    return Report([each.to_dict() for each in found], known_choices(sources))
