"""When each part of a step works on which group of rows: a value, predicted from measured times of parts and links.

A step's rows are divided into groups so that attention for one overlaps the feed-forward part for another (the
ping-pong of Step-3, arXiv 2507.19427, and MegaScale-Infer, arXiv 2504.02263). More groups overlap more, but each reads
all weights, so how many are best is a matter of times: `best` takes those whose schedule ends first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

import numpy as np

from forerun.distributed.layout import ATTENTION, FFN

MOST_GROUPS = 4
"""The most groups of one attention rank that `best` considers."""


@dataclass(frozen=True)
class Payload:
    """A message of a part: whether it waits for it, whether ranks of its own part exchange it, and its bytes a row."""

    received: bool
    peers: bool
    row_bytes: float


@dataclass(frozen=True)
class PartTimes:
    """Seconds that a part works before each of its messages and after the last, for groups of so many rows."""

    messages: tuple[Payload, ...]
    rows: tuple[int, ...]  # ascending
    seconds: tuple[tuple[float, ...], ...]  # [rows][messages + 1]

    def of(self, rows: int) -> list[float]:
        """[messages + 1] for any number of rows: in proportion to the rows beyond the largest measured."""
        beyond = max(1.0, rows / self.rows[-1])
        return [float(np.interp(rows, self.rows, each)) * beyond for each in zip(*self.seconds, strict=True)]

    def total(self, rows: int) -> float:
        return sum(self.of(rows))


@dataclass(frozen=True)
class Link:
    """The connection between two ranks (LogP, Culler et al. 1993: latency, overhead, and bytes per second)."""

    latency: float  # seconds that a payload is on its way
    bandwidth: float  # bytes per second
    overhead: float = 0.0  # seconds that it keeps the sender from other work, and then the receiver

    def seconds(self, size: float) -> float:
        """How long a payload is on its way."""
        return self.latency + size / self.bandwidth


@dataclass(frozen=True)
class Costs:
    """What a schedule is predicted from."""

    attention: PartTimes
    ffn: PartTimes
    link: Link
    around: float = 0.0  # seconds of a step before the parts begin and after they end


@dataclass(frozen=True)
class Group:
    """Some rows of an attention rank."""

    rank: int
    rows: int


@dataclass(frozen=True)
class Span:
    """A part works on a group, without a message in between. Times are seconds from the beginning of the step."""

    part: str
    rank: int  # among the attention ranks; of the feed-forward part always 0, as its ranks work alike
    group: int
    begin: float
    end: float


@dataclass(frozen=True)
class Schedule:
    """Groups in turn, and when each part works on them."""

    groups: tuple[Group, ...]
    spans: tuple[Span, ...]
    around: float = 0.0  # seconds of the step before the first span and after the last

    @property
    def seconds(self) -> float:
        return self.around + max(each.end for each in self.spans)

    @property
    def overlap(self) -> float:
        """The share of the step in which more than one rank works."""
        times = sorted({time for each in self.spans for time in (each.begin, each.end)})
        both = 0.0
        for begin, end in pairwise(times):
            busy = sum(each.begin <= begin and each.end >= end for each in self.spans)
            both += (end - begin) * (busy > 1)
        return both / self.seconds if self.seconds else 0.0


@dataclass
class _Worker:
    """A rank that takes its groups in turn, as `in_flight.run_together` does."""

    part: str
    rank: int
    turns: deque[int]
    time: float = 0.0
    at: dict[int, int] = field(default_factory=dict[int, int])  # of each group, the next message


def predicted(costs: Costs, groups: Sequence[Group]) -> Schedule:
    """The schedule of a step with these groups."""
    ranks = sorted({each.rank for each in groups})
    workers = [
        _Worker(ATTENTION, rank, deque(n for n, each in enumerate(groups) if each.rank == rank)) for rank in ranks
    ]
    workers.append(_Worker(FFN, 0, deque(range(len(groups)))))
    arrivals = {(part, number): deque[float]() for part in (ATTENTION, FFN) for number in range(len(groups))}
    times, link = {ATTENTION: costs.attention, FFN: costs.ffn}, costs.link
    seconds = {(part, number): times[part].of(each.rows) for part in times for number, each in enumerate(groups)}
    spans: list[Span] = []

    def works(worker: _Worker, number: int) -> bool:
        """Takes a turn of a group, unless what it waits for is not on its way; returns whether it did."""
        part, messages = worker.part, times[worker.part].messages
        at = worker.at.get(number, 0)
        if at and not arrivals[part, number]:
            return False
        worker.turns.popleft()
        if at:
            worker.time = max(worker.time, arrivals[part, number].popleft()) + link.overhead
        begin = worker.time
        while True:
            worker.time += seconds[part, number][at]
            if at == len(messages):
                break
            message, size = messages[at], messages[at].row_bytes * groups[number].rows
            if message.received and not message.peers:
                worker.at[number] = at + 1
                worker.turns.append(number)
                break
            if message.received:
                worker.time += link.seconds(size) + link.overhead
            else:
                worker.time += link.overhead
            if not message.received and not message.peers:
                arrivals[FFN if part == ATTENTION else ATTENTION, number].append(worker.time + link.seconds(size))
            at += 1
        spans.append(Span(part, worker.rank, number, begin, worker.time))
        return True

    while any(each.turns for each in workers):
        moved = [works(each, each.turns[0]) for each in workers if each.turns]
        assert any(moved), "the parts wait for each other"
    return Schedule(tuple(groups), tuple(spans), costs.around)


def divided(rows: Sequence[int], count: int) -> list[Group]:
    """Each attention rank's rows in up to `count` groups, in turn: the first of each rank, then the second."""
    parts = [[len(each) for each in np.array_split(np.arange(total), min(count, total))] for total in rows]
    return [
        Group(rank, part[number]) for number in range(count) for rank, part in enumerate(parts) if number < len(part)
    ]


def known_sizes(costs: Costs, rows: Sequence[int]) -> tuple[int, ...]:
    """Rows [attention ranks], each rounded up to a size that was measured, or to a multiple of the largest."""
    sizes = costs.attention.rows
    return tuple(next((each for each in sizes if each >= count), -(-count // sizes[-1]) * sizes[-1]) for count in rows)


@lru_cache(4096)
def best(costs: Costs, rows: tuple[int, ...], most: int = MOST_GROUPS) -> int:
    """In how many groups for each rank the rows [attention ranks] are predicted to end first, of up to `most`."""
    counts = range(1, max(1, min(most, max(rows))) + 1)
    return min(counts, key=lambda count: predicted(costs, divided(rows, count)).seconds)
