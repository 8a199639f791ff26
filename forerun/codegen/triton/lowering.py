"""From a function of the IR to a Triton step: a source for each structure, launches, and where everything lies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forerun import ir
from forerun.codegen.regions import regions, symbols
from forerun.codegen.triton.emission import Emission
from forerun.codegen.triton.expressions import Expressions, Slot, Stored
from forerun.codegen.triton.memory import SIZE_PLACES
from forerun.codegen.triton.plan import Plan, Surroundings
from forerun.codegen.triton.planning import Planner
from forerun.codegen.triton.products import Products
from forerun.codegen.triton.sources import assemble, body_key
from forerun.codegen.triton.step import Config, Entry, Grid, Kernel, Launch, Operand, Source, TritonStep, Value
from forerun.codegen.triton.storing import state_shape
from forerun.errors import InvalidOptionError, UnsupportedOperationError
from forerun.ir import dims as dimensions
from forerun.signature import STEP, STEP_ARGUMENTS

ELEMENTS = {"bf16": "bf16", "f16": "f16"}
NUMBER = 4
"""Bytes of a number in the arena."""
ALIGNMENT = 64
"""Numbers that every place is a multiple of: 256 bytes."""
BYTES = {"f32": 4, "i32": 4, "bf16": 2, "f16": 2}


@dataclass
class Shared:
    """What all entries of a module have in common: weights, states and limits, and the sources of their kernels."""

    declared: Mapping[str, ir.Weight]
    known: Surroundings
    limits: tuple[int, int, int, int]  # the most rows, outputs and slots of a path, and positions of a sequence
    sources: dict[str, Source] = field(default_factory=dict[str, Source])
    names: dict[str, str] = field(default_factory=dict[str, str])  # by the kernel's structure
    used: dict[str, str] = field(default_factory=dict[str, str])  # element type of each weight that is read


class Lowering:
    """The launches of a module's entries, and the step that they make.

    module      IR with the function `step`, whose arguments are named as the fields of `Rows`, and other entries
    storage     how matrices, and what states keep per position, are kept: "f32", "bf16" or "f16"

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
        self._functions = ir.entries(module)
        self._declared = ir.weights(module)
        self._limits = (max_rows, max_outputs, max_path, max_length)
        self._check(max_rows, max_outputs)
        self._shared = Shared(self._declared, self._surroundings(module, storage), self._limits)
        self.step = self._step()

    def _surroundings(self, module: ir.ModuleOp, storage: str) -> Surroundings:
        kept: dict[str, str] = {}
        for name, weight in self._declared.items():
            given, dtype = weight.storage, weight.dtype
            if given is not None and given not in ELEMENTS:
                raise InvalidOptionError(
                    f"the cuda target has no kernels for weights kept as {given}; use dtype float32, bfloat16 or "
                    "float16."
                )
            kept[name] = given or ("i32" if dtype in ir.INTEGER_DTYPES else "f32")
        bodies = [each for function in self._functions.values() for each in ir.walk(function.body)]
        blocks = sorted({each.block for each in bodies if isinstance(each, ir.TreeAttention | ir.Recurrence)})
        if len(blocks) > 1:
            raise UnsupportedOperationError(
                f"the cuda target has blocks of one size, not of {blocks[0]} and {blocks[1]} positions; give all "
                "attentions and recurrences the same."
            )
        returned = self._functions[STEP].returned
        candidates = returned[1] if len(returned) == 3 else None
        block = blocks[0] if blocks else 16
        _, _, path, length = self._limits
        return Surroundings(ir.states(module), block, -(-length // block), path, kept, storage, candidates)

    def _check(self, max_rows: int, max_outputs: int) -> None:
        step = self._functions[STEP]
        planned = {"max_rows": step.max_rows, "max_outputs": step.max_outputs}
        for name, limit in (("max_rows", max_rows), ("max_outputs", max_outputs)):
            most = planned[name]
            if most is not None and limit > most:
                raise InvalidOptionError(f"{name} is {limit}, and memory was planned for {most}; plan for more.")
        for argument in step.signature.arguments:
            if argument != STEP_ARGUMENTS.get(argument.name):
                raise InvalidOptionError(f"@step has an argument {argument.name} that no step gives.")

    def _step(self) -> TritonStep:
        shared, (rows, outputs, path, length) = self._shared, self._limits
        lowered = {name: FunctionLowering(each, shared) for name, each in self._functions.items()}
        step = lowered[STEP]
        first = next(iter(step.stream), None)
        operands = [each for kernel in step.kernels for launch in kernel.launches for each in launch.operands]
        states = {name: state_shape(each, shared.known.number) for name, each in shared.known.states.items()}
        return TritonStep(
            signature=self._functions[STEP].signature,
            entries={name: each.entry() for name, each in lowered.items() if name != STEP},
            sources=shared.sources,
            kernels=step.kernels,
            returned=step.returned(),
            drawn=step.drawn if any(each.kind == "drawn" for each in operands) else None,
            weights=shared.used,
            states=states,
            number=shared.known.number,
            arena=max(each.arena for each in lowered.values()),
            stream=tuple({number % 2: step.places[value] for value, number in step.stream.items()}.values()),
            branches=self._functions[STEP].branches,
            width=0 if first is None else int(ir.tensor_type(first).dims[-1]),
            block=shared.known.block,
            tables=shared.known.tables,
            max_rows=rows,
            max_outputs=outputs,
            max_path=path,
            max_length=length,
        )


class FunctionLowering:
    """The launches of one entry, and where its values lie in the arena."""

    def __init__(self, function: ir.Function, shared: Shared) -> None:
        self._function, self._shared, self._known, self._limits = function, shared, shared.known, shared.limits
        self._is_step = function.symbol == STEP
        self._capacity = self._capacities()
        found = regions(function)
        plans = [Planner(region, self._known, self._is_step and region is found[-1]).run() for region in found]
        self.places, self.arena = self._arena_places(plans)
        self.stream = {
            plan.region.results[0][1]: plan.region.stream for plan in plans if plan.region.stream is not None
        }
        self.kernels = tuple(self._kernel(plan) for plan in plans)

    def entry(self) -> Entry:
        sizes = {name: self._capacity[name] for name in symbols(self._function)}
        return Entry(self._function.signature, self.kernels, self.returned(), sizes)

    def returned(self) -> tuple[Value, ...]:
        """The function's results."""
        named = self._function.signature.results
        for value in self._function.returned:
            if value not in self.places:
                raise UnsupportedOperationError(
                    f"the cuda target returns what @{self._function.symbol} computes, not its arguments or weights; "
                    "leave them out of spec.return."
                )
        return tuple(self._value(each, name.name) for each, name in zip(self._function.returned, named, strict=True))

    # --- memory

    def _capacities(self) -> dict[str, int]:
        """The largest size of each named dimension: those of a step, and for others the positions of a sequence."""
        rows, outputs, path, length = self._limits
        of_step = {"N": rows, "M": outputs, "D": path, "S": rows, "B": self._known.tables}
        if self._is_step:
            return dict.fromkeys(symbols(self._function), 1) | of_step
        arguments = self._function.signature.arguments
        rows_given = {dim for each in arguments if each == STEP_ARGUMENTS.get(each.name) for dim in each.dims}
        return {name: of_step[name] if name in rows_given else length for name in symbols(self._function)}

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
        self.drawn = Value("drawn", ("M",) if self._is_step else (), "i32", end)
        end += self._volume(self.drawn.dims)
        self._scratch = end
        return places, end

    # --- kernels

    def _kernel(self, plan: Plan) -> Kernel:
        places: dict[Slot, int] = {}
        top = self._scratch

        def place(slot: Slot) -> int:
            nonlocal top
            if slot.kind == "value":
                return self.places[slot.key]
            if slot.kind == "drawn":
                return self.drawn.place
            if slot not in places:
                places[slot] = top
                top += self._volume(slot.key[1])
                self.arena = max(self.arena, top)
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
        places = SIZE_PLACES if self._is_step else {name: at for at, name in enumerate(symbols(self._function))}

        def context(kind: type[Expressions] = Expressions) -> Expressions:
            return kind(stored, plan.constants, places)

        segments = planned.segments if isinstance(planned, Products) else []
        self._matrices = {stored[linear.weight].slot for segment in segments for linear in segment.linears}
        return [
            self._launch(plan, kind, bodies, grid, config, words, place)
            for kind, bodies, grid, config, words in Emission(context, self._known, self._limits[-1]).of(planned)
        ]

    def _launch(
        self, plan: Plan, kind: str, bodies: list[Expressions], grid: Grid, config: Config, words: str, place: Any
    ) -> Launch:
        first = bodies[0]
        for other in bodies[1:]:
            for slot in other.arguments:
                first.argument(slot, other.elements[slot])
        variants = dict(zip(grid.together, bodies, strict=True))
        key = body_key(kind, variants)
        shared = self._shared
        if key not in shared.names:
            prefix = "" if self._is_step else f"{self._function.symbol}_"
            base = f"{prefix}{plan.region.name}_{kind}"
            name, number = base, 1
            while name in shared.sources:
                number += 1
                name = f"{base}_{number}"
            shared.names[key] = name
            elements = tuple(first.elements[slot] for slot in first.arguments)
            text = assemble(name, words, variants)
            shared.sources[name] = Source(name, text, kind, elements, words, grid.together)
        operands: list[Operand] = []
        for slot in first.arguments:
            element = first.elements[slot]
            if slot.kind in ("value", "scratch", "drawn"):
                stream = self.stream.get(slot.key) if slot.kind == "value" else None
                operands.append(Operand(slot.kind, place(slot), element, stream))
                continue
            operands.append(Operand(slot.kind, str(slot.key), element))
            if slot.kind == "weight":
                shared.used[str(slot.key)] = element
        read = sum(self._bytes(slot.key) for slot in self._matrices) if kind in ("products", "head") else 0
        return Launch(shared.names[key], tuple(operands), grid, config, read)

    def _bytes(self, name: Any) -> int:
        dims = [int(dim) for dim in self._shared.declared[name].type.dims]
        return math.prod(dims) * BYTES[self._known.storage[name]]

    def _value(self, value: ir.SSAValue, name: str) -> Value:
        kind = ir.tensor_type(value)
        return Value(name, tuple(kind.dims), kind.dtype, self.places[value], self.stream.get(value))
