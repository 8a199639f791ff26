"""Evaluating parts of the target on committed tokens, to learn what a draft would have proposed."""

from dataclasses import replace

import numpy as np

from forerun.runtime.cache import StepSlots
from forerun.runtime.drafters.base import Context
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Float32, Int32, Part, Rows
from forerun.runtime.rows import replayed_rows


class Replayed:
    """The last committed tokens [n], evaluated by the target branch by branch. The cache does not change."""

    def __init__(self, engine: Engine, rows: Rows, expected: Int32) -> None:
        self._engine, self._rows = engine, rows
        self.expected = expected  # [n] the token that followed each
        self.at = 0  # branches evaluated
        self._hidden: Float32 | None = None  # [n, D] the stream there; None before the first launch

    def advance(self, leave: int) -> Float32:
        """Returns [n, D] the stream after the first `leave` branches."""
        return self._run(leave, self._rows.outputs[:0])[0]

    def exit(self, leave: int) -> Int32:
        """Returns [n] the tokens that the head chooses after the first `leave` branches."""
        return self._run(leave, self._rows.outputs)[1][:, 0].copy()

    def draft(self, part: Part) -> Int32:
        """Returns [n] the tokens that a part chooses, starting from the embedding."""
        return self._engine.run(self._rows, part).candidates[:, 0].copy()

    def _run(self, leave: int, outputs: Int32) -> tuple[Float32, Int32]:
        rows = replace(self._rows, outputs=outputs)
        part = Part(self.at, leave) if self.at else Part(leave=leave)
        result = self._engine.run(rows, part, self._hidden if self.at else None)
        self._hidden, self.at = result.hidden.copy(), leave
        return self._hidden, result.candidates


class Replay:
    """Replays the end of a context."""

    def __init__(self, engine: Engine, window: int) -> None:
        """`window`: the most tokens to replay."""
        limits = engine.executable
        self._engine = engine
        self._window = min(window, limits.max_path, limits.max_outputs)

    def begin(self, context: Context, slots: StepSlots) -> Replayed | None:
        """Returns the context's last cached tokens, or None if there are none."""
        sequence = slots.sequence
        borrowed = slots.borrow(min(self._window, sequence.length))
        count = len(borrowed)
        if count == 0:
            return None
        start = sequence.length - count
        tokens = np.array(context.tokens[start : sequence.length + 1], np.int32)
        rows = replayed_rows(sequence, tokens[:-1], borrowed)
        return Replayed(self._engine, rows, tokens[1:])
