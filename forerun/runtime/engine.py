"""The engine: an executable with its cache. It runs steps over trees of any number of sequences, and commits paths."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from forerun.errors import DeviceMemoryError, InvalidOptionError, TooLongError
from forerun.forking import Turn
from forerun.runtime.blocks import REQUESTS, BlockCache
from forerun.runtime.cache import CachedSequence
from forerun.runtime.executable import WHOLE, Draw, Executable, Float32, Inputs, Int32, Part, Rows, StepResult
from forerun.runtime.prefix import Prefix
from forerun.runtime.records import RecordCache
from forerun.runtime.rows import join, pick, prompt_rows, root_rows, tree_rows, tree_slots
from forerun.runtime.tree import Tree
from forerun.signature import ENCODE

CACHE = 512 * 2**20
"""The bytes of a cache, unless one sequence needs more. On the CPU, what is not used takes no memory."""


@dataclass(frozen=True)
class TreeResult:
    """A step's results for one sequence's tree; valid until the next step."""

    tree: Tree
    slots: Int32  # [n]
    step: StepResult
    first: int  # the step's output row of the root

    def logits(self, row: int) -> Float32:
        """Returns the logits [V] of one tree row."""
        return self.step.logits[self.first + row]

    def first_nan(self, path: Sequence[int]) -> tuple[int, int] | None:
        """Returns the number of the first row of a path with NaN among its logits, and the first such token id."""
        found = ((number, self.step.first_nan(self.first + row)) for number, row in enumerate(path))
        return next(((number, token) for number, token in found if token is not None), None)

    @property
    def candidates(self) -> Int32:
        """[n, K]"""
        return self.step.candidates[self.first : self.first + len(self.tree)]

    @property
    def candidate_logits(self) -> Float32:
        """[n, K]"""
        return self.step.candidate_logits[self.first : self.first + len(self.tree)]

    @property
    def drawn(self) -> Int32:
        """[n] the sampled tokens, if the executable sampled"""
        return self.step.drawn[self.first : self.first + len(self.tree)]


@dataclass(frozen=True)
class Chunk:
    """The next tokens of a sequence's prompt, to be read in a step."""

    sequence: CachedSequence
    tokens: Int32  # [n]
    observed: bool = False  # whether the candidates of all rows are wanted


@dataclass(frozen=True)
class ChunkResult:
    """A step's candidates for the rows of an observed chunk; valid until the next step."""

    candidates: Int32  # [n, K]
    candidate_logits: Float32  # [n, K]


@dataclass(frozen=True)
class Evaluated:
    """What a step gives: a result for each tree, and one for each observed chunk."""

    trees: list[TreeResult]
    chunks: list[ChunkResult | None]
    seconds: float  # that the step took


