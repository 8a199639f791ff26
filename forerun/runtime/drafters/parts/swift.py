"""SWIFT: searches for the skip set on the fly, by how well its draft agrees with the request's own text.

After Xia et al., "SWIFT: On-the-Fly Self-Speculative Decoding for LLM Inference Acceleration" (arXiv 2410.06916): a set
is scored in one launch, by the share of the context's last tokens that its draft would have proposed; random sets
alternate with Bayesian steps; the search stops when a score is good enough or has not improved for long. A fixed share
of attention and feed-forward branches is skipped, but none of the first or last layer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from forerun.runtime.cache import StepSlots
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Context
from forerun.runtime.drafters.parts.layers import layer_branches, too_shallow
from forerun.runtime.drafters.parts.replay import Replay
from forerun.runtime.drafters.parts.searching import Searching
from forerun.runtime.drafters.parts.uniform import evenly
from forerun.runtime.drafters.self_draft import PartMethod
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Part
from forerun.runtime.fields import Checked, integer, number
from forerun.runtime.tree import Float64

REMEMBERED = 64
"""Trials that a Bayesian step considers."""
GUESSES = 128
"""Random sets of which a Bayesian step takes the most promising."""


@dataclass(frozen=True)
class Swift(Checked):
    """`skipped`: the share of branches left out; `window`: the committed tokens on which a set is scored."""

    skipped: float = number(0.45, above=0, below=1)
    window: int = integer(16, least=1)
    good_enough: float = number(0.95, least=0, most=1)
    patience: int = integer(300, least=1)  # trials without a better score that end the search
    bayes_every: int = integer(25, least=1)  # the paper's interval
    seed: int = integer(0, least=0)

    def build(self, engine: Engine, cost: CostModel | None) -> PartMethod:
        layers = layer_branches(engine.executable)
        inner = [branch for own in layers[1:-1] for branch in own]
        count = round(self.skipped * len(engine.executable.branches))
        if not 0 < count <= len(inner):
            each = len(engine.executable.branches) / len(layers)

            def enough(depth: int) -> bool:
                return 0 < round(self.skipped * each * depth) <= each * (depth - 2)

            raise too_shallow("swift", self.skipped, len(layers), enough)
        return _Search(self, engine, cost, inner, count)


class _Search(Searching):
    def __init__(self, spec: Swift, engine: Engine, cost: CostModel | None, inner: list[int], count: int) -> None:
        super().__init__(cost)
        self._spec = spec
        self._replay = Replay(engine, spec.window)
        self._inner, self._count = inner, count
        self._random = np.random.default_rng(spec.seed)
        self._best = np.zeros(len(inner), np.bool_)
        self._best[evenly(len(inner), count)] = True
        self.score = -1.0
        self._trials: list[NDArray[np.bool_]] = []
        self._scores: list[float] = []
        self._made = self._since_better = 0

    def begin(self, context: Context) -> None:
        """Begins another request, on which the best set so far is scored first."""
        self.score = -1.0
        self._made = self._since_better = 0

    @property
    def converged(self) -> bool:
        return self.score >= self._spec.good_enough or self._since_better >= self._spec.patience

    def look(self, context: Context, slots: StepSlots) -> None:
        replayed = self._replay.begin(context, slots)
        if replayed is None or len(replayed.expected) < self._spec.window:
            return
        trial = self._next()
        score = float((replayed.draft(self._part(trial)) == replayed.expected).mean())
        self._trials, self._scores = [*self._trials, trial][-REMEMBERED:], [*self._scores, score][-REMEMBERED:]
        self._made += 1
        self._since_better += 1
        if score > self.score:
            self._best, self.score, self._since_better = trial, score, 0

    def part(self, depth: int) -> Part:
        return self._part(self._best)

    def _part(self, chosen: NDArray[np.bool_]) -> Part:
        return Part(skipped=frozenset(np.array(self._inner)[chosen].tolist()))

    def _next(self) -> NDArray[np.bool_]:
        if self._made == 0:
            return self._best  # initially the balanced set
        if self._made % self._spec.bayes_every:
            return _random_set(self._random, len(self._inner), self._count)
        guesses = np.stack([_random_set(self._random, len(self._inner), self._count) for _ in range(GUESSES)])
        return guesses[promise(np.stack(self._trials), np.array(self._scores), guesses).argmax()]


def _random_set(random: Generator, size: int, count: int) -> NDArray[np.bool_]:
    chosen = np.zeros(size, np.bool_)
    chosen[random.choice(size, count, replace=False)] = True
    return chosen


def promise(tried: NDArray[np.bool_], scores: Float64, guesses: NDArray[np.bool_]) -> Float64:
    """Returns [guesses] the upper confidence bound of each guess's score, by a Gaussian process over the tried sets.

    The kernel falls with the share of branches on which two sets differ. This is ten lines of linear algebra: a
    library's step optimizes over continuous sets for longer than twenty of the target's steps.
    """

    def kernel(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> Float64:
        differing = (left[:, None, :] != right[None, :, :]).mean(axis=2)
        return np.exp(-differing / 0.2)

    mean, spread = scores.mean(), max(float(scores.std()), 1e-3)
    weights = np.linalg.solve(kernel(tried, tried) + 0.1 * np.eye(len(tried)), kernel(tried, guesses))
    expected = weights.T @ (scores - mean) / spread
    variance = np.maximum(0.0, 1.0 - (weights * kernel(tried, guesses)).sum(axis=0))
    return mean + spread * (expected + np.sqrt(variance))
