"""The rows of a growing tree that a draft evaluates, one level at a time."""

from collections.abc import Sequence

import numpy as np

from forerun.runtime.cache import CachedSequence, StepSlots
from forerun.runtime.executable import Rows
from forerun.runtime.tree import TreeBuilder


class DraftRows:
    """Gives rows their slots and records the slots of their paths.

    The root takes the next position of `sequence`. If it is at home, paths begin below it, otherwise with it.
    """

    def __init__(self, sequence: CachedSequence, slots: StepSlots) -> None:
        self._sequence, self._slots = sequence, slots
        self._paths: dict[int, list[int]] = {}  # by evaluated row
        self._base = sequence.length
        self.slots: dict[int, int] = {}  # by evaluated row

    def batch(self, builder: TreeBuilder, rows: Sequence[int]) -> Rows:
        """Returns the rows of one depth, whose parents were evaluated; all logits are requested."""
        count, position = len(rows), self._sequence.length + builder.depths[rows[0]]
        positions = np.full(count, position, np.int32)
        slots = self._slots.take(positions)
        for row, slot in zip(rows, slots.tolist(), strict=True):
            above = self._paths.get(builder.parents[row], [])
            if row == 0 and slot == int(self._sequence.home(positions)[0]):
                self._base += 1  # found through the block table
                self._paths[row] = []
            else:
                self._paths[row] = [*above, slot]
            self.slots[row] = slot
        paths = [self._paths[row] or [0] for row in rows]
        return Rows(
            tokens=np.array([builder.tokens[row] for row in rows], np.int32),
            positions=positions,
            sequences=np.zeros(count, np.int32),
            slots=slots,
            bases=np.full(count, self._base, np.int32),
            paths=np.array(paths, np.int32),
            block_tables=self._sequence.blocks[None],
            outputs=np.arange(count, dtype=np.int32),
            requests=self._sequence.requests,
        )
