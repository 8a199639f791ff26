"""`plan`: from files and limits to the best placements."""

from __future__ import annotations

import math
from dataclasses import dataclass

from forerun.errors import InvalidOptionError, PlanningError
from forerun.planning.floor import least
from forerun.planning.hardware import Device, read_hardware
from forerun.planning.measured import read_measured
from forerun.planning.reading import MOST, as_number
from forerun.planning.report import Plan
from forerun.planning.search import Limits, best_colocated, best_split, chain
from forerun.planning.shape import read_shape
from forerun.planning.times import Roofline, Times

MOST_DEVICES, MOST_MICRO_BATCHES = 4096, 16
"""Every number of devices and of micro-batches up to these is tried."""


@dataclass(frozen=True)
class PlanOptions:
    """The options of `forerun plan`, with its defaults."""

    context: int = 4096
    latency: float = 50.0
    """Milliseconds per token, at most."""
    devices: int = 64
    micro_batches: int = 4
    batch: int | None = None
    accepted: str | None = None
    """Accepted lengths as `rows:length,...`."""
    acceptance: float | None = None
    efficiency: float = 1.0
    measured: str | None = None
    attention_device: str | None = None
    ffn_device: str | None = None

    def __post_init__(self) -> None:
        """Raises `InvalidOptionError` for an option out of range."""
        most = {"context": MOST, "devices": MOST_DEVICES, "micro_batches": MOST_MICRO_BATCHES, "batch": MOST}
        for name, limit in most.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limit:
                raise InvalidOptionError(f"--{name.replace('_', '-')} must be from 1 to {limit:g}, not {value}.")
        if not 0 < self.latency < math.inf:
            raise InvalidOptionError(f"--latency must be a number of milliseconds above 0, not {self.latency:g}.")
        if not 0 < self.efficiency <= 1:
            raise InvalidOptionError(f"--efficiency must be above 0 and at most 1, not {self.efficiency:g}.")
        if self.accepted is not None and self.acceptance is not None:
            raise InvalidOptionError("--accepted and --acceptance exclude each other: give one of them.")
        self.limits()

    def limits(self) -> Limits:
        lengths = {1: 1.0}
        if self.accepted is not None:
            lengths = _lengths(self.accepted)
        elif self.acceptance is not None:
            lengths = chain(self.acceptance)
        return Limits(self.context, self.latency / 1e3, self.devices, self.micro_batches, self.batch, lengths)


def plan(model: str, hardware: str, options: PlanOptions) -> Plan:
    """Plans a model (a file of its shape) on devices (a file of hardware).

    Raises `PlanningError` for files that cannot be used and for limits that no plan keeps, and OSError.
    """
    shape, devices, limits = read_shape(model), read_hardware(hardware), options.limits()
    attention = _chosen(devices, options.attention_device, hardware)
    feed_forward = _chosen(devices, options.ffn_device, hardware)
    times: Times = Roofline(shape, options.context, options.efficiency)
    if options.measured is not None:
        times = read_measured(options.measured, times, options.context, devices)
    split = best_split(shape, attention, feed_forward, times, limits)
    both = tuple(each for each in devices if each in attention or each in feed_forward)
    together = best_colocated(shape, both, times, limits)
    if split is None and together is None:
        raise PlanningError(
            f"{options.devices} devices of {hardware} cannot serve {shape.name} with {options.latency:g} ms per token "
            f"at a context of {options.context}: allow more --latency, --devices or --batch, or a shorter --context."
        )
    floors = {
        "disaggregated": least(shape, options.context, attention, feed_forward),
        "colocated": min((least(shape, options.context, (each,), (each,)) for each in both), key=lambda one: one.cost),
    }
    return Plan(shape.name, options.context, split, together, floors)


def _chosen(devices: tuple[Device, ...], name: str | None, file: str) -> tuple[Device, ...]:
    found = tuple(each for each in devices if name in (None, each.name))
    if not found:
        names = ", ".join(each.name for each in devices)
        raise PlanningError(f"{file} has no device {name!r}: name one of {names}.")
    return found


def _lengths(text: str) -> dict[int, float]:
    """Reads accepted lengths, `rows:length,rows:length`. Raises `InvalidOptionError`."""
    lengths: dict[int, float] = {}
    for pair in text.split(","):
        rows, _, given = pair.partition(":")
        length = as_number(given)
        if not rows.strip().isdecimal() or length is None or not 1 <= length <= int(rows):
            raise InvalidOptionError(
                f"--accepted must be pairs of a tree's rows and its accepted length, from 1 to the rows, such as "
                f"1:1,4:2.1; {pair!r} is none."
            )
        lengths[int(rows)] = length
    return lengths
