"""The loop on the device (`runtime.device_loop`): a round is one launch of a CUDA graph, drafting to commit.

On the CPU the kernels of a round run one by one in Triton's interpreter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forerun.codegen.triton.memory import InputLayout, State
from forerun.codegen.triton.sources import load, overridden
from forerun.codegen.triton.step import Source
from forerun.errors import InvalidOptionError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.device_loop import SHARES, Drafting, Round
from forerun.runtime.executable import Float32, Int32

if TYPE_CHECKING:
    from forerun.codegen.triton.executable import TritonExecutable

CHUNK = 2048
"""Positions of a program that looks a text's end up."""
PART = 1024
"""Numbers of a program that moves a slot."""
SUCCESSORS = 8
"""Candidates that are remembered of a token."""
RING = 8
"""Reports that are kept: more than the rounds in flight."""
STRENGTH = 6.0
"""Observations that a prior weighs as much as."""
MEMORY = 4000.0
"""Observations of a feature after which its evidence is halved, between two texts."""
MOST_ROWS = 64
"""Of a round: a row's ancestors are a bit each."""
WARPS = {"look_up": 4, "propose": 1, "verify": 1, "remember": 1, "commit": 4}


def loop_source() -> Source:
    """The kernels of the loop, as a kernel's file."""
    text = Path(__file__).with_name("loop_kernels.py").read_text(encoding="utf-8")
    return Source("loop", text, "loop", (), "draft, verify, remember, commit")