class Engine:
    """An `Executable` with its cache. All decisions are made elsewhere."""

    def __init__(
        self, executable: Executable, blocks: int | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`blocks`: room in the cache, spare slots included (`blocks_for`).

        `clock`: times the steps.
        """
        self.executable, self.clock = executable, clock
        several, one = (blocks, blocks) if blocks is not None else blocks_for(executable)
        rows = records_for(executable)
        try:
            blocks, self.state = several, executable.new_state(several, REQUESTS, rows)
        except DeviceMemoryError:
            if one == several:
                raise
            blocks, self.state = one, executable.new_state(one, REQUESTS, rows)
        self.cache = BlockCache(blocks, executable.block, executable.max_rows)
        block = executable.block
        self.records = RecordCache(blocks * block, block, rows) if executable.row_bytes else None
        """The states per row, if the model has any."""
        self.shares_prefixes = ENCODE not in executable.entries
        """Whether equal prefixes have equal states: not if those depend on a request's other inputs."""
        self.serving = Turn("generating")
        """Held while a step runs, as all steps share buffers."""
        self.runs = 0  # steps and parts of steps so far

    def sequence(self, positions: int) -> AbstractContextManager[CachedSequence]:
        """Returns the context of a new sequence with room for `positions`, freed on exit."""
        if positions > self.executable.max_length:
            raise TooLongError(
                f"{positions} positions exceed max_length {self.executable.max_length}: shorten the prompt or "
                "max_new_tokens, or compile with a larger max_length"
            )
        return self.cache.sequence(positions)

    def begin(self, sequence: CachedSequence, inputs: Inputs) -> None:
        """Evaluate the states that are constant for a sequence's request, if the model has any.

        Raises `InvalidOptionError` if `inputs` are not the arguments of the entry `encode`.
        """
        encode(self.executable, self.state, sequence, inputs)

    def prefill(self, sequence: CachedSequence, tokens: Int32, chunk: int | None = None) -> None:
        """Commit `tokens` to the cache, `chunk` rows per step. Only a step's last row is evaluated up to the logits."""
        most = self.executable.max_rows
        chunk = min(chunk or most, most)
        self.make_room(sequence, sequence.length + len(tokens))
        for start in range(0, len(tokens), chunk):
            self.evaluate((), (), [Chunk(sequence, tokens[start : start + chunk])])

    def make_room(self, sequence: CachedSequence, positions: int) -> None:
        """Let a sequence write its positions from the next one on, up to `positions` in all.

        If another sequence reads the block of the next one, that block is copied. Raises `TooLongError`.
        """
        if (copied := self.cache.own(sequence)) is not None and len(copied[0]):
            self.executable.copy_slots(self.state, *copied)
            if self.records is not None:
                self.records.share(*copied)
        self.cache.reserve(sequence, positions)

    def restore(self, sequence: CachedSequence) -> None:
        """Go back to the last committed position whose states per row are still there, if the model has such states."""
        if self.records is None or not sequence.length or self.records.has(sequence.last_slot):
            return
        slots = sequence.home(np.arange(sequence.length, dtype=np.int32))
        sequence.cut(next((at + 1 for at in reversed(range(len(slots))) if self.records.has(int(slots[at]))), 0))

    def step(
        self,
        sequences: Sequence[CachedSequence],
        trees: Sequence[Tree],
        prefix: Prefix | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> list[TreeResult]:
        """Evaluate one tree of each sequence, all in one step. Commit before the next step, or the trees are lost.

        `prefix`: what drafts have computed for the rows of the only sequence. The step is entered after it.
        `draws`: how each sequence's tokens are sampled, if the executable samples.
        """
        for sequence, tree in zip(sequences, trees, strict=True):
            self.make_room(sequence, sequence.length + tree.height + 1)
        return self.evaluate(sequences, trees, (), prefix, draws).trees

    def evaluate(
        self,
        sequences: Sequence[CachedSequence],
        trees: Sequence[Tree],
        chunks: Sequence[Chunk],
        prefix: Prefix | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> Evaluated:
        """Like `step`, with chunks of the prompts of other sequences beside the trees; all have room already.

        The chunks are committed.
        """
        began = self.clock()
        self._check_room(trees, chunks)
        # A draft's root may be away from home; it then takes an entry of the longest path too.
        if prefix is not None and not chunks and trees[0].height < self.executable.max_path:
            [sequence], [tree] = sequences, trees
            away, result = self._step_behind(prefix, sequence, tree, draws)
            return Evaluated([TreeResult(tree, away, result, 0)], [], self.clock() - began)
        parts, slots = self.tree_parts(sequences, trees)
        for chunk in chunks:
            rows = len(chunk.tokens)
            first = 0 if chunk.observed else rows - (not parts)  # a step has at least one output
            parts.append(prompt_rows(chunk.sequence, chunk.tokens, np.arange(first, rows, dtype=np.int32)))
        all_draws = None if draws is None else [*draws, *(None for _ in chunks)]
        result = self.run(join(parts), draws=all_draws)
        starts = list(accumulate(map(len, trees), initial=0))
        found = [TreeResult(tree, own, result, at) for tree, own, at in zip(trees, slots, starts, strict=False)]
        return Evaluated(found, _committed(chunks, result, starts[-1]), self.clock() - began)

    def tree_parts(
        self, sequences: Sequence[CachedSequence], trees: Sequence[Tree], spare: Int32 | None = None
    ) -> tuple[list[Rows], list[Int32]]:
        """Returns the rows of trees, in one part or more, and the slots of each tree, by default of all spare ones."""
        if trees and all(len(tree) == 1 for tree in trees):
            rows = root_rows(sequences, [int(tree.token[0]) for tree in trees])
            return [rows], [rows.slots[at : at + 1] for at in range(len(trees))]
        parts: list[Rows] = []
        slots: list[Int32] = []
        spare = self.cache.spare if spare is None else spare
        for sequence, tree in zip(sequences, trees, strict=True):
            tree_slot, used = tree_slots(sequence, tree, spare)
            spare = spare[used:]
            slots.append(tree_slot)
            parts.append(tree_rows(sequence, tree, tree_slot))
        return parts, slots

    def _step_behind(
        self, prefix: Prefix, sequence: CachedSequence, tree: Tree, draws: Sequence[Draw | None] | None
    ) -> tuple[Int32, StepResult]:
        """Run a step from the branch that drafts have reached; other rows are evaluated up to there first.

        Returns the rows' slots [n] and the result.
        """
        slots, known = prefix.place(tree, sequence.length)
        rows = tree_rows(sequence, tree, slots)
        hidden = np.empty((len(tree), self.executable.width), np.float32)
        missing = np.array([row for row, stream in enumerate(known) if stream is None], np.intp)
        if len(missing):
            hidden[missing] = self.run(pick(rows, missing, outputs=False), Part(leave=prefix.leave)).hidden
        for row, stream in enumerate(known):
            if stream is not None:
                hidden[row] = stream
        return slots, self.run(rows, Part(enter=prefix.leave), hidden, draws)

    def commit(
        self, sequences: Sequence[CachedSequence], results: Sequence[TreeResult], paths: Sequence[Sequence[int]]
    ) -> None:
        """Make the keys and values of each path (rows from the root on) final. Only rows away from home are moved."""
        self.keep(sequences, [result.slots[list(path)] for result, path in zip(results, paths, strict=True)])

    def keep(self, sequences: Sequence[CachedSequence], rows: Sequence[Int32]) -> None:
        """Make the keys and values at these slots [n] those of each sequence's next positions."""
        source: list[Int32] = []
        destination: list[Int32] = []
        for sequence, slots in zip(sequences, rows, strict=True):
            if len(slots) == 1 and int(slots[0]) == sequence.next_slot:
                sequence.length += 1
                continue
            home = sequence.home(np.arange(sequence.length, sequence.length + len(slots), dtype=np.int32))
            moved = slots != home
            source.append(slots[moved])
            destination.append(home[moved])
            sequence.length += len(slots)
        if any(len(slots) for slots in source):
            moved = np.concatenate(source), np.concatenate(destination)
            self.executable.copy_slots(self.state, *moved)
            if self.records is not None:
                self.records.move(*moved)

    def run(
        self,
        rows: Rows,
        part: Part = WHOLE,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult:
        self.runs += 1
        if self.records is not None:
            rows = self.records.placed(rows)
        return self.executable.run(part, self.state, rows, hidden, draws)

    def _check_room(self, trees: Sequence[Tree], chunks: Sequence[Chunk]) -> None:
        read = sum(len(chunk.tokens) for chunk in chunks)
        rows = sum(len(tree) for tree in trees)
        most = min(self.executable.max_rows - read, self.executable.max_outputs)
        if rows > most:
            raise TooLongError(f"{rows} rows of trees exceed the limit of {most} per step: propose smaller trees")
        height = max((tree.height for tree in trees), default=0)
        if height > self.executable.max_path:
            raise TooLongError(
                f"a tree of depth {height} exceeds the limit of {self.executable.max_path}: propose shallower trees"
            )


def _committed(chunks: Sequence[Chunk], result: StepResult, first: int) -> list[ChunkResult | None]:
    """Commits the chunks of a step; returns the results of those that are observed, whose outputs begin at `first`."""
    found: list[ChunkResult | None] = []
    for chunk in chunks:
        chunk.sequence.length += len(chunk.tokens)
        if not chunk.observed:
            found.append(None)
            continue
        seen = slice(first, first + len(chunk.tokens))
        found.append(ChunkResult(result.candidates[seen], result.candidate_logits[seen]))
        first = seen.stop
    return found


def blocks_for(executable: Executable) -> tuple[int, int]:
    """Returns the blocks of a cache for `REQUESTS` sequences of `max_length`, or as many as fit `CACHE`; and for one.

    A step's spare slots come on top.
    """
    one, spare = (-(-positions // executable.block) for positions in (executable.max_length, executable.max_rows))
    several = 0 if executable.slot_bytes == 0 else CACHE // (executable.slot_bytes * executable.block)
    return max(one, min(several, REQUESTS * one)) + spare, one + spare


def records_for(executable: Executable) -> int:
    """Returns how many rows' states are kept: of the largest trees, of their sequences, and as many as fit `CACHE`."""
    least = executable.max_outputs + 4
    most = REQUESTS + 2 * executable.max_outputs
    return max(least, min(most, CACHE // max(1, executable.row_bytes)))


def encode(executable: Executable, state: Any, sequence: CachedSequence, inputs: Inputs) -> None:
    """Write the state that is constant for a request to the sequence's slot for it (`Engine.begin`)."""
    entry = executable.entries.get(ENCODE)
    wanted = [] if entry is None else [each.name for each in entry.arguments if each.name != "requests"]
    if set(wanted) != set(inputs):
        takes = f"the inputs {', '.join(wanted)}" if wanted else "no inputs besides the prompt"
        given = ", ".join(map(str, inputs)) or "none"
        raise InvalidOptionError(f"the model takes {takes}, but got {given}: give exactly what it takes")
    if entry is not None:
        executable.run(ENCODE, state, {**inputs, "requests": sequence.requests})
