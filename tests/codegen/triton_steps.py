"""Triton steps in the interpreter, from poisoned memory, beside what the IR's interpreter makes of them."""

import math

import torch

from forerun import ir
from forerun.codegen.triton.build import compile_step
from forerun.codegen.triton.configs import first_config
from forerun.codegen.triton.executable import TritonExecutable
from forerun.codegen.triton.step import Config
from forerun.runtime.executable import WHOLE
from tests.codegen.steps import ROW_TYPES

LIMITS = {"max_rows": 64, "max_outputs": 64, "max_path": 64, "max_length": 256}


def wide(executable, launch, rows, shared, pointers, sizes) -> Config:
    """Few programs: each costs the interpreter a millisecond."""
    first = first_config(launch, rows, shared)
    return Config(64, first.rows) if launch.grid.kind in ("products", "head") else first


def interpreted(module, weights, storage: str = "f32", tuner=wide, **limits) -> TritonExecutable:
    """The step in Triton's interpreter."""
    executable = compile_step(module, weights, storage=storage, device="cpu", **(LIMITS | limits))
    executable._tuner = tuner
    return executable


def poisoned_state(executable: TritonExecutable, blocks: int = 16):
    """A cache full of NaN: what is read was written before."""
    state = executable.new_state(blocks)
    for each in state.buffers:
        each.fill_(math.nan)
    return state


def evaluate(module, weights, rows, storage: str = "f32"):
    """The results of `@step` from poisoned memory, and by the IR's interpreter."""
    executable = interpreted(module, weights.__getitem__, storage)
    executable._arena.fill_(math.nan)
    result = executable.run(WHOLE, poisoned_state(executable), rows)
    assert result.logits is not None  # computed now that they are asked for
    sizes = {"N": len(rows.tokens), "M": len(rows.outputs)}
    results = [executable.value(value, sizes) for value in executable.step.returned]
    environment = ir.Environment(weights.__getitem__, ir.new_states(module, 16 * 16))
    inputs = [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES]
    return results, [each.numpy() for each in ir.evaluate(module, "step", inputs, environment)]
