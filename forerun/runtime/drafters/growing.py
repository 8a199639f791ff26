"""Growing a tree with a model, level by level: the likeliest rows of a level are evaluated in one launch.

A draft's own probabilities are overconfident estimates of acceptance. Edges carry the observed acceptance rate of
earlier proposals of the same confidence instead.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from forerun.runtime.drafters.base import AcceptanceRates, Budget, RatedTree, RatedTreeBuilder
from forerun.runtime.drafters.launch_cost import Allowance, Balance, LaunchCost
from forerun.runtime.drafters.token_recycling import SHARES
from forerun.runtime.executable import Executable, Float32, Int32
from forerun.runtime.fields import Checked, integer, number
from forerun.runtime.tree import Float64, Tree, TreeBuilder

BELIEVED = 0.8  # the factor on a candidate's share before anything is known about the draft
RIGHT = 0.6  # how likely one of a row's children is right, before anything is known
DEPTHS = 4  # depths that are distinguished; all deeper ones count as the last
RECENT = 32  # recent launches at a depth by which the next one there is judged


@dataclass(frozen=True)
class Shape(Checked):
    """How a drafted tree may grow."""

    deepest: int = integer(6, least=1)  # rows below the root
    beam: int = integer(3, least=1)  # rows evaluated per level
    children: int = integer(3, least=1)  # per evaluated row

    def within(self, depth: int, slots: int, executable: Executable) -> "Shape":
        """Returns the shape, limited to `depth`, to the longest path, to `slots` rows and to a step's outputs."""
        beam = min(self.beam, executable.max_outputs)
        longest = executable.max_path - 1  # a path begins with the root if that lies away from home
        return Shape(max(1, min(self.deepest, depth, longest, slots // beam)), beam, self.children)


class Confidence(Protocol):
    """Decides when a row of the draft is too uncertain to draft below."""

    def __call__(self, shares: Float64) -> bool:
        """Returns whether to draft below a row whose candidates have these shares of probability [K], largest first."""
        ...


@dataclass(frozen=True)
class Always:
    """Never stops drafting for lack of confidence: only costs and expected gains stop it."""

    def __call__(self, shares: Float64) -> bool:
        return True


@dataclass(frozen=True)
class LikeliestAbove(Checked):
    """The likeliest candidate's probability must exceed a threshold.

    This is Kangaroo's second exit (Liu et al., arXiv 2404.18911), which stops drafting where the draft's top-1
    probability falls below it. Shares are taken among a launch's K candidates, so they are upper bounds.
    """

    threshold: float = number(0.6, least=0, most=1)

    def __call__(self, shares: Float64) -> bool:
        return bool(shares[0] > self.threshold)


@dataclass(frozen=True)
class MarginAbove(Checked):
    """The two likeliest candidates' probabilities must differ by more than a threshold.

    This is the softmax response of CALM (Schuster et al., "Confident Adaptive Language Modeling", arXiv 2207.07061),
    here with a fixed threshold.
    """

    threshold: float = number(0.3, least=0, most=1)

    def __call__(self, shares: Float64) -> bool:
        return len(shares) < 2 or bool(shares[0] - shares[1] > self.threshold)


Evaluate = Callable[[TreeBuilder, Sequence[int]], tuple[Int32, Float32]]
"""Evaluates rows of a growing tree with the draft; returns candidates [n, K], -1 where there is none, and their
logits [n, K], largest first."""


@dataclass(frozen=True)
class Launches:
    """What the launches of an iteration read, as shares of what a step of the target reads."""

    share: Callable[[int], float]  # of the launch that evaluates the rows at a depth
    catch_up: float = 0.0  # of bringing rows that no launch has evaluated to the entry of the verifying step
    behind: int = 0  # rows besides the root that the first launch has to catch up on


@dataclass(frozen=True)
class Grown:
    """A grown tree."""

    proposed: RatedTree
    evaluated: list[int]  # its rows that the draft has evaluated, ascending

    @property
    def tree(self) -> Tree:
        return self.proposed.tree


@dataclass
class _Iteration:
    """One iteration of the loop, from drafting to its outcome."""

    began: float
    pace: float
    drafted: bool = False
    trial: bool = False  # it is not expected to pay


@dataclass
class Grower:
    """Grows trees, and learns from their outcomes whether the next launch is worth its time."""

    shape: Shape
    cost: LaunchCost
    confidence: Confidence = field(default=Always())
    allowance: Allowance = field(default_factory=Allowance)
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        bounds = np.concatenate([[0.0], SHARES, [1.0]])
        self.rates = AcceptanceRates((bounds[:-1] + bounds[1:]) / 2 * BELIEVED)
        # By depth: how likely one of an evaluated row's children was right, by the draft's corrected estimates.
        self.brought = [deque([RIGHT] * 4, maxlen=RECENT) for _ in range(DEPTHS)]
        self.balance = Balance(self.cost.read(1, 1.0))
        self._iteration: _Iteration | None = None

    def begin(self, root: int, pace: float) -> RatedTreeBuilder:
        """Begins an iteration, with a tree that holds only the root."""
        self.allowance.earn(self.cost.read(1, 1.0))
        self._iteration = _Iteration(self.clock(), pace)
        return RatedTreeBuilder(root)

    def grow(
        self, root: int, budget: Budget, launches: Launches, evaluate: Evaluate, shape: Shape | None = None
    ) -> Grown:
        """Grows a tree under `root`: as many levels as pay at the budget's price, possibly none."""
        shape = shape or self.shape
        builder = self.begin(root, budget.pace)
        evaluated: list[int] = []
        level = [0]
        for depth in range(min(budget.depth, shape.deepest)):
            with self.launch(builder, level, depth, budget, launches) as worthwhile:
                if not worthwhile:
                    break
                evaluated.extend(level)
                level = self.add_children(builder, level, depth, shape, *evaluate(builder, level))
            if not level:
                break
        return Grown(builder.build_rated(), evaluated)

    @contextmanager
    def launch(
        self, builder: TreeBuilder, level: Sequence[int], depth: int, budget: Budget, launches: Launches
    ) -> Generator[bool]:
        """Yields whether evaluating a level's rows is worth it, or worth a trial; if so, times the evaluation.

        Without the launch, the level's rows are verified as they are if bringing them to the step's entry pays. With
        it they are already there, and the same choice arises for their children, whose worth varies.
        """
        iteration = self._iteration
        assert iteration is not None
        rows = len(level) + (launches.behind if depth == 0 else 0)
        pays = self._pays(sum(builder.probabilities[row] for row in level), rows, depth, budget, launches)
        if not (pays or self.allowance.positive) or (depth == 0 and self._wants_plain_turn(budget)):
            yield False
            return
        iteration.trial = iteration.trial or not pays
        began = self.clock()
        yield True
        seconds = (self.clock() - began) / budget.pace
        iteration.drafted = True
        self.cost.observe(rows, launches.share(depth), seconds)
        if iteration.trial:
            self.allowance.spend(seconds)

    def drafts(self, budget: Budget, launches: Launches) -> bool:
        """Whether this iteration will have a launch, for callers for whom preparing one takes time."""
        pays = self._pays(1.0, 1 + launches.behind, 0, budget, launches)
        return (pays or self.allowance.positive) and not self._wants_plain_turn(budget)

    def _pays(self, likely: float, rows: int, depth: int, budget: Budget, launches: Launches) -> bool:
        """Whether a launch at a depth pays, over rows whose probabilities sum to `likely`."""
        price = budget.price * budget.pace  # of a second on the calibration's clock
        if depth == 0 and not self.balance.pays(price):
            return False
        entry = price * self.cost.seconds(rows, launches.catch_up) if launches.catch_up else 0.0
        recent = self.brought[min(depth, DEPTHS - 1)]
        children = sum(max(0.0, likely * each - entry) for each in recent) / len(recent)
        spared = max(0.0, likely - price * self.cost.read(rows, launches.catch_up))
        return likely + children - price * self.cost.seconds(rows, launches.share(depth)) > spared

    def _wants_plain_turn(self, budget: Budget) -> bool:
        return budget.price > 0 and self.balance.lacks_plain_turns

    def observe(self, proposed: RatedTree | None, tokens: Sequence[int], committed: int) -> None:
        """Observes the draft's `tokens`, `committed` target tokens, in place of `proposed` (None: no proposal)."""
        iteration, self._iteration = self._iteration, None
        if iteration is not None:
            seconds = (self.clock() - iteration.began) / iteration.pace
            self.balance.observe(iteration.drafted, committed, seconds)
        if proposed is not None:
            self.rates.learn(proposed, tokens)

    def add_children(
        self, builder: RatedTreeBuilder, level: list[int], depth: int, shape: Shape, candidates: Int32, logits: Float32
    ) -> list[int]:
        """Adds the children of a level's rows and returns those to evaluate next."""
        width = min(shape.children, candidates.shape[1])
        with np.errstate(invalid="ignore"):  # a row without a finite logit has shares that are NaN
            shares = np.exp((logits - logits[:, :1]).astype(np.float64))
            shares /= shares.sum(axis=1, keepdims=True)
        features = np.searchsorted(SHARES, shares)
        edges = np.where(candidates[:, :width] >= 0, self.rates.rate[features[:, :width]], 0.0)
        edges /= np.maximum(1.0, edges.sum(axis=1, keepdims=True))  # at most one of them comes true
        likelihood = [builder.probabilities[row] for row in level]
        right = sum(each * mass for each, mass in zip(likelihood, edges.sum(axis=1).tolist(), strict=True))
        self.brought[min(depth, DEPTHS - 1)].append(right / sum(likelihood))
        open_rows: list[int] = []
        for index, parent in enumerate(level):
            columns = (candidates[index, :width].tolist(), edges[index].tolist(), features[index, :width].tolist())
            children = zip(*columns, strict=True)
            added = [builder.add_rated(parent, *child) for child in children if child[0] >= 0]
            if self.confidence(shares[index]):
                open_rows.extend(added)
        open_rows.sort(key=lambda row: -builder.probabilities[row])  # stable: ties keep the likelier candidate first
        return sorted(open_rows[: shape.beam])
