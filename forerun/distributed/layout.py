"""Which process has which part of a step."""

from __future__ import annotations

from dataclasses import dataclass

from forerun.errors import InvalidOptionError

ATTENTION, FFN = "attention", "feed-forward"
AUTO = 0
"""As many groups as the predicted times of a step recommend."""


@dataclass(frozen=True)
class Layout:
    """The first `attention` ranks hold the attention part, each for some of the sequences; the `ffn` others hold the
    feed-forward part, each for some of its outputs. The rows of an attention rank go in up to `groups` groups."""

    attention: int = 1
    ffn: int = 1
    groups: int = AUTO

    def __post_init__(self) -> None:
        for name, least in (("attention", 1), ("ffn", 1), ("groups", AUTO)):
            if getattr(self, name) < least:
                raise InvalidOptionError(f"{name} must be at least {least}, not {getattr(self, name)}.")

    @property
    def world(self) -> int:
        return self.attention + self.ffn

    @property
    def ffn_ranks(self) -> range:
        return range(self.attention, self.world)

    def attends(self, rank: int) -> bool:
        return rank < self.attention

    def named(self, rank: int) -> str:
        """A rank for people."""
        return f"rank {rank} ({ATTENTION if self.attends(rank) else FFN})"
