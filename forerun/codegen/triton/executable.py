"""A Triton step with its weights on a device: one copy in, one graph launch, one wait.

On a GPU the launches of a (row bucket, output bucket, part) are captured once as a CUDA graph, the copy of the
candidates and drawn tokens back to the host at its end. Logits are computed when they are asked for. On the CPU the
same launches run one by one in Triton's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray

from forerun.codegen.branches import check_hidden, remaining, turn
from forerun.codegen.triton.configs import first_config
from forerun.codegen.triton.memory import (
    EntryLayout,
    InputLayout,
    State,
    input_layout,
    inputs_size,
    new_state,
)
from forerun.codegen.triton.result import DeviceStepResult, Ran
from forerun.codegen.triton.sources import function_name, load, overridden
from forerun.codegen.triton.step import Config, Kernel, Launch, Operand, TritonStep, Value
from forerun.errors import InvalidOptionError, TooLongError
from forerun.forking import require_process, with_live_threads
from forerun.runtime.device_loop import Drafting
from forerun.runtime.executable import (
    Branch,
    Draw,
    Float32,
    Inputs,
    Int32,
    KernelOutput,
    Part,
    Rows,
    StepResult,
    bound,
)
from forerun.signature import STEP

if TYPE_CHECKING:
    from forerun.codegen.triton.loop import TritonLoop

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Row counts of a graph; rows beyond a step's own do nothing."""


class Tuner(Protocol):
    """Chooses how a launch of so many rows is divided (`tuning`)."""

    def __call__(
        self,
        executable: TritonExecutable,
        launch: Launch,
        rows: int,
        shared: int,
        pointers: list[torch.Tensor],
        sizes: Mapping[str, int],
    ) -> Config: ...


