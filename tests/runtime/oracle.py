"""An executable without real arithmetic: its logits are a function of the history that it reads from its slots."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from forerun.runtime.certify import likeliest
from forerun.runtime.executable import WHOLE, Branch, Float32, Part, Rows, StepResult
from forerun.signature import Signature

MASK = 2**64 - 1


def digest_of(digest: int, token: int) -> int:
    return (digest * 6364136223846793005 + token + 1442695040888963407) & MASK


@dataclass
class OracleState:
    """Each slot holds a token, its position, and a digest of all tokens up to it. Slots are poisoned until written."""

    token: np.ndarray
    position: np.ndarray
    digest: list[int]


@dataclass
class Oracle:
    """Mostly predictable from the last token, so that drafts are accepted; never fully, so that histories matter.

    It checks the contract of `Rows`, and that each row's history is the chain that wrote its slots. It
    poisons a result when the next step begins.
    """

    vocabulary: int = 24
    block: int = 4
    max_rows: int = 16
    max_path: int = 10
    max_length: int = 64
    candidates: int = 6
    max_outputs: int = 16
    noise: float = 1.0
    seed: int = 0
    steps: list[int] = field(default_factory=list)  # rows of each step
    copies: int = 0
    branches: tuple[Branch, ...] = ()
    head_bytes: int = 0
    enters: bool = True
    width: int = 0
    draws: bool = False
    slot_bytes: int = 0
    row_bytes: int = 0
    entries: dict[str, Signature] = field(default_factory=dict)

    def __post_init__(self):
        self.bigram = np.random.default_rng(self.seed).standard_normal((self.vocabulary, self.vocabulary)) * 2
        self.last: StepResult | None = None
        self.known: dict[int, np.ndarray] = {}

    def logits(self, history: list[int]) -> np.ndarray:
        """[V] in steps of 1/8, so that equal logits are common."""
        digest = 0
        for token in history:
            digest = digest_of(digest, token)
        return self.logits_of(history[-1], digest)

    def logits_of(self, token: int, digest: int) -> np.ndarray:
        if digest not in self.known:
            noise = np.random.default_rng(digest).standard_normal(self.vocabulary) * self.noise
            self.known[digest] = (np.round((self.bigram[token] + noise) * 8) / 8).astype(np.float32)
        return self.known[digest]

    def new_state(self, blocks: int, requests: int = 1, rows: int | None = None) -> OracleState:
        slots = blocks * self.block
        return OracleState(np.full(slots, -1), np.full(slots, -1), [-1] * slots)

    def run(self, entry: Part, state: OracleState, rows: Rows, hidden: Float32 | None = None, draws=None) -> StepResult:
        assert entry == WHOLE
        assert hidden is None
        self.poison()
        self.check(rows, len(state.token))
        self.steps.append(len(rows.tokens))
        state.token[rows.slots] = rows.tokens
        state.position[rows.slots] = rows.positions
        digests = [0] * len(rows.tokens)
        for row in np.argsort(rows.positions, kind="stable").tolist():
            digests[row] = self.read(state, rows, row)
            state.digest[rows.slots[row]] = digests[row]
        logits = np.stack([self.row_logits(rows, row, digests[row]) for row in rows.outputs.tolist()])
        candidates = np.stack([likeliest(row, self.candidates) for row in logits])
        self.last = StepResult(logits, candidates, np.take_along_axis(logits, candidates, axis=1))
        return self.last

    def row_logits(self, rows: Rows, row: int, digest: int) -> np.ndarray:
        return self.logits_of(int(rows.tokens[row]), digest)

    def read(self, state: OracleState, rows: Rows, row: int) -> int:
        digest = 0
        position, base = int(rows.positions[row]), int(rows.bases[row])
        for j in range(position + 1):
            table = rows.block_tables[rows.sequences[row]]
            slot = int(rows.paths[row, j - base] if j >= base else table[j // self.block] * self.block + j % self.block)
            assert state.position[slot] == j, f"row {row} reads position {j} from slot {slot}"
            digest = digest_of(digest, int(state.token[slot]))
            if j < position:
                assert state.digest[slot] == digest, f"row {row} reads another history's position {j}"
            else:
                assert slot == rows.slots[row]
        return digest

    def check(self, rows: Rows, slots: int) -> None:
        count = len(rows.tokens)
        columns = (rows.tokens, rows.positions, rows.sequences, rows.slots, rows.bases)
        assert all(column.shape == (count,) for column in columns)
        arrays = (*columns, rows.paths, rows.block_tables, rows.outputs)
        assert all(array.dtype == np.int32 for array in arrays)
        assert 1 <= count <= self.max_rows
        assert 1 <= rows.paths.shape[1] <= self.max_path
        assert len(rows.paths) == count
        assert len(set(rows.slots.tolist())) == count
        assert rows.slots.min() >= 0
        assert rows.slots.max() < slots
        assert rows.positions.max() < self.max_length
        assert np.all(rows.bases <= rows.positions + 1)
        assert np.all(rows.positions + 1 - rows.bases <= rows.paths.shape[1])
        assert 1 <= len(rows.outputs) <= min(count, self.max_outputs)
        assert rows.sequences.max() < len(rows.block_tables)
        assert rows.tokens.min() >= 0
        assert rows.tokens.max() < self.vocabulary

    def copy_slots(self, state: OracleState, source: np.ndarray, destination: np.ndarray) -> None:
        assert len(set(destination.tolist())) == len(destination)
        self.copies += len(source)
        state.token[destination] = state.token[source]
        state.position[destination] = state.position[source]
        read = [state.digest[slot] for slot in source.tolist()]
        for slot, digest in zip(destination.tolist(), read, strict=True):
            state.digest[slot] = digest

    def poison(self) -> None:
        if self.last is not None:
            self.last.logits[:] = np.nan
            self.last.candidates[:] = -1
            self.last.candidate_logits[:] = np.nan


class KernelResult(NamedTuple):
    kernel: str
    output: str
    value: np.ndarray
    along: str | None


@dataclass
class Kernels(Oracle):
    """An oracle that computes in three kernels and can be traced; `planted` breaks one of them."""

    planted: str | None = None  # "head": steps of more than 4 rows differ in a bit; "attention": long paths do

    def row_logits(self, rows: Rows, row: int, digest: int) -> np.ndarray:
        mixed = self.mixed(rows, row, digest)
        scale = np.float32(1 + 2**-23) if self.planted == "head" and len(rows.tokens) > 4 else np.float32(1)
        return mixed * scale

    def mixed(self, rows: Rows, row: int, digest: int) -> np.ndarray:
        logits = self.logits_of(int(rows.tokens[row]), digest)
        deep = rows.positions[row] + 1 - rows.bases[row] > 2
        return logits * np.float32(1 + 2**-23) if self.planted == "attention" and deep else logits.copy()

    def trace(self, state: OracleState, rows: Rows):
        digests = [self.read(state, rows, row) for row in range(len(rows.tokens))]
        hidden = rows.tokens.astype(np.float32)[:, None]
        mixed = np.stack([self.mixed(rows, row, digest) for row, digest in enumerate(digests)])
        logits = np.stack([self.row_logits(rows, row, digests[row]) for row in rows.outputs.tolist()])
        # These are as long as the rows or the outputs, and differ in every step, but do not run along either.
        tables = [np.arange(len(each)) + len(mixed) for each in (rows.tokens, rows.outputs)]
        return [
            KernelResult("embed", "hidden", hidden, "N"),
            *(KernelResult("embed", "table", table, None) for table in tables),
            KernelResult("attention", "mixed", mixed, "N"),
            KernelResult("head", "logits", logits, "M"),
        ]
