"""From a function of the IR to a Triton step: a source for each structure, launches, and where everything lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.planned import PlannedStep
from forerun.codegen.regions import BLOCK, block_size, regions, symbols
from forerun.codegen.triton.assembly import assemble, body_key
from forerun.codegen.triton.attention import AttentionText
from forerun.codegen.triton.attention_shape import Shape, split_size
from forerun.codegen.triton.expressions import Expressions, Slot, Stored
from forerun.codegen.triton.plan import AttentionLaunch, Plan, RecurrenceLaunch, Surroundings, TopKLaunch
from forerun.codegen.triton.planning import Planner
from forerun.codegen.triton.products import Products
from forerun.codegen.triton.recurrence import emit_recurrence, width_of
from forerun.codegen.triton.rowwise import RowsLaunch
from forerun.codegen.triton.step import (
    LEAST_BLOCK,
    SIZES,
    STEP_SIZES,
    Config,
    Entry,
    Grid,
    Kernel,
    Launch,
    Operand,
    Source,
    StateShape,
    TritonProgram,
    TritonStep,
    Value,
)
from forerun.codegen.triton.topk import CHUNK, Choice, emit_choice, emit_chunks
from forerun.errors import InvalidOptionError, UnsupportedOperationError
from forerun.signature import STEP, STEP_ARGUMENTS

ELEMENTS = {"bf16": "bf16", "f16": "f16"}
NUMBER = 4
"""Bytes of a number in the arena."""
ALIGNMENT = 64
"""Numbers that every place is a multiple of: 256 bytes."""
BYTES = {"f32": 4, "i32": 4, "bf16": 2, "f16": 2}


class Lowering:
    """The launches of a module's entries, and the step that they make.

    module      IR with `@step`, whose arguments are named as the fields of `Rows`
    storage     how matrices and the states per position are kept: "f32", "bf16" or "f16"
    max_length  positions a sequence may have, and the most that a named dimension of another entry counts

    Raises UnsupportedOperationError for an operation without a template.
    """

    def __init__(
        self,
        module: ir.ModuleOp,
        *,
        storage: str = "f32",
        max_rows: int = 256,
        max_outputs: int = 64,
        max_path: int = 64,
        max_length: int = 2048,
    ) -> None:
        entries = ir.entries(module)
        self._function = entries[STEP]
        self._declared = ir.weights(module)
        self._limits = (max_rows, max_outputs, max_path, max_length)
        self._block = block_size(module) or BLOCK
        self._tables = -(-max_length // self._block)
        self._known = self._surroundings(module, storage)
        self._check(max_rows, max_outputs)
        self._sources: dict[str, Source] = {}
        self._names: dict[str, str] = {}
        self._used: dict[str, str] = {}
        kernels = self._kernels()
        step = self._step(kernels)
        others = [self._entry(each, step) for each in entries.values() if each is not entries[STEP]]
        arena = max([step.arena, *(size for _, size in others)])
        self.step = replace(step, entries=tuple(each for each, _ in others), arena=arena)

    def _kernels(self) -> tuple[Kernel, ...]:
        """The kernels of the function at hand."""
        found = regions(self._function)
        plans = [Planner(region, self._known, last=region is found[-1]).run() for region in found]
        self._places, self._arena = self._arena_places(plans)
        self._stream = {
            plan.region.results[0][1]: plan.region.stream for plan in plans if plan.region.stream is not None
        }
        return tuple(self._kernel(plan) for plan in plans)

    def _entry(self, function: ir.Function, step: TritonStep) -> tuple[Entry, int]:
        """Another entry than the step, and the numbers of its arena."""
        self._function = function
        kernels = self._kernels()
        signature = function.signature
        places: dict[str, int] = {}
        at = SIZES
        for argument in signature.arguments:
            places[argument.name] = at
            at += self._volume(argument.dims)
        named = zip(function.returned, signature.results, strict=True)
        returned = tuple(self._value(value, each.name) for value, each in named)
        return Entry(function.symbol, signature, places, self._sizes, at, kernels, returned), self._arena

    @property
    def _sizes(self) -> tuple[str, ...]:
        """The dimensions whose sizes stand in front of the inputs."""
        return STEP_SIZES if self._function.symbol == STEP else tuple(symbols(self._function))

    def _surroundings(self, module: ir.ModuleOp, storage: str) -> Surroundings:
        kept: dict[str, str] = {}
        for name, weight in self._declared.items():
            given, dtype = weight.storage, weight.dtype
            if given is not None and given not in ELEMENTS:
                raise InvalidOptionError(
                    f"the cuda target has no kernels for the weight dtype {given}; use dtype float32, bfloat16 or "
                    "float16."
                )
            kept[name] = given or ("i32" if dtype in ir.INTEGER_DTYPES else "f32")
        states = ir.states(module)
        for each in states.values():
            if each.dtype != "f32":
                raise UnsupportedOperationError(
                    f"the cuda target computes states in f32, but @{each.symbol} is {each.dtype}; declare it as f32."
                )
        returned = self._function.returned
        candidates = returned[1] if len(returned) == 3 else None
        return Surroundings(states, self._block, self._tables, self._limits[2], kept, storage, candidates)

    def _check(self, max_rows: int, max_outputs: int) -> None:
        planned = {"max_rows": self._function.max_rows, "max_outputs": self._function.max_outputs}
        for name, limit in (("max_rows", max_rows), ("max_outputs", max_outputs)):
            most = planned[name]
            if most is not None and limit > most:
                raise InvalidOptionError(f"{name} is {limit}, but memory was planned for {most}; plan for more.")
        for argument in self._function.block.args:
            if argument.name_hint not in STEP_ARGUMENTS:
                raise InvalidOptionError(f"@step has the unknown argument {argument.name_hint}; remove it.")

    # --- memory

    @property
    def _capacity(self) -> dict[str, int]:
        rows, outputs, path, length = self._limits
        if self._function.symbol != STEP:
            return {"M": 1, **dict.fromkeys(symbols(self._function), length)}
        found = dict.fromkeys(symbols(self._function), 1)
        return found | {"N": rows, "M": outputs, "D": path, "S": rows, "B": self._tables}

    def _volume(self, dims: Sequence[ir.Dim]) -> int:
        count = math.prod(dimensions.evaluate(dim, self._capacity) for dim in dims)
        return -(-count // ALIGNMENT) * ALIGNMENT

    def _arena_places(self, plans: Sequence[Plan]) -> tuple[dict[ir.SSAValue, int], int]:
        """The plan that the IR carries (plan-memory); what it has no place for lies behind, and scratch behind that."""
        places: dict[ir.SSAValue, int] = {}
        for operation in self._function.body:
            offsets = operation.offsets if isinstance(operation, ir.Kernel) else ()
            places.update((value, at // NUMBER) for value, at in zip(operation.results, offsets, strict=False))
        end = -(-(self._function.arena or 0) // NUMBER // ALIGNMENT) * ALIGNMENT
        end += ALIGNMENT
        for plan in plans:
            for _, outer in plan.region.results:
                if outer not in places:
                    places[outer] = end
                    end += self._volume(ir.tensor_type(outer).dims)
        self._drawn = Value("drawn", ("M",), "i32", end)
        end += self._volume(self._drawn.dims)
        self._scratch = end
        return places, end

    # --- kernels

    def _kernel(self, plan: Plan) -> Kernel:
        places: dict[Slot, int] = {}
        top = self._scratch

        def place(slot: Slot) -> int:
            nonlocal top
            if slot.kind == "value":
                return self._places[slot.key]
            if slot.kind == "drawn":
                return self._drawn.place
            if slot not in places:
                places[slot] = top
                top += self._volume(slot.key[1])
                self._arena = max(self._arena, top)
            return places[slot]

        launches = [each for planned in plan.launches for each in self._launches(plan, *planned, place)]
        asked = [each for planned in plan.asked for each in self._launches(plan, *planned, place)]
        results = tuple(
            self._value(outer, outer.name_hint or f"result_{number}")
            for number, (_, outer) in enumerate(plan.region.results)
        )
        region = plan.region
        begins = region.stream == 0 and len(region.results) == 1
        weight_bytes = sum(each.weight_bytes for each in launches)
        return Kernel(region.name, tuple(launches), results, region.branch, begins, weight_bytes, tuple(asked))

    def _launches(self, plan: Plan, planned: Any, stored: dict[ir.SSAValue, Stored], place: Any) -> list[Launch]:
        """The launches of one planned, which may be several behind one another."""
        self._context = partial(Expressions, stored, plan.constants)
        segments = planned.segments if isinstance(planned, Products) else []
        self._matrices = {stored[linear.weight].slot for segment in segments for linear in segment.linears}
        return [
            self._launch(plan, kind, context, grid, config, words, place)
            for kind, context, grid, config, words in self._emitted(planned)
        ]

    def _emitted(self, planned: Any) -> list[tuple[str, list[Expressions], Grid, Config, str]]:
        """(kind, the body or a body for each variant, grid, first configuration, in words) of each launch."""
        match planned:
            case Products():
                context = self._context()
                planned.emit(context, self._known)
                kind = "products" if planned.choice is None else "head"
                grid = Grid(kind, (planned.rows,), tuple(each.columns.lanes for each in planned.segments))
                made = (kind, [context], grid, Config(block=LEAST_BLOCK), planned.describe())
                return [made] if planned.choice is None else [made, self._choice(planned.choice)]
            case RowsLaunch():
                context = self._context()
                planned.emit(context, self._known)
                units = tuple(each.unit_dims for each in planned.items)
                grid = Grid("rows", units, tuple(each.lanes for each in planned.items))
                config = Config(planned.block, 1, 4 if planned.block > 128 else 1, 1)
                return [("rows", [context], grid, config, planned.describe())]
            case AttentionLaunch():
                return self._attention(planned)
            case RecurrenceLaunch():
                context = self._context()
                emit_recurrence(context, planned, self._known)
                width = width_of(planned.operation)
                config = Config(width, 1, min(8, max(1, width // 128)), 1)
                words = f"a recurrence over {list(ir.tensor_type(planned.operation.result).dims)}"
                return [("recurrence", [context], Grid("recurrence", (("N",),)), config, words)]
            case _:
                assert isinstance(planned, TopKLaunch)
                return self._topk(planned)

    def _attention(self, planned: AttentionLaunch) -> list[Any]:
        operation = planned.operation
        symbol = operation.symbol
        heads = int(ir.tensor_type(operation.query).dims[1])
        groups, dim = self._known.states[symbol].shape
        value_dim = operation.value_dim
        if heads % groups:
            raise UnsupportedOperationError(
                f"the cuda target has no Triton template for {heads} heads over {groups} of keys."
            )
        _, _, path, length = self._limits
        split = split_size(length)
        splits = -(-length // split)
        element = self._known.position_element
        shape = Shape(heads, groups, dim, value_dim, self._known.block, split, self._tables, path, element)
        scratch = tuple(
            Stored(Slot("scratch", (f"{name} of {symbol}", dims)), dims, "f32", "f32")
            for name, dims in (("sums", ("N", heads, splits, value_dim)), ("totals", ("N", heads, splits, 2)))
        )
        text = AttentionText(operation, shape, self._known, (scratch[0], scratch[1]))
        bodies: list[Expressions] = []
        for shared in shape.shared:
            bodies.append(self._context())
            text.emit(bodies[-1], shared)
        combine = self._context()
        text.emit_combine(combine, planned.result)
        grid = Grid("attention", (("N",),), (splits, groups), (shape.rows, shape.head_tiles), shape.shared)
        return [
            ("attention", bodies, grid, Config(64, 16, 4, 3), text.describe()),
            ("combine", [combine], Grid("combine", (("N",),), (heads,)), Config(64, 1, 1, 2), "splits in order"),
        ]

    def _topk(self, planned: TopKLaunch) -> list[Any]:
        choice, chunks = planned.choice, self._context()
        emit_chunks(chunks, choice, planned.logits)
        grid = Grid("chunks", (choice.rows,), (choice.size,))
        return [("chunks", [chunks], grid, Config(CHUNK, 1, 4, 1), choice.describe()), self._choice(choice)]

    def _choice(self, choice: Choice) -> Any:
        context = self._context()
        emit_choice(context, choice)
        warps = min(16, max(4, choice.lanes // 512))
        return "choice", [context], Grid("choice", (choice.rows,)), Config(LEAST_BLOCK, 1, warps, 1), choice.describe()

    def _launch(
        self, plan: Plan, kind: str, bodies: list[Expressions], grid: Grid, config: Config, words: str, place: Any
    ) -> Launch:
        first = bodies[0]
        for other in bodies[1:]:
            for slot in other.arguments:
                first.argument(slot, other.elements[slot])
        variants = dict(zip(grid.together, bodies, strict=True))
        key = body_key(kind, variants, self._sizes)
        if key not in self._names:
            base = f"{plan.region.name}_{kind}"
            name, number = base, 1
            while name in self._sources:
                number += 1
                name = f"{base}_{number}"
            self._names[key] = name
            elements = tuple(first.elements[slot] for slot in first.arguments)
            text = assemble(name, words, variants, self._sizes)
            self._sources[name] = Source(name, text, kind, elements, words, grid.together)
        operands: list[Operand] = []
        for slot in first.arguments:
            element = first.elements[slot]
            if slot.kind in ("value", "scratch", "drawn"):
                stream = self._stream.get(slot.key) if slot.kind == "value" else None
                operands.append(Operand(slot.kind, place(slot), element, stream))
                continue
            operands.append(Operand(slot.kind, str(slot.key), element))
            if slot.kind == "weight":
                self._used[str(slot.key)] = element
        read = sum(self._bytes(slot.key) for slot in self._matrices) if kind in ("products", "head") else 0
        return Launch(self._names[key], tuple(operands), grid, config, read)

    def _bytes(self, name: Any) -> int:
        return _numbers(self._declared[name]) * BYTES[self._known.storage[name]]

    def _value(self, value: ir.SSAValue, name: str) -> Value:
        kind = ir.tensor_type(value)
        return Value(name, tuple(kind.dims), kind.dtype, self._places[value], self._stream.get(value))

    def _step(self, kernels: tuple[Kernel, ...]) -> TritonStep:
        rows, outputs, path, length = self._limits
        first = next(iter(self._stream), None)
        operands = [each for kernel in kernels for launch in kernel.launches for each in launch.operands]
        return TritonStep(
            sources=self._sources,
            kernels=kernels,
            returned=tuple(self._value(each, str(each.name_hint)) for each in self._function.returned),
            drawn=self._drawn if any(each.kind == "drawn" for each in operands) else None,
            weights=self._used,
            states={name: self._shape(each) for name, each in self._known.states.items()},
            signature=self._function.signature,
            entries=(),
            arena=self._arena,
            stream=tuple({number % 2: self._places[value] for value, number in self._stream.items()}.values()),
            branches=self._function.branches,
            width=0 if first is None else int(ir.tensor_type(first).dims[-1]),
            block=self._known.block,
            tables=self._tables,
            max_rows=rows,
            max_outputs=outputs,
            max_path=path,
            max_length=length,
        )

    def _shape(self, state: ir.State) -> StateShape:
        return StateShape(state.per, state.shape, self._known.position_element if state.per == "position" else "f32")

    def program(self, weights: Callable[[str], torch.Tensor]) -> TritonProgram:
        """The step, and the weights that it reads."""
        return TritonProgram(self.step, weights, {name: _numbers(self._declared[name]) for name in self.step.weights})


def _numbers(weight: ir.Weight) -> int:
    return math.prod(int(dim) for dim in weight.type.dims)


def emit(planned: PlannedStep) -> TritonProgram:
    """The program of a planned `@step`."""
    return Lowering(planned.module, storage=planned.storage, **planned.limits).program(planned.weights)
