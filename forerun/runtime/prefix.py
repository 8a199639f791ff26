"""The part of the next step that drafting has computed, so that the step need not compute it again."""

from dataclasses import dataclass, field

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.cache import StepSlots
from forerun.runtime.executable import Executable, Float32, Int32
from forerun.runtime.options import require_integer, require_number
from forerun.runtime.tree import Tree

ROOT = -1
"""The number that stands for the root's parent."""


@dataclass(eq=False)
class Prefix:
    """Rows whose first branches a draft evaluated as the target model does: their keys and values are at their slots.

    A row is identified by its path of tokens from the root. By row determinism equal paths have equal bits, whoever
    proposes them, so a step over any tree of the same sequence can be entered after these branches (`Engine.step`).
    """

    leave: int  # the branches evaluated
    share: float  # the part of a step's bytes that is left after them
    slots: StepSlots
    _rows: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    _slots: list[int] = field(default_factory=list[int])
    _hidden: list[Float32] = field(default_factory=list[Float32])

    def add(self, parent: int, token: int, slot: int, hidden: Float32) -> int:
        """Add a row, `token` under `parent` (`ROOT` for the root itself), with its stream [D]; return its number."""
        self._rows[parent, token] = len(self._slots)
        self._slots.append(slot)
        self._hidden.append(hidden)
        return len(self._slots) - 1

    def check(self, slots: StepSlots | None, executable: Executable | None) -> None:
        """Raises `InvalidOptionError` unless a step of `executable` over rows at `slots` can be entered behind it.

        Takes microseconds. Whether the streams are those of the target is not known here.
        """
        if self.slots is not slots:
            raise InvalidOptionError("its slots must be those of this budget: make one with budget.slots each time")
        try:
            given = slots is None or slots.gave(self._slots)
        except TypeError:  # a slot that is not even hashable
            given = False
        if not given:
            raise InvalidOptionError("each of its rows must have a slot of its own: take it from budget.slots")
        require_number("its share", self.share, least=0)
        if executable is None:
            return
        require_integer("its leave", self.leave, least=1, most=len(executable.branches))
        stream = (executable.width,)
        if any(getattr(each, "shape", None) != stream for each in self._hidden):
            raise InvalidOptionError(
                f"each of its rows must have a stream of shape [{executable.width}]: give `hidden`"
            )

    def place(self, tree: Tree, length: int) -> tuple[Int32, list[Float32 | None]]:
        """Returns each row's slot, a new one if no draft evaluated it, and stream, for a tree at position `length`.

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
