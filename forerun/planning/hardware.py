"""Devices: what they compute, read, hold, send and cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forerun.errors import PlanningError
from forerun.planning.reading import Fields, as_number, read_fields

WIDER = {"fp4": "fp8", "fp8": "bf16", "int8": "bf16", "bf16": "fp32", "fp32": None}
"""The dtypes of products, each with the one that a device without it computes in; what is read stays as narrow."""


@dataclass(frozen=True)
class Network:
    """A device's own link to devices of other nodes, which sends and receives at the same time."""

    bandwidth: float
    """Bytes per second, in each direction."""
    latency: float
    """Seconds until the first byte of a message has arrived."""


@dataclass(frozen=True)
class Device:
    """One accelerator."""

    name: str
    flops: Mapping[str, float]
    """FLOP per second by dtype; a multiplication and its addition are two."""
    memory_bandwidth: float
    """Bytes per second."""
    memory: float
    """Bytes that weights and caches may take."""
    network: Network
    price: float
    """USD per hour."""
    node: int
    """Devices of a node, which reach each other without the network."""

    def peak(self, dtype: str) -> float:
        """FLOP per second in a dtype, or in the next wider one that the device has. Raises `PlanningError`."""
        wider: str | None = dtype
        while wider is not None:
            if wider in self.flops:
                return self.flops[wider]
            wider = WIDER[wider]
        raise PlanningError(f"{self.name} has no FLOP/s for {dtype}, nor a wider dtype: add one to its flops.")


def read_hardware(file: str) -> tuple[Device, ...]:
    """Reads devices from a YAML file (docs/planning.md). Raises `PlanningError`, and OSError."""
    fields = read_fields(file)
    given = fields.inner("devices")
    fields.end()
    if not given.names():
        raise PlanningError(f"{file} has no devices: add one.")
    return tuple(_device(name, given.inner(name)) for name in given.names())


def read_network(fields: Fields) -> Network:
    network = Network(fields.number("bandwidth"), fields.number("latency", least=0))
    fields.end()
    return network


def _device(name: str, fields: Fields) -> Device:
    device = Device(
        name,
        _flops(fields),
        fields.number("memory_bandwidth"),
        fields.number("memory"),
        read_network(fields.inner("network")),
        fields.number("price"),
        fields.count("node", 1),
    )
    fields.end()
    return device


def _flops(fields: Fields) -> dict[str, float]:
    """Returns FLOP/s by dtype; a single number holds for all dtypes."""
    single = as_number(fields.value("flops"))
    if single is not None:
        return dict.fromkeys(WIDER, fields.number("flops"))
    given = fields.inner("flops")
    unknown = [each for each in given.names() if each not in WIDER]
    if unknown or not given.names():
        wrong = f"{unknown[0]!r} is no dtype" if unknown else "there is no dtype"
        raise PlanningError(f"{given.place}: {wrong}: give FLOP/s of {', '.join(WIDER)}.")
    return {each: given.number(each) for each in given.names()}
