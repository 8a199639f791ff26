"""Random steps for checks and measurements, with a cache of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.blocks import BlockCache
from forerun.runtime.cache import CachedSequence
from forerun.runtime.calibration import comb
from forerun.runtime.cases import random_inputs
from forerun.runtime.engine import encode
from forerun.runtime.executable import WHOLE, Executable, Rows
from forerun.runtime.options import require_integer
from forerun.runtime.rows import prompt_rows, tree_rows, tree_slots

CONTEXT = 128
"""Tokens in the cache, unless told otherwise."""


class Trial:
    """A state, and steps of random rows after a random context, which may be run in any order, and again."""

    def __init__(self, executable: Executable, context: int = CONTEXT, seed: int = 0) -> None:
        self.executable, self.random = executable, np.random.default_rng(seed)
        self.context = max(1, min(context, executable.max_length // 2))
        block, spare = executable.block, executable.max_rows
        blocks = -(-executable.max_length // block) + -(-spare // block)
        self.cache = BlockCache(blocks, block, spare, requests=1)
        self.state: Any = executable.new_state(blocks)
        self.sequence = CachedSequence(block, np.empty(0, np.int32))
        self.cache.reserve(self.sequence, executable.max_length)

    def begin(self, run: Callable[[Rows], object] | None = None) -> None:
        """Reads the context, by default with the executable."""
        executable, sequence = self.executable, self.sequence
        run = run or (lambda rows: executable.run(WHOLE, self.state, rows))
        encode(executable, self.state, sequence, random_inputs(self.random, executable))
        for start in range(0, self.context, executable.max_rows):
            count = min(executable.max_rows, self.context - start)
            run(prompt_rows(sequence, self._tokens(count), np.zeros(1, np.int32)))
            sequence.length += count

    def tree(self, count: int) -> Rows:
        """Returns the rows of a tree, half of them a chain; all logits are requested."""
        executable = self.executable
        deepest = max(1, min(executable.max_path, executable.max_length - self.context - 1))
        grown = comb(self._tokens(count), deepest)
        slots, _ = tree_slots(self.sequence, grown, self.cache.spare)
        return tree_rows(self.sequence, grown, slots)

    def prompt(self, count: int) -> Rows:
        """Returns the next rows of a prompt, as many logits requested as a step may have."""
        outputs = np.arange(min(count, self.executable.max_outputs), dtype=np.int32)
        return prompt_rows(self.sequence, self._tokens(count), outputs)

    def rows(self, count: int) -> Rows:
        """Returns a tree of so many rows, or as many of a prompt if no tree is as large."""
        return self.tree(count) if count <= self.executable.max_outputs else self.prompt(count)

    def _tokens(self, count: int) -> Any:
        return self.random.integers(0, self.executable.vocabulary, count, dtype=np.int32)


def require_rows(rows: Sequence[int], executable: Executable) -> list[int]:
    """Returns the row counts, ascending and each once. Raises `InvalidOptionError` if a step cannot have so many."""
    most = min(executable.max_rows, executable.max_length // 2)
    found = sorted({require_integer("rows", each, least=1, most=most) for each in rows})
    if not found:
        raise InvalidOptionError("rows is empty: give at least one number of rows.")
    return found
