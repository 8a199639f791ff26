"""From a function of the IR to a compiled step: its kernels, its program, and where everything lies."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.planned import PlannedStep
from forerun.codegen.regions import symbols
from forerun.codegen.tvm.kernels import TEMPLATES, Template, phase_function
from forerun.codegen.tvm.key import key_of
from forerun.codegen.tvm.key_values import padded
from forerun.codegen.tvm.memory import aligned, arena_layout, cache_layout, pack, weight_offsets
from forerun.codegen.tvm.phases import AttentionPhase, Plan, ProductPhase, Slot
from forerun.codegen.tvm.program import build, step_module
from forerun.codegen.tvm.step import CompiledStep, Kernel, TvmProgram, Value
from forerun.codegen.tvm.structure import plans, structure, surroundings
from forerun.codegen.tvm.target import Machine
from forerun.errors import InvalidOptionError

ROW_INPUTS = ("tokens", "positions", "sequences", "slots", "bases", "paths", "outputs", "block_tables")
"""The fields of `Rows`; the block tables, which may grow, come last."""

GROWTH = 4096
"""Numbers for the block tables, before they grow."""


class Lowering:
    """A function's kernels, and the step that they make.

    module      IR with the function `function`; its arguments are named as the fields of `Rows`
    max_rows    the largest N; memory for values grows with it
    max_outputs the largest M, `max_rows` by default
    max_path    the largest D
    max_length  positions a sequence may have
    templates   replacements for `kernels.TEMPLATES`, by name: a test's way to plant a fault. Their code is not kept

    Raises UnsupportedOperationError for an operation without a rule here.
    """

    def __init__(
        self,
        module: ir.ModuleOp,
        *,
        function: str = "step",
        max_rows: int = 512,
        max_outputs: int | None = None,
        max_path: int = 64,
        max_length: int = 2048,
        templates: Mapping[str, Template] | None = None,
    ) -> None:
        self._function = ir.functions(module)[function]
        self._known = surroundings(module, self._function)
        self._declared = ir.weights(module)
        self._plans = plans(self._function, self._known)
        self._symbols = symbols(self._function)
        self._templates = {**TEMPLATES, **(templates or {})}
        self.cacheable = not templates
        self._texts = [structure(plan, self._known) for plan in self._plans]
        self._structures = {text: number for number, text in enumerate(dict.fromkeys(self._texts))}
        self.machine = Machine.host()
        self.step = self._step(max_rows, max_rows if max_outputs is None else max_outputs, max_path, max_length)

    def kernel_functions(self) -> dict[str, Any]:
        """The TIR function of every distinct kernel phase, by name."""
        found: dict[str, Any] = {}
        for text in self._structures:
            plan = self._plans[self._texts.index(text)]
            for number, phase in enumerate(plan.phases):
                name = f"{plan.region.name}_phase_{number}"
                found[name] = phase_function(plan, phase, self._symbols, self.machine, self._templates)
        return found

    def kernel_texts(self) -> dict[str, str]:
        """The TIR script of every distinct kernel phase, by name."""
        return {name: each.script() for name, each in self.kernel_functions().items()}

    def pack(
        self, weights: Callable[[str], torch.Tensor], blocks: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """The weights as the code reads them, float32 [step.packed] (`memory.pack`)."""
        step = self.step
        return pack(step.weights, step.packed, self._declared, self._known.formats, weights, blocks or {})

    def program(
        self, weights: Callable[[str], torch.Tensor], blocks: Mapping[str, torch.Tensor] | None = None
    ) -> TvmProgram:
        """The step, with its code and its weights (as `pack` takes them), which are made on demand."""
        return TvmProgram(
            self.step,
            lambda: build(step_module(self.kernel_functions()), self.machine.target),
            lambda: self.pack(weights, blocks),
            self.kernel_texts,
            self.cacheable,
        )

    # --- the step

    def _step(self, max_rows: int, max_outputs: int, max_path: int, max_length: int) -> CompiledStep:
        planned = {"max_rows": self._function.max_rows, "max_outputs": self._function.max_outputs}
        for name, limit in (("max_rows", max_rows), ("max_outputs", max_outputs)):
            most = planned[name]
            if most is not None and limit > most:
                raise InvalidOptionError(f"{name} is {limit}, and memory was planned for {most}; plan for more.")
        layout = cache_layout(self._known)
        tables = -(-max_length // layout.block)
        limits = {"paths": [max_rows, max_path], "block_tables": [max_rows, tables], "outputs": [max_outputs]}
        capacity = dict.fromkeys(self._symbols, 1)
        for argument in self._function.block.args:
            kind = ir.tensor_type(argument)
            sizes = limits.get(str(argument.name_hint), [max_rows] * kind.rank)
            names = map(dimensions.symbol, kind.dims)
            capacity.update((name, size) for name, size in zip(names, sizes, strict=True) if name)
        arena = arena_layout(self._function, self._plans, capacity)
        arguments, inputs = self._arguments(capacity)
        names = [slot.key for plan in self._plans for slot in plan.slots if slot.kind == "weight"]
        weights, packed = weight_offsets(names, self._declared, self._known.formats)
        offsets = {value: each.offset for value, each in arguments.items()} | arena.values

        def place(number: int, index: int, slot: Slot) -> int:
            match slot.kind:
                case "value":
                    return offsets[slot.key]
                case "weight":
                    return weights[slot.key]
                case "cache":
                    return layout.offsets[slot.key]
                case "record":
                    return layout.record
                case _:
                    return arena.scratch[number][index]

        places = [
            [place(number, index, slot) for index, slot in enumerate(plan.slots)]
            for number, plan in enumerate(self._plans)
        ]
        program, spans = self._program(places)
        stream = {
            plan.region.results[0][1]: plan.region.stream for plan in self._plans if plan.region.stream is not None
        }
        first = next(iter(stream), None)
        kernels = [
            self._kernel(plan, self._structures[text], span, offsets, stream)
            for plan, text, span in zip(self._plans, self._texts, spans, strict=True)
        ]
        return CompiledStep(
            key=key_of(self.machine, [",".join(self._symbols), *self._structures]),
            symbols=tuple(self._symbols),
            arguments=tuple(arguments.values()),
            returned=tuple(_value(value, str(value.name_hint), offsets) for value in self._function.returned),
            kernels=tuple(kernels),
            program=program,
            weights=weights,
            packed=packed,
            arena=arena.size,
            inputs=inputs,
            branches=self._function.branches,
            stream=tuple({number % 2: offsets[value] for value, number in stream.items()}.values()),
            width=0 if first is None else int(ir.tensor_type(first).dims[-1]),
            record=layout.record,
            words=layout.words,
            block=layout.block,
            max_rows=max_rows,
            max_outputs=max_outputs,
            max_path=max_path,
            max_length=max_length,
        )

    def _arguments(self, capacity: Mapping[str, int]) -> tuple[dict[ir.SSAValue, Value], int]:
        """The arguments with their places in the inputs, in the order of `ROW_INPUTS`, and the inputs' size."""
        for argument in self._function.block.args:
            if argument.name_hint not in ROW_INPUTS:
                raise InvalidOptionError(
                    f"@{self._function.symbol} has an argument {argument.name_hint} that no step gives."
                )
        found: dict[ir.SSAValue, Value] = {}
        total = 0
        for argument in sorted(self._function.block.args, key=lambda each: ROW_INPUTS.index(str(each.name_hint))):
            found[argument] = _value(argument, str(argument.name_hint), {argument: total})
            if argument.name_hint != "block_tables":
                total += aligned(math.prod(ir.tensor_type(argument).sizes(capacity)))
        return found, total + GROWTH

    def _program(self, places: list[list[int]]) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
        """The calls in order, and those of each kernel."""
        first_functions: dict[str, int] = {}
        functions = 0
        for text in self._structures:
            first_functions[text] = functions
            functions += len(self._plans[self._texts.index(text)].phases)
        width = 1 + max(map(len, places), default=0)
        rows: list[list[int]] = []
        spans: list[tuple[int, int]] = []
        for plan, text, offsets in zip(self._plans, self._texts, places, strict=True):
            spans.append((len(rows), len(rows) + len(plan.phases)))
            for phase in range(len(plan.phases)):
                rows.append([first_functions[text] + phase, *offsets, *[0] * (width - 1 - len(offsets))])
        return np.array(rows, np.int64).reshape(-1, width), spans

    def _kernel(
        self,
        plan: Plan,
        structure: int,
        span: tuple[int, int],
        offsets: Mapping[ir.SSAValue, int],
        stream: Mapping[ir.SSAValue, int],
    ) -> Kernel:
        results = tuple(
            _value(outer, outer.name_hint or f"result_{number}", offsets)
            for number, (_, outer) in enumerate(plan.region.results)
        )
        weights, moved, history = _linear_weights(plan), _moved_shapes(plan), _history_numbers(plan)
        names = [stream.get(slot.key) if slot.kind == "value" else None for slot in plan.slots]
        return Kernel(
            plan.region.name,
            structure,
            span,
            results,
            weights,
            moved,
            history,
            branch=plan.region.branch,
            streams=tuple((1 + column, number) for column, number in enumerate(names) if number is not None),
            begins=plan.region.stream == 0 and len(results) == 1,
        )


