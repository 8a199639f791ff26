"""From a function of the IR to a compiled step: its kernels, its program, and where everything lies."""

import math
from collections.abc import Callable, Mapping, Sequence
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
from forerun.codegen.tvm.memory import ArenaLayout, aligned, arena_layout, pack, state_layout, weight_offsets
from forerun.codegen.tvm.phases import AttentionPhase, Plan, ProductPhase, Slot
from forerun.codegen.tvm.program import build, step_module
from forerun.codegen.tvm.records import padded
from forerun.codegen.tvm.step import CompiledStep, Entry, Kernel, TvmProgram, Value
from forerun.codegen.tvm.structure import plans, structure, surroundings
from forerun.codegen.tvm.target import Machine
from forerun.errors import InvalidOptionError
from forerun.signature import STEP, STEP_ARGUMENTS

GROWTH = 4096
"""Numbers for the block tables, before they grow."""


class Lowering:
    """The kernels of a module's entries, and the step that they make.

    module      IR with `@step`, whose arguments are named as the fields of `Rows`
    max_rows    the largest N; memory for values grows with it
    max_outputs the largest M, `max_rows` by default
    max_path    the largest D
    max_length  positions a sequence may have, and the most that a named dimension of another entry counts
    templates   replacements for `kernels.TEMPLATES`, by name: a test's way to plant a fault. Their code is not kept

    Raises UnsupportedOperationError for an operation without a rule here.
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
        self._entries = ir.entries(module)
        self._function = self._entries[STEP]
        self._known = surroundings(module)
        self._declared = ir.weights(module)
        self._entry_plans = {name: plans(each, self._known) for name, each in self._entries.items()}
        self._plans = [plan for found in self._entry_plans.values() for plan in found]
        self._symbols = list(dict.fromkeys(name for each in self._entries.values() for name in symbols(each)))
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
                raise InvalidOptionError(f"{name} is {limit}, but memory was planned for {most}; plan for more.")
        layout = state_layout(self._known)
        tables = -(-max_length // layout.block)
        limits = {"paths": [max_rows, max_path], "block_tables": [max_rows, tables], "outputs": [max_outputs]}
        capacity = dict.fromkeys(self._symbols, max_length)
        for argument in self._function.block.args:
            kind = ir.tensor_type(argument)
            sizes = limits.get(str(argument.name_hint), [max_rows] * kind.rank)
            names = map(dimensions.symbol, kind.dims)
            capacity.update((name, size) for name, size in zip(names, sizes, strict=True) if name)
        arenas = {
            name: arena_layout(each, self._entry_plans[name], self._capacity(name, capacity, max_length))
            for name, each in self._entries.items()
        }
        names = [slot.key for plan in self._plans for slot in plan.slots if slot.kind == "weight"]
        weights, packed = weight_offsets(names, self._declared, self._known.formats)
        arguments: dict[str, dict[ir.SSAValue, Value]] = {}
        inputs = 0
        offsets: dict[ir.SSAValue, int] = {}
        for name in self._entries:
            arguments[name], size = self._arguments(name, self._capacity(name, capacity, max_length), arenas[name])
            inputs = max(inputs, size)
            offsets |= {value: each.offset for value, each in arguments[name].items()} | arenas[name].values
        scratch = [own for arena in arenas.values() for own in arena.scratch]

        def place(number: int, index: int, slot: Slot) -> int:
            match slot.kind:
                case "value":
                    return offsets[slot.key]
                case "weight":
                    return weights[slot.key]
                case "state":
                    return layout.offsets[slot.key]
                case "record":
                    return layout.sizes[slot.key]
                case _:
                    return scratch[number][index]

        places = [
            [place(number, index, slot) for index, slot in enumerate(plan.slots)]
            for number, plan in enumerate(self._plans)
        ]
        program, spans = self._program(places)
        own = self._entry_plans[STEP]
        stream = {plan.region.results[0][1]: plan.region.stream for plan in own if plan.region.stream is not None}
        first = next(iter(stream), None)
        kernels = [
            self._kernel(plan, self._structures[text], span, offsets, stream)
            for plan, text, span in zip(own, self._texts, spans, strict=False)
        ]
        return CompiledStep(
            key=key_of(self.machine, [",".join(self._symbols), *self._structures]),
            symbols=tuple(self._symbols),
            arguments=tuple(arguments[STEP].values()),
            returned=self._returned(STEP, offsets),
            kernels=tuple(kernels),
            program=program,
            weights=weights,
            packed=packed,
            arena=max(each.size for each in arenas.values()),
            inputs=inputs,
            branches=self._function.branches,
            stream=tuple({number % 2: offsets[value] for value, number in stream.items()}.values()),
            width=0 if first is None else int(ir.tensor_type(first).dims[-1]),
            entries=self._others(arguments, offsets, spans),
            record=layout.sizes["state"],
            request=layout.sizes["requests"],
            words=layout.words,
            block=layout.block,
            max_rows=max_rows,
            max_outputs=max_outputs,
            max_path=max_path,
            max_length=max_length,
        )

    def _capacity(self, name: str, step: Mapping[str, int], max_length: int) -> Mapping[str, int]:
        """The most that each named dimension of an entry counts."""
        return step if name == STEP else dict.fromkeys(self._symbols, max_length)

    def _arguments(
        self, name: str, capacity: Mapping[str, int], arena: ArenaLayout
    ) -> tuple[dict[ir.SSAValue, Value], int]:
        """An entry's arguments with their places, those of a step in the order of `STEP_ARGUMENTS`, and the inputs'
        size; the block tables, which may grow, come last."""
        arguments = list(self._entries[name].block.args)
        if name == STEP:
            for argument in arguments:
                if argument.name_hint not in STEP_ARGUMENTS:
                    raise InvalidOptionError(f"@{STEP} has the unknown argument {argument.name_hint}; remove it.")
            arguments.sort(key=lambda each: [*STEP_ARGUMENTS].index(str(each.name_hint)))
        names = [each.name for each in self._entries[name].signature.arguments]
        found: dict[ir.SSAValue, Value] = {}
        total = 0
        for argument in arguments:
            where = arena.values.get(argument, total)
            found[argument] = _value(argument, names[argument.index], {argument: where})
            if argument.name_hint != "block_tables" and argument not in arena.values:
                total += aligned(math.prod(ir.tensor_type(argument).sizes(capacity)))
        return found, total + GROWTH

    def _returned(self, name: str, offsets: Mapping[ir.SSAValue, int]) -> tuple[Value, ...]:
        entry = self._entries[name]
        named = zip(entry.returned, entry.signature.results, strict=True)
        return tuple(_value(value, each.name, offsets) for value, each in named)

    def _others(
        self,
        arguments: Mapping[str, Mapping[ir.SSAValue, Value]],
        offsets: Mapping[ir.SSAValue, int],
        spans: Sequence[tuple[int, int]],
    ) -> tuple[Entry, ...]:
        """The entries beside the step, whose calls stand behind its own in the program."""
        found: list[Entry] = []
        at = 0
        for name, own in self._entry_plans.items():
            calls = spans[at : at + len(own)]
            at += len(own)
            if name != STEP:
                span = (calls[0][0], calls[-1][1]) if calls else (0, 0)
                found.append(Entry(name, tuple(arguments[name].values()), self._returned(name, offsets), span))
        return tuple(found)

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


def texts(program: TvmProgram) -> dict[str, str]:
    """The TIR script of every distinct kernel phase, by name."""
    return program.texts()
