"""Groups of rows in flight: while one waits for the other part, another one runs (the ping-pong of Step-3, arXiv
2507.19427, and MegaScale-Infer, arXiv 2504.02263).

All ranks take their groups in turn, so that messages between two ranks have one order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.distributed.wire import Expected, Wire
from forerun.runtime.executable import Exchange, Running


@dataclass
class Flight:
    """Rows in flight: a part that runs from message to message, and the ranks that have the other part."""

    running: Running[Any]
    partners: Sequence[int]
    tag: int
    peers: Sequence[int] = ()  # the ranks that share this part, this one among them
    own: dict[str, NDArray[Any]] = field(default_factory=dict[str, "NDArray[Any]"])
    """What the peers were sent, and this rank needs too."""
    marks: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    """When the part began and ended to work, before each message and after the last, by `time.perf_counter`."""
    result: Any = None


def run_together(wire: Wire, groups: Sequence[Flight]) -> list[Any]:
    """Runs groups in turn, each up to where it waits; returns their results."""
    waiting: deque[tuple[Flight, list[Expected]]] = deque()

    def advance(group: Flight) -> None:
        """Runs a group until it needs something, or ends."""
        while True:
            began, exchange = perf_counter(), None
            try:
                exchange = next(group.running)
            except StopIteration as ended:
                group.result = ended.value
            group.marks.append((began, perf_counter()))
            if exchange is None:
                return
            if exchange.received:
                waiting.append((group, _expected(wire, group, exchange)))
                return
            if exchange.peers:
                group.own[exchange.payload] = exchange.array.copy()
            for rank in group.peers if exchange.peers else group.partners:
                if rank != wire.rank:
                    wire.send(rank, exchange.payload, exchange.array, group.tag)

    for group in groups:
        advance(group)
    while waiting:
        group, expected = waiting.popleft()
        for each in expected:
            each.wait()
        advance(group)
    wire.flush()
    return [group.result for group in groups]


def _expected(wire: Wire, group: Flight, exchange: Exchange) -> list[Expected]:
    """What is on its way from each rank: of several, each has some of the columns."""
    ranks = group.peers if exchange.peers else group.partners
    found: list[Expected] = []
    for rank, piece in zip(ranks, np.array_split(exchange.array, len(ranks), axis=-1), strict=True):
        if rank == wire.rank:
            piece[...] = group.own.pop(exchange.payload)
        else:
            found.append(wire.expect(rank, exchange, piece, group.tag))
    return found