def power(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(0, count - 1).bit_length()


@dataclass
class Knowledge:
    """What the loop has learned, on the device. It outlives a text."""

    successors: torch.Tensor  # [V, SUCCESSORS] each token's likeliest successors, -1 for none
    shares: torch.Tensor  # [V, SUCCESSORS] the class of each one's probability
    hits: torch.Tensor  # [features]
    trials: torch.Tensor  # [features]
    bounds: torch.Tensor  # the classes' upper bounds, but the last

    @classmethod
    def fresh(cls, vocabulary: int, drafting: Drafting, device: torch.device) -> Knowledge:
        prior = torch.from_numpy(drafting.prior()).to(device, torch.float32)
        table = torch.full((vocabulary, SUCCESSORS), -1, dtype=torch.int32, device=device)
        bounds = torch.from_numpy(SHARES).to(device, torch.float32)
        return cls(table, torch.zeros_like(table), prior * STRENGTH, torch.full_like(prior, STRENGTH), bounds)

    def fade(self) -> None:
        """Halve what has weighed long enough."""
        weight = torch.where(self.trials > MEMORY, 0.5, 1.0)
        self.hits *= weight
        self.trials *= weight


@dataclass
class Size:
    """Rounds of at most so many rows: the inputs of their step, and their graph."""

    rows: int
    layout: InputLayout
    inputs: torch.Tensor
    graph: Any = None

    @property
    def lanes(self) -> int:
        """Rows of a kernel's vectors."""
        return max(4, power(self.rows))

    def input(self, name: str) -> torch.Tensor:
        return self.inputs[self.layout.places[name] :]


@dataclass
class Tree:
    """A round's tree, and what becomes of it; each [MOST_ROWS], but `moves` [2, MOST_ROWS]."""

    parents: torch.Tensor
    depths: torch.Tensor
    features: torch.Tensor
    path: torch.Tensor
    moves: torch.Tensor

    @classmethod
    def fresh(cls, device: torch.device) -> Tree:
        def row() -> torch.Tensor:
            return torch.zeros(MOST_ROWS, dtype=torch.int32, device=device)

        return cls(row(), row(), row(), row(), torch.zeros((2, MOST_ROWS), dtype=torch.int32, device=device))


@dataclass
class TritonLoop:
    """Rounds over one cache (`runtime.device_loop.DeviceLoop`), of at most `largest` rows."""

    executable: TritonExecutable
    state: State
    drafting: Drafting
    largest: int
    known: Knowledge = field(init=False)
    tree: Tree = field(init=False)

    def __post_init__(self) -> None:
        most = min(self.executable.max_rows, self.executable.max_outputs, MOST_ROWS)
        if not 1 <= self.largest <= most:
            raise InvalidOptionError(f"a round on the device has 1 to {most} rows, not {self.largest}")
        device, length = self.executable.device, self.executable.max_length
        self.known = Knowledge.fresh(self.executable.vocabulary, self.drafting, device)
        self.tree = Tree.fresh(device)
        self._numbers = torch.zeros(3, dtype=torch.int32, device=device)  # LENGTH, LAST, ROUND
        self._tokens = torch.zeros(length + MOST_ROWS + 2, dtype=torch.int32, device=device)
        self._chunks = -(-length // CHUNK)
        self._finds = torch.zeros(self._chunks * max(1, self.drafting.places), dtype=torch.int32, device=device)
        self._spare = torch.zeros(self.executable.max_rows, dtype=torch.int32, device=device)
        width = 2 + 2 * MOST_ROWS
        self._told = torch.zeros((RING, width), dtype=torch.int32, device=device)
        self._heard = torch.zeros((RING, width), dtype=torch.int32, pin_memory=not self.executable.interpreted)
        self._sizes: dict[int, Size] = {}
        self._table: Int32 = np.zeros(0, np.int32)
        self._enqueued: deque[tuple[Size, int, Any]] = deque()
        self._count = 0
        self._last: Size | None = None
        source = overridden({"loop": loop_source()})["loop"]
        self._kernels = load(source, self.executable.interpreted)

    # --- the protocol

    @property
    def pending(self) -> int:
        return len(self._enqueued)

    def begin(self, sequence: CachedSequence, spare: Int32, tokens: Sequence[int], last: int) -> None:
        self._count = 0
        self._numbers.copy_(torch.tensor([len(tokens) - 1, last, 0], dtype=torch.int32))
        self._tokens[: len(tokens)].copy_(torch.tensor(tokens, dtype=torch.int32))
        self._spare[: len(spare)].copy_(torch.from_numpy(np.ascontiguousarray(spare)))
        self._table = sequence.blocks.copy()
        for size in self._sizes.values():
            self._fill(size)
        self.known.fade()

    def enqueue(self, rows: int) -> None:
        size = self._size(rows)
        if size.graph is not None:
            size.graph.replay()
        else:
            self._launch(size)
            if not self.executable.interpreted:
                self._capture(size)
        entry = self._count % RING
        self._heard[entry].copy_(self._told[entry], non_blocking=True)
        event: Any = None
        if not self.executable.interpreted:
            event = torch.cuda.Event()
            event.record()
        self._enqueued.append((size, entry, event))
        self._count += 1

    def report(self) -> Round:
        self._last, entry, event = self._enqueued.popleft()
        if event is not None:
            event.synchronize()
        accepted, rows, *rest = self._heard[entry].tolist()
        return Round(rows, rest[:accepted], rest[MOST_ROWS : MOST_ROWS + accepted])

    def logits(self, rows: Sequence[int]) -> Float32:
        assert self._last is not None
        assert not self._enqueued, "logits of a round that others have followed"
        count = max(rows) + 1
        return self.executable.value(self.executable.step.returned[0], {"N": count, "M": count})[list(rows)]

    def end(self) -> None:
        if not self.executable.interpreted:
            torch.cuda.current_stream(self.executable.device).synchronize()
        self._enqueued.clear()

    # --- rounds

    def _size(self, rows: int) -> Size:
        if rows not in self._sizes:
            layout = self.executable.layout(rows, rows)
            numbers = layout.places["block_tables"] + self.executable.step.tables
            inputs = torch.zeros(numbers, dtype=torch.int32, device=self.executable.device)
            self._sizes[rows] = Size(rows, layout, inputs)
            self._fill(self._sizes[rows])
        return self._sizes[rows]

    def _fill(self, size: Size) -> None:
        """What is the same in every round of a text."""
        size.input("block_tables")[: len(self._table)].copy_(torch.from_numpy(self._table))
        every = torch.arange(size.layout.outputs, dtype=torch.int32, device=size.inputs.device)
        size.input("outputs")[: size.layout.outputs].copy_(every)

    def _capture(self, size: Size) -> None:
        """The launches of a round as a graph; they ran once before, so that everything is compiled and tuned."""
        torch.cuda.current_stream(self.executable.device).synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._launch(size)
        size.graph = graph

    def _launch(self, size: Size) -> None:
        step, tree, known, drafting = self.executable.step, self.tree, self.known, self.drafting
        rows = {"ROWS": size.lanes}
        places = max(1, drafting.places)
        look = {"CHUNK": CHUNK, "PLACES": places, "LONGEST": drafting.longest}
        shares = len(SHARES) + 1
        if drafting.places:
            self._run("look_up", (self._chunks,), [self._numbers, self._tokens, self._finds], look)
        learned = [known.successors, known.shares, known.hits, known.trials]
        names = ("tokens", "positions", "slots", "bases", "paths", "block_tables")
        inputs = [size.inputs, *(size.input(name) for name in names)]
        self._run(
            "propose", (1,),
            [self._numbers, self._tokens, self._finds, *learned, self._spare]
            + [tree.parents, tree.depths, tree.features, *inputs],
            rows | look | {
                "MOST": size.rows, "DEEPEST": step.max_path, "FINDS": power(self._chunks * places),
                "SUCCESSORS": SUCCESSORS, "SHARES": shares, "RECYCLED": drafting.deepest,
                "WIDTH": power(places + SUCCESSORS), "BLOCK": step.block, "PATH": step.max_path,
            },
        )  # fmt: skip
        self.executable.launch_step(self.state, size.layout, size.inputs)
        _, ids, best = (self.executable.place(value) for value in step.returned)
        table = size.input("block_tables")
        self._run(
            "verify", (1,),
            [self._numbers, self._tokens, known.hits, known.trials, tree.parents, tree.depths, tree.features]
            + [tree.path, self._told, size.inputs, size.input("tokens"), size.input("slots"), table, tree.moves, ids],
            rows | {"LARGEST": MOST_ROWS, "RING": RING, "BLOCK": step.block, "STRIDE": self.executable.candidates},
        )  # fmt: skip
        candidates = self.executable.candidates
        self._run(
            "remember", (size.rows,),
            [size.inputs, size.input("tokens"), tree.path, ids, best, known.bounds, known.successors, known.shares],
            rows | {
                "CANDIDATES": candidates, "SUCCESSORS": SUCCESSORS, "WIDTH": power(candidates), "SHARES": shares,
            },
        )  # fmt: skip
        first, block, lane = self.state.places
        numbers = len(first)
        if numbers:
            pointers = [tree.moves, self.state.numbers, first, block, lane, numbers]
            constants = rows | {"BLOCK": step.block, "PART": PART}
            self._run("commit", (size.rows, -(-numbers // PART)), pointers, constants)

    def _run(self, name: str, grid: tuple[int, ...], pointers: list[Any], constants: dict[str, int]) -> None:
        function = getattr(self._kernels, name)
        if self.executable.interpreted:
            from forerun.codegen.triton import interpreter

            interpreter.run(function, grid, pointers, constants)
            return
        function[grid](*pointers, **constants, num_warps=WARPS[name], enable_fp_fusion=False)
