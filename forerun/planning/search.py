"""The cheapest placement and batching that keep limits of latency, memory and size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from forerun.errors import InvalidOptionError
from forerun.planning.hardware import Device
from forerun.planning.pipeline import Batching, Placement, Prediction, predict
from forerun.planning.shape import Shape
from forerun.planning.times import Times

GROWTH = 1.25
"""The ratio of one number of nodes that is tried to the one before, where trying every number would take too long."""
TREES = (1, 2, 3, 4, 6, 8, 12, 16)
"""Rows of a tree that are tried where a probability of acceptance is given."""


@dataclass(frozen=True)
class Limits:
    """What a plan has to keep to."""

    context: float
    """Positions of a sequence, on average over its decoding."""
    seconds_per_token: float
    devices: int
    """The most, of all kinds together."""
    micro_batches: int
    """The most in flight."""
    sequences: int | None
    """The most in flight; None for as many as fit."""
    accepted: Mapping[int, float]
    """Tokens that a step commits for a sequence, by the rows of its tree."""


def chain(probability: float) -> dict[int, float]:
    """Returns the tokens that a step commits, by rows, if each drafted token of a chain is right with `probability`.

    A chain of n rows commits (1 - p^n) / (1 - p) tokens (Leviathan et al., arXiv 2211.17192).
    """
    if not 0 <= probability < 1:
        raise InvalidOptionError(f"--acceptance must be at least 0 and below 1, not {probability:g}.")
    return {rows: sum(probability**drafted for drafted in range(rows)) for rows in TREES}


def best_split(
    shape: Shape, attention: Iterable[Device], feed_forward: Iterable[Device], times: Times, limits: Limits
) -> Prediction | None:
    """Returns the cheapest disaggregated plan, or None if none keeps the limits."""
    second = tuple(feed_forward)
    placements = (
        Placement(device, other, ranks, other_ranks)
        for device in attention
        for other in second
        for ranks in _counts(device.node, limits.devices - 1)
        for other_ranks in _feed_forward_counts(other, limits.devices - ranks, times)
    )
    return _cheapest(shape, placements, times, limits)


def best_colocated(shape: Shape, devices: Iterable[Device], times: Times, limits: Limits) -> Prediction | None:
    """Returns the cheapest plan in which every device is a rank of both parts, or None if none keeps the limits."""
    placements = (
        Placement(device, device, ranks, ranks, colocated=True)
        for device in devices
        for ranks in _feed_forward_counts(device, limits.devices, times)
    )
    return _cheapest(shape, placements, times, limits)


def _cheapest(shape: Shape, placements: Iterable[Placement], times: Times, limits: Limits) -> Prediction | None:
    """Returns the plan of the least cost; of plans that cost the same, the one of fewest devices."""
    best: Prediction | None = None
    for placement in placements:
        for plan in _plans(shape, placement, times, limits):
            if best is None or (plan.cost, plan.placement.devices) < (best.cost, best.placement.devices):
                best = plan
    return best


def _plans(shape: Shape, placement: Placement, times: Times, limits: Limits) -> Iterator[Prediction]:
    """Yields a placement's plans with the largest batch that keeps the limits, as a larger one is never dearer."""
    room = placement.most_sequences(shape, limits.context)
    if limits.sequences is not None:
        room = min(room, limits.sequences)
    for tree, accepted in limits.accepted.items():
        for micro_batches in range(1, limits.micro_batches + 1):
            low, high = 0, room // (placement.attention_ranks * micro_batches)  # sequences of a rank and a micro-batch
            largest: Prediction | None = None
            while low < high:
                middle = (low + high + 1) // 2
                batching = Batching(micro_batches, middle * placement.attention_ranks, tree, accepted)
                plan = predict(shape, placement, batching, times)
                if plan.seconds_per_token <= limits.seconds_per_token:
                    low, largest = middle, plan
                else:
                    high = middle - 1
            if largest is not None:
                yield largest


def _feed_forward_counts(device: Device, most: int, times: Times) -> list[int]:
    only = times.feed_forward_ranks(device)
    if only is None:
        return _counts(device.node, most)
    return [only] if only <= most else []


def _counts(node: int, most: int) -> list[int]:
    """Returns numbers of ranks: powers of two within a node, then whole nodes, all few and ever fewer many."""
    counts: list[int] = []
    ranks = 1
    while ranks < node:
        counts.append(ranks)
        ranks *= 2
    nodes = 1
    while nodes * node <= most:
        counts.append(nodes * node)
        nodes = max(nodes + 1, int(nodes * GROWTH))
    return [count for count in counts if count <= most]
