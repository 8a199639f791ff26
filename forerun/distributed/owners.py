"""Which attention rank has which records, and so which rank attends to which sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forerun.runtime.executable import Int32, Rows


@dataclass(frozen=True)
class Move:
    """Records that one rank has and another one needs: those of slots, and states per row at places."""

    source: int
    destination: int
    slots: Int32
    places: Int32


class Holders:
    """Which ranks have a valid record at each number: the one that wrote it, and those that were given a copy."""

    def __init__(self, ranks: int, count: int) -> None:
        self.valid = np.zeros((ranks, count), np.bool_)

    def written(self, rank: int, numbers: Int32) -> None:
        self.valid[:, numbers] = False
        self.valid[rank, numbers] = True

    def copied(self, source: Int32, destination: Int32) -> None:
        """Every rank has copied what it has."""
        self.valid[:, destination] = self.valid[:, source]

    def missing(self, rank: int, numbers: Int32) -> dict[int, Int32]:
        """What a rank lacks of these records, by the rank that gives it; nobody has those that were never written."""
        lacking = numbers[~self.valid[rank, numbers]]
        lacking = lacking[self.valid[:, lacking].any(axis=0)]
        givers = self.valid[:, lacking].argmax(axis=0)
        return {int(giver): lacking[givers == giver] for giver in np.unique(givers)}

    def given(self, rank: int, numbers: Int32) -> None:
        self.valid[rank, numbers] = True


class Owners:
    """The records that the rows of a step read and write, by rank.

    A sequence that begins goes to the rank with the fewest rows of the step, any other to the rank that has most of its
    history. If several have some of it (equal beginnings of prompts are shared), the rest is moved there.

    slots   of the cache
    places  of states per row
    """

    def __init__(self, ranks: int, slots: int, places: int, block: int) -> None:
        self.ranks, self.block = ranks, block
        self.slots, self.places = Holders(ranks, slots), Holders(ranks, places)

    def of(self, rows: Rows) -> tuple[Int32, list[Move]]:
        """[N] the rank of each row, and what has to be moved before the step. Notes what the rows write."""
        found = np.zeros(len(rows.tokens), np.int32)
        if self.ranks == 1:
            return found, []
        load = np.zeros(self.ranks, np.int64)
        moves: list[Move] = []
        for sequence in np.unique(rows.sequences).tolist():
            own = np.flatnonzero(rows.sequences == sequence)
            slots, places = self._history(rows, own), _parents(rows, own)
            had = self.slots.valid[:, slots].sum(axis=1)
            rank = int(np.lexsort((load, -had))[0])
            moves += self._moved(rank, slots, places)
            self.slots.written(rank, rows.slots[own])
            if rows.places is not None:
                self.places.written(rank, rows.records[own])
            found[own] = rank
            load[rank] += len(own)
        return found, moves

    def copied(self, source: Int32, destination: Int32, with_places: bool) -> None:
        """Notes that slots were copied on all ranks; `with_places`: states per row, numbered as slots are, as well."""
        if self.ranks > 1:
            self.slots.copied(source, destination)
            if with_places:
                self.places.copied(source, destination)

    def _moved(self, rank: int, slots: Int32, places: Int32) -> Iterator[Move]:
        lacking = self.slots.missing(rank, slots), self.places.missing(rank, places)
        for giver in sorted(lacking[0].keys() | lacking[1].keys()):
            given = [each.get(giver, np.zeros(0, np.int32)) for each in lacking]
            yield Move(giver, rank, *given)
        self.slots.given(rank, slots)
        self.places.given(rank, places)

    def _history(self, rows: Rows, own: NDArray[np.intp]) -> Int32:
        """The slots that a sequence's rows read and do not write: at home, and on the rows' paths."""
        table = rows.block_tables[rows.sequences[own[0]]]
        positions = np.arange(int(rows.bases[own].max()), dtype=np.int32)
        home = table[positions // self.block] * self.block + positions % self.block
        lengths = (rows.positions - rows.bases)[own] + 1
        on_path = np.arange(rows.paths.shape[1]) < lengths[:, None]
        return np.setdiff1d(np.concatenate([home, rows.paths[own][on_path]]), rows.slots[own]).astype(np.int32)


def _parents(rows: Rows, own: NDArray[np.intp]) -> Int32:
    """The places of states per row that a sequence's rows read and do not write."""
    if rows.places is None:
        return np.zeros(0, np.int32)
    parents = rows.parents[own]
    return np.setdiff1d(parents[parents >= 0], rows.records[own]).astype(np.int32)
