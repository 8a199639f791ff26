"""The device loop (`runtime.device_loop`): an iteration, from drafting to commit, is one launch of a CUDA graph.

On the CPU, the kernels of an iteration run one by one in Triton's interpreter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from forerun.errors import InvalidOptionError
from forerun.execute.triton.launcher import Launcher
from forerun.execute.triton.loop_calls import RING, WARPS, Call, Calls, Knowledge, Size, Text, load_kernels
from forerun.execute.triton.memory import State
from forerun.execute.triton.result import Ran
from forerun.runtime.cache import CachedSequence
from forerun.runtime.device_loop import LARGEST, Drafting
from forerun.runtime.executable import Draw, Float32, Int32, Rows
from forerun.runtime.round_size import Round


@dataclass(frozen=True)
class Enqueued:
    """An iteration in flight: its report's entry and the events around it, which the interpreter lacks."""

    size: Size
    entry: int
    began: Any  # also None if the iteration was not yet a graph: its time means nothing
    heard: Any


class TritonLoop:
    """Iterations of at most `largest` rows over one cache (`runtime.device_loop.DeviceLoop`)."""

    def __init__(self, launcher: Launcher, state: State, drafting: Drafting, largest: int) -> None:
        step = launcher.step
        most = min(step.max_rows, step.max_outputs, LARGEST)
        if not 1 <= largest <= most:
            raise InvalidOptionError(f"an iteration on the device has 1 to {most} rows, not {largest}")
        self.launcher, self.state, self.largest = launcher, state, largest
        self.prepares = not launcher.interpreted
        self.known = Knowledge.fresh(step.vocabulary, drafting, launcher.device)
        self.text = Text(launcher, drafting.places)
        self.calls = Calls(launcher, state, drafting, self.known, self.text)
        self._kernels = load_kernels(launcher.interpreted, launcher.sources)
        self._heard = torch.zeros_like(self.text.report, device="cpu", pin_memory=self.prepares)
        self._sizes: dict[int, Size] = {}
        self._blocks: Int32 = np.zeros(0, np.int32)
        self._draw: Draw | None = None
        self._enqueued: deque[Enqueued] = deque()
        self._reported: Size | None = None
        self._count = 0

    @property
    def pending(self) -> int:
        return len(self._enqueued)

    def prepare(self, rows: int, trial: Rows) -> None:
        layout, _ = self.launcher.load(trial)  # kernels are measured with as many rows as they will have
        self.launcher.launch_step(self.state, layout)
        self.text.begin([0, 0], 0, np.zeros(0, np.int32))  # beyond its last position, so nothing is written
        size = self.size(rows)
        self._launch(size)
        self._capture(size)

    def begin(
        self, sequence: CachedSequence, spare: Int32, tokens: Sequence[int], last: int, draw: Draw | None = None
    ) -> None:
        assert not self._enqueued, "a text begins while another is being decoded"
        assert len(spare) >= self.largest, "there are too few spare slots"
        self._count, self._blocks, self._draw = 0, sequence.blocks.copy(), draw
        self.text.begin(list(tokens), last, spare)
        for size in self._sizes.values():
            size.begin(self._blocks, self._draw)
        self.known.fade()

    def enqueue(self, rows: int) -> None:
        assert self.pending < RING, "a report would be overwritten before it is read"
        size, entry = self.size(rows), self._count % RING
        began = None if size.graph is None else _mark()
        if size.graph is None:
            self._launch(size)
        else:
            size.graph.replay()
        self._heard[entry].copy_(self.text.report[entry], non_blocking=True)
        self._enqueued.append(Enqueued(size, entry, began, _mark() if self.prepares else None))
        self._count += 1

    def report(self) -> Round:
        done = self._enqueued.popleft()
        self._reported = done.size
        if done.heard is not None:
            done.heard.synchronize()
        accepted, rows, *rest = self._heard[done.entry].tolist()
        seconds = None if done.began is None else done.began.elapsed_time(done.heard) * 1e-3
        return Round(rows, rest[:accepted], rest[LARGEST : LARGEST + accepted], seconds)

    def logits(self, rows: Sequence[int]) -> Float32:
        size = self._reported
        assert size is not None
        assert not self._enqueued, "the logits of this iteration have been overwritten"
        count = max(rows) + 1
        sizes = {"N": count, "M": count}
        ran = Ran(self.launcher, self.state, size.layout, sizes, self.launcher.whole, size.inputs)
        return ran.logits()[list(rows)]

    def end(self) -> None:
        if self.prepares:
            torch.cuda.current_stream(self.launcher.device).synchronize()
        self._enqueued.clear()

    def size(self, rows: int) -> Size:
        """Returns the inputs of iterations of at most `rows` rows."""
        if not 1 <= rows <= self.largest:
            raise InvalidOptionError(f"an iteration of this loop has 1 to {self.largest} rows, not {rows}")
        if rows not in self._sizes:
            layout = self.launcher.layout(rows, rows)
            numbers = layout.places["block_tables"] + self.launcher.step.tables
            inputs = torch.zeros(numbers, dtype=torch.int32, device=self.launcher.device)
            self._sizes[rows] = Size(rows, layout, inputs)
            self._sizes[rows].begin(self._blocks, self._draw)
        return self._sizes[rows]

    def _capture(self, size: Size) -> None:
        """Captures an iteration's launches as a graph; they ran before, so that everything is compiled and tuned."""
        torch.cuda.current_stream(self.launcher.device).synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._launch(size)
        size.graph = graph

    def _launch(self, size: Size) -> None:
        for call in self.calls.before(size):
            self.run(call)
        self.launcher.launch_step(self.state, size.layout, size.inputs)
        for call in self.calls.after(size):
            self.run(call)

    def run(self, call: Call) -> None:
        """Runs one kernel by itself."""
        function = getattr(self._kernels, call.kernel)
        constants = call.constants_of(function)
        if self.launcher.interpreted:
            from forerun.execute.triton import interpreter

            ordered = [call.arguments[name] for name in function.arg_names if name in call.arguments]
            interpreter.run(function, call.grid, ordered, constants)
            return
        function[call.grid](**call.arguments, **constants, num_warps=WARPS[call.kernel], enable_fp_fusion=False)


def _mark() -> Any:
    """Records an event in the stream."""
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
