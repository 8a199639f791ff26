"""Skipping only feed-forward parts: attention, and thus the cache, stays complete.

After Jaiswal et al., "FFN-SkipLLM" (arXiv 2404.03865): feed-forward parts of the middle layers change the stream little
(the cosine between input and output is near 1), while those of the first and last layers are needed. In the paper, each
token's similarity decides layer by layer; here it is measured on the context now and then, and the parts that change
the stream least are left out, so that all rows of a tree run the same branches.
"""

from dataclasses import dataclass

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.cache import StepSlots
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Context
from forerun.runtime.drafters.parts.layers import layer_branches
from forerun.runtime.drafters.parts.replay import Replay
from forerun.runtime.drafters.parts.searching import Searching
from forerun.runtime.drafters.self_draft import PartMethod
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Part
from forerun.runtime.fields import Checked, integer, number
from forerun.runtime.tree import Float64


@dataclass(frozen=True)
class FeedForwardOnly(Checked):
    """`skipped`: the share of feed-forward parts left out, never those of the first and last `kept` layers."""

    skipped: float = number(0.5, least=0, most=1)
    kept: int = integer(1, least=0)
    window: int = integer(4, least=1)  # committed tokens on which similarity is measured

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        layers = layer_branches(engine.executable)
        inner = layers[self.kept : len(layers) - self.kept]
        parts = [each for own in inner for each in own if engine.executable.branches[each].kind == "feed_forward"]
        if not parts:
            raise InvalidOptionError(
                "this model has no feed-forward branch of its own between its outer layers (parallel residuals add "
                "both parts of a layer at once): skip whole layers instead"
            )
        return _LeastChanging(engine, cost, parts, round(self.skipped * len(parts)), self.window)


class _LeastChanging(Searching):
    """Leaves out the parts that change the stream least; initially those in the middle."""

    def __init__(self, engine: Engine, cost: CostModel | None, parts: list[int], count: int, window: int) -> None:
        super().__init__(cost)
        self._replay = Replay(engine, window)
        self._parts, self._count = parts, count
        self._similarity: Float64 | None = None
        middle = sorted(parts, key=lambda part: abs(part - parts[len(parts) // 2]))
        self._part = Part(skipped=frozenset(middle[:count]))

    def look(self, context: Context, slots: StepSlots) -> None:
        replayed = self._replay.begin(context, slots)
        if replayed is None:
            return
        found: list[float] = []
        for part in self._parts:  # one launch up to each part, and one for the part
            before = replayed.advance(part).astype(np.float64)
            after = replayed.advance(part + 1).astype(np.float64)
            norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
            found.append(float(((before * after).sum(axis=1) / np.maximum(norms, 1e-30)).mean()))
        now = np.array(found)
        self._similarity = now if self._similarity is None else 0.8 * self._similarity + 0.2 * now
        order = np.argsort(-self._similarity, kind="stable")
        self._part = Part(skipped=frozenset(self._parts[each] for each in order[: self._count].tolist()))

    def part(self, depth: int) -> Part:
        return self._part
