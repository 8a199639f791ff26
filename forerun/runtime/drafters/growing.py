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

from forerun.runtime.balance import Balance
from forerun.runtime.drafters.base import AcceptanceRates, Budget, RatedTree, RatedTreeBuilder
from forerun.runtime.drafters.launch_cost import LaunchCost
from forerun.runtime.drafters.token_recycling import SHARES
from forerun.runtime.executable import Executable, Float32, Int32
from forerun.runtime.fields import Checked, integer, number
from forerun.runtime.tree import Float64, Tree, TreeBuilder

BELIEVED = 0.8  # the factor on a candidate's share before anything is known about the draft
RIGHT = 0.6  # how likely one of a row's children is right, before anything is known
PLAIN_EVERY = 64  # iterations with a draft after which one without is due, for comparison
DEPTHS = 4  # depths that are distinguished; all deeper ones count as the last
SLOW = 32  # plain steps that an iteration counts at most: the process may have slept
BURST = 8.0  # the most tokens that an iteration with a draft counts as gained: rare, and what a deep draft is for
DEBT = 2.0  # the most tokens that a trial may cost before the next
WORTHWHILE = 0.25  # the tokens that an iteration with a draft must gain by the last guesses to begin drafting anew
SPARED = 0.04  # the share of a text's tokens that reading its prompt may cost a draft that does not pay
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


Level = tuple[TreeBuilder, Sequence[int]]
"""The rows of one depth of a growing tree."""


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
    budget: Budget
    drafted: bool = False
    trial: bool = False  # drafting is not expected to pay

    @property
    def price(self) -> float:
        """The tokens that a second on the calibration's clock would yield elsewhere."""
        return self.budget.price * self.budget.pace


