"""DEL: chooses the exit layer and the number of drafted tokens that recently gave the most tokens per layer.

After Entezari Zarch et al., "DEL: Context-Aware Dynamic Exit Layer for Efficient Self-Speculative Decoding" (arXiv
2504.05598): what each exit would have proposed for the context's last tokens (its shadow tokens) is compared with the
tokens that followed. With acceptance rate a, d tokens drafted by a share c of the model are expected to yield
(1 - a^(d + 1)) / (1 - a) tokens for d c + 1 models read: the token-per-layer metric, in bytes.
"""

from dataclasses import dataclass

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.cache import StepSlots
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Context
from forerun.runtime.drafters.parts.layers import branch_behind, layer_branches
from forerun.runtime.drafters.parts.replay import Replay
from forerun.runtime.drafters.parts.searching import Searching
from forerun.runtime.drafters.parts.uniform import evenly
from forerun.runtime.drafters.self_draft import PartMethod, Shares
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Part
from forerun.runtime.fields import Checked, integer

LONGEST = 8
"""The most tokens drafted."""


@dataclass(frozen=True)
class DynamicExit(Checked):
    """`exits`: candidates, evenly spaced over all layers but the last; `window`: committed tokens compared."""

    exits: int = integer(6, least=1)
    window: int = integer(8, least=1)

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        layers = layer_branches(engine.executable)
        if len(layers) < 2:
            raise InvalidOptionError("a model of one layer has no exit before its last: use another drafter")
        wanted = dict.fromkeys(1 + layer for layer in evenly(len(layers) - 1, self.exits))
        return _DynamicExit(engine, cost, [branch_behind(layers, layer) for layer in wanted], self.window)


class _DynamicExit(Searching):
    """Initially, each exit's acceptance rate is assumed to be its share of the branches."""

    def __init__(self, engine: Engine, cost: CostModel | None, exits: list[int], window: int) -> None:
        super().__init__(cost)
        self._replay = Replay(engine, window)
        self._exits = exits
        read = Shares.of(engine.executable)
        self._draft = [read.share(Part(leave=each)) for each in exits]
        self._rate = np.array([each / len(engine.executable.branches) for each in exits])
        self._choose()

    def look(self, context: Context, slots: StepSlots) -> None:
        replayed = self._replay.begin(context, slots)
        if replayed is None:
            return
        right = np.array([(replayed.exit(each) == replayed.expected).mean() for each in self._exits])
        self._rate = 0.7 * self._rate + 0.3 * right
        self._choose()

    def part(self, depth: int) -> Part:
        return self._part

    def _choose(self) -> None:
        best = (0.0, self._exits[0], 1)
        for exit_branch, rate, draft in zip(self._exits, self._rate, self._draft, strict=True):
            for length in range(1, LONGEST + 1):
                tokens = sum(float(rate) ** power for power in range(length + 1))
                best = max(best, (tokens / (length * draft + 1.0), exit_branch, length))
        _, exit_branch, self.deepest = best
        self._part = Part(leave=exit_branch)
