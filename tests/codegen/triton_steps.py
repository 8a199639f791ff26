"""Triton steps in Triton's interpreter, on poisoned memory, and their results in the IR's interpreter."""

import math

import torch
from steps import ROW_TYPES

from forerun import ir
from forerun.codegen.program import Config
from forerun.execute.triton.configs import first_config
from forerun.execute.triton.executable import TritonExecutable
from forerun.runtime.executable import WHOLE
from tests.compiled import triton_step

LIMITS = {"max_rows": 64, "max_outputs": 64, "max_path": 64, "max_length": 256}


def wide(launcher, launch, rows, shared, pointers, sizes) -> Config:
    """Chooses few programs: each costs the interpreter a millisecond."""
    first = first_config(launch, rows, shared)
    return Config(64, first.rows) if launch.grid.kind in ("products", "head") else first


def interpreted(module, weights, storage: str = "f32", tuner=wide, **limits) -> TritonExecutable:
    """The step in Triton's interpreter."""
    executable = triton_step(module, weights, storage=storage, device="cpu", **(LIMITS | limits))
    executable.launcher.tuner = tuner
    return executable


def poisoned_state(executable: TritonExecutable, blocks: int = 16):
    """A cache full of NaN, so that reading an unwritten entry shows."""
    state = executable.new_state(blocks)
    state.numbers.fill_(math.nan)
    return state


def evaluate(module, weights, rows, storage: str = "f32"):
    """The results of `@step` on poisoned memory, and those of the IR's interpreter."""
    executable = interpreted(module, weights.__getitem__, storage)
    executable.launcher.arena.fill_(math.nan)
    result = executable.run(WHOLE, poisoned_state(executable), rows)
    assert result.logits is not None  # computed on demand, here
    sizes = {"N": len(rows.tokens), "M": len(rows.outputs)}
    results = [executable.launcher.value(value, sizes) for value in executable.step.returned]
    environment = ir.Environment(weights.__getitem__, ir.new_states(module, 16 * 16))
    inputs = [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES]
    return results, [each.numpy() for each in ir.evaluate(module, "step", inputs, environment)]