@dataclass
class Grower:
    """Grows trees, and learns from their outcomes whether the next launch is worth its time.

    shape       how a tree may grow
    cost        what launches take
    plain       the seconds of the target's step of one row; 0 if time does not count
    believed    the factor on a candidate's share of probability, before the draft has shown what it is worth
    right       how likely one of a row's children is right, before that
    """

    shape: Shape
    cost: LaunchCost
    plain: float = 0.0
    confidence: Confidence = field(default=Always())
    believed: float = BELIEVED
    right: float = RIGHT
    balance: Balance = field(default_factory=lambda: Balance(debt=DEBT, most=BURST))
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        bounds = np.concatenate([[0.0], SHARES, [1.0]])
        self.rates = AcceptanceRates((bounds[:-1] + bounds[1:]) / 2 * self.believed)
        # By depth: how likely one of an evaluated row's children was right, by the draft's corrected estimates.
        self.brought = [deque([self.right] * 4, maxlen=RECENT) for _ in range(DEPTHS)]
        self._iterations: dict[object, _Iteration] = {}  # that have begun, by the text
        self._undrafted = 1.0, self.plain  # recent tokens and seconds of an iteration without a draft
        self._drafts = 0  # iterations since then
        self._reading = 0.0  # seconds
        self._read_token = self.cost.token  # seconds to read one, on the calibration's clock
        self._committed = (self.shape.deepest + 1) / 2  # recent tokens of an iteration with a draft

    def begin(self, root: int, budget: Budget, text: object = None) -> RatedTreeBuilder:
        """Begins an iteration of a text, with a tree that holds only the root."""
        self.balance.earn()
        self._iterations[text] = _Iteration(self.clock(), budget)
        return RatedTreeBuilder(root)

    def growing(
        self, root: int, budget: Budget, launches: Launches, shape: Shape | None = None, text: object = None
    ) -> Generator[Level, tuple[Int32, Float32], Grown]:
        """Grows a tree under `root`: as many levels as pay at the budget's price, possibly none.

        Whoever drives it evaluates the levels that it yields, and sends the candidates of their rows [n, K], -1 where
        there is none, and their logits [n, K], largest first (`launching.levels`).
        """
        shape = shape or self.shape
        builder = self.begin(root, budget, text)
        evaluated: list[int] = []
        level = [0]
        most = min(budget.depth, shape.deepest)
        for depth in range(most):
            with self.launch(builder, level, depth, most, launches, text) as worthwhile:
                if not worthwhile:
                    break
                evaluated.extend(level)
                candidates, logits = yield builder, level
                level = self.add_children(builder, level, depth, shape, candidates, logits)
            if not level:
                break
        return Grown(builder.build_rated(), evaluated)

    @contextmanager
    def launch(
        self,
        builder: TreeBuilder,
        level: Sequence[int],
        depth: int,
        most: int,
        launches: Launches,
        text: object = None,
    ) -> Generator[bool]:
        """Yields whether evaluating a level's rows is worth it, or worth a trial; if so, times the evaluation.

        Without the launch, the level's rows are verified as they are if bringing them to the step's entry pays. With
        it they are already there, and the same choice arises for their children, whose worth varies.
        """
        iteration = self._iterations[text]
        budget = iteration.budget
        likely = sum(builder.probabilities[row] for row in level)
        pays = self._pays(likely, len(level), range(depth, most), budget, launches)
        if not (pays or self.balance.allows) or (depth == 0 and self._wants_undrafted(budget)):
            yield False
            return
        iteration.trial = iteration.trial or not pays
        began = self.clock()
        yield True
        iteration.drafted = True
        rows = len(level) + (launches.behind if depth == 0 else 0)
        self.cost.observe(rows, launches.share(depth), (self.clock() - began) / budget.pace)

    def drafts(self, budget: Budget, launches: Launches, most: int) -> bool:
        """Whether this iteration will have a launch, for callers for whom preparing one takes time."""
        pays = self._pays(1.0, 1, range(most), budget, launches)
        return (pays or self.balance.allows) and not self._wants_undrafted(budget)

    def reads(self, tokens: int, budget: Budget) -> bool:
        """Whether reading so many tokens is worth what drafts may gain in the rest of the text."""
        share = max(SPARED, self.balance.gain / self._committed)
        return budget.price * budget.pace * self._read_token * tokens <= share * budget.left

    def probed(self, right: int, count: int, budget: Budget) -> bool:
        """Learns how many of a draft's `count` guesses at a text's last tokens were right, while drafting rests.

        If paths of so many right tokens would gain more than their launches cost, drafting begins anew. Returns whether
        they would.
        """
        agreement = right / count
        launch = budget.price * budget.pace * self.cost.seconds(1, 1.0) + budget.price * budget.row
        gains = np.cumsum(agreement ** np.arange(1, self.shape.deepest + 1) - launch)
        promising = bool(gains.max() > WORTHWHILE)
        if promising:
            self.balance.renew()
        return promising

    def read(self, tokens: int, seconds: float, budget: Budget) -> None:
        """Called before an iteration with the time that the draft has read so many tokens for.

        As that serves all later iterations, it says nothing of what they gain, but is spent from what is saved for
        trials.
        """
        self._reading = seconds
        self._read_token = seconds / tokens / budget.pace

    def _pays(self, likely: float, rows: int, depths: range, budget: Budget, launches: Launches) -> bool:
        """Whether a launch pays, over rows whose probabilities sum to `likely`, alone or with deeper ones.

        A launch brings its rows' children, at the cost of a row of the step.
        """
        price = budget.price * budget.pace  # of a second on the calibration's clock
        if price == 0:
            return True
        if depths.start == 0 and not self.balance.pays:
            return False
        gain = 0.0
        for depth in depths:
            entry = price * self.cost.seconds(rows, launches.catch_up) if launches.catch_up else 0.0
            recent = self.brought[min(depth, DEPTHS - 1)]
            children = sum(max(0.0, likely * each - entry) for each in recent) / len(recent)
            spared = max(0.0, likely - price * self.cost.read(rows, launches.catch_up))
            gain += likely + children - spared - price * self.cost.seconds(rows, launches.share(depth))
            gain -= budget.price * budget.row
            if gain > 0:
                return True
            likely *= sum(recent) / len(recent)
        return False

    def _wants_undrafted(self, budget: Budget) -> bool:
        """Whether an iteration without a draft is due: other drafters' proposals and iteration times change."""
        return budget.price > 0 and self._drafts >= PLAIN_EVERY

    def forget(self, text: object) -> None:
        """A text has ended, perhaps in the middle of an iteration."""
        self._iterations.pop(text, None)

    def observe(self, proposed: RatedTree | None, tokens: Sequence[int], committed: int, text: object = None) -> None:
        """Observes the draft's `tokens`, `committed` target tokens, in place of `proposed` (None: no proposal)."""
        iteration = self._iterations.pop(text, None)
        if iteration is not None and iteration.price > 0:
            right = proposed is not None and proposed.tree.child(0, tokens[0]) is not None
            self._weigh(iteration, committed, 1 + proposed.tree.height if proposed is not None and right else 0)
        if proposed is not None:
            self.rates.learn(proposed, tokens)

    def _weigh(self, iteration: _Iteration, committed: int, possible: int) -> None:
        """Compares an iteration with those without a draft, by the clock.

        `possible`: the tokens of a draft that goes on as it began; 0 if it began wrong.

        The expected cost and gain of a launch leave out what cannot be known in advance: how a late entry slows the
        step down, or what other drafters would have proposed anyway.
        """
        seconds = min((self.clock() - iteration.began) / iteration.budget.pace, SLOW * self.plain)
        tokens, usual = self._undrafted
        if iteration.drafted:
            self._drafts += 1
            self._committed += 0.1 * (committed - self._committed)
            gain = committed - tokens - iteration.price * (seconds - usual)
            dear = iteration.budget.price * iteration.budget.row * possible
            self.balance.observe(gain, iteration.trial, promising=gain + possible - committed - dear > 0)
            if iteration.trial:
                self.balance.spend(iteration.budget.price * self._reading)
        else:
            self._drafts = 0
            self._undrafted = tokens + 0.1 * (committed - tokens), usual + 0.1 * (seconds - usual)
        self._reading = 0.0

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