def _value(value: ir.SSAValue, name: str, offsets: Mapping[ir.SSAValue, int]) -> Value:
    kind = ir.tensor_type(value)
    return Value(name, tuple(kind.dims), kind.dtype, offsets[value])


def _linear_weights(plan: Plan) -> tuple[str, ...]:
    """The weights of a kernel's linears."""
    bundles = [bundle for phase in plan.phases if isinstance(phase, ProductPhase) for bundle in phase.bundles]
    slots = [product.weight.slot for bundle in bundles for product in bundle.products]
    return tuple(dict.fromkeys(plan.slots[slot].key for slot in slots))


def _moved_shapes(plan: Plan) -> tuple[tuple[ir.Dim, ...], ...]:
    """The shapes of a kernel's inputs and results, each counted once."""
    return tuple(tuple(ir.tensor_type(slot.key).dims) for slot in plan.slots if slot.kind == "value")


def _history_numbers(plan: Plan) -> int:
    """Cached numbers that a kernel's attention reads for each position of a history."""
    layers = [phase.attention.layer for phase in plan.phases if isinstance(phase, AttentionPhase)]
    return sum(layer.heads * (layer.key_dim + padded(layer.value_dim)) for layer in layers)


def emit(planned: PlannedStep) -> TvmProgram:
    """The program of a planned `@step`."""
    return Lowering(planned.module, **planned.limits).program(planned.weights, planned.blocks)
