"""Lowers a module's entries to a program: nests, the kernels that a back end makes of them, and memory places."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.kernel_places import identifier, in_words, places
from forerun.codegen.loops.buffer import Buffer, element_of
from forerun.codegen.loops.emitter import Emitted, Emitter
from forerun.codegen.loops.nest import AttentionNest, Nest, ProductNest
from forerun.codegen.loops.placing import Facts, Plan
from forerun.codegen.loops.schedule import Scheduler
from forerun.codegen.loops.states import StateLayout
from forerun.codegen.loops.text import NestText, plain
from forerun.codegen.planned import PlannedStep
from forerun.codegen.program import (
    BYTES,
    NUMBER,
    Entry,
    Kernel,
    Launch,
    Message,
    Operand,
    Product,
    Program,
    Source,
    State,
    Value,
)
from forerun.codegen.regions import BLOCK, Region, block_size, products, regions
from forerun.errors import InvalidOptionError, UnsupportedOperationError
from forerun.signature import STEP, STEP_ARGUMENTS

log = logging.getLogger("forerun.kernels")
GROWTH = 4096
"""The initial size of the block tables, in numbers."""


@dataclass
class _Memory:
    """The places of an entry's values in the arena, one after another."""

    capacity: Mapping[str, int]  # the largest size of each named dimension
    alignment: int
    values: dict[ir.SSAValue, int] = field(default_factory=dict[ir.SSAValue, int])
    stream: dict[ir.SSAValue, int] = field(default_factory=dict[ir.SSAValue, int])
    end: int = 0
    sampled: int = 0
    scratch: dict[object, int] = field(default_factory=dict[object, int])
    """Memory private to one kernel, after all values; kernels reuse it one after another."""

    def aligned(self, count: int) -> int:
        return -(-count // self.alignment) * self.alignment

    def volume(self, dims: Sequence[ir.Dim]) -> int:
        return self.aligned(math.prod(dimensions.evaluate(dim, self.capacity) for dim in dims))

    def place(self, dims: Sequence[ir.Dim]) -> int:
        """Returns the next place, for a value of some dimensions."""
        self.end += self.volume(dims)
        return self.end - self.volume(dims)


def _record(state: StateLayout) -> int:
    """The bytes of one record of a state, without padding."""
    return math.prod(state.shape) * BYTES.get(state.buffer.element, NUMBER)


def _received(function: ir.Function) -> list[ir.SSAValue]:
    return [each.result for each in function.body if isinstance(each, ir.Receive)]


class Lowering:
    """The kernels of a module's entries, and the program that they make.

    The arguments of `@step` are named as the fields of `Rows`; a named dimension of another entry is at most the
    `max_length` of the planned step.

    Raises UnsupportedOperationError for operations that the back end has no kernel for.
    """

    def __init__(self, planned: PlannedStep, emitter: Callable[[int], Emitter], key: str = "") -> None:
        self.planned, module, self.limits = planned, planned.module, planned.limits
        self.entries = ir.entries(module)
        self.function = self.entries[STEP]
        self.declared = ir.weights(module)
        self._check()
        self.block = block_size(module) or BLOCK
        self.emitter = emitter(self.block)
        self.tables = -(-self.limits["max_length"] // self.block)
        self.weights = {name: self.emitter.weight(each) for name, each in self.declared.items()}
        self._note_experts()
        self.states = self._states(module)
        returned = self.function.returned
        candidates = returned[1] if len(returned) == 3 else None
        storage = {name: each.element for name, each in self.weights.items()}
        self.facts = Facts(self.states, self.block, storage, self.emitter.widths(), candidates)
        arguments = [value for each in self.entries.values() for value in (*each.block.args, *_received(each))]
        dims = [dim for argument in arguments for dim in ir.tensor_type(argument).dims]
        self.symbols = tuple(dict.fromkeys(filter(None, map(dimensions.symbol, dims))))
        self.sources: dict[str, Source] = {}
        self._names: dict[str, str] = {}
        self._used: dict[str, None] = {}
        self._arena = 0
        self._samples = False
        self.plans = {name: self._plans(each) for name, each in self.entries.items()}
        self.memory = {name: self._memory(name) for name in self.entries}
        self._labels = self._label()
        made = [self._entry(name) for name in self.entries]
        self.program = self._program(module, made, key)
        if log.isEnabledFor(logging.INFO):
            for name, used in places(self.program).items():
                log.info("%s: %s", name, in_words(used))

    def _check(self) -> None:
        function = self.function
        planned: dict[Literal["max_rows", "max_outputs"], int | None]
        planned = {"max_rows": function.max_rows, "max_outputs": function.max_outputs}
        for name, most in planned.items():
            limit = self.limits[name]
            if most is not None and limit > most:
                raise InvalidOptionError(f"{name} is {limit}, and memory was planned for {most}; plan for more.")
        for argument in self.function.block.args:
            if argument.name_hint not in STEP_ARGUMENTS:
                raise InvalidOptionError(f"@{STEP} has an argument {argument.name_hint} that no step gives.")

    def _note_experts(self) -> None:
        """Notes the part of experts that one row reads."""
        for product, parameter in products(self.planned.module):
            if isinstance(product, ir.ExpertLinear):
                weight = self.weights[parameter.symbol]
                part = min(weight.bytes, weight.bytes * ir.numbers_read(product) // math.prod(weight.shape))
                self.weights[parameter.symbol] = replace(weight, read=part)

    def _states(self, module: ir.ModuleOp) -> dict[str, StateLayout]:
        operations = [each for entry in self.entries.values() for each in ir.walk(entry.body)]
        keys = {str(each.symbol) for each in operations if isinstance(each, ir.TreeAttention)}
        found: dict[str, StateLayout] = {}
        for name, state in ir.states(module).items():
            if state.dtype != "f32":
                raise UnsupportedOperationError(
                    f"the {self.emitter.traits.target} target computes states in f32, and @{name} is {state.dtype}; "
                    "declare it as f32."
                )
            found[name] = self.emitter.state(state, self.block, name in keys)
        return found

    def _plans(self, function: ir.Function) -> list[Plan]:
        found = regions(function)
        last = found[-1] if found and function is self.function else None
        return [
            Plan(each)
            if isinstance(each.operations[0], ir.Exchange)
            else Scheduler(each, self.facts, self.emitter.traits, each is last).run()
            for each in found
        ]

    def _label(self) -> dict[ir.SSAValue, str]:
        """Names each value that kernels pass on, as nests show it, after the kernel that writes it."""
        results = [(plan.region.name, plan.region.results) for plans in self.plans.values() for plan in plans]
        return {
            outer: name + (f".{number}" if len(those) > 1 else "")
            for name, those in results
            for number, (_, outer) in enumerate(those)
        }

    # --- memory

    def capacity(self, name: str) -> dict[str, int]:
        """Returns the largest size of each named dimension of an entry."""
        limits = self.limits
        sizes = dict.fromkeys(self.symbols, limits["max_length"])
        if name != STEP:
            return {"M": 1, **sizes}
        rows = {"N": limits["max_rows"], "S": limits["max_rows"], "M": limits["max_outputs"]}
        return sizes | rows | {"D": limits["max_path"], "B": self.tables}

    def _memory(self, name: str) -> _Memory:
        """The plan in the IR (plan-memory); values that it has no place for lie after it, and scratch after those."""
        function, plans = self.entries[name], self.plans[name]
        found = _Memory(self.capacity(name), self.emitter.alignment)
        for operation in function.body:
            if isinstance(operation, ir.Kernel):
                places = (offset // NUMBER for offset in operation.offsets)
                found.values.update(zip(operation.results, places, strict=False))
            if isinstance(operation, ir.Receive) and operation.offset is not None:
                found.values[operation.result] = operation.offset // NUMBER
        found.end = found.aligned(-(-(function.arena or 0) // NUMBER))
        if self.emitter.floats_in_arena:
            for argument in function.block.args:
                kind = ir.tensor_type(argument)
                if element_of(kind.dtype) == "f32":
                    found.values[argument] = found.place(kind.dims)
        for outer in (outer for plan in plans for _, outer in plan.region.results):
            if outer not in found.values:
                found.values[outer] = found.place(ir.tensor_type(outer).dims)
        found.sampled = found.place(("M",)) if self.emitter.traits.tiles else found.end
        found.stream = {
            plan.region.results[0][1]: plan.region.stream for plan in plans if plan.region.stream is not None
        }
        return found

    # --- entries

    def _entry(self, name: str) -> Entry:
        function, memory = self.entries[name], self.memory[name]
        sizes = self.emitter.sizes(name, self.symbols)
        kernels = tuple(self._kernel(plan, memory, sizes) for plan in self.plans[name])
        self._arena = max(self._arena, memory.end)
        signature = function.signature
        arguments = list(function.block.args)
        if name == STEP:
            arguments.sort(key=lambda each: [*STEP_ARGUMENTS].index(str(each.name_hint)))
        at, input_places = self.emitter.first_input, dict[str, int]()
        for argument in arguments:
            label = signature.arguments[argument.index].name
            if argument in memory.values:
                input_places[label] = memory.values[argument]
                continue
            input_places[label] = at
            at += GROWTH if label == "block_tables" else memory.volume(ir.tensor_type(argument).dims)
        names = [each.name for each in signature.results]
        returned = tuple(
            self._value(value, label, memory) for value, label in zip(function.returned, names, strict=True)
        )
        return Entry(name, signature, input_places, sizes, at, kernels, returned)

    def _value(self, value: ir.SSAValue, name: str, memory: _Memory) -> Value:
        kind = ir.tensor_type(value)
        return Value(name, tuple(kind.dims), kind.dtype, memory.values[value], memory.stream.get(value))

    def _kernel(self, plan: Plan, memory: _Memory, sizes: Sequence[str]) -> Kernel:
        scratch = replace(memory, scratch={})
        launches = [each for nest in plan.nests for each in self._launches(plan, nest, scratch, sizes)]
        on_demand = [each for nest in plan.on_demand for each in self._launches(plan, nest, scratch, sizes)]
        self._arena = max(self._arena, scratch.end)
        region = plan.region
        results = tuple(
            self._value(outer, outer.name_hint or f"result_{number}", memory)
            for number, (_, outer) in enumerate(region.results)
        )
        given = [each for each in region.arguments.values() if not isinstance(each.owner, ir.Parameter | ir.Constant)]
        values = dict.fromkeys([*given, *(outer for _, outer in region.results)])
        moved = tuple(tuple(ir.tensor_type(each).dims) for each in values)
        attentions = [nest for nest in plan.nests if isinstance(nest, AttentionNest)]
        history = sum(_record(state) for each in attentions for state in (each.keys, each.values))
        begins = region.stream == 0 and len(results) == 1
        return Kernel(
            region.name,
            tuple(launches),
            results,
            moved,
            history,
            region.branch,
            begins,
            tuple(on_demand),
            all(isinstance(each, ir.Ancestors) for each in region.operations),
            self._message(region, memory),
            region.adds,
            tuple(self._product(each) for each in plan.nests if isinstance(each, ProductNest)),
            sum(each.heads * (each.key_dim + each.value_dim) for each in attentions),
        )

    def _product(self, nest: ProductNest) -> Product:
        outputs = sum(len(each.matrices) * each.columns for each in nest.segments)
        return Product(tuple(nest.rows), nest.features, outputs, self.emitter.arithmetic(nest))

    def _message(self, region: Region, memory: _Memory) -> Message | None:
        operation = region.operations[0]
        if not isinstance(operation, ir.Exchange):
            return None
        received = isinstance(operation, ir.Receive)
        value = operation.result if received else operation.operands[0]
        return Message(operation.payload, self._value(value, operation.payload, memory), received, operation.peers)

    def _launches(self, plan: Plan, nest: Nest, memory: _Memory, sizes: Sequence[str]) -> list[Launch]:
        matrices: tuple[str, ...] = ()
        if isinstance(nest, ProductNest):
            names = [str(matrix.weight.key) for segment in nest.segments for matrix in segment.matrices]
            matrices = tuple(dict.fromkeys(names))
        found: list[Launch] = []
        for emitted in self.emitter.kernels(nest, sizes):
            source = self._source(plan, nest, emitted)
            operands = tuple(self._operand(each, memory) for each in emitted.buffers)
            read = matrices if emitted.reads_matrices else ()
            found.append(Launch(source, operands, read, emitted.grid, emitted.config))
        return found

    def _source(self, plan: Plan, nest: Nest, emitted: Emitted) -> str:
        """Returns the name of a kernel's source, which is generated when first needed."""
        key = f"{emitted.kind} {emitted.key}"
        if key not in self._names:
            base = identifier(plan.region.name)
            base = base if base.endswith(emitted.kind) else f"{base}_{emitted.kind}"
            names = (base, *(f"{base}_{number}" for number in range(2, len(self.sources) + 2)))
            name = next(each for each in names if each not in self.sources)
            self._names[key] = name
            elements = tuple(each.element for each in emitted.buffers)
            text = emitted.source(name)
            readable = NestText(plain(self._labels)).nest(nest)
            together = emitted.grid.together if emitted.grid else (1,)
            self.sources[name] = Source(name, emitted.kind, text, readable, elements, emitted.words, together)
        return self._names[key]

    def _operand(self, buffer: Buffer, memory: _Memory) -> Operand:
        match buffer.space:
            case "value":
                return Operand("value", memory.values[buffer.key], buffer.element, memory.stream.get(buffer.key))
            case "scratch":
                dims = (*buffer.dims, 2) if buffer.element == "f64" else buffer.dims
                key = buffer.key, memory.volume(dims)  # nests of one kernel use a name for memory of several sizes
                if key not in memory.scratch:
                    memory.scratch[key] = memory.place(dims)
                return Operand("scratch", memory.scratch[key], buffer.element)
            case "sampled":
                self._samples = True
                return Operand("sampled", memory.sampled, buffer.element)
            case "weight":
                self._used[str(buffer.key)] = None
                return Operand("weight", str(buffer.key), buffer.element)
            case "state" | "request":
                return Operand("state", str(buffer.key), buffer.element)
            case _:
                return Operand(buffer.space, str(buffer.key), buffer.element)

    # --- the program

    def _program(self, module: ir.ModuleOp, entries: Sequence[Entry], key: str) -> Program:
        memory = self.memory[STEP]
        first = next(iter(memory.stream), None)
        stream = {number % 2: memory.values[value] for value, number in memory.stream.items()}
        sampled = Value("sampled", ("M",), "i32", memory.sampled) if self._samples else None
        digest = hashlib.sha256("\n".join([key, *map(str, self.symbols), *self._names]).encode()).hexdigest()
        return Program(
            target=self.emitter.traits.target,
            key=digest,
            generated=digest,
            entries=tuple(entries),
            sources=self.sources,
            weights={name: self.weights[name] for name in self._used},
            states={
                name: State(
                    str(declared.per),
                    tuple(declared.shape),
                    tuple(int(dim) for dim in self.states[name].buffer.dims[1:]),
                    self.states[name].buffer.element,
                    self.states[name].side_by_side,
                )
                for name, declared in ir.states(module).items()
            },
            sampled=sampled,
            arena=self._arena,
            stream=tuple(stream.values()),
            branches=self.function.branches,
            width=0 if first is None else int(ir.tensor_type(first).dims[-1]),
            block=self.block,
            tables=self.tables,
            **self.limits,
        )
