"""A Triton step with its weights on a device: one copy in, one graph launch, one wait.

On a GPU, the launches of a (row bucket, output bucket, part) are captured once as a CUDA graph, which ends with the
copy of the candidates and sampled tokens to the host. Logits are computed on demand. On the CPU, the same launches run
one by one in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forerun.codegen.program import NUMBER, Kernel, Program, Value
from forerun.execute.branches import StepPart, check_hidden, read_bytes
from forerun.execute.runner import EntryRunner
from forerun.execute.triton.launcher import Launcher, Tuner
from forerun.execute.triton.loop import TritonLoop
from forerun.execute.triton.memory import TORCH, InputLayout, State, new_state
from forerun.execute.triton.result import DeviceStepResult, Ran
from forerun.forking import with_live_threads
from forerun.runtime.device_loop import Drafting
from forerun.runtime.executable import Draw, Float32, Int32, KernelOutput, Part, Rows, StepResult
from forerun.signature import Signature


class TritonExecutable(EntryRunner[State]):
    """A compiled `@step` that runs (`forerun.runtime.executable.Executable`).

    step        what was lowered
    weights     name -> tensor on the device (`memory.load_weights`)
    device      a CUDA device; "cpu" runs the kernels in Triton's interpreter
    tuner       chooses each launch's division; unmeasured by default
    """

    def __init__(
        self,
        step: Program,
        weights: Mapping[str, torch.Tensor],
        device: str | torch.device = "cuda",
        tuner: Tuner | None = None,
    ) -> None:
        self.step = step
        self.launcher = Launcher(step, weights, torch.device(device), tuner)
        self.entries: Mapping[str, Signature] = step.signatures
        self.overrides = step.overrides
        self.block = step.block
        self.max_rows, self.max_outputs = step.max_rows, step.max_outputs
        self.max_path, self.max_length = step.max_path, step.max_length
        self.vocabulary, self.candidates = step.vocabulary, step.candidates
        self.width = step.width
        self.draws = step.sampled is not None
        self._answers = self._copied_back()
        most, pinned = {"N": step.max_rows, "M": step.max_rows}, not self.launcher.interpreted
        types = (torch.float32 if each.dtype == "f32" else torch.int32 for each in self._answers)
        self._found = [
            torch.zeros(each.sizes(most), dtype=dtype, pin_memory=pinned).view(-1)
            for each, dtype in zip(self._answers, types, strict=True)
        ]
        self.branches, self.head_bytes = read_bytes(step)
        kept = [each for each in step.states.values() if each.per == "position"]
        self.slot_bytes = sum(each.numbers * TORCH[each.element].itemsize for each in kept) if pinned else 0
        self.row_bytes = sum(each.numbers * NUMBER for each in step.states.values() if each.per == "row")

    @property
    def weight_bytes(self) -> int:
        """The weight bytes that a step reads: those of its linears."""
        return sum(self.step.weight_bytes(each.matrices) for each in self.step.kernels)

    @with_live_threads
    def make_state(self, blocks: int, requests: int, rows: int) -> State:
        self.launcher.require_process()
        return new_state(self.step, blocks, self.launcher.device, requests, rows)

    def _copied_back(self) -> list[Value]:
        """Returns the values that the host waits for: the candidates' ids and logits and the sampled tokens, if any."""
        answers = [*self.step.returned[1:]] if self.candidates else []
        return [*answers, self.step.sampled] if self.step.sampled is not None else answers

    @with_live_threads
    def run_entry(
        self, name: str, state: State, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        entry = self.step.entry(name)
        self.launcher.load_entry(entry, given, sizes)
        self.launcher.launch_entry(entry, state, sizes)
        return tuple(self.launcher.value(each, sizes) for each in entry.returned)

    @with_live_threads
    def run_part(
        self,
        part: Part,
        state: State,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        found = StepPart(self.step, part)
        check_hidden(part, hidden is not None)
        drawing = draws if self.draws and draws is not None else ()
        layout, sizes = self.launcher.load(rows, drawing)
        if hidden is not None and found.given is not None:
            self.launcher.give_stream(found.given, hidden)
        if self.launcher.interpreted or not self._answers:
            self.launcher.launch_all(state, layout, found.kernels, found)
            answers: list[Any] = [self.launcher.value(each, sizes) for each in self._answers]
        else:
            answers = self._replay(state, layout, found, part.parallel, sizes["M"])
        none: list[Any] = [np.zeros((sizes["M"], 0), kind) for kind in (np.int32, np.float32)]
        ids, best = answers[:2] if self.candidates else none
        chosen: Any = answers[2] if self.draws else None
        drawn = chosen if drawing else np.zeros(0, np.int32)
        return DeviceStepResult(Ran(self.launcher, state, layout, sizes, found), ids, best, drawn, chosen)

    def launches(self, state: State, rows: Rows, kernels: Sequence[str]) -> Callable[[], None]:
        """Returns the launches of some kernels of a step, to be measured or captured; the inputs are in place."""
        return self.chosen_launches(state, rows, [each for each in self.step.kernels if each.name in kernels])

    def chosen_launches(self, state: State, rows: Rows, kernels: Sequence[Kernel]) -> Callable[[], None]:
        """Returns the launches of these kernels of a step; the inputs are in place."""
        layout, _ = self.launcher.load(rows)
        return lambda: self.launcher.launch_all(state, layout, kernels, self.launcher.whole)

    @with_live_threads
    def trace(self, state: State, rows: Rows) -> list[KernelOutput]:
        """Runs one step kernel by kernel; returns a copy of every result in order, but not of places of rows."""
        layout, sizes = self.launcher.load(rows)
        entries: list[KernelOutput] = []
        whole = self.launcher.whole
        for kernel in self.step.kernels:
            self.launcher.launch_all(state, layout, [kernel], whole)
            self.launcher.launch_all(state, layout, [kernel], whole, on_demand=True)
            for result in kernel.traced:
                axis = next((axis for axis, dim in enumerate(result.dims) if dim in ("N", "M")), None)
                along = None if axis is None else str(result.dims[axis])
                value = self.launcher.value(result, sizes)
                moved = np.moveaxis(value, axis or 0, 0) if result.dims else value
                entries.append(KernelOutput(kernel.name, result.name, moved.copy(), along))
        return entries

    def loop(self, state: State, drafting: Drafting, largest: int) -> TritonLoop:
        """Returns the decoding loop that runs on the device (`runtime.device_loop.Loops`)."""
        return TritonLoop(self.launcher, state, drafting, largest)

    @with_live_threads
    def copy_slots(self, state: State, source: Int32, destination: Int32) -> None:
        """Copies the cached contents of each source slot to its destination; all reads precede all writes.

        On a GPU this is enqueued after the step, and the host does not wait for it.
        """
        if len(source) == 0:
            return
        both = torch.from_numpy(np.concatenate([source, destination]).astype(np.int64))
        whole = both.to(self.launcher.device, non_blocking=True)
        places, numbers = state.places.of(whole, self.block), state.numbers
        numbers[places[len(source) :]] = numbers[places[: len(source)]]
        for name, each in self.step.states.items():
            if each.per == "row" and state.rows_at_slots:
                records = state.parts[name][each.numbers :][: state.room["slots"] * each.numbers]
                records = records.view(-1, each.numbers)
                records[whole[len(source) :]] = records[whole[: len(source)]]

    def _replay(
        self, state: State, layout: InputLayout, part: StepPart, parallel: int, outputs: int
    ) -> list[NDArray[Any]]:
        """Launches the graph of this shape, captured the first time, and waits for the values it copies back."""
        key = (layout.rows, layout.outputs, tuple(each.name for each in part.kernels), parallel)
        sizes = {"N": layout.rows, "M": layout.outputs}
        stream = torch.cuda.current_stream(self.launcher.device)
        if key not in state.graphs:
            self.launcher.launch_all(state, layout, part.kernels, part)  # compiles and tunes outside the capture
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.launcher.launch_all(state, layout, part.kernels, part)
                for host, value in zip(self._found, self._answers, strict=True):
                    count = prod(value.sizes(sizes))
                    host[:count].copy_(self.launcher.place(value)[:count], non_blocking=True)
            state.graphs[key] = graph
        state.graphs[key].replay()
        stream.synchronize()
        shapes = [value.sizes(sizes) for value in self._answers]
        pairs = zip(self._found, shapes, strict=True)
        return [host.numpy()[: prod(shape)].reshape(shape)[:outputs] for host, shape in pairs]
