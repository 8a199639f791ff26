"""An iteration of the device loop as calls of its kernels (`loop_kernels.py`), before and after its step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forerun.codegen.program import Source
from forerun.codegen.triton.layout import DRAWING, WORDS
from forerun.errors import InvalidOptionError
from forerun.execute.triton.launcher import Launcher
from forerun.execute.triton.memory import InputLayout, State, draw_words
from forerun.execute.triton.sources import load
from forerun.runtime.device_loop import LARGEST, RANKS, Drafting
from forerun.runtime.drafters.base import AcceptanceRates
from forerun.runtime.drafters.token_recycling import SHARES, STILL_TRUE
from forerun.runtime.executable import Draw, Int32

LOOP = "loop"
"""The name of the kernels of the loop among a program's sources, where a user has edited them."""
CHUNK = 2048
"""Positions per program that looks up a text's end."""
PART = 1024
"""Numbers per program that moves a slot."""
SUCCESSORS = 8
"""Candidates remembered per token."""
RING = 8
"""Reports that are kept: more than the iterations in flight."""
WARPS = {"look_up": 4, "propose": 1, "verify": 1, "remember": 1, "commit": 4}
"""One warp if a program runs step by step: its lanes then communicate within a warp."""


def loop_source() -> Source:
    """Returns the kernels of the loop, as a kernel file."""
    text = Path(__file__).with_name("loop_kernels.py").read_text(encoding="utf-8")
    text = text.partition("\n")[2]  # drops the line for pyright
    return Source(LOOP, LOOP, text, "", (), "draft, verify, remember, commit")


def load_kernels(interpret: bool, sources: Mapping[str, Source]) -> Any:
    """Returns their module, the user's if a program has one. Raises InvalidOptionError if that lacks a kernel."""
    found = load(sources.get(LOOP) or loop_source(), interpret)
    if missing := [name for name in WARPS if not hasattr(found, name)]:
        raise InvalidOptionError(f"The kernel file loop.py has no {', '.join(missing)}; correct it.")
    return found


def power(count: int) -> int:
    """Returns the smallest power of two that is at least `count`."""
    return 1 << max(0, count - 1).bit_length()


