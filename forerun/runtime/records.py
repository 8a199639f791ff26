"""Where the states per row of slots lie: a cache of records, of which the least recently used give way.

A row reads its parent's record and leaves its own. Only the last committed position of a sequence and the rows of the
tree at hand are read again, so there are far fewer records than slots; a sequence whose record has given way goes back
to an earlier position (`Engine.restore`), and reads its text again from there with the same bits.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forerun.errors import TooLongError
from forerun.runtime.executable import Int32, Rows

NONE = -1


class RecordCache:
    """Gives the rows of steps their records. A record may be that of several slots, after a fork."""

    def __init__(self, slots: int, block: int, records: int) -> None:
        """`block`: P. `records`: two more than the rows of the largest tree and the sequences beside it."""
        self.records, self._block = records, block
        self._of_slot = np.full(slots, NONE, np.int32)  # the record of each slot
        self._slots = np.zeros(records, np.int32)  # how many slots have each record
        self._used = np.zeros(records, np.int64)  # the run that used each record last
        self._run = 0

    def has(self, slot: int) -> bool:
        """Whether the record of a slot is there."""
        return self._of_slot[slot] != NONE

    def placed(self, rows: Rows) -> Rows:
        """Returns the rows of a run with the places of their records.

        Of consecutive positions of a prompt only the last one's record is kept. The others take turns at two records,
        which all prompts of the run share, as rows are evaluated one sequence after the other (`Rows.order`). Raises
        `TooLongError` if a parent's record is not there, or the rows have no room.
        """
        self._run += 1
        parents = rows.parent_slots(self._block)
        passing = _passing(rows)
        known = parents[parents >= 0]
        self._touch(self._of_slot[known])
        self._touch(self._of_slot[rows.slots])
        records = np.empty(len(rows.slots), np.int32)
        records[~passing] = [self._give(slot) for slot in rows.slots[~passing].tolist()]
        if passing.any():
            self._drop(rows.slots[passing])
            turns = [self._free(), self._free()]
            self._used[turns] = 0  # only until the run has ended
            records[passing] = np.array(turns, np.int32)[rows.positions[passing] % 2]
        before = np.where(parents >= 0, self._of_slot[parents], NONE).astype(np.int32)
        behind = np.flatnonzero(passing[:-1]) + 1
        before[behind] = records[behind - 1]
        if (before[parents >= 0] == NONE).any():
            raise TooLongError(
                "the recurrent state of an earlier position is not in the cache any more: read the text again from the "
                "start, or give the cache more room"
            )
        return replace(rows, places=(before, records))

    def move(self, source: Int32, destination: Int32) -> None:
        """The records of slots become those of others."""
        moved = self._of_slot[source].copy()
        self._drop(destination)
        self._of_slot[source] = NONE
        self._of_slot[destination] = moved

    def share(self, source: Int32, destination: Int32) -> None:
        """Slots get the records of others, which keep them."""
        self._drop(destination)
        self._of_slot[destination] = shared = self._of_slot[source]
        np.add.at(self._slots, shared[shared >= 0], 1)

    def _give(self, slot: int) -> int:
        """Returns a record that is this slot's alone."""
        record = int(self._of_slot[slot])
        if record == NONE or self._slots[record] > 1:
            if record != NONE:
                self._slots[record] -= 1
            self._of_slot[slot] = record = self._free()
            self._slots[record] = 1
        return record

    def _free(self) -> int:
        """Takes a record that nothing in this run has used from its slots: one of no slot, if there is any."""
        rest = np.flatnonzero(self._used < self._run)
        if not len(rest):
            raise TooLongError(f"a step's rows need more than {self.records} recurrent states: propose smaller trees")
        record = int(rest[np.lexsort((self._used[rest], self._slots[rest] > 0))[0]])
        if self._slots[record]:
            self._of_slot[self._of_slot == record] = NONE
            self._slots[record] = 0
        self._used[record] = self._run
        return record

    def _drop(self, slots: Int32) -> None:
        records = self._of_slot[slots]
        np.subtract.at(self._slots, records[records >= 0], 1)
        self._of_slot[slots] = NONE

    def _touch(self, records: Int32) -> None:
        self._used[records[records >= 0]] = self._run


def _passing(rows: Rows) -> NDArray[np.bool_]:
    """[N]: whether the next row is the next position of the same prompt."""
    found = np.zeros(len(rows.slots), np.bool_)
    at_home = rows.bases == rows.positions + 1
    found[:-1] = (
        at_home[:-1]
        & at_home[1:]
        & (rows.sequences[:-1] == rows.sequences[1:])
        & (rows.positions[:-1] + 1 == rows.positions[1:])
    )
    return found
