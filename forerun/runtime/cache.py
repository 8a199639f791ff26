"""Slots for states: sequences hold blocks of P positions, and a step's tree rows borrow spare slots."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Int32


@dataclass(eq=False)
class CachedSequence:
    """One sequence's place in the cache. Positions below `length` are committed: their keys and values are final."""

    block: int  # P
    blocks: Int32  # [B] block b holds positions [b * P, (b + 1) * P)
    length: int = 0
    request: int = -1  # the slot of its request's constant state; -1 before the sequence has room
    fixed: int = 0  # the first of its blocks, which others may read, so that it must not write there
    published: list[int] = field(default_factory=list[int])  # the numbers of its first blocks (`BlockCache.publish`)

    @classmethod
    def empty(cls, block: int) -> "CachedSequence":
        """Returns a sequence that has no room yet, for blocks of so many positions."""
        return cls(block, np.empty(0, np.int32))

    @property
    def requests(self) -> Int32:
        """[1] the `requests` of a step's rows."""
        return np.array([self.request], np.int32)

    def cut(self, length: int) -> None:
        """Go back to an earlier committed position and forget what follows it.

        The keys and values of every committed position stay at its slot; recurrent states may not (`Engine.restore`).
        Raises `InvalidOptionError` if the position is not committed.
        """
        if not 0 <= length <= self.length:
            raise InvalidOptionError(
                f"a sequence of {self.length} committed positions cannot be cut back to {length}: give an earlier one"
            )
        self.length = length
        del self.published[length // self.block :]

    def forget(self) -> None:
        """Have no blocks, no place for a request and no committed positions."""
        self.blocks, self.length, self.request = np.empty(0, np.int32), 0, -1
        self.fixed, self.published = 0, []

    @property
    def last_slot(self) -> int:
        """The slot of the last committed position."""
        return int(self.blocks[(self.length - 1) // self.block]) * self.block + (self.length - 1) % self.block

    @property
    def next_slot(self) -> int:
        """The slot of the next position."""
        return int(self.blocks[self.length // self.block]) * self.block + self.length % self.block

    def home(self, positions: Int32) -> Int32:
        """Returns the slots of these positions after a commit."""
        return self.blocks[positions // self.block] * self.block + positions % self.block


class StepSlots:
    """Hands out slots to the rows of one sequence in one step; no slot has two owners.

    The first row at a position gets its home slot, so that a commit need not move it; any other gets a spare slot.
    """

    def __init__(self, sequence: CachedSequence, spare: Int32) -> None:
        self.sequence = sequence
        self._spare = spare
        self._used = 0  # of the spare slots
        self._taken: set[int] = set()

    @property
    def left(self) -> int:
        """The number of rows that are sure to get a slot, whatever their positions."""
        return len(self._spare) - self._used

    def take(self, positions: Int32) -> Int32:
        """Returns a slot for each position [n]; the sequence's blocks must have room for them."""
        slots = self.sequence.home(positions)
        for row, slot in enumerate(slots.tolist()):
            if slot in self._taken:
                slots[row] = slot = int(self._spare[self._used])
                self._used += 1
            self._taken.add(slot)
        return slots

    def gave(self, slots: Sequence[int]) -> bool:
        """Returns whether each of the slots was taken from here, and by one row only."""
        return len(set(slots)) == len(slots) and self._taken.issuperset(slots)

    def borrow(self, count: int) -> Int32:
        """Returns at most `count` free slots [n], for a run whose keys and values are not read afterwards."""
        return self._spare[self._used :][::-1][:count].copy()
