"""Launches a step's kernels on its inputs, its arena and its weights, which lie on a device.

On the CPU, the kernels run in Triton's interpreter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from forerun.codegen.program import Config, Entry, Kernel, Launch, Operand, Program, Value
from forerun.codegen.triton.layout import function_name
from forerun.errors import TooLongError
from forerun.execute.arguments import require_size
from forerun.execute.branches import StepPart
from forerun.execute.triton.configs import first_config, grid_of
from forerun.execute.triton.memory import InputLayout, State, inputs_size
from forerun.execute.triton.sources import load
from forerun.forking import require_process
from forerun.runtime.executable import Draw, Float32, Rows

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""The row counts of graphs; rows beyond a step's own do nothing."""


Find = Callable[[int], int]
"""Says where a kernel finds a value of the residual stream, by its number."""


class Tuner(Protocol):
    """Chooses how a launch of `rows` rows is divided (`tuning`)."""

    def __call__(
        self,
        launcher: Launcher,
        launch: Launch,
        rows: int,
        shared: int,
        pointers: list[torch.Tensor],
        sizes: Mapping[str, int],
    ) -> Config: ...


class Launcher:
    """Launches kernels of a step.

    step        what was lowered
    weights     name -> tensor on the device (`memory.load_weights`)
    device      a CUDA device; "cpu" runs the kernels in Triton's interpreter
    tuner       chooses each launch's division; unmeasured by default
    """

    def __init__(
        self, step: Program, weights: Mapping[str, torch.Tensor], device: torch.device, tuner: Tuner | None = None
    ) -> None:
        self.step, self.weights, self.device = step, weights, device
        self.whole = StepPart(step)
        self._process = os.getpid()
        self.interpreted = self.device.type == "cpu"
        self.sources = step.sources
        self.choices: dict[tuple[str, int, int], Config] = {}
        """The chosen divisions, by kernel, rows and number of tiles that share a load."""
        self.tuner = tuner
        self._modules: dict[str, Any] = {}
        self.arena = torch.zeros(step.memory, device=self.device)
        self._views = {"i32": self.arena.view(torch.int32), "f64": self.arena.view(torch.float64)}
        self._inputs = torch.zeros(inputs_size(step), dtype=torch.int32, device=self.device)
        self._staging = torch.zeros(inputs_size(step), dtype=torch.int32, pin_memory=not self.interpreted)
        self._staged = self._staging.numpy()

    # --- memory

    def require_process(self) -> None:
        """Raises ForkError in a process forked from the one that made this launcher."""
        if not self.interpreted:
            require_process(self._process)

    def load(self, rows: Rows, draws: Sequence[Draw | None] = ()) -> tuple[InputLayout, dict[str, int]]:
        """Puts a step's inputs in place; returns their layout and the numbers of rows and outputs."""
        self.require_process()
        require_size(rows, self.step)
        count, outputs, (sequences, blocks) = len(rows.tokens), len(rows.outputs), rows.block_tables.shape
        if blocks > self.step.tables or sequences > self.step.max_rows:
            raise TooLongError(
                f"A step of {sequences} sequences of {blocks} blocks exceeds what was compiled: {self.step.max_rows} "
                f"sequences of {self.step.tables} blocks."
            )
        layout = self.layout(count, outputs)
        used = layout.fill(self._staged, rows, draws)
        self._inputs[:used].copy_(self._staging[:used], non_blocking=True)
        return layout, {"N": count, "M": outputs}

    def load_entry(self, entry: Entry, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]) -> None:
        """Puts the arguments of an entry other than the step in place, with the sizes of its dimensions."""
        self.require_process()
        for argument, value in zip(entry.signature.arguments, given, strict=True):
            at = entry.places[argument.name]
            self._staged[at : at + value.size] = value.reshape(-1).view(np.int32)
        self._staged[: len(entry.sizes)] = [sizes.get(each, 0) for each in entry.sizes]
        self._inputs[: entry.inputs].copy_(self._staging[: entry.inputs], non_blocking=True)

    def layout(self, rows: int, outputs: int) -> InputLayout:
        """Returns the layout of the inputs for a step of this many rows and outputs."""
        buckets = bucket(rows, self.step.max_rows), bucket(outputs, self.step.max_outputs)
        return InputLayout(*buckets, self.step.max_path, self.step.tables, self.step.extra)

    def value(self, value: Value, sizes: Mapping[str, int]) -> NDArray[Any]:
        """Returns a value of the arena, on the host."""
        shape = value.sizes(sizes)
        return self.place(value)[: int(np.prod(shape))].reshape(shape).cpu().numpy()

    def stream(self, place: int, rows: int) -> Float32:
        """Returns [N, D]."""
        return self.arena[place : place + rows * self.step.width].reshape(rows, self.step.width).cpu().numpy()

    def give_stream(self, place: int, hidden: Float32) -> None:
        """Puts the stream's values [N, D] where a part that enters late reads them."""
        count = hidden.size
        self.arena[place : place + count].copy_(torch.from_numpy(np.ascontiguousarray(hidden).reshape(-1)))

    def place(self, value: Value) -> torch.Tensor:
        """Returns the memory that begins with a value of the arena."""
        return (self.arena if value.dtype == "f32" else self._views["i32"])[value.place :]

    def _pointer(
        self, operand: Operand, state: State, inputs: torch.Tensor, places: Mapping[str, int], find: Find
    ) -> torch.Tensor:
        match operand.kind:
            case "input":
                found = inputs[places[str(operand.key)] :]
                return found.view(torch.float32) if operand.element == "f32" else found
            case "weight":
                return self.weights[str(operand.key)]
            case "state":
                return state.parts[str(operand.key)]
            case _:
                place = int(operand.key)
                if operand.stream is not None:
                    place = find(operand.stream)
                if operand.element == "f64":
                    return self._views["f64"][place // 2 :]
                return (self._views["i32"] if operand.element == "i32" else self.arena)[place:]

    # --- launches

    def launch_step(self, state: State, layout: InputLayout, inputs: torch.Tensor | None = None) -> None:
        """Launches a whole step; its inputs may lie elsewhere."""
        self.launch_all(state, layout, self.step.kernels, self.whole, inputs)

    def launch_all(
        self,
        state: State,
        layout: InputLayout,
        kernels: Sequence[Kernel],
        part: StepPart,
        inputs: torch.Tensor | None = None,
        on_demand: bool = False,
    ) -> None:
        """Launches some kernels of a part of a step, or what these compute on demand; the inputs are in place."""
        sizes, given = {"N": layout.rows, "M": layout.outputs}, self._inputs if inputs is None else inputs
        for kernel in kernels:
            launches = kernel.on_demand if on_demand else kernel.launches
            self._launch_on(launches, state, layout.places, sizes, partial(part.place, kernel), given)

    def launch_entry(self, entry: Entry, state: State, sizes: Mapping[str, int]) -> None:
        """Launches an entry other than the step; its arguments are in place."""
        for kernel in entry.kernels:
            launches = [*kernel.launches, *kernel.on_demand]
            self._launch_on(launches, state, entry.places, sizes, partial(self.whole.place, kernel), self._inputs)

    def _launch_on(
        self,
        launches: Sequence[Launch],
        state: State,
        places: Mapping[str, int],
        sizes: Mapping[str, int],
        find: Find,
        inputs: torch.Tensor,
    ) -> None:
        for launch in launches:
            operands = (self._pointer(each, state, inputs, places, find) for each in launch.operands)
            pointers = [inputs, *operands]
            self.launch(launch, pointers, sizes, self.config(launch, pointers, sizes))

    def config(self, launch: Launch, pointers: list[torch.Tensor], sizes: Mapping[str, int]) -> Config:
        """Returns how a launch is divided."""
        rows, shared = grid_of(launch).count(sizes), grid_of(launch).shared(sizes)
        key = (launch.source, rows, shared)
        if key not in self.choices:
            if self.tuner is None:
                self.choices[key] = first_config(launch, rows, shared)
            else:
                self.choices[key] = self.tuner(self, launch, rows, shared, pointers, sizes)
        return self.choices[key]

    def launch(self, launch: Launch, pointers: list[torch.Tensor], sizes: Mapping[str, int], config: Config) -> None:
        """Runs one kernel on the inputs and its operands. Arithmetic is as written: fp contraction is off."""
        if launch.source not in self._modules:
            self._modules[launch.source] = load(self.sources[launch.source], self.interpreted)
        shared = grid_of(launch).shared(sizes)
        grid = grid_of(launch).programs(sizes, config, shared)
        function = getattr(self._modules[launch.source], function_name(shared))
        constants = {"BLOCK": config.block, "ROWS": config.rows}
        if self.interpreted:
            from forerun.execute.triton import interpreter

            interpreter.run(function, grid, pointers, constants)
            return
        function[grid](*pointers, **constants, **compile_options(config))


def bucket(count: int, most: int) -> int:
    """Returns the row count of the graph that runs `count` rows; a step has at most `most`."""
    return min(next((each for each in BUCKETS if each >= count), most), most)


def compile_options(config: Config) -> dict[str, Any]:
    """Returns the options that Triton gets for a kernel, besides its constants."""
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": False}
