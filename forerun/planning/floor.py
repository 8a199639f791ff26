"""The least that decoding can cost: Step-3's theoretical cost (arXiv 2507.19427, section 4.2).

Devices are always at a peak, the network is hidden, weights are read for nothing (batches are large enough), there is
no limit of latency or of memory, and the embedding and the head are left out. So the cost of a part is what it computes
or reads, times the price of a FLOP or a byte; parts may be on different devices.
"""

from __future__ import annotations

from dataclasses import dataclass

from forerun.planning.hardware import Device
from forerun.planning.pipeline import HOUR
from forerun.planning.shape import Shape


@dataclass(frozen=True)
class Floor:
    """The least cost of a token, in USD per million tokens, and the devices that reach it."""

    attention: str
    ffn: str
    cost: float


def attention_cost(shape: Shape, context: float, device: Device) -> float:
    """Returns USD per million tokens of attention: the dearer of its FLOPs and its cache's bytes, and projections."""
    core = 2 * shape.layers * shape.attention.products * context * _per_flop(device, shape.attention.dtype)
    cache = shape.cache_bytes(context) * device.price / HOUR / device.memory_bandwidth
    projections = 2 * shape.layers * shape.attention.weights * _per_flop(device, shape.dtype)
    return 1e6 * (max(core, cache) + projections)


def feed_forward_cost(shape: Shape, device: Device) -> float:
    """Returns USD per million tokens of the feed-forward part."""
    return 1e6 * 2 * shape.active * _per_flop(device, shape.dtype)


def least(shape: Shape, context: float, attention: tuple[Device, ...], feed_forward: tuple[Device, ...]) -> Floor:
    """Returns the cheapest device for each part."""
    first = min(attention, key=lambda device: attention_cost(shape, context, device))
    second = min(feed_forward, key=lambda device: feed_forward_cost(shape, device))
    cost = attention_cost(shape, context, first) + feed_forward_cost(shape, second)
    return Floor(first.name, second.name, cost)


def _per_flop(device: Device, dtype: str) -> float:
    return device.price / HOUR / device.peak(dtype)
