"""Lowers a module to a program of the embedded back end: a function for each distinct kernel, and packed weights."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

import torch

from forerun import ir
from forerun.codegen.kernel_places import nests
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.emitter import Emitted, Emitter
from forerun.codegen.loops.integers import as_int32
from forerun.codegen.loops.lowering import Lowering as LoopLowering
from forerun.codegen.loops.nest import AttentionNest, Nest, ProductNest, RecurrenceNest, RowNest, TopKNest
from forerun.codegen.loops.placing import Traits
from forerun.codegen.loops.states import StateLayout, state_layout
from forerun.codegen.loops.text import NestText, numbered
from forerun.codegen.planned import PlannedStep
from forerun.codegen.program import NUMBER, Program, Weight
from forerun.codegen.regions import products
from forerun.codegen.schedule import SUFFIX, Space, nearest
from forerun.codegen.tvm.attention import emit_attention
from forerun.codegen.tvm.builder import Frame, function
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.experts import emit_grouped, groups_of, order_of
from forerun.codegen.tvm.key import key_of
from forerun.codegen.tvm.layout import ALIGNMENT, SPARE, Compiled, Float32, TvmProgram, aligned, weight_places, zeros
from forerun.codegen.tvm.linear import PRODUCTS, emit_products, emit_rounded, held
from forerun.codegen.tvm.program import build, step_module
from forerun.codegen.tvm.quantized import FORMATS
from forerun.codegen.tvm.rows import emit_recurrence, emit_rows
from forerun.codegen.tvm.schedules import space_of
from forerun.codegen.tvm.target import LANES, OUTPUTS, Machine
from forerun.codegen.tvm.topk import emit_maxima, emit_topk, maxima_of
from forerun.codegen.tvm.untyped import tvm, tvm_ffi
from forerun.errors import InvalidOptionError
from forerun.torch_threads import one_torch_thread

PACKED = "packed f32"
"""How a float32 matrix that a linear reads lies in memory: in blocks of outputs."""

PACKED_OUTPUTS = 16 * OUTPUTS
"""The outputs of a matrix that are packed at a time."""

HEAVY = 6
"""A value with at least this many elementwise operations that is used twice is stored, not computed twice."""


Template = Callable[[Code, Any, Machine, Any], None]
"""Emits one nest, or a part of one, under a schedule, into the function under construction."""

TEMPLATES: dict[str, Template] = {
    "rows": emit_rows,
    "grouped": emit_grouped,
    "rounded": emit_rounded,
    "products": emit_products,
    "attention": emit_attention,
    "recurrence": emit_recurrence,
    "maxima": emit_maxima,
    "topk": emit_topk,
}

OF_NEST: dict[type[Nest], tuple[str, ...]] = {
    RowNest: ("rows",),
    ProductNest: ("products",),
    AttentionNest: ("attention",),
    RecurrenceNest: ("recurrence",),
    TopKNest: ("maxima", "topk"),
}
"""The templates of a nest; their functions run one after another."""


@dataclass(frozen=True)
class Made:
    """A template applied to a nest; the function is built when code is generated."""

    kind: str
    nest: Nest
    buffers: Sequence[Buffer]
    sizes: Sequence[str]

    def space(self, machine: Machine) -> Space | None:
        """The schedules that it may have; None if there is only one."""
        return space_of(self.kind, self.nest, machine)

    def function(self, machine: Machine, templates: Mapping[str, Template], schedule: Any = None) -> Any:
        """Builds the function, by default under the default schedule for a machine."""
        space = self.space(machine)
        chosen = space.default if schedule is None and space is not None else schedule

        def body(frame: Frame) -> None:
            templates[self.kind](Code(frame, self.buffers, FORMATS), self.nest, machine, chosen)

        return function(self.sizes, body)


class TvmEmitter(Emitter):
    """Plans the functions of kernels; they are built when code is generated."""

    traits = Traits("cpu", fused_rows=True, inline=False, heavy=HEAVY, arithmetics=frozenset({ir.BFLOAT16, ir.INT8}))
    storages = FORMATS
    alignment = ALIGNMENT

    def __init__(self, module: ir.ModuleOp) -> None:
        self.matrices = _matrices(module)
        self.functions: dict[str, Made] = {}

    def state(self, state: ir.State, block: int, read_as_keys: bool) -> StateLayout:
        """In keys a block's P slots are innermost: scores need no sum across lanes. Other rows are whole vectors."""
        return state_layout(state, block, "f32", 1 if read_as_keys else LANES, read_as_keys)

    def stored(self, weight: ir.Weight, shape: tuple[int, ...], element: str) -> Weight:
        form = PACKED if element == "f32" and str(weight.symbol) in self.matrices else element
        if form not in FORMATS:
            return super().stored(weight, shape, element)
        *experts, outputs, features = shape
        blocks = math.prod(experts) * -(-outputs // OUTPUTS) * FORMATS[form].block_words(features)
        return Weight(shape, form, aligned(blocks) * NUMBER)

    def kernels(self, nest: Nest, sizes: Sequence[str]) -> list[Emitted]:
        names: dict[Buffer, str] = {}
        text = NestText(numbered(names)).nest(nest)
        buffers = [each for each in names if each.space != "product"]
        if isinstance(nest, TopKNest):
            buffers.append(maxima_of(nest))
        if isinstance(nest, ProductNest):
            buffers.extend(held(nest))
        kinds = OF_NEST[type(nest)]
        if isinstance(nest, ProductNest) and (rounded := PRODUCTS[nest.arithmetic].rounded(nest)):
            buffers.append(rounded)
            kinds = ("rounded", *kinds)
        if isinstance(nest, ProductNest) and nest.experts is not None:
            buffers.extend((order_of(nest), groups_of(nest.experts)))
            kinds = ("grouped", *kinds)
        made = [Made(kind, nest, buffers, sizes) for kind in kinds]
        reads = [each == "products" for each in kinds]
        return [
            Emitted(each.kind, text, buffers, self._source(each), reads_matrices=read)
            for each, read in zip(made, reads, strict=True)
        ]

    def _source(self, made: Made) -> Callable[[str], str]:
        def source(name: str) -> str:
            self.functions[name] = made
            return ""

        return source


def _matrices(module: ir.ModuleOp) -> set[str]:
    """Returns the float32 weights that products read."""
    read = products(module)
    return {str(each.symbol) for product, each in read if ir.tensor_type(product.weight).dtype == "f32"}


class Lowering:
    """The functions of a module's kernels, and the program that they make.

    `templates` replaces `TEMPLATES`, by name, for tests that plant a fault; their code is not saved.
    """

    def __init__(self, planned: PlannedStep, templates: Mapping[str, Template] | None = None) -> None:
        self.planned = planned
        self.chosen: Mapping[str, Any] = {}  # schedules other than the default, by the names of sources
        self.machine = Machine.host()
        self.emitter = TvmEmitter(planned.module)
        self.lowered = LoopLowering(planned, lambda block: self.emitter, key_of(self.machine))
        self.step: Program = self.lowered.program
        self._templates = {**TEMPLATES, **(templates or {})}
        self.cacheable = not templates

    def kernel_functions(self, machine: Machine | None = None) -> dict[str, Any]:
        """Returns the TIR function of every distinct kernel, by name; by default for this machine."""
        made, machine = self.emitter.functions, machine or self.machine
        return {
            name: made[name].function(machine, self._templates, self.chosen.get(name)) for name in self.step.sources
        }

    def compile(self, mtriple: str | None = None, mcpu: str | None = None) -> Compiled:
        """Compiles the kernels (`layout.Compile`). Raises `InvalidOptionError` for names that LLVM does not know."""
        machine = Machine.of(mtriple, mcpu) if mtriple or mcpu else self.machine
        module = step_module(self.kernel_functions(machine), machine.triple, self.step.step.sizes)
        return Compiled(build(module, machine.target), machine.processor)

    # --- schedules (`layout.Kernels`)

    def schedules(self) -> dict[str, str]:
        """Returns the schedule file of every kernel that has more than one schedule."""
        spaces = {name: self.emitter.functions[name].space(self.machine) for name in self.step.sources}
        return {name: each.text(name, self.chosen.get(name)) for name, each in spaces.items() if each is not None}

    def edited(self, texts: Mapping[str, str]) -> TvmProgram:
        """Returns the program with the schedules of these files; those of other kernels stay.

        Raises `InvalidOptionError` for a kernel that there is not, or a schedule that it cannot have.
        """
        found = copy(self)
        given = {name: self._space(name).read(name, text) for name, text in texts.items()}
        chosen = {**self.chosen, **given}
        found.chosen = {name: each for name, each in chosen.items() if each != self._space(name).default}
        found.step = self.lowered.program
        if found.chosen:
            told = [found.step.key, *(f"{name} {found.chosen[name]}" for name in sorted(found.chosen))]
            found.step = replace(
                found.step,
                key=hashlib.sha256("\n".join(told).encode()).hexdigest(),
                overrides={name: self._space(name).changes(each) for name, each in found.chosen.items()},
            )
        return found.program()

    def candidates(self, name: str, text: str) -> list[str]:
        """Returns the schedules, as files, that differ in one field from that of a file, and make other code."""
        space, made = self._space(name), self.emitter.functions[name]
        start = space.read(name, text)
        known, found = [made.function(self.machine, self._templates, start)], list[str]()
        for each in space.neighbours(start):
            function = made.function(self.machine, self._templates, each)
            if not any(tvm_ffi.structural_equal(function, other) for other in known):
                known.append(function)
                found.append(space.text(name, each))
        return found

    def versions(self, name: str, texts: Sequence[str]) -> Compiled:
        """Compiles a step that has one kernel alone, under the schedule of each file; `""` is the program's own."""
        kernels: dict[str, Any] = {}
        for number, text in enumerate(texts):
            chosen = self._space(name).read(name, text) if text else self.chosen.get(name)
            kernels[f"{name}_{number}"] = self.emitter.functions[name].function(self.machine, self._templates, chosen)
        module = step_module(kernels, self.machine.triple, self.step.step.sizes, apart=True)
        return Compiled(build(module, self.machine.target), self.machine.processor)

    def function(self, name: str) -> Compiled:
        """Compiles one kernel as a function that others can call, and that is therefore not part of another."""
        kernel = self.emitter.functions[name].function(self.machine, self._templates, self.chosen.get(name))
        module = tvm.IRModule({name: kernel.with_attr("global_symbol", name)})
        return Compiled(build(module, self.machine.target), self.machine.processor)

    def changes(self, name: str, text: str) -> str:
        """Returns in words what a schedule file changes of the default."""
        space = self._space(name)
        return space.changes(space.read(name, text))

    def _space(self, name: str) -> Space:
        if name not in self.step.sources:
            raise InvalidOptionError(
                f"The step has no kernel {name!r}{nearest(name, self.step.sources)} forerun dump writes all of them."
            )
        space = self.emitter.functions[name].space(self.machine)
        if space is None:
            known = ", ".join(self.schedules())
            raise InvalidOptionError(f"The kernel {name} has only one schedule; those that have several are {known}.")
        return space

    def kernel_texts(self) -> dict[str, str]:
        """Returns the TIR script of every distinct kernel, by name."""
        return {name: each.script() for name, each in self.kernel_functions().items()}

    def pack(self) -> Float32:
        """Returns the weights in one buffer, matrices in their format; one tensor is read at a time."""
        places, size = weight_places(self.step)
        packed = zeros(size)
        for name, place in places.items():
            self._pack(name, torch.from_numpy(packed[place:]))
        return packed

    def write(self, file: BinaryIO) -> None:
        """Writes what `pack` returns to a file, one weight at a time: memory holds no second copy of the model."""
        places, size = weight_places(self.step)
        for (name, start), end in zip(places.items(), [*places.values(), size - SPARE][1:], strict=True):
            packed = zeros(end - start)
            self._pack(name, torch.from_numpy(packed))
            file.write(packed.data)
        file.write(bytes(SPARE * NUMBER))

    def _pack(self, name: str, buffer: torch.Tensor) -> None:
        """Writes a weight to the beginning of a buffer."""
        element = self.step.weights[name].element
        if self.lowered.declared[name].storage in ir.BLOCK_STORAGES:
            self._pack_matrix(name, buffer, (self.planned.blocks or {})[name])
            return
        tensor = self.planned.weights(name).detach()
        if element == "i32":
            whole = as_int32(self.step.target, name, tensor)
            buffer.view(torch.int32)[: tensor.numel()] = whole.reshape(-1)
        elif element in FORMATS:
            self._pack_matrix(name, buffer, tensor)
        else:
            buffer[: tensor.numel()] = tensor.reshape(-1).float()

    def _pack_matrix(self, name: str, buffer: torch.Tensor, matrix: torch.Tensor) -> None:
        """Packs some outputs at a time in each thread, as packing takes a multiple of their memory."""
        weight = self.step.weights[name]
        *experts, outputs, features = weight.shape
        form, block = FORMATS[weight.element], FORMATS[weight.element].block_words(features)
        each = matrix.reshape(-1, outputs, *matrix.shape[1 + len(experts) :])  # [experts or 1, outputs, ...]
        size = -(-outputs // OUTPUTS) * block

        def pack(place: tuple[int, int]) -> None:
            expert, first = place
            part = each[expert, first : first + PACKED_OUTPUTS]
            to = buffer[expert * size + first // OUTPUTS * block :]
            form.pack(to, part if part.dtype == torch.uint8 else part.float())

        places = [(expert, first) for expert in range(len(each)) for first in range(0, outputs, PACKED_OUTPUTS)]
        with one_torch_thread(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(pack, places))

    def program(self) -> TvmProgram:
        """Returns the step, with its code and its weights, which are produced on demand."""
        return TvmProgram(
            self.step,
            self.compile,
            self.pack,
            self.write,
            self.kernel_texts,
            self,
            self.cacheable,
        )


def emit(planned: PlannedStep) -> TvmProgram:
    """Generates the program of a planned `@step`."""
    return Lowering(planned).program()


def files(program: TvmProgram) -> dict[str, str]:
    """Returns the schedule of every kernel that has several, by file name."""
    return {f"{name}{SUFFIX}": text for name, text in program.kernels.schedules().items()}


def edited(program: TvmProgram, texts: Mapping[str, str]) -> TvmProgram:
    """Returns the program with other schedules, given by file name. Raises `InvalidOptionError`."""
    return program.kernels.edited({name.removesuffix(SUFFIX): text for name, text in texts.items()})


def candidates(program: TvmProgram, file: str, text: str) -> list[str]:
    """Returns the schedules that a search tries next to the one of a file's text."""
    return program.kernels.candidates(file.removesuffix(SUFFIX), text)


def changes(program: TvmProgram, file: str, text: str) -> str:
    """Returns in words what a schedule changes of the default."""
    return program.kernels.changes(file.removesuffix(SUFFIX), text)


def texts(program: TvmProgram) -> dict[str, str]:
    """Returns the loop nest, the TIR script and the schedule of every distinct kernel, by file name."""
    scripts = {f"{name}.py": text for name, text in program.texts().items()}
    return nests(program.program) | scripts | files(program)
