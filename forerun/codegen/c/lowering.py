"""A step as one C file: a function for each kernel, and one for each entry, which calls them in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forerun import ir
from forerun.codegen.c.nests import emit as emit_nest
from forerun.codegen.c.program import CProgram
from forerun.codegen.c.text import POINTERS, PRELUDE, Text, formula_sources
from forerun.codegen.kernel_places import nests
from forerun.codegen.loops.emitter import Emitted, Emitter
from forerun.codegen.loops.integers import as_int32
from forerun.codegen.loops.lowering import Lowering
from forerun.codegen.loops.nest import Nest
from forerun.codegen.loops.placing import Traits
from forerun.codegen.loops.states import StateLayout, state_layout
from forerun.codegen.planned import PlannedStep
from forerun.codegen.program import Entry, Operand, Program


class CEmitter(Emitter):
    """Emits plain loops: every value that a kernel passes on lies in memory."""

    traits = Traits("c")
    storages = ("bf16",)
    alignment = 1

    def __init__(self) -> None:
        self.formulas: dict[str, None] = {}

    def state(self, state: ir.State, block: int, read_as_keys: bool) -> StateLayout:
        return state_layout(state, block, "f32")

    def kernels(self, nest: Nest, sizes: Sequence[str]) -> list[Emitted]:
        text = Text(sizes)
        emit_nest(text, nest)
        self.formulas |= text.formulas
        body = "\n".join(text.lines)
        pointers = [f"{POINTERS[buffer.element]} *{name}" for buffer, name in text.buffers.items()]
        given = ", ".join(["const int32_t *sizes", *pointers])

        def source(name: str) -> str:
            return f"void {name}({given}) {{\n{body}\n}}\n"

        kind, key = type(nest).__name__.removesuffix("Nest").lower(), f"{given}\n{body}"
        return [Emitted(kind, key, list(text.buffers), source)]


def file_text(program: Program, formulas: Mapping[str, None]) -> str:
    """Returns the whole file: helpers that C lacks, the kernels, the entries."""
    said = f"/* @step and other entries, for up to {program.max_rows} rows. */\n"
    parts = [said, PRELUDE, *formula_sources(list(formulas))]
    for source in program.sources.values():
        nest = source.nest.replace("*/", "* /")
        parts.append(f"/*\n{nest}\n*/\n{source.text}")
    parts.extend(_entry(program, entry) for entry in program.entries)
    return "\n".join(parts)


def _entry(program: Program, entry: Entry) -> str:
    """Returns a function that runs all kernels of an entry."""
    calls: list[str] = []
    for kernel in entry.kernels:
        calls.append(f"  /* {kernel.name} */")
        for launch in kernel.launches:
            given = ", ".join(["sizes", *(_address(program, entry, each) for each in launch.operands)])
            calls.append(f"  {launch.source}({given});")
    given = "const int32_t *sizes, void *const *weights, float *const *states, int32_t *inputs, float *arena"
    return "\n".join([f"void entry_{entry.name}({given}) {{", *calls, "}\n"])


def _address(program: Program, entry: Entry, operand: Operand) -> str:
    match operand.kind:
        case "input":
            base = "arena" if operand.element == "f32" else "inputs"
            return f"{base} + {entry.places[str(operand.key)]}"
        case "weight":
            return f"weights[{list(program.weights).index(str(operand.key))}]"
        case "state":
            return f"states[{list(program.states).index(str(operand.key))}]"
        case _:
            return f"({POINTERS[operand.element]} *)(arena + {operand.key})"


def emit(planned: PlannedStep) -> CProgram:
    """Generates the program of a planned `@step`."""
    emitter = CEmitter()
    program = Lowering(planned, lambda block: emitter).program
    return CProgram(program, file_text(program, emitter.formulas), lambda: _packed(program, planned.weights))


def _packed(program: Program, weights: Callable[[str], torch.Tensor]) -> dict[str, NDArray[Any]]:
    """Returns the weights as the kernels read them."""
    found: dict[str, NDArray[Any]] = {}
    for name, each in program.weights.items():
        tensor = weights(name).detach()
        if each.element == "i32":
            found[name] = as_int32(program.target, name, tensor).numpy()
        elif each.element == "bf16":
            found[name] = tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16)
        else:
            found[name] = tensor.float().contiguous().numpy()
    return found


def texts(program: CProgram) -> dict[str, str]:
    """Returns the loop nest of every distinct kernel, and the file of the step, by file name."""
    return nests(program.program) | {"step.c": program.text}
