"""Slots for states: sequences own blocks of P positions, and a step's tree rows borrow spare slots."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from forerun.errors import InvalidOptionError, TooLongError
from forerun.runtime.executable import Int32

REQUESTS = 64
"""The number of sequences that a cache has room for by default."""


@dataclass(eq=False)
class CachedSequence:
    """One sequence's place in the cache. Positions below `length` are committed: their keys and values are final."""

    block: int  # P
    blocks: Int32  # [B] block b holds positions [b * P, (b + 1) * P)
    length: int = 0
    request: int = -1  # the slot of its request's constant state; -1 before the sequence has room

    @property
    def requests(self) -> Int32:
        """[1] the `requests` of a step's rows."""
        return np.array([self.request], np.int32)

    def cut(self, length: int) -> None:
        """Go back to an earlier committed position and forget what follows it.

        All states allow this: the record of every committed position, recurrent states included, stays at its slot.
        Raises `InvalidOptionError` if the position is not committed.
        """
        if not 0 <= length <= self.length:
            raise InvalidOptionError(
                f"a sequence of {self.length} committed positions cannot be cut back to {length}: give an earlier one"
            )
        self.length = length

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


class BlockCache:
    """Hands out blocks and spare slots; no slot has two owners.

    The spare slots are in blocks of their own, enough for every row of one step, and belong to one step at a time.
    """

    def __init__(
        self, blocks: int, block: int, spare: int, order: Sequence[int] | None = None, requests: int = REQUESTS
    ) -> None:
        """`order`: a permutation of the blocks, in which they are handed out. `requests`: sequences at one time."""
        order = range(blocks) if order is None else order
        if sorted(order) != list(range(blocks)):
            raise InvalidOptionError(f"order must hold each of the {blocks} blocks once")
        reserved = -(-spare // block)
        if reserved >= blocks:
            raise TooLongError(
                f"a cache of {blocks} blocks of {block} has no room besides {spare} spare slots: add blocks"
            )
        self.block = block
        self._free = list(reversed(order[reserved:]))
        self._free_requests = list(reversed(range(requests)))
        starts = np.array(order[:reserved], np.int32) * block
        self.spare = (starts[:, None] + np.arange(block, dtype=np.int32)).reshape(-1)[:spare]

    @property
    def free_positions(self) -> int:
        return len(self._free) * self.block

    def reserve(self, sequence: CachedSequence, positions: int) -> None:
        """Give `sequence` room for this many positions in all, or raise `TooLongError` and change nothing."""
        missing = -(-positions // self.block) - len(sequence.blocks)
        if missing <= 0:
            return
        if missing > len(self._free):
            raise TooLongError(
                f"{positions} positions need {missing * self.block} more in the cache, but {self.free_positions} are "
                "free: shorten the prompt or max_new_tokens, or compile with a larger max_length"
            )
        if sequence.request < 0:
            if not self._free_requests:
                raise TooLongError(
                    "all places for sequences are taken: end a sequence, or give the cache more requests"
                )
            sequence.request = self._free_requests.pop()
        taken = [self._free.pop() for _ in range(missing)]
        sequence.blocks = np.concatenate([sequence.blocks, np.array(taken, np.int32)])

    def release(self, sequence: CachedSequence) -> None:
        self._free.extend(reversed(sequence.blocks.tolist()))
        if sequence.request >= 0:
            self._free_requests.append(sequence.request)
        sequence.blocks, sequence.length, sequence.request = np.empty(0, np.int32), 0, -1

    @contextmanager
    def sequence(self, positions: int) -> Generator[CachedSequence]:
        """Yields a sequence with room for `positions`; its blocks are freed on exit, also after an error."""
        sequence = CachedSequence(self.block, np.empty(0, np.int32))
        try:
            self.reserve(sequence, positions)
            yield sequence
        finally:
            self.release(sequence)