class TritonExecutable:
    """A compiled `@step` that runs (`forerun.runtime.executable.Executable`).

    step        what was lowered
    weights     name -> tensor on the device (`memory.load_weights`)
    device      a CUDA device; "cpu" runs the kernels in Triton's interpreter
    tuner       chooses each launch's division; unmeasured by default
    """

    def __init__(
        self,
        step: TritonStep,
        weights: Mapping[str, torch.Tensor],
        device: str | torch.device = "cuda",
        tuner: Tuner | None = None,
    ) -> None:
        self.step, self.weights, self.device = step, weights, torch.device(device)
        self.entries = {STEP: step.signature} | {name: each.signature for name, each in step.entries.items()}
        self.block = step.block
        self.max_rows, self.max_outputs = step.max_rows, step.max_outputs
        self.max_path, self.max_length = step.max_path, step.max_length
        last = step.returned[0].dims[-1] if step.returned and step.returned[0].dims else 0
        self.vocabulary = last if isinstance(last, int) else 0
        self.candidates = int(step.returned[1].dims[-1]) if len(step.returned) == 3 else 0
        self.width = step.width
        self.draws = step.drawn is not None
        self._process = os.getpid()
        self.interpreted = self.device.type == "cpu"
        self.sources = overridden(step.sources)
        self.choices: dict[tuple[str, int, int], Config] = {}
        """By kernel, rows and tiles that share a load."""
        self._tuner = tuner
        self._modules: dict[str, Any] = {}
        self._arena = torch.zeros(step.arena, device=self.device)
        self._views = {"i32": self._arena.view(torch.int32), "f64": self._arena.view(torch.float64)}
        self._inputs = torch.zeros(inputs_size(step), dtype=torch.int32, device=self.device)
        pinned = not self.interpreted
        self._staging = torch.zeros(inputs_size(step), dtype=torch.int32, pin_memory=pinned)
        self._staged = self._staging.numpy()
        self._answers = self._copied_back()
        most = {"N": step.max_rows, "M": step.max_rows}
        self._found = [
            torch.zeros(each.sizes(most), dtype=self._type(each), pin_memory=pinned).view(-1) for each in self._answers
        ]
        late = any(kernel.begins for kernel in step.kernels)  # else no part could be entered behind branch 0
        found = (Branch(*each, self._read(number)) for number, each in enumerate(step.branches))
        self.branches = tuple(found) if late else ()
        self.head_bytes = self._read(None) if late else self.weight_bytes

    def _read(self, branch: int | None) -> int:
        return sum(each.weight_bytes for each in self.step.kernels if each.branch == branch)

    @property
    def weight_bytes(self) -> int:
        """What a step reads of its weights: those of its linears."""
        return sum(each.weight_bytes for each in self.step.kernels)

    @with_live_threads
    def new_state(self, blocks: int, requests: int = 1) -> State:
        """A cache of `blocks * P` slots, and what is constant for so many requests, all zero."""
        self._require_process()
        return new_state(self.step, max(1, blocks), self.device, max(1, requests))

    def _copied_back(self) -> list[Value]:
        """What the host waits for: the candidates' ids and logits, and the drawn tokens; nothing of a step that has
        none."""
        answers = [*self.step.returned[1:]] if self.candidates else []
        return [*answers, self.step.drawn] if self.step.drawn is not None else answers

    @overload
    def run(
        self,
        entry: Part,
        state: State,
        inputs: Rows,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult: ...
    @overload
    def run(self, entry: str, state: State, inputs: Inputs) -> tuple[NDArray[Any], ...]: ...
    @with_live_threads
    def run(
        self,
        entry: Part | str,
        state: State,
        inputs: Rows | Inputs,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult | tuple[NDArray[Any], ...]:
        """A part of the step, whose result is valid until the next run, or another entry by its name."""
        if isinstance(entry, str):
            assert not isinstance(inputs, Rows)
            return self._entry(entry, state, inputs)
        assert isinstance(inputs, Rows)
        return self._step(entry, state, inputs, hidden, draws)

    def _entry(self, name: str, state: State, inputs: Inputs) -> tuple[NDArray[Any], ...]:
        """Launches one by one, which are not worth a graph: an entry runs once for a request."""
        self._require_process()
        given = bound(self.entries, name, inputs)
        entry = self.step.entries[name]
        layout = EntryLayout(entry, entry.bound([each.shape for each in given]))
        used = layout.fill(self._staged, given)
        self._inputs[:used].copy_(self._staging[:used], non_blocking=True)
        self._launch_all(state, layout, entry.kernels, [])
        if not self.interpreted:
            torch.cuda.current_stream(self.device).synchronize()
        found = (self.value(each, layout.sizes).copy() for each in entry.returned)
        return tuple(
            array.astype(np.bool_) if each.dtype == "i1" else array
            for array, each in zip(found, entry.returned, strict=True)
        )

    def _step(
        self,
        part: Part,
        state: State,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        kernels, evaluated = remaining(self.step.kernels, part, len(self.step.branches))
        check_hidden(part, hidden is not None)
        drawing = draws if self.draws and draws is not None else ()
        layout, sizes = self._load(rows, drawing)
        if hidden is not None:
            place, count = self.step.stream[0], hidden.size
            self._arena[place : place + count].copy_(torch.from_numpy(np.ascontiguousarray(hidden).reshape(-1)))
        if self.interpreted or not self._answers:
            self._launch_all(state, layout, kernels, evaluated)
            found: list[Any] = [self.value(each, sizes) for each in self._answers]
        else:
            found = self._replay(state, layout, kernels, evaluated, sizes["M"])
        none: list[Any] = [np.zeros((sizes["M"], 0), kind) for kind in (np.int32, np.float32)]
        ids, best = found[:2] if self.candidates else none
        chosen: Any = found[2] if self.draws else None
        drawn = chosen if drawing else np.zeros(0, np.int32)
        return DeviceStepResult(Ran(self, state, layout, sizes, evaluated), ids, best, drawn, chosen)

    def launches(self, state: State, rows: Rows, kernels: Sequence[str]) -> Callable[[], None]:
        """The launches of some kernels of a step, to be measured or captured; the inputs are in place."""
        layout, _ = self._load(rows)
        chosen = [each for each in self.step.kernels if each.name in kernels]
        every = list(range(len(self.step.branches)))
        return lambda: self._launch_all(state, layout, chosen, every)

    @with_live_threads
    def trace(self, state: State, rows: Rows) -> list[KernelOutput]:
        """One step, kernel by kernel, with a copy of every kernel's results in order."""
        layout, sizes = self._load(rows)
        entries: list[KernelOutput] = []
        every = list(range(len(self.step.branches)))
        for kernel in self.step.kernels:
            self._launch_all(state, layout, [kernel], every)
            self.launch_each(kernel.asked, state, layout, every)
            for result in kernel.results:
                axis = next((axis for axis, dim in enumerate(result.dims) if dim in ("N", "M")), None)
                along = None if axis is None else str(result.dims[axis])
                value = self.value(result, sizes)
                moved = np.moveaxis(value, axis or 0, 0) if result.dims else value
                entries.append(KernelOutput(kernel.name, result.name, moved.copy(), along))
        return entries

    def loop(self, state: State, drafting: Drafting, largest: int) -> TritonLoop:
        """Decoding that goes on on the device (`runtime.device_loop.Loops`).

        Raises `InvalidOptionError` for a model whose steps it cannot prepare.
        """
        if not self.step.loops:
            raise InvalidOptionError(
                "the loop on the device gives a step tokens and places, and this model takes an order of rows or what "
                "is constant for a request, or chooses no candidates: decode it from the host"
            )
        from forerun.codegen.triton.loop import TritonLoop

        return TritonLoop(self, state, drafting, largest)

    @with_live_threads
    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        """Copy what is cached at each source slot to its destination; all reads happen before all writes.

        On a GPU this is enqueued behind the step, and nobody waits for it.
        """
        if len(source) == 0:
            return
        both = torch.from_numpy(np.concatenate([source, destination]).astype(np.int64))
        whole = both.to(self.device, non_blocking=True)
        for pool in state.pools.values():
            first, block, lane = pool.places
            places = first + (whole // self.block)[:, None] * block + (whole % self.block)[:, None] * lane
            pool.numbers[places[len(source) :]] = pool.numbers[places[: len(source)]]

    # --- memory

    def _require_process(self) -> None:
        if not self.interpreted:
            require_process(self._process)

    def value(self, value: Value, sizes: Mapping[str, int]) -> NDArray[Any]:
        """A value of the arena, on the host."""
        shape = value.sizes(sizes)
        return self.place(value)[: int(np.prod(shape))].reshape(shape).cpu().numpy()

    def stream(self, place: int, rows: int) -> Float32:
        """[N, D]"""
        return self._arena[place : place + rows * self.width].reshape(rows, self.width).cpu().numpy()

    @staticmethod
    def _type(value: Value) -> torch.dtype:
        return torch.float32 if value.dtype == "f32" else torch.int32

    def _load(self, rows: Rows, draws: Sequence[Draw | None] = ()) -> tuple[InputLayout, dict[str, int]]:
        self._require_process()
        count, path = rows.paths.shape
        outputs, (sequences, blocks) = len(rows.outputs), rows.block_tables.shape
        if count > self.max_rows or outputs > self.max_outputs or path > self.max_path:
            raise TooLongError(
                f"A step of {count} rows, {outputs} outputs and paths of {path} slots exceeds what was compiled: "
                f"{self.max_rows} rows, {self.max_outputs} outputs, {self.max_path} slots."
            )
        if blocks > self.step.tables or sequences > self.max_rows:
            raise TooLongError(
                f"A step of {sequences} sequences of {blocks} blocks exceeds what was compiled: {self.max_rows} "
                f"sequences of {self.step.tables} blocks."
            )
        if "requests" in self.step.takes and len(rows.requests) != sequences:
            raise InvalidOptionError(
                f"A step of {sequences} sequences is given the requests of {len(rows.requests)}: give one for each."
            )
        layout = self.layout(count, outputs)
        used = layout.fill(self._staged, rows, draws)
        self._inputs[:used].copy_(self._staging[:used], non_blocking=True)
        return layout, {"N": count, "M": outputs}

    def layout(self, rows: int, outputs: int) -> InputLayout:
        """Where the inputs of a step of so many rows and outputs lie."""
        return input_layout(self.step, bucket(rows, self.max_rows), bucket(outputs, self.max_outputs))

    def place(self, value: Value) -> torch.Tensor:
        """What begins with a value of the arena."""
        return (self._arena if value.dtype == "f32" else self._views["i32"])[value.place :]

    def _pointer(
        self, operand: Operand, state: State, inputs: torch.Tensor, places: Mapping[str, int], evaluated: list[int]
    ) -> torch.Tensor:
        match operand.kind:
            case "input" | "given":
                found = inputs[places[str(operand.key)] :]
                return found.view(torch.float32) if operand.element == "f32" else found
            case "weight":
                return self.weights[str(operand.key)]
            case "state":
                return state.parts[str(operand.key)]
            case _:
                place = int(operand.key)
                if operand.stream is not None:
                    place = self.step.stream[turn(evaluated, operand.stream)]
                if operand.element == "f64":
                    return self._views["f64"][place // 2 :]
                return (self._views["i32"] if operand.element == "i32" else self._arena)[place:]

    # --- launches

    def launch_step(self, state: State, layout: InputLayout, inputs: torch.Tensor) -> None:
        """The launches of a whole step whose inputs lie elsewhere."""
        self._launch_all(state, layout, self.step.kernels, list(range(len(self.step.branches))), inputs)

    def _launch_all(
        self,
        state: State,
        layout: InputLayout | EntryLayout,
        kernels: Sequence[Kernel],
        evaluated: list[int],
        inputs: torch.Tensor | None = None,
    ) -> None:
        for kernel in kernels:
            self.launch_each(kernel.launches, state, layout, evaluated, inputs)

    def launch_each(
        self,
        launches: Sequence[Launch],
        state: State,
        layout: InputLayout | EntryLayout,
        evaluated: list[int],
        inputs: torch.Tensor | None = None,
    ) -> None:
        """Launches of a step one after another; the inputs are in place."""
        inputs = self._inputs if inputs is None else inputs
        places, sizes = layout.places, layout.sizes
        for launch in launches:
            operands = (self._pointer(each, state, inputs, places, evaluated) for each in launch.operands)
            pointers = [inputs, *operands]
            self.launch(launch, pointers, sizes, self.config(launch, pointers, sizes))

    def config(self, launch: Launch, pointers: list[torch.Tensor], sizes: Mapping[str, int]) -> Config:
        """How a launch is divided."""
        rows, shared = launch.grid.count(sizes), launch.grid.shared(sizes)
        key = (launch.source, rows, shared)
        if key not in self.choices:
            if self._tuner is None:
                self.choices[key] = first_config(launch, rows, shared)
            else:
                self.choices[key] = self._tuner(self, launch, rows, shared, pointers, sizes)
        return self.choices[key]

    def launch(self, launch: Launch, pointers: list[torch.Tensor], sizes: Mapping[str, int], config: Config) -> None:
        """Run one kernel on the inputs and its operands. Arithmetic is as written: fp contraction is off."""
        if launch.source not in self._modules:
            self._modules[launch.source] = load(self.sources[launch.source], self.interpreted)
        shared = launch.grid.shared(sizes)
        grid = launch.grid.programs(sizes, config, shared)
        if 0 in grid:
            return  # a dimension of no elements
        function = getattr(self._modules[launch.source], function_name(shared))
        constants = {"BLOCK": config.block, "ROWS": config.rows}
        if self.interpreted:
            from forerun.codegen.triton import interpreter

            interpreter.run(function, grid, pointers, constants)
            return
        function[grid](*pointers, **constants, **compile_options(config))

    def _replay(
        self, state: State, layout: InputLayout, kernels: list[Kernel], evaluated: list[int], outputs: int
    ) -> list[NDArray[Any]]:
        """Launch the graph of this shape, captured the first time, and wait for what it copies back."""
        key = (layout.rows, layout.outputs, tuple(each.name for each in kernels))
        sizes = {"N": layout.rows, "M": layout.outputs}
        stream = torch.cuda.current_stream(self.device)
        if key not in state.graphs:
            self._launch_all(state, layout, kernels, evaluated)  # compiles and tunes outside of the capture
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._launch_all(state, layout, kernels, evaluated)
                for host, value in zip(self._found, self._answers, strict=True):
                    count = prod(value.sizes(sizes))
                    host[:count].copy_(self.place(value)[:count], non_blocking=True)
            state.graphs[key] = graph
        state.graphs[key].replay()
        stream.synchronize()
        shapes = [value.sizes(sizes) for value in self._answers]
        pairs = zip(self._found, shapes, strict=True)
        return [host.numpy()[: prod(shape)].reshape(shape)[:outputs] for host, shape in pairs]


def bucket(count: int, most: int) -> int:
    """The row count of the graph that runs so many rows, where a step has at most `most`."""
    return min(next((each for each in BUCKETS if each >= count), most), most)


def compile_options(config: Config) -> dict[str, Any]:
    """What Triton is told of a kernel beside its constants."""
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": False}
