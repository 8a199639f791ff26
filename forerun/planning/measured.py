"""Measured seconds in place of the roofline, as far as a file gives them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from forerun.errors import PlanningError
from forerun.planning.hardware import Device, Network, read_network
from forerun.planning.reading import Fields, as_number, read_fields
from forerun.planning.times import Times


@dataclass(frozen=True)
class Curve:
    """Seconds by rows, at increasing rows: lines between what was measured, and the last line goes on.

    Fewer rows than were measured take as long as the fewest that were, as a part reads its weights in any case.
    """

    rows: tuple[float, ...]
    seconds: tuple[float, ...]

    def at(self, rows: float) -> float:
        if rows <= self.rows[0]:
            return self.seconds[0]
        if len(self.rows) == 1:
            return self.seconds[0] * rows / self.rows[0]
        right = min(bisect_left(self.rows, rows), len(self.rows) - 1)
        left = right - 1
        slope = (self.seconds[right] - self.seconds[left]) / (self.rows[right] - self.rows[left])
        if rows > self.rows[right]:
            return self.seconds[right] + max(slope, 0.0) * (rows - self.rows[right])
        return self.seconds[left] + slope * (rows - self.rows[left])


@dataclass(frozen=True)
class Measured:
    """`Times` that were measured on one kind of device; for other devices, and where a part was not, `otherwise`."""

    otherwise: Times
    device: str
    attention_curve: Curve | None = None
    """The seconds of one attention rank, by its own rows."""
    feed_forward_curve: Curve | None = None
    """The seconds of the feed-forward part on `measured_ranks` ranks, by the rows of all."""
    measured_ranks: int = 1
    link: Network | None = None

    def attention(self, device: Device, rows: float, sequences: float) -> float:
        if self.attention_curve is None or device.name != self.device:
            return self.otherwise.attention(device, rows, sequences)
        return self.attention_curve.at(rows)

    def feed_forward(self, device: Device, rows: float, ranks: int) -> float:
        if self.feed_forward_curve is None or device.name != self.device:
            return self.otherwise.feed_forward(device, rows, ranks)
        return self.feed_forward_curve.at(rows)

    def feed_forward_ranks(self, device: Device) -> int | None:
        if self.feed_forward_curve is None or device.name != self.device:
            return self.otherwise.feed_forward_ranks(device)
        return self.measured_ranks

    def network(self, device: Device) -> Network:
        return self.otherwise.network(device) if self.link is None or device.name != self.device else self.link


def read_measured(file: str, otherwise: Times, context: float, devices: tuple[Device, ...]) -> Measured:
    """Reads measured seconds (docs/planning.md). Raises `PlanningError`, also for another context; and OSError."""
    fields = read_fields(file)
    if "context" in fields and fields.number("context") != context:
        measured_at = fields.number("context")
        raise PlanningError(
            f"{file} was measured at a context of {measured_at:g} positions, and the plan is for {context:g}: give "
            f"--context {measured_at:g}, or measure again."
        )
    names = [each.name for each in devices]
    device = fields.text("device", names[0] if len(names) == 1 else None)
    if device not in names:
        raise PlanningError(f"{file} was measured on {device!r}, which is not in the hardware: {', '.join(names)}.")
    attention = _curve(fields.inner("attention")) if "attention" in fields else None
    feed_forward = _curve(fields.inner("ffn")) if "ffn" in fields else None
    ranks = fields.count("ffn_ranks", 1)
    link = read_network(fields.inner("link")) if "link" in fields else None
    fields.end()
    if attention is None and feed_forward is None and link is None:
        raise PlanningError(f"{file} has no measured times: give attention, ffn or link.")
    return Measured(otherwise, device, attention, feed_forward, ranks, link)


def _curve(fields: Fields) -> Curve:
    points: list[tuple[float, float]] = []
    for name in fields.names():
        rows = as_number(name)
        if rows is None or rows < 1:
            raise PlanningError(f"{fields.place}: {name!r} is no number of rows: give pairs of rows and seconds.")
        points.append((rows, fields.number(name)))
    if not points:
        raise PlanningError(f"{fields.place} is empty: give pairs of rows and seconds.")
    points.sort()
    if len({rows for rows, _ in points}) < len(points):
        raise PlanningError(f"{fields.place} gives some number of rows twice: give each once.")
    return Curve(tuple(rows for rows, _ in points), tuple(seconds for _, seconds in points))