@dataclass(frozen=True)
class Call:
    """One launch of a kernel of the loop."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]  # tensors and numbers
    constants: dict[str, int]

    def constants_of(self, function: Any) -> dict[str, int]:
        """Returns the constants that the kernel takes, in its order."""
        return {name: self.constants[name] for name in function.arg_names if name in self.constants}


@dataclass
class Knowledge:
    """What the loop has learned, stored on the device. It outlives a text."""

    successors: torch.Tensor  # [V, SUCCESSORS] each token's likeliest successors, -1 for none
    shares: torch.Tensor  # [V, SUCCESSORS] the class of each one's probability
    hits: torch.Tensor  # [features]
    trials: torch.Tensor  # [features]
    bounds: torch.Tensor  # the classes' upper bounds, except the last

    @classmethod
    def fresh(cls, vocabulary: int, drafting: Drafting, device: torch.device) -> Knowledge:
        prior, strength = torch.from_numpy(drafting.prior()).to(device, torch.float32), AcceptanceRates.strength
        table = torch.full((vocabulary, SUCCESSORS), -1, dtype=torch.int32, device=device)
        bounds = torch.from_numpy(SHARES).to(device, torch.float32)
        return cls(table, torch.zeros_like(table), prior * strength, torch.full_like(prior, strength), bounds)

    def fade(self) -> None:
        """Halves evidence that exceeds `AcceptanceRates.memory`, between two texts."""
        weight = torch.where(self.trials > AcceptanceRates.memory, 0.5, 1.0)
        self.hits *= weight
        self.trials *= weight


class Text:
    """The text being decoded and the tree of the current iteration, on the device."""

    def __init__(self, launcher: Launcher, places: int) -> None:
        step = launcher.step

        def numbers(*sizes: int) -> torch.Tensor:
            return torch.zeros(sizes, dtype=torch.int32, device=launcher.device)

        self.state = numbers(3)  # LENGTH, LAST, ROUND
        self.tokens = numbers(step.max_length + LARGEST + 2)
        self.chunks = -(-step.max_length // CHUNK)
        self.finds = numbers(self.chunks * max(1, places))
        self.spare = numbers(step.max_rows)
        self.parents, self.depths, self.features, self.path = (numbers(LARGEST) for _ in range(4))
        self.moves = numbers(2, LARGEST)
        self.report = numbers(RING, 2 + 2 * LARGEST)

    def begin(self, tokens: list[int], last: int, spare: Int32) -> None:
        self.state.copy_(torch.tensor([len(tokens) - 1, last, 0], dtype=torch.int32))
        self.tokens[: len(tokens)].copy_(torch.tensor(tokens, dtype=torch.int32))
        self.spare[: len(spare)].copy_(torch.from_numpy(np.ascontiguousarray(spare)))


@dataclass
class Size:
    """Iterations of at most `rows` rows: the inputs of their step, and their graph."""

    rows: int
    layout: InputLayout
    inputs: torch.Tensor
    graph: Any = None

    def __post_init__(self) -> None:
        """Makes every row an output."""
        every = torch.arange(self.layout.outputs, dtype=torch.int32, device=self.inputs.device)
        self.input("outputs")[: self.layout.outputs].copy_(every)

    def input(self, name: str) -> torch.Tensor:
        return self.inputs[self.layout.places[name] :]

    def begin(self, blocks: Int32, draw: Draw | None) -> None:
        """Sets the inputs that are the same in every iteration of a text."""
        self.inputs[DRAWING] = draw is not None
        words = torch.from_numpy(draw_words([draw])).expand(self.layout.outputs, WORDS)
        self.input("draws")[: words.numel()].copy_(words.reshape(-1))
        self.input("block_tables")[: len(blocks)].copy_(torch.from_numpy(blocks))


@dataclass(frozen=True)
class Calls:
    """The calls of iterations over one cache."""

    launcher: Launcher
    state: State
    drafting: Drafting
    known: Knowledge
    text: Text

    def before(self, size: Size) -> list[Call]:
        """Returns the calls that draft the tree as the step's inputs."""
        step, text, known, drafting = self.launcher.step, self.text, self.known, self.drafting
        places = max(1, drafting.places)
        shared = {"state": text.state, "tokens": text.tokens, "finds": text.finds}
        looking = {"CHUNK": CHUNK, "PLACES": places, "LONGEST": drafting.longest}
        look_up = Call("look_up", (text.chunks,), shared, looking)
        learned = {name: getattr(known, name) for name in ("successors", "shares", "hits", "trials")}
        tree = {name: getattr(text, name) for name in ("spare", "parents", "depths", "features")}
        inputs = {name: size.input(name) for name in ("positions", "slots", "bases", "paths")}
        inputs |= {"sizes": size.inputs, "row_tokens": size.input("tokens"), "block_table": size.input("block_tables")}
        constants = {
            "ROWS": self._lanes(size), "MOST": size.rows, "DEEPEST": step.max_path,
            "FINDS": power(text.chunks * places), "SUCCESSORS": SUCCESSORS, "SHARES": len(SHARES) + 1,
            "RECYCLED": drafting.deepest, "WIDTH": power(places + SUCCESSORS),
            "RANKS": len(RANKS), "DEPTHS": len(STILL_TRUE),
            "BLOCK": step.block, "PATH": step.max_path,
        }  # fmt: skip
        propose = Call("propose", (1,), shared | learned | tree | inputs, looking | constants)
        return [look_up, propose] if drafting.places else [propose]

    def after(self, size: Size) -> list[Call]:
        """Returns the calls that verify, remember and commit the step's results."""
        step, text, known = self.launcher.step, self.text, self.known
        _, ids, logits = (self.launcher.place(value) for value in step.returned)
        rows, candidates = {"ROWS": self._lanes(size)}, step.candidates
        # If steps do not sample, the likeliest candidate is taken, the first of each row.
        drawn, stride = (ids, candidates) if step.sampled is None else (self.launcher.place(step.sampled), 1)
        inputs = {"sizes": size.inputs, "row_tokens": size.input("tokens")}
        names = ("state", "tokens", "parents", "depths", "features", "path", "report", "moves")
        verify = Call(
            "verify", (1,),
            {name: getattr(text, name) for name in names} | inputs
            | {"slots": size.input("slots"), "block_table": size.input("block_tables")}
            | {"hits": known.hits, "trials": known.trials, "drawn": drawn},
            rows | {"LARGEST": LARGEST, "RING": RING, "BLOCK": step.block, "STRIDE": stride},
        )  # fmt: skip
        remember = Call(
            "remember", (size.rows,),
            inputs | {"path": text.path, "candidates": ids, "logits": logits}
            | {name: getattr(known, name) for name in ("bounds", "successors", "shares")},
            rows | {"CANDIDATES": candidates, "SUCCESSORS": SUCCESSORS}
            | {"WIDTH": power(candidates), "SHARES": len(SHARES) + 1, "BOUNDS": power(len(SHARES))},
        )  # fmt: skip
        places = self.state.places
        first, block, lane = places.first, places.block, places.lane
        commit = Call(
            "commit", (size.rows, -(-len(first) // PART)),
            {"moves": text.moves, "cache": self.state.numbers, "first": first, "block": block, "lane": lane}
            | {"numbers": len(first)},
            rows | {"BLOCK": step.block, "PART": PART},
        )  # fmt: skip
        moves = size.rows > 1 and len(first) > 0  # the root lies at home
        return [verify, *([remember] if self.drafting.deepest else []), *([commit] if moves else [])]

    @staticmethod
    def _lanes(size: Size) -> int:
        return max(4, power(size.rows))
