"""Lowers a module to a program of the embedded back end: a function for each distinct kernel, and packed weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import torch

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.integers import as_int32
from forerun.codegen.loops.lowering import Emitted, Emitter, Limits
from forerun.codegen.loops.lowering import Lowering as LoopLowering
from forerun.codegen.loops.nest import Nest, ProductNest, TopKNest
from forerun.codegen.loops.placing import Traits
from forerun.codegen.loops.states import StateLayout, state_layout
from forerun.codegen.loops.text import NestText, numbered
from forerun.codegen.planned import PlannedStep
from forerun.codegen.program import NUMBER, Program, Weight, nests
from forerun.codegen.tvm.key import key_of
from forerun.codegen.tvm.layout import ALIGNMENT, SPARE, Compiled, Float32, TvmProgram, aligned, weight_places, zeros
from forerun.codegen.tvm.linear import held
from forerun.codegen.tvm.program import build, step_module
from forerun.codegen.tvm.quantized import FORMATS
from forerun.codegen.tvm.target import LANES, OUTPUTS, Machine
from forerun.codegen.tvm.templates import OF_NEST, TEMPLATES, Made, Template
from forerun.codegen.tvm.topk import maxima_of
from forerun.errors import UnsupportedOperationError

PACKED = "packed f32"
"""How a float32 matrix that a linear reads lies in memory: in blocks of outputs."""

HEAVY = 6
"""A value with at least this many elementwise operations that is used twice is stored, not computed twice."""


@dataclass(frozen=True)
class Given:
    """The weights of a model: tensors by name, and uint8 [out, in / 32, bytes] the quantized blocks of some."""

    weights: Callable[[str], torch.Tensor]
    blocks: Mapping[str, torch.Tensor]


class TvmEmitter(Emitter):
    """Plans the functions of kernels; they are built when code is generated."""

    traits = Traits("cpu", fused_rows=True, inline=False, heavy=HEAVY)
    alignment = ALIGNMENT

    def __init__(self, module: ir.ModuleOp) -> None:
        self.matrices = _matrices(module)
        self.functions: dict[str, Made] = {}

    def state(self, state: ir.State, block: int, read_as_keys: bool) -> StateLayout:
        """In keys a block's P slots are innermost: scores need no sum across lanes. Other rows are whole vectors."""
        return state_layout(state, block, "f32", 1 if read_as_keys else LANES, read_as_keys)

    def weight(self, weight: ir.Weight) -> Weight:
        shape = tuple(int(dim) for dim in weight.type.dims)
        storage = weight.storage
        if storage is not None and storage not in FORMATS:
            raise UnsupportedOperationError(f"the cpu target has no kernels for weights stored as {storage}.")
        if storage is None and str(weight.symbol) in self.matrices:
            storage = PACKED
        if storage is None:
            element = "i32" if weight.dtype in ir.INTEGER_DTYPES or weight.dtype == "i1" else "f32"
            return Weight(shape, element, prod(shape) * NUMBER)
        outputs, features = shape
        blocks = aligned(-(-outputs // OUTPUTS) * FORMATS[storage].block_words(features))
        return Weight(shape, storage, blocks * NUMBER)

    def kernels(self, nest: Nest, sizes: Sequence[str]) -> list[Emitted]:
        names: dict[Buffer, str] = {}
        text = NestText(numbered(names)).nest(nest)
        buffers = [each for each in names if each.space != "product"]
        if isinstance(nest, TopKNest):
            buffers.append(maxima_of(nest))
        if isinstance(nest, ProductNest):
            buffers.extend(held(nest))

        def source(kind: str) -> Callable[[str], str]:
            def made(name: str) -> str:
                self.functions[name] = Made(kind, nest, buffers, sizes)
                return ""

            return made

        return [Emitted(kind, text, buffers, source(kind)) for kind in OF_NEST[type(nest)]]


def _matrices(module: ir.ModuleOp) -> set[str]:
    """Returns the float32 weights that linears read."""
    outer: dict[ir.SSAValue, ir.SSAValue] = {}
    found: set[str] = set()
    for operation in (each for entry in ir.entries(module).values() for each in ir.walk(entry.body)):
        if isinstance(operation, ir.Kernel):
            outer.update(zip(operation.region.block.args, operation.operands, strict=True))
        elif isinstance(operation, ir.Linear):
            weight = operation.weight
            owner = outer.get(weight, weight).owner
            if isinstance(owner, ir.Parameter) and ir.tensor_type(weight).dtype == "f32":
                found.add(str(owner.symbol))
    return found


class Lowering:
    """The functions of a module's kernels, and the program that they make.

    module      IR with `@step`, whose arguments are named as the fields of `Rows`
    max_rows    the largest N; memory for values grows with it
    max_outputs the largest M, `max_rows` by default
    max_path    the largest D
    max_length  largest length of a sequence, and of a named dimension of another entry
    templates   replacements for `TEMPLATES`, by name, for tests that plant a fault. Their code is not saved

    Raises UnsupportedOperationError for an operation without a rule.
    """

    def __init__(
        self,
        module: ir.ModuleOp,
        *,
        max_rows: int = 512,
        max_outputs: int | None = None,
        max_path: int = 64,
        max_length: int = 2048,
        templates: Mapping[str, Template] | None = None,
    ) -> None:
        limits = Limits(max_rows, max_rows if max_outputs is None else max_outputs, max_path, max_length)
        self.machine = Machine.host()
        self.emitter = TvmEmitter(module)
        self.lowered = LoopLowering(module, lambda block: self.emitter, limits, key_of(self.machine, []))
        self.step: Program = self.lowered.program
        self._templates = {**TEMPLATES, **(templates or {})}
        self.cacheable = not templates

    def kernel_functions(self, machine: Machine | None = None) -> dict[str, Any]:
        """Returns the TIR function of every distinct kernel, by name; by default for this machine."""
        made, machine = self.emitter.functions, machine or self.machine
        return {name: made[name].function(machine, self._templates) for name in self.step.sources}

    def compile(self, mtriple: str | None = None, mcpu: str | None = None) -> Compiled:
        """Compiles the kernels (`layout.Compile`). Raises `InvalidOptionError` for names that LLVM does not know."""
        machine = Machine.of(mtriple, mcpu) if mtriple or mcpu else self.machine
        return Compiled(build(step_module(self.kernel_functions(machine)), machine.target), machine.processor)

    def kernel_texts(self) -> dict[str, str]:
        """Returns the TIR script of every distinct kernel, by name."""
        return {name: each.script() for name, each in self.kernel_functions().items()}

    def pack(self, given: Given) -> Float32:
        """Returns the weights in one buffer, matrices in their format; one tensor is read at a time."""
        places, size = weight_places(self.step)
        packed = zeros(size)
        for name, place in places.items():
            self._pack(name, torch.from_numpy(packed[place:]), given)
        return packed

    def write(self, file: BinaryIO, given: Given) -> None:
        """Writes what `pack` returns to a file, one weight at a time: memory holds no second copy of the model."""
        places, size = weight_places(self.step)
        for (name, start), end in zip(places.items(), [*places.values(), size - SPARE][1:], strict=True):
            packed = zeros(end - start)
            self._pack(name, torch.from_numpy(packed), given)
            file.write(packed.data)
        file.write(bytes(SPARE * NUMBER))

    def _pack(self, name: str, buffer: torch.Tensor, given: Given) -> None:
        """Writes a weight to the beginning of a buffer."""
        element = self.step.weights[name].element
        if self.lowered.declared[name].storage in ir.BLOCK_STORAGES:
            FORMATS[element].pack(buffer, given.blocks[name])
            return
        tensor = given.weights(name).detach()
        if element == "i32":
            whole = as_int32(self.step.target, name, tensor)
            buffer.view(torch.int32)[: tensor.numel()] = whole.reshape(-1)
        elif element in FORMATS:
            FORMATS[element].pack(buffer, tensor.float())
        else:
            buffer[: tensor.numel()] = tensor.reshape(-1).float()

    def program(
        self, weights: Callable[[str], torch.Tensor], blocks: Mapping[str, torch.Tensor] | None = None
    ) -> TvmProgram:
        """Returns the step, with its code and its weights, which are produced on demand."""
        given = Given(weights, blocks or {})
        return TvmProgram(
            self.step,
            self.compile,
            lambda: self.pack(given),
            lambda file: self.write(file, given),
            self.kernel_texts,
            self.cacheable,
        )


def emit(planned: PlannedStep) -> TvmProgram:
    """Generates the program of a planned `@step`."""
    return Lowering(planned.module, **planned.limits).program(planned.weights, planned.blocks)


def texts(program: TvmProgram) -> dict[str, str]:
    """Returns the loop nest and the TIR script of every distinct kernel, by file name."""
    return nests(program.program) | {f"{name}.py": text for name, text in program.texts().items()}
