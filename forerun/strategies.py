"""The named strategies. A strategy is a schedule: it decides how many steps a text takes, never the text.

Drafters and policies are described here by value and built for one compiled target by `build`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import ClassVar, Protocol

from forerun.errors import InvalidOptionError, UnknownStrategyError
from forerun.runtime import policy as policies
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters import base, merged, prompt_lookup, token_recycling
from forerun.runtime.executable import Executable


class DrafterSpec(Protocol):
    """A drafter by value."""

    def build(self, executable: Executable) -> base.Drafter: ...


class PolicySpec(Protocol):
    """A tree policy by value; `needs_cost` asks for a calibration of t(n) on this machine."""

    needs_cost: ClassVar[bool]

    def build(self, executable: Executable, cost: CostModel | None) -> policies.Policy: ...


@dataclass(frozen=True)
class PromptLookup:
    """Continuations of earlier occurrences of the context's last tokens (up to `longest` of them match)."""

    longest: int = 4
    places: int = 8

    def build(self, executable: Executable) -> base.Drafter:
        return prompt_lookup.PromptLookup(self.longest, self.places)


@dataclass(frozen=True)
class TokenRecycling:
    """Trees from the candidates that the target itself gave after each token so far (arXiv 2408.08696)."""

    deepest: int = 8
    prompt_rows: bool = False
    """Whether the prompt's rows give candidates too; their logits then have to be evaluated."""

    def build(self, executable: Executable) -> base.Drafter:
        return token_recycling.TokenRecycling(
            executable.vocabulary, executable.candidates, self.deepest, wants_prompt_rows=self.prompt_rows
        )


@dataclass(frozen=True)
class CostAware:
    """Rows as long as they pay in tokens per second, by the measured t(n); at most `rows` a step."""

    needs_cost: ClassVar[bool] = True

    rows: int = 32

    def build(self, executable: Executable, cost: CostModel | None) -> policies.Policy:
        if cost is None:
            raise InvalidOptionError("CostAware needs a calibration; compile with one, or use Fixed(rows).")
        return policies.CostAware(cost, min(self.rows, executable.max_rows))


@dataclass(frozen=True)
class Fixed:
    """The likeliest `rows` rows of every proposal."""

    needs_cost: ClassVar[bool] = False

    rows: int = 16

    def build(self, executable: Executable, cost: CostModel | None) -> policies.Policy:
        return policies.Fixed(min(self.rows, executable.max_rows))


@dataclass(frozen=True)
class Strategy:
    """A schedule: drafters whose proposals are merged into one tree, and the policy that sizes it.

    `level` is the exactness contract: "bits" promises the token ids and the logits of `autoregressive`, bit for bit.
    """

    level: ClassVar[str] = "bits"

    drafters: Sequence[DrafterSpec] = field(default=())
    policy: PolicySpec = field(default=Fixed(1))

    @property
    def needs_cost(self) -> bool:
        return bool(self.drafters) and self.policy.needs_cost

    def build(self, executable: Executable, cost: CostModel | None) -> tuple[base.Drafter | None, policies.Policy]:
        """The drafter (None for plain decoding) and the policy for one compiled target."""
        built = [each.build(executable) for each in self.drafters]
        drafter = None if not built else built[0] if len(built) == 1 else merged.Merged(built)
        return drafter, self.policy.build(executable, cost)


@dataclass(frozen=True)
class Autoregressive(Strategy):
    """Plain decoding: one row a step."""


@dataclass(frozen=True)
class TreeSpec(Strategy):
    """Trees from training-free drafters, verified by position-aligned tree attention, sized by measured cost."""

    drafters: Sequence[DrafterSpec] = field(default=(PromptLookup(), TokenRecycling()))
    policy: PolicySpec = field(default=CostAware())


STRATEGIES: dict[str, Strategy] = {
    "autoregressive": Autoregressive(),
    "tree_spec": TreeSpec(),
    "prompt_lookup": TreeSpec(drafters=(PromptLookup(),)),
    "token_recycling": TreeSpec(drafters=(TokenRecycling(),)),
}


def resolve_strategy(strategy: object) -> Strategy:
    """A strategy by name or as it is; UnknownStrategyError with the nearest name otherwise."""
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, str) and strategy in STRATEGIES:
        return STRATEGIES[strategy]
    near = get_close_matches(str(strategy), STRATEGIES, n=1)
    hint = f"did you mean {near[0]!r}? The strategies are" if near else "use one of"
    raise UnknownStrategyError(f"There is no strategy {strategy!r}; {hint} {', '.join(STRATEGIES)}.")
