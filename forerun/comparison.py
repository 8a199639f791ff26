"""Compares speculative with plain decoding of the same text: what a step costs and what it gains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forerun.runtime.request import Stats

WORTH_IT = 1.05
"""The multiple of plain decoding's tokens per second from which speculation counts as faster."""


@dataclass(frozen=True)
class Comparison:
    """Two ways of generating the same text."""

    speculative: Stats
    plain: Stats

    @property
    def speedup(self) -> float:
        """The tokens per second over those of plain decoding."""
        return self.speculative.tokens_per_second / self.plain.tokens_per_second

    @property
    def step_cost(self) -> float:
        """The time of a speculative step over that of a plain one: the accepted length at which both break even."""
        return _step_seconds(self.speculative) / _step_seconds(self.plain)

    @property
    def note(self) -> str | None:
        """A sentence for the reader if speculation is not faster; else None."""
        if self.speedup >= WORTH_IT:
            return None
        gained = self.speculative.accepted_length
        return (
            f"Speculation does not pay on this text and machine ({self.speedup:.2f} times the speed of plain "
            "decoding): "
            f"a step gains {gained:.2f} tokens on average and takes as long as {self.step_cost:.2f} plain steps, so "
            f"it breaks even at an accepted length of {self.step_cost:.2f}."
        )

    def to_dict(self) -> dict[str, Any]:
        return {"speedup": self.speedup, "step_cost": self.step_cost, "note": self.note}


def _step_seconds(stats: Stats) -> float:
    return stats.decode_seconds / stats.steps
