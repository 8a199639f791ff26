"""CLaSp: dynamic programming finds the skip set from the hidden states of the last verified token.

After Chen et al., "CLaSp: In-Context Layer Skip for Self-Speculative Decoding" (arXiv 2505.24196). After i layers, of
which j were skipped, g[i, j] is the state most similar (by cosine) to the target's own state h[i]:

    g[i + 1, j] = the nearer to h[i + 1] of  layer(g[i, j]) and g[i, j - 1]

Tracing back from g[L, M] gives the set of M layers. g[i, 0] is h[i], so one pass over the layers is enough: all j of a
layer are rows of one launch, at one position, each with its keys and values in its own slot.
"""

from dataclasses import dataclass

import numpy as np

from forerun.runtime.cache import StepSlots
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Context
from forerun.runtime.drafters.parts.layers import layer_branches, too_shallow
from forerun.runtime.drafters.parts.searching import Searching
from forerun.runtime.drafters.parts.uniform import evenly
from forerun.runtime.drafters.self_draft import PartMethod
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Float32, Part
from forerun.runtime.fields import Checked, integer, number
from forerun.runtime.rows import pick, same_position
from forerun.runtime.tree import Float64


@dataclass(frozen=True)
class Clasp(Checked):
    """`skipped`: the share of layers left out; `every`: iterations between two sets, if the price of time allows."""

    skipped: float = number(0.5, above=0, below=1)
    every: int = integer(1, least=1)

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        layers = layer_branches(engine.executable)
        count = round(self.skipped * len(layers))
        if not 0 < count < len(layers):
            raise too_shallow("clasp", self.skipped, len(layers), lambda depth: 0 < round(self.skipped * depth) < depth)
        return _Programming(engine, cost, layers, count, self.every)


class _Programming(Searching):
    """Initially skips layers at even distances."""

    def __init__(
        self, engine: Engine, cost: CostModel | None, layers: list[tuple[int, ...]], count: int, every: int
    ) -> None:
        super().__init__(cost)
        self._engine, self._layers, self._count, self._every = engine, layers, count, every
        self._looks = 0
        inner = range(1, len(layers) - 1) if len(layers) - 2 >= count else range(len(layers))
        self._skip({inner[each] for each in evenly(len(inner), count)})

    def look(self, context: Context, slots: StepSlots) -> None:
        self._looks += 1
        room = slots.left > self._count
        if self._looks % self._every == 0 and slots.sequence.length > 0 and room:
            self._skip(skip_set(self._engine, context, slots, self._layers, self._count))

    def part(self, depth: int) -> Part:
        return self._part

    def _skip(self, layers: set[int]) -> None:
        self._part = Part(skipped=frozenset(branch for layer in layers for branch in self._layers[layer]))


def skip_set(engine: Engine, context: Context, slots: StepSlots, layers: list[tuple[int, ...]], count: int) -> set[int]:
    """Returns the `count` layers to skip, for the last token in the cache."""
    sequence = slots.sequence
    rows = same_position(sequence, context.tokens[sequence.length - 1], slots.borrow(count + 1))

    def run(states: Float32, own: tuple[int, ...]) -> Float32:
        batch = pick(rows, np.arange(len(states)), outputs=False)
        part = Part(own[0], own[-1] + 1) if own[0] else Part(leave=own[-1] + 1)
        return engine.run(batch, part, states if own[0] else None).hidden.copy()

    states = engine.run(pick(rows, np.arange(1), outputs=False), Part(leave=0)).hidden.copy()  # [j, D]: g[i, :]
    skips: list[list[bool]] = []  # by layer and number skipped so far: whether the best path skips this layer
    for own in layers:
        applied = run(states, own)
        exact = applied[0]
        keep, skip = similarity(applied, exact), similarity(states, exact)
        reached = min(len(states), count) + 1  # number of states after this layer: j from 0
        chosen: list[bool] = [False]
        following = [applied[0]]
        for j in range(1, reached):
            skipping = j >= len(states) or skip[j - 1] > keep[j]
            chosen.append(bool(skipping))
            following.append(states[j - 1] if skipping else applied[j])
        states = np.stack(following)
        skips.append(chosen)
    found: set[int] = set()
    j = count
    for layer in range(len(layers) - 1, -1, -1):
        if j and skips[layer][j]:
            found.add(layer)
            j -= 1
    return found


def similarity(states: Float32, exact: Float32) -> Float64:
    """Returns [n] the cosines between states [n, D] and one state [D]."""
    wide, one = states.astype(np.float64), exact.astype(np.float64)
    return wide @ one / np.maximum(np.linalg.norm(wide, axis=1) * np.linalg.norm(one), 1e-30)
