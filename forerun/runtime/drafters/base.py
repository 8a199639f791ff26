"""What a drafter is, and how it learns what its proposals are worth."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.cache import StepSlots
from forerun.runtime.executable import Float32, Int32
from forerun.runtime.prefix import Prefix
from forerun.runtime.tree import Float64, Tree, TreeBuilder, best_rows, root_only


@dataclass(eq=False)
class Context:
    """One sequence's committed tokens, the prompt's and those generated. It grows; what is there never changes.

    All committed tokens but the last, the next tree's root, are in the target's cache.
    """

    tokens: list[int]


@dataclass(frozen=True, eq=False)
class Budget:
    """How large a tree may be in this iteration of the loop, and what drafting it may use."""

    rows: int  # the root included
    depth: int  # edges from the root; 0 leaves the root alone
    price: float = 0.0  # tokens that a second would bring elsewhere; 0 where time does not count
    pace: float = 1.0  # seconds of a plain step now over those of the calibration
    slots: StepSlots | None = None
    """The context's place in the target's cache, with room for rows that drafts evaluate; None without an engine.

    All drafters of an iteration take their slots here, so that none overwrites what another has computed.
    """


@dataclass(frozen=True, eq=False)
class Proposal:
    """What a drafter proposes: a tree, and what drafting has computed of it.

    Raises `InvalidOptionError` where the fields are something else.
    """

    tree: Tree
    prefix: Prefix | None = None  # the step is entered behind it; None: drafting has computed nothing of the step

    def __post_init__(self) -> None:
        _require("the tree of a Proposal", self.tree, Tree, "grow one with TreeBuilder")
        if self.prefix is not None:
            _require("the prefix of a Proposal", self.prefix, Prefix, "leave it out if no row is computed")

    @property
    def share(self) -> float:
        """The bytes of a step that drafting has not read already."""
        return 1.0 if self.prefix is None else self.prefix.share


@dataclass(frozen=True)
class Observation:
    """What a step showed of one sequence; the arrays are valid during the call alone."""

    tree: Tree  # as evaluated: a part of what was proposed
    path: list[int]  # the accepted rows, from the root on
    tokens: list[int]  # the tokens committed, the bonus token included; one for each row of the path
    candidates: Int32  # [n, K] the target's likeliest next tokens at each row of the tree
    candidate_logits: Float32  # [n, K]


class Drafter:
    """Proposes trees; this one proposes none but the root. What a drafter knows outlives a request, contexts do not.

    Whatever a drafter proposes or remembers, the text stays the same: verification decides it.
    """

    wants_prompt_rows: bool = False  # whether `observe_prompt` is worth the prompt rows' logits

    def begin(self, context: Context) -> None:
        """A request begins; its prompt is in the context."""

    def propose(self, context: Context, budget: Budget) -> Proposal:
        """A tree under the last committed token, within the budget. Its probabilities are honest estimates."""
        return Proposal(root_only(context.tokens[-1]))

    def observe(self, context: Context, observation: Observation) -> None:
        """The outcome of the last proposal. The context holds the committed tokens already."""

    def observe_prompt(self, tokens: Int32, candidates: Int32, candidate_logits: Float32) -> None:
        """Prompt rows [n] with the target's likeliest next tokens [n, K]."""

    def rewind(self, context: Context, length: int) -> None:
        """The context is cut back to `length` tokens: a draft's own context, whose end was not committed after all."""

    def end(self, context: Context) -> None:
        """The request is over, or failed."""


def propose(drafter: Drafter, context: Context, budget: Budget) -> Proposal:
    """What `drafter` proposes; raises `InvalidOptionError` where that is no proposal for this context."""
    proposal = drafter.propose(context, budget)
    name = type(drafter).__name__
    _require(f"what {name}.propose returns", proposal, Proposal, "write `return Proposal(tree)`")
    root, last = proposal.tree.token[0], context.tokens[-1]
    if root != last:
        raise InvalidOptionError(
            f"{name} proposed a tree under token {root}, but the last committed token is {last}: begin the tree with "
            "`TreeBuilder(context.tokens[-1])`"
        )
    return proposal


def _require(what: str, value: object, kind: type, remedy: str) -> None:
    if not isinstance(value, kind):
        raise InvalidOptionError(f"{what} must be a {kind.__name__}, not {type(value).__name__}: {remedy}")


@dataclass(frozen=True, eq=False)
class RatedTree:
    """A tree as a drafter remembers it: with the feature whose acceptance rate each edge was estimated by."""

    tree: Tree
    feature: Int32  # [n] by the drafter's own numbering; the root has no edge, and its entry no meaning

    def select(self, rows: NDArray[np.intp]) -> "RatedTree":
        """As `Tree.select`."""
        return RatedTree(self.tree.select(rows), self.feature[rows])

    def likeliest(self, count: int) -> "RatedTree":
        """As `Tree.likeliest`."""
        return self if len(self.tree) <= count else self.select(best_rows(self.tree, count))


class RatedTreeBuilder(TreeBuilder):
    """Grows a tree, and keeps the feature of each row."""

    def __init__(self, root: int) -> None:
        super().__init__(root)
        self.features = [-1]

    def add_rated(self, parent: int, token: int, edge: float, feature: int) -> int:
        """As `add`; a row that is there already keeps its feature, as it keeps its probability."""
        row = self.add(parent, token, edge)
        if row == len(self.features):
            self.features.append(feature)
        return row

    def build_rated(self) -> RatedTree:
        return RatedTree(self.build(), np.array(self.features, np.int32))


@dataclass
class AcceptanceRates:
    """Acceptance rates by feature: the mean of a Beta posterior, whose oldest evidence fades.

    A feature starts at its prior, which weighs as much as `strength` observations.
    """

    prior: Float64  # [features]
    strength: float = 6.0
    memory: float = 4000.0  # observations of a feature after which its evidence is halved
    rate: Float64 = field(init=False)  # [features] the current estimates

    def __post_init__(self) -> None:
        self.rate = self.prior.copy()
        self._hits: list[float] = (self.prior * self.strength).tolist()
        self._trials: list[float] = [self.strength] * len(self.prior)

    def learn(self, proposed: RatedTree, tokens: Sequence[int]) -> None:
        """The `tokens` were committed where a tree was proposed: observe each row that they decide."""
        for row, accepted in decided_rows(proposed.tree, tokens):
            self.observe(int(proposed.feature[row]), accepted)

    def observe(self, feature: int, accepted: bool) -> None:
        self._hits[feature] += accepted
        self._trials[feature] += 1.0
        self.rate[feature] = self._hits[feature] / self._trials[feature]
        if self._trials[feature] > self.memory:
            self._hits[feature] /= 2
            self._trials[feature] /= 2


def decided_rows(tree: Tree, tokens: Sequence[int]) -> list[tuple[int, bool]]:
    """The rows of a proposal that the committed tokens decide, each with whether it was right.

    These are the children of the rows on the committed path, whether or not they were evaluated: a row that a policy
    left out is judged as well, so that estimates recover without any exploration.
    """
    decided: list[tuple[int, bool]] = []
    on_path = {0: 0}  # row -> its depth, for rows on the committed path
    for row, (token, parent) in enumerate(zip(tree.token.tolist(), tree.parent.tolist(), strict=True)):
        depth = on_path.get(parent)
        if depth is None or depth == len(tokens):
            continue
        right = token == tokens[depth]
        decided.append((row, right))
        if right:
            on_path[row] = depth + 1
    return decided
