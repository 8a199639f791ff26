"""A finished plan, as numbers for JSON, rows for a table and a verdict in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forerun.planning.floor import Floor
from forerun.planning.pipeline import LATENCY, Prediction

ALIKE = 0.01
"""Costs closer than this fraction are the same."""
SERVINGS = ("disaggregated", "colocated")


@dataclass(frozen=True)
class Plan:
    """The best disaggregated and the best colocated serving, either of which may be missing, but not both."""

    model: str
    context: float
    disaggregated: Prediction | None
    colocated: Prediction | None
    floors: dict[str, Floor]
    """The least cost by the Step-3 paper's formula, of both kinds."""

    def rows(self) -> list[tuple[str, ...]]:
        """Returns the rows of a table: what is said, then its value for each of `SERVINGS`."""
        found = [{} if each is None else _cells(each) for each in (self.disaggregated, self.colocated)]
        names = list(found[0] or found[1])
        rows = [(name, *(cells.get(name, "-") for cells in found)) for name in names]
        floors = [self.floors[name] for name in SERVINGS]
        devices = [each.attention if each.attention == each.ffn else f"{each.attention}, {each.ffn}" for each in floors]
        least = [f"{each.cost:.3f} ({name})" for each, name in zip(floors, devices, strict=True)]
        return [*rows, ("floor, without drafts", *least)]

    def verdict(self) -> str:
        """Returns whether disaggregation pays, and if it does not, what it waits for."""
        split, together = self.disaggregated, self.colocated
        if split is None:
            return "Disaggregation loses: no split keeps the limits, colocated serving does."
        if together is None:
            return "Disaggregation wins: no colocated serving keeps the limits."
        ratio = split.cost / together.cost
        if ratio < 1 - ALIKE:
            return f"Disaggregation wins: a token costs {1 / ratio:.2f} times as much if the parts share their devices."
        if ratio <= 1 + ALIKE:
            return "Disaggregation gains nothing: a token costs the same if the parts share their devices."
        return (
            f"Disaggregation loses: a token costs {ratio:.2f} times as much as if the parts share their devices; "
            f"{_reason(split)}."
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "context": self.context,
            "disaggregated": _numbers(self.disaggregated),
            "colocated": _numbers(self.colocated),
            "floors": {name: vars(floor) for name, floor in self.floors.items()},
            "verdict": self.verdict(),
        }


def _reason(split: Prediction) -> str:
    """Says what a split waits for, and what stands idle meanwhile."""
    busy = {stage.name: split.batching.micro_batches * stage.seconds / split.step_seconds for stage in split.stages}
    parts = ", ".join(f"{name} is busy {share:.0%} of the time" for name, share in busy.items() if share < 1 - ALIKE)
    waits = "it waits for " + split.bottleneck
    if split.bottleneck == LATENCY:
        latency = sum(stage.latency for stage in split.stages)
        waits += f", {latency / split.step_seconds:.0%} of it the network's latency"
    return f"{waits}, and {parts}" if parts else waits


def _cells(plan: Prediction) -> dict[str, str]:
    placement, batching = plan.placement, plan.batching
    return {
        "attention on": f"{placement.attention_ranks} {placement.attention.name}",
        "FFN on": "the same"
        if placement.colocated
        else f"{placement.feed_forward_ranks} {placement.feed_forward.name}",
        "micro-batches in flight": str(batching.micro_batches),
        "sequences of one": str(batching.sequences),
        "rows of one": str(batching.rows),
        "rows of a tree": str(batching.tree),
        "accepted length": f"{batching.accepted:.2f}",
        "ms per token": f"{1e3 * plan.seconds_per_token:.1f}",
        "tokens per second": f"{plan.tokens_per_second:.0f}",
        "the same, per device": f"{plan.tokens_per_second_per_device:.0f}",
        "USD per million tokens": f"{plan.cost:.3f}",
        "a step waits for": plan.bottleneck,
    }


def _numbers(plan: Prediction | None) -> dict[str, Any] | None:
    if plan is None:
        return None
    placement, batching = plan.placement, plan.batching
    return {
        "attention": {"device": placement.attention.name, "ranks": placement.attention_ranks},
        "ffn": {"device": placement.feed_forward.name, "ranks": placement.feed_forward_ranks},
        "devices": placement.devices,
        "micro_batches": batching.micro_batches,
        "sequences_per_micro_batch": batching.sequences,
        "rows_per_micro_batch": batching.rows,
        "tree": batching.tree,
        "accepted_length": batching.accepted,
        "step_seconds": plan.step_seconds,
        "seconds_per_token": plan.seconds_per_token,
        "tokens_per_second": plan.tokens_per_second,
        "tokens_per_second_per_device": plan.tokens_per_second_per_device,
        "usd_per_million_tokens": plan.cost,
        "bottleneck": plan.bottleneck,
        "stages": {each.name: {"seconds": each.seconds, "latency": each.latency} for each in plan.stages},
    }
