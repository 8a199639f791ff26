"""The seconds that one rank of a part takes for a micro-batch, over all layers: a roofline.

A kernel takes the longer of its FLOPs at the device's peak and its bytes at its memory bandwidth. A part is the sum of
its kernels: for attention the projections, the attention proper and the head; for the feed-forward part each kind of
layer. `efficiency` is the fraction of both peaks that kernels reach, one number for all devices, parts and models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from forerun.planning.hardware import Device, Network
from forerun.planning.shape import Shape


class Times(Protocol):
    """Where the planner takes seconds from: a roofline, or measurements."""

    def attention(self, device: Device, rows: float, sequences: float) -> float:
        """Seconds of an attention rank for `rows` rows of `sequences` sequences."""
        ...

    def feed_forward(self, device: Device, rows: float, ranks: int) -> float:
        """Seconds of each of `ranks` feed-forward ranks, which hold equal shares of the weights, for `rows` rows."""
        ...

    def network(self, device: Device) -> Network:
        """The link of a device."""
        ...

    def feed_forward_ranks(self, device: Device) -> int | None:
        """The only number of feed-forward ranks whose seconds are known; None for all."""
        ...


@dataclass(frozen=True)
class Roofline:
    """The shortest seconds that a device's peaks allow, divided by `efficiency`."""

    shape: Shape
    context: float
    """Positions of a sequence that a row attends to."""
    efficiency: float = 1.0

    def attention(self, device: Device, rows: float, sequences: float) -> float:
        shape = self.shape
        weights = shape.layers * shape.attention.weights
        products = shape.layers * shape.attention.products * self.context
        return (
            self._kernel(device, shape.dtype, rows * weights, shape.bytes.weight * weights)
            + self._kernel(device, shape.attention.dtype, rows * products, sequences * shape.cache_bytes(self.context))
            + self._kernel(device, shape.dtype, rows * shape.head, shape.bytes.weight * shape.head)
        )

    def feed_forward(self, device: Device, rows: float, ranks: int) -> float:
        dtype, size = self.shape.dtype, self.shape.bytes.weight
        kernels = (
            self._kernel(device, dtype, rows * each.layers * each.active, size * each.layers * each.read(rows))
            for each in self.shape.feed_forward
        )
        return sum(kernels) / ranks

    def feed_forward_ranks(self, device: Device) -> int | None:
        return None

    def network(self, device: Device) -> Network:
        return device.network

    def _kernel(self, device: Device, dtype: str, products: float, read: float) -> float:
        """Seconds of a kernel that multiplies and adds `products` pairs of numbers and reads `read` bytes."""
        longer = max(2 * products / device.peak(dtype), read / device.memory_bandwidth)
        return longer / self.efficiency
