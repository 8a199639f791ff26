"""Turns a program into an executable, or into files that show what would run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from forerun.codegen.backends import Report
from forerun.codegen.kernel_places import nests
from forerun.codegen.program import Program
from forerun.codegen.triton.layout import TritonProgram
from forerun.execute.branches import require_whole
from forerun.execute.triton.executable import TritonExecutable
from forerun.execute.triton.gpu import needed_bytes, require_gpu, require_memory
from forerun.execute.triton.loop_calls import LOOP, loop_source
from forerun.execute.triton.memory import load_weights

TUNE = "FORERUN_TUNE"


def bind(program: TritonProgram, device: str = "cuda", tune: bool | None = None) -> TritonExecutable:
    """Makes a program ready to run on a GPU; `device="cpu"` runs its kernels in Triton's interpreter.

    `tune` measures the best division of each launch when it first occurs; the default is on, unless `$FORERUN_TUNE` is
    0. Nothing is allocated before the GPU and its memory are known to fit.
    """
    require_whole(program.program)
    if device != "cpu":
        require_gpu()
        require_memory(needed_bytes(program.program))
    step = program.program
    return executable(step, load_weights(step, program.weights, torch.device(device)), device, tune)


def executable(
    step: Program, weights: Mapping[str, torch.Tensor], device: str, tune: bool | None = None
) -> TritonExecutable:
    """Returns a step whose weights are on a device already (`bind`)."""
    tuner = None
    if device != "cpu" and (os.environ.get(TUNE, "1") != "0" if tune is None else tune):
        from forerun.execute.triton.tuning import Autotuner

        tuner = Autotuner(torch.cuda.get_device_name())
    return TritonExecutable(step, weights, device, tuner)


def files(program: TritonProgram) -> dict[str, str]:
    """Returns the file of every kernel, and of those that run around a step, by file name."""
    sources = {LOOP: loop_source(), **program.program.sources}
    return {f"{name}.py": each.text for name, each in sources.items()}


def edited(program: TritonProgram, texts: Mapping[str, str]) -> TritonProgram:
    """Returns the program with other sources, given by file name. What they compute is not checked here."""
    step = program.program
    known = {LOOP: loop_source(), **step.sources}
    changed = {name: replace(known[name], text=texts[f"{name}.py"]) for name in known if f"{name}.py" in texts}
    told = [step.key, *(f"{name} {each.text}" for name, each in changed.items())]
    key = hashlib.sha256("\n".join(told).encode()).hexdigest()
    words = {**step.overrides, **dict.fromkeys(changed, "its source")}
    return replace(program, program=replace(step, key=key, sources={**step.sources, **changed}, overrides=words))


def texts(program: TritonProgram) -> dict[str, str]:
    """Returns the loop nest and the file of every kernel."""
    return nests(program.program) | files(program)


def report(program: TritonProgram, rows: Sequence[int] = (1, 32)) -> Report:
    """Compiles every kernel ahead of time, and adds what was measured on GPUs that this machine has used."""
    from forerun.execute.triton import compilation
    from forerun.execute.triton.tuning import known_choices

    step = program.program
    found = [*compilation.compile_step(step, step.sources, rows, compilation.CAPABILITIES)]
    if len(step.returned) == 3:
        found += compilation.compile_loop(step, rows, compilation.CAPABILITIES)
    return Report([each.to_dict() for each in found], known_choices(step.sources))
