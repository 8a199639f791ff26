"""What the first rank tells the others to do, as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.runtime.executable import Float32, Int32, Part, Rows

FIELDS = ("tokens", "positions", "sequences", "slots", "bases", "paths", "block_tables", "outputs", "requests")
"""The fields of `Rows` in an order."""
Arrays = list[NDArray[Any]]


class Kind(IntEnum):
    """What an order asks for."""

    END = 0  # no more orders
    STATE = 1  # a new state: its number, blocks, requests and rows
    ATTEND = 2  # the attention part of rows
    FEED = 3  # the feed-forward part of groups
    COPY = 4  # slots to others
    MARKS = 5  # when the rank worked on a group of its last step
    ECHO = 6  # payloads of so many bytes and the same back, so often
    GIVE = 7  # records to another rank
    TAKE = 8  # records of another rank
    FORGET = 9  # a state


def part_array(part: Part) -> Int32:
    leave = -1 if part.leave is None else part.leave
    return np.array([part.enter, leave, *sorted(part.skipped)], np.int32)


def part_of(array: Int32) -> Part:
    enter, leave, *skipped = array.tolist()
    return Part(enter, None if leave < 0 else leave, frozenset(skipped))


@dataclass(frozen=True)
class Attend:
    """The attention part of some rows, in groups of these sizes, on a state."""

    part: Part
    state: int
    groups: Sequence[int]
    rows: Rows
    hidden: Float32 | None

    def arrays(self) -> Arrays:
        places = () if self.rows.places is None else self.rows.places
        hidden = np.zeros((0, 0), np.float32) if self.hidden is None else self.hidden
        fields = [getattr(self.rows, name) for name in FIELDS]
        told = np.array([self.state, *self.groups], np.int32)
        return [part_array(self.part), told, hidden, *fields, *places]

    @staticmethod
    def of(arrays: Arrays) -> Attend:
        part, told, hidden, *rest = arrays
        fields, places = rest[: len(FIELDS)], rest[len(FIELDS) :]
        rows = Rows(*fields, places=(places[0], places[1]) if places else None)
        state, *groups = told.tolist()
        return Attend(part_of(part), state, groups, rows, hidden if hidden.size else None)


@dataclass(frozen=True)
class Feed:
    """The feed-forward part of groups: the rank that has each one, its number there, its rows and its outputs."""

    part: Part
    groups: Sequence[tuple[int, int, int, int]]

    def arrays(self) -> Arrays:
        return [part_array(self.part), np.array(self.groups, np.int32).reshape(-1, 4)]

    @staticmethod
    def of(arrays: Arrays) -> Feed:
        part, groups = arrays
        return Feed(part_of(part), [(rank, number, rows, outputs) for rank, number, rows, outputs in groups.tolist()])
