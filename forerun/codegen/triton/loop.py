"""The loop on the device (`runtime.device_loop`): a round is one launch of a CUDA graph, from drafting to commit.

On the CPU the kernels of a round run one by one in Triton's interpreter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forerun.codegen.triton.loop_calls import RING, WARPS, Call, Calls, Knowledge, Size, Text, loop_source
from forerun.codegen.triton.memory import State
from forerun.codegen.triton.result import Ran
from forerun.codegen.triton.sources import load, overridden
from forerun.errors import InvalidOptionError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.device_loop import LARGEST, Drafting, Round
from forerun.runtime.executable import Draw, Float32, Int32

if TYPE_CHECKING:
    from forerun.codegen.triton.executable import TritonExecutable


class TritonLoop:
    """Rounds over one cache (`runtime.device_loop.DeviceLoop`), of at most `largest` rows."""

    def __init__(self, executable: TritonExecutable, state: State, drafting: Drafting, largest: int) -> None:
        most = min(executable.max_rows, executable.max_outputs, LARGEST)
        if not 1 <= largest <= most:
            raise InvalidOptionError(f"a round on the device has 1 to {most} rows, not {largest}")
        self.executable, self.state, self.largest = executable, state, largest
        self.known = Knowledge.fresh(executable.vocabulary, drafting, executable.device)
        self.text = Text(executable, drafting.places)
        self.calls = Calls(executable, state, drafting, self.known, self.text)
        source = overridden({"loop": loop_source()})["loop"]
        self._kernels = load(source, executable.interpreted)
        self._heard = torch.zeros_like(self.text.report, device="cpu", pin_memory=not executable.interpreted)
        self._sizes: dict[int, Size] = {}
        self._blocks: Int32 = np.zeros(0, np.int32)
        self._draw: Draw | None = None
        self._enqueued: deque[tuple[Size, int, Any]] = deque()
        self._reported: Size | None = None
        self._count = 0

    @property
    def pending(self) -> int:
        return len(self._enqueued)

    def begin(
        self, sequence: CachedSequence, spare: Int32, tokens: Sequence[int], last: int, draw: Draw | None = None
    ) -> None:
        self._count, self._blocks, self._draw = 0, sequence.blocks.copy(), draw
        self.text.begin(list(tokens), last, spare)
        for size in self._sizes.values():
            size.begin(self._blocks, self._draw)
        self.known.fade()

    def enqueue(self, rows: int) -> None:
        size = self.size(rows)
        if size.graph is not None:
            size.graph.replay()
        else:
            self._launch(size)
            if not self.executable.interpreted:
                self._capture(size)
        entry = self._count % RING
        self._heard[entry].copy_(self.text.report[entry], non_blocking=True)
        event: Any = None
        if not self.executable.interpreted:
            event = torch.cuda.Event()
            event.record()
        self._enqueued.append((size, entry, event))
        self._count += 1

    def report(self) -> Round:
        self._reported, entry, event = self._enqueued.popleft()
        if event is not None:
            event.synchronize()
        accepted, rows, *rest = self._heard[entry].tolist()
        return Round(rows, rest[:accepted], rest[LARGEST : LARGEST + accepted])

    def logits(self, rows: Sequence[int]) -> Float32:
        size = self._reported
        assert size is not None
        assert not self._enqueued, "logits of a round that others have followed"
        count = max(rows) + 1
        every = list(range(len(self.executable.step.branches)))
        ran = Ran(self.executable, self.state, size.layout, {"N": count, "M": count}, every, size.inputs)
        return ran.logits()[list(rows)]

    def end(self) -> None:
        if not self.executable.interpreted:
            torch.cuda.current_stream(self.executable.device).synchronize()
        self._enqueued.clear()

    def size(self, rows: int) -> Size:
        """The inputs of rounds of at most so many rows."""
        if rows not in self._sizes:
            layout = self.executable.layout(rows, rows)
            numbers = layout.places["block_tables"] + self.executable.step.tables
            inputs = torch.zeros(numbers, dtype=torch.int32, device=self.executable.device)
            self._sizes[rows] = Size(rows, layout, inputs)
            self._sizes[rows].begin(self._blocks, self._draw)
        return self._sizes[rows]

    def _capture(self, size: Size) -> None:
        """The launches of a round as a graph; they ran once before, so that everything is compiled and tuned."""
        torch.cuda.current_stream(self.executable.device).synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._launch(size)
        size.graph = graph

    def _launch(self, size: Size) -> None:
        for call in self.calls.before(size):
            self.run(call)
        self.executable.launch_step(self.state, size.layout, size.inputs)
        for call in self.calls.after(size):
            self.run(call)

    def run(self, call: Call) -> None:
        """One kernel, by itself."""
        function = getattr(self._kernels, call.kernel)
        constants = {name: call.constants[name] for name in function.arg_names if name in call.constants}
        if self.executable.interpreted:
            from forerun.codegen.triton import interpreter

            ordered = [call.arguments[name] for name in function.arg_names if name in call.arguments]
            interpreter.run(function, call.grid, ordered, constants)
            return
        function[call.grid](**call.arguments, **constants, num_warps=WARPS[call.kernel], enable_fp_fusion=False)
