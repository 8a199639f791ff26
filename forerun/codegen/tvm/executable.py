"""An IR function compiled for the CPU: one call runs all its kernels, for any number of rows."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forerun import ir
from forerun.codegen.tvm.cache import compile_kernels, key_of, load
from forerun.codegen.tvm.kernels import TEMPLATES, Template, phase_function
from forerun.codegen.tvm.memory import ArenaLayout, arena_layout, cache_layout, pack
from forerun.codegen.tvm.planning import Slot
from forerun.codegen.tvm.program import ENTRY
from forerun.codegen.tvm.structure import plans, structure, surroundings, symbols
from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.timing import KernelTime, linear_weights, value_bytes
from forerun.codegen.tvm.untyped import tvm, tvm_ffi
from forerun.errors import InvalidOptionError, TooLongError
from forerun.ir import dims as dimensions
from forerun.runtime.executable import Int32, Rows, StepResult

ROW_INPUTS = ("tokens", "positions", "sequences", "slots", "bases", "paths", "block_tables", "outputs")


@dataclass(frozen=True)
class TraceEntry:
    """One result of one kernel."""

    kernel: str
    output: str
    value: NDArray[Any]  # [N, ...] or [M, ...] for values of rows, wherever that axis is in the IR
    along: str | None  # "N" or "M", the name of the leading dimension; None where no axis runs along the rows


@dataclass
class State:
    """The cache: one record of `record` float32 numbers for each block."""

    numbers: torch.Tensor  # [blocks * record]
    shared: Any  # the same memory as TVM sees it

    @property
    def bytes(self) -> int:
        return self.numbers.nbytes


class TvmExecutable:
    """A compiled `@step` and its weights (`forerun.runtime.executable.Executable`).

    module      IR with the function `function`; its arguments are named as the fields of `Rows`
    weights     name -> torch tensor; each is read once
    max_rows    the largest N; memory for values grows with it
    max_outputs the largest M, `max_rows` by default
    max_path    the largest D
    max_length  positions a sequence may have
    threads     how many threads share a step; the machine's cores by default
    cache       keep and look for compiled code on disk
    templates   replacements for `kernels.TEMPLATES`, by name: a test's way to plant a fault. They turn the cache off.
    blocks      name -> uint8 [out, in / 32, bytes], for weights whose storage is a file's quantized blocks

    Raises UnsupportedOperationError for an operation without a rule here.
    """

    def __init__(
        self,
        module: ir.ModuleOp,
        weights: Callable[[str], torch.Tensor],
        *,
        function: str = "step",
        max_rows: int = 512,
        max_outputs: int | None = None,
        max_path: int = 64,
        max_length: int = 2048,
        threads: int | None = None,
        cache: bool = True,
        templates: Mapping[str, Template] | None = None,
        blocks: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._function = ir.functions(module)[function]
        known = surroundings(module, self._function)
        self._plans = plans(self._function, known)
        self._symbols = symbols(self._function)
        self._machine = Machine.host()
        self.max_rows, self.max_path, self.max_length = max_rows, max_path, max_length
        self.max_outputs = max_rows if max_outputs is None else max_outputs
        for name, limit in (("max_rows", self.max_rows), ("max_outputs", self.max_outputs)):
            planned = self._function.parameter(name, limit)
            if limit > planned:
                raise InvalidOptionError(f"{name} is {limit}, and memory was planned for {planned}; plan for more.")
        self._layout = cache_layout(known)
        self.block = self._layout.block
        self._read_results()
        self._threads = _set_threads(threads)
        self._templates = {**TEMPLATES, **(templates or {})}
        texts = [structure(plan, known) for plan in self._plans]
        self._kinds = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        self._texts = texts
        self._first_calls: dict[str, int] = {}
        calls = 0
        for text in self._kinds:
            self._first_calls[text] = calls
            calls += len(self._plans[texts.index(text)].phases)
        self._run = self._compile(cache and not templates)
        packed = pack(self._weight_names(), ir.weights(module), known.formats, weights, blocks or {})
        self._weights = packed
        capacity = dict.fromkeys(self._symbols, 1)
        for argument in self._function.block.args:
            for dim, size in zip(ir.tensor_type(argument).dims, self._capacity(argument), strict=True):
                if name := dimensions.symbol(dim):
                    capacity[name] = size
        self._capacities = capacity
        arena = arena_layout(self._function, self._plans, capacity)
        self._arena = torch.empty(max(1, arena.size))
        self._arena_layout = arena
        self._place_inputs()
        self._program, self._spans = self._write_program(arena)
        self._sizes = np.zeros(max(1, len(self._symbols)), np.int32)
        self._bind_memory()

    # --- compilation

    def kernel_functions(self) -> dict[str, Any]:
        """The TIR function of every distinct kernel phase, by name."""
        found: dict[str, Any] = {}
        for text in self._kinds:
            plan = self._plans[self._texts.index(text)]
            for number, phase in enumerate(plan.phases):
                name = f"{plan.region.name}_phase_{number}"
                found[name] = phase_function(plan, phase, self._symbols, self._machine, self._templates)
        return found

    def kernel_texts(self) -> dict[str, str]:
        """The TIR script of every distinct kernel phase, by name."""
        return {name: each.script() for name, each in self.kernel_functions().items()}

    def _compile(self, cache: bool) -> Any:
        key = key_of(self._machine, [",".join(self._symbols), *self._kinds]) if cache else None
        module = load(key) if key is not None else None
        self.from_cache = module is not None
        if module is None:
            module = compile_kernels(self.kernel_functions(), self._machine, key)
        self._module = module
        return module[ENTRY]

    # --- memory

    def _read_results(self) -> None:
        kinds = [ir.tensor_type(value) for value in self._function.returned]
        self.vocabulary = int(kinds[0].dims[-1]) if kinds and kinds[0].dims else 0
        self.candidates = int(kinds[1].dims[-1]) if len(kinds) > 1 else 0

    def _capacity(self, argument: ir.SSAValue) -> list[int]:
        rank = ir.tensor_type(argument).rank
        if argument.name_hint == "paths":
            return [self.max_rows, self.max_path]
        if argument.name_hint == "block_tables":
            return [self.max_rows, -(-self.max_length // self.block)]
        if argument.name_hint == "outputs":
            return [self.max_outputs]
        return [self.max_rows] * rank

    def _weight_names(self) -> list[str]:
        return [slot.key for plan in self._plans for slot in plan.slots if slot.kind == "weight"]

    def _place_inputs(self) -> None:
        """Offsets of the arguments in the int32 buffer; the block tables, which may grow, come last."""
        self._input_offsets: dict[ir.SSAValue, int] = {}
        total = 0
        for argument in sorted(self._function.block.args, key=lambda each: each.name_hint == "block_tables"):
            if argument.name_hint not in ROW_INPUTS:
                raise InvalidOptionError(
                    f"@{self._function.symbol} has an argument {argument.name_hint} that no step gives."
                )
            self._input_offsets[argument] = total
            if argument.name_hint != "block_tables":
                sizes = ir.tensor_type(argument).sizes(self._capacities)
                total += -(-math.prod(sizes) // 16) * 16
        self._inputs = np.zeros(total + 4096, np.int32)

    def _write_program(self, arena: ArenaLayout) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
        width = 1 + max((len(plan.slots) for plan in self._plans), default=0)
        rows: list[list[int]] = []
        spans: list[tuple[int, int]] = []
        for number, plan in enumerate(self._plans):
            offsets = [self._offset(slot, place, arena, number) for place, slot in enumerate(plan.slots)]
            first = self._first_calls[self._texts[number]]
            spans.append((len(rows), len(rows) + len(plan.phases)))
            for phase in range(len(plan.phases)):
                rows.append([first + phase, *offsets, *[0] * (width - 1 - len(offsets))])
        return np.array(rows, np.int64).reshape(-1, width), spans

    def _offset(self, slot: Slot, place: int, arena: ArenaLayout, number: int) -> int:
        match slot.kind:
            case "value":
                value = slot.key
                return self._input_offsets[value] if value in self._input_offsets else arena.values[value]
            case "weight":
                return self._weights.offsets[slot.key]
            case "cache":
                return self._layout.offsets[slot.key]
            case "record":
                return self._layout.record
            case _:
                return arena.scratch[number][place]

    def _bind_memory(self) -> None:
        numbers = self._weights.buffer
        self._shared = [
            tvm_ffi.from_dlpack(each)
            for each in (numbers, numbers.view(torch.int32), self._arena, self._arena.view(torch.int32))
        ]
        self._shared_program = tvm_ffi.from_dlpack(torch.from_numpy(self._program))
        self._shared_sizes = tvm_ffi.from_dlpack(torch.from_numpy(self._sizes))
        self._shared_inputs = tvm_ffi.from_dlpack(torch.from_numpy(self._inputs))
        self._arena_numbers = self._arena.numpy()
        self._arena_indices = self._arena.view(torch.int32).numpy()

    # --- running

    @property
    def weight_bytes(self) -> int:
        """What the packed weights take."""
        return self._weights.buffer.nbytes

    def new_state(self, blocks: int) -> State:
        """A cache of `blocks * P` slots, all zero."""
        numbers = torch.zeros(max(1, blocks) * self._layout.record)
        return State(numbers, tvm_ffi.from_dlpack(numbers))

    def run(self, state: State, rows: Rows) -> StepResult:
        """One step. The arrays of the result are views, valid until the next step."""
        self._load(rows)
        self._call(state, 0, len(self._program))
        values = [self._view(value) for value in self._function.returned]
        empty = np.zeros((len(rows.outputs), 0))
        ids: Any = values[1] if len(values) > 1 else empty.astype(np.int32)
        chosen: Any = values[2] if len(values) > 2 else empty.astype(np.float32)
        if len(values) > 2 and ids.dtype != np.int32:
            ids, chosen = chosen, ids
        return StepResult(values[0], ids, chosen)

    def trace(self, state: State, rows: Rows) -> list[TraceEntry]:
        """One step, kernel by kernel, with a copy of every kernel's results in order."""
        self._load(rows)
        entries: list[TraceEntry] = []
        for plan, (first, last) in zip(self._plans, self._spans, strict=True):
            self._call(state, first, last)
            for number, (_, outer) in enumerate(plan.region.results):
                name = outer.name_hint or f"result_{number}"
                dims = ir.tensor_type(outer).dims
                axis = next((axis for axis, dim in enumerate(dims) if dim in ("N", "M")), None)
                along = None if axis is None else str(dims[axis])
                value = np.moveaxis(self._view(outer), axis or 0, 0) if dims else self._view(outer)
                entries.append(TraceEntry(plan.region.name, name, value.copy(), along))
        return entries

    def time_kernels(self, state: State, rows: Rows, rounds: int = 5) -> list[KernelTime]:
        """The kernels of a step in order, each timed by itself in `rounds` whole steps.

        So each finds its weights where a step leaves them, in memory. The time of an empty launch is taken off.
        """
        self._load(rows)
        times: list[list[float]] = [[] for _ in self._spans]
        launches: list[float] = []
        for _ in range(rounds):
            for kernel_times, (first, last) in zip(times, self._spans, strict=True):
                start = time.perf_counter()
                self._call(state, first, last)
                middle = time.perf_counter()
                self._call(state, 0, 0)
                launches.append(time.perf_counter() - middle)
                kernel_times.append(middle - start)
        launch = median(launches)
        found: list[KernelTime] = []
        for plan, text, kernel_times in zip(self._plans, self._texts, times, strict=True):
            names = linear_weights(plan)
            moved = sum(self._weights.bytes(name) for name in names), value_bytes(plan, self._bindings, rows)
            seconds = max(0.0, median(kernel_times) - launch)
            found.append(KernelTime(plan.region.name, self._kinds[text], names, *moved, seconds))
        return found

    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        """Copy what is cached at each source slot to its destination; all reads happen before all writes."""
        if len(source) == 0:
            return
        numbers = state.numbers.numpy()  # torch would wake threads of its own, that then stand in the next step's way
        numbers[self._places(destination)] = numbers[self._places(source)]

    def _places(self, slots: Int32) -> NDArray[np.int64]:
        """[n, w]: where the numbers cached at slots lie."""
        whole = np.asarray(slots).astype(np.int64)
        return (whole // self.block * self._layout.record)[:, None] + self._layout.words[whole % self.block]

    def _load(self, rows: Rows) -> None:
        count, path = rows.paths.shape
        outputs = len(rows.outputs)
        if count > self.max_rows or outputs > self.max_outputs or path > self.max_path:
            raise TooLongError(
                f"A step of {count} rows, {outputs} outputs and paths of {path} slots exceeds what was compiled: "
                f"{self.max_rows} rows, {self.max_outputs} outputs, {self.max_path} slots."
            )
        bindings: dict[str, int] = {}
        for argument, offset in self._input_offsets.items():
            value: NDArray[np.int32] = getattr(rows, str(argument.name_hint))
            dimensions.bind(ir.tensor_type(argument).dims, value.shape, bindings)
            if offset + value.size > len(self._inputs):
                self._inputs = np.concatenate([self._inputs, np.zeros(2 * value.size, np.int32)])
                self._shared_inputs = tvm_ffi.from_dlpack(torch.from_numpy(self._inputs))
            self._inputs[offset : offset + value.size] = value.reshape(-1)
        for index, name in enumerate(self._symbols):
            self._sizes[index] = bindings[name]
        self._bindings = bindings

    def _call(self, state: State, first: int, last: int) -> None:
        self._run(
            self._shared_program,
            self._shared_sizes,
            *self._shared,
            state.shared,
            self._shared_inputs,
            first,
            last,
            self._threads,
        )

    def _view(self, value: ir.SSAValue) -> NDArray[Any]:
        kind = ir.tensor_type(value)
        sizes = kind.sizes(self._bindings)
        offset = self._arena_layout.values[value]
        source = self._arena_numbers if kind.dtype == "f32" else self._arena_indices
        return source[offset : offset + math.prod(sizes)].reshape(sizes)


def _set_threads(threads: int | None) -> int:
    """The number of parts each kernel is divided into; the pool is made as large once, where asked."""
    pool = int(tvm.get_global_func("runtime.NumThreads")())
    if threads is None:
        return pool
    if threads < 1:
        raise InvalidOptionError(f"threads is {threads}; give at least 1.")
    return min(threads, pool)


__all__: Sequence[str] = ["KernelTime", "State", "TraceEntry", "TvmExecutable"]
