"""What drafting has computed of a step that is to come, so that the step need not compute it again."""

from dataclasses import dataclass, field

import numpy as np

from forerun.runtime.cache import StepSlots
from forerun.runtime.executable import Float32, Int32
from forerun.runtime.tree import Tree

ROOT = -1
"""What the root's parent is called."""


@dataclass(eq=False)
class Prefix:
    """Rows whose first branches a draft has evaluated as the target does: their keys and values lie at their slots.

    A row is known by its path of tokens from the root. By row determinism equal paths are equal bits, whoever proposes
    them, so that a step over any tree of the same sequence can be entered behind these branches (`Engine.step`).
    """

    leave: int  # the branches evaluated
    share: float  # of a step's bytes, what is left of it behind them
    slots: StepSlots
    _rows: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    _slots: list[int] = field(default_factory=list[int])
    _hidden: list[Float32] = field(default_factory=list[Float32])

    def add(self, parent: int, token: int, slot: int, hidden: Float32) -> int:
        """The number of a new row: `token` under the row `parent` (`ROOT` for the root itself), with its stream [D]."""
        self._rows[parent, token] = len(self._slots)
        self._slots.append(slot)
        self._hidden.append(hidden)
        return len(self._slots) - 1

    def place(self, tree: Tree, length: int) -> tuple[Int32, list[Float32 | None]]:
        """The slot of each row of a tree under position `length`, a new one if no draft evaluated it, and its stream.

        Shapes: [n] and n times [D] or None.
        """
        found: list[int] = []
        for token, parent in zip(tree.token.tolist(), tree.parent.tolist(), strict=True):
            above = found[parent] if parent >= 0 else ROOT
            found.append(-1 if parent >= 0 and above < 0 else self._rows.get((above, token), -1))
        slots = np.array([-1 if row < 0 else self._slots[row] for row in found], np.int32)
        missing = slots < 0
        slots[missing] = self.slots.take(length + tree.depth[missing])
        return slots, [None if row < 0 else self._hidden[row] for row in found]
