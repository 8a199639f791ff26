"""Modules compiled without `forerun.compile`: the output of code generation, ready to run."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from forerun import ir
from forerun.codegen import reference
from forerun.codegen.c import lowering as c_lowering
from forerun.codegen.planned import PlannedStep, StepLimits
from forerun.codegen.triton import lowering as triton_lowering
from forerun.codegen.tvm import lowering as tvm_lowering
from forerun.execute.c import executable as c_executable
from forerun.execute.c.executable import CExecutable
from forerun.execute.reference import ReferenceExecutable
from forerun.execute.triton import build as triton_build
from forerun.execute.triton.executable import TritonExecutable
from forerun.execute.tvm import executable as tvm_executable
from forerun.execute.tvm.executable import TvmExecutable
from tests.ir.build import no_weights


def planned_step(
    module: ir.ModuleOp,
    weights: Callable[[str], torch.Tensor] = no_weights,
    *,
    storage: str = "f32",
    blocks: Mapping[str, torch.Tensor] | None = None,
    max_rows: int = 512,
    max_outputs: int | None = None,
    max_path: int = 64,
    max_length: int = 2048,
) -> PlannedStep:
    """The input of a code generator; by default a step may have as many outputs as rows."""
    outputs = max_rows if max_outputs is None else max_outputs
    limits = StepLimits(max_rows=max_rows, max_outputs=outputs, max_path=max_path, max_length=max_length)
    return PlannedStep(module, weights, limits, storage, blocks)


def tvm_step(
    module: ir.ModuleOp,
    weights: Callable[[str], torch.Tensor],
    *,
    threads: int | None = None,
    cache: bool = True,
    templates: Mapping[str, tvm_lowering.Template] | None = None,
    **options: Any,
) -> TvmExecutable:
    """A module on the CPU; `options` are those of `planned_step`."""
    lowering = tvm_lowering.Lowering(planned_step(module, weights, **options), templates)
    return tvm_executable.bind(lowering.program(), threads, cache)


def triton_step(
    module: ir.ModuleOp,
    weights: Callable[[str], torch.Tensor],
    *,
    device: str = "cuda",
    tune: bool | None = None,
    kernels: Mapping[str, str] | None = None,
    **options: Any,
) -> TritonExecutable:
    """A module on a GPU, or in Triton's interpreter, perhaps with other kernels by the names of their files.

    `options` are those of `planned_step`.
    """
    program = triton_build.edited(triton_lowering.emit(planned_step(module, weights, **options)), kernels or {})
    return triton_build.bind(program, device, tune)


def c_step(module: ir.ModuleOp, weights: Callable[[str], torch.Tensor], **limits: Any) -> CExecutable:
    """A module as C."""
    return c_executable.bind(c_lowering.emit(planned_step(module, weights, **limits)))


def reference_step(module: ir.ModuleOp, weights: Callable[[str], torch.Tensor], **limits: Any) -> ReferenceExecutable:
    """A module in the IR's interpreter."""
    return ReferenceExecutable(reference.emit(planned_step(module, weights, **limits)))
