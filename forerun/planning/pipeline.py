"""The seconds of a step whose micro-batches pass through attention, the network and the feed-forward part in turn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from forerun.planning.hardware import Device
from forerun.planning.shape import Shape, distinct
from forerun.planning.times import Times

HOUR = 3600.0
LATENCY = "one micro-batch's way through all layers"


@dataclass(frozen=True)
class Placement:
    """Which devices hold which part.

    Attention ranks hold all weights of their part and the caches of their own sequences; feed-forward ranks hold equal
    shares of theirs. Colocated, every device is a rank of both.
    """

    attention: Device
    feed_forward: Device
    attention_ranks: int
    feed_forward_ranks: int
    colocated: bool = False

    @property
    def devices(self) -> int:
        return self.attention_ranks + (0 if self.colocated else self.feed_forward_ranks)

    @property
    def price(self) -> float:
        """USD per hour."""
        apart = 0.0 if self.colocated else self.feed_forward_ranks * self.feed_forward.price
        return self.attention_ranks * self.attention.price + apart

    def most_sequences(self, shape: Shape, context: float) -> int:
        """Sequences of `context` positions whose caches fit beside the weights; 0 if the weights do not fit."""
        held = shape.feed_forward_bytes / self.feed_forward_ranks
        if self.colocated:
            room = self.attention.memory - shape.attention_bytes - held
        else:
            room = self.attention.memory - shape.attention_bytes
            if held > self.feed_forward.memory:
                return 0
        return max(0, int(room / shape.cache_bytes(context))) * self.attention_ranks


@dataclass(frozen=True)
class Batching:
    """How sequences share a step."""

    micro_batches: int
    """How many are in flight at the same time, each with its own sequences."""
    sequences: int
    """The sequences of one micro-batch, over all attention ranks."""
    tree: int = 1
    """Rows of a sequence in a step."""
    accepted: float = 1.0
    """Tokens that a step commits for a sequence, on average."""

    @property
    def rows(self) -> int:
        """Rows of one micro-batch."""
        return self.sequences * self.tree


@dataclass(frozen=True)
class Stage:
    """What one micro-batch occupies in a step, over all layers."""

    name: str
    seconds: float
    """The time in which nothing else of this kind can happen."""
    latency: float = 0.0
    """Seconds that pass besides, and occupy nothing."""


@dataclass(frozen=True)
class Prediction:
    """A placement and a batching with their predicted speed and cost."""

    placement: Placement
    batching: Batching
    stages: tuple[Stage, ...]

    @cached_property
    def busiest(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.seconds)

    @cached_property
    def way(self) -> float:
        """Seconds of one micro-batch through all layers, without waiting."""
        return sum(stage.seconds + stage.latency for stage in self.stages)

    @cached_property
    def step_seconds(self) -> float:
        """Seconds from one step of a sequence to the next: all micro-batches pass the busiest stage, and no micro-batch
        is faster than its way."""
        return max(self.batching.micro_batches * self.busiest.seconds, self.way)

    @property
    def bottleneck(self) -> str:
        """The name of what a step waits for."""
        waited = self.batching.micro_batches * self.busiest.seconds
        return LATENCY if waited < self.step_seconds else self.busiest.name

    @property
    def seconds_per_token(self) -> float:
        return self.step_seconds / self.batching.accepted

    @property
    def tokens_per_second(self) -> float:
        batching = self.batching
        return batching.micro_batches * batching.sequences * batching.accepted / self.step_seconds

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens_per_second / self.placement.devices

    @property
    def cost(self) -> float:
        """USD per million tokens."""
        return self.placement.price / HOUR / self.tokens_per_second * 1e6


def predict(shape: Shape, placement: Placement, batching: Batching, times: Times) -> Prediction:
    """Predicts a placement's step; each part's seconds are those of its slowest rank, which all are alike."""
    ranks = placement.attention_ranks
    attention = times.attention(placement.attention, batching.rows / ranks, batching.sequences / ranks)
    feed_forward = times.feed_forward(placement.feed_forward, batching.rows, placement.feed_forward_ranks)
    if placement.colocated:
        parts = (Stage("attention and FFN on the same devices", attention + feed_forward),)
    else:
        parts = (Stage("attention", attention), Stage("FFN", feed_forward))
    return Prediction(placement, batching, parts + _links(shape, placement, batching.rows, times))


def _links(shape: Shape, placement: Placement, rows: int, times: Times) -> tuple[Stage, ...]:
    """Returns what rows occupy of the network on their way to the feed-forward ranks, and back.

    A row is sent once to every node that holds an expert it has chosen, and a sum comes back from each; within a node
    it travels for nothing. Both directions work at the same time.
    """
    copies = _copies(shape, placement)
    if copies == 0:
        return ()
    sender, receiver = times.network(placement.attention), times.network(placement.feed_forward)
    per_byte = max(
        1 / (placement.attention_ranks * sender.bandwidth), 1 / (placement.feed_forward_ranks * receiver.bandwidth)
    )
    latency = shape.layers * max(sender.latency, receiver.latency)
    numbers = rows * shape.hidden * copies
    return tuple(
        Stage(name, numbers * size * per_byte, latency)
        for name, size in (
            ("the network to the FFN", shape.bytes.send),
            ("the network back from the FFN", shape.bytes.receive),
        )
    )


def _copies(shape: Shape, placement: Placement) -> float:
    """Returns how often a row crosses the network in each direction, over all layers."""
    nodes = math.ceil(placement.feed_forward_ranks / placement.feed_forward.node)
    copies = 0.0
    for each in shape.feed_forward:
        dense = each.count == 1  # every rank holds a slice of it
        copies += each.layers * (nodes if dense else distinct(nodes, 1, each.chosen))
    return copies * (nodes - 1) / nodes if placement.colocated else copies
