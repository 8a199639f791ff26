"""The drafter interface, and how a drafter learns what its proposals are worth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.cache import StepSlots
from forerun.runtime.executable import Executable, Float32, Int32
from forerun.runtime.prefix import Prefix
from forerun.runtime.tree import Float64, Tree, TreeBuilder, best_rows, check, root_only

LARGEST = 2**31
"""The bound of token ids where the vocabulary is not known: they are 32-bit integers in a step."""


@dataclass(eq=False)
class Context:
    """One sequence's committed tokens, prompt and generated. Tokens are appended and never change.

    All committed tokens are in the target's cache except the last, which is the next tree's root.
    """

    tokens: list[int]


@dataclass(frozen=True, eq=False)
class Budget:
    """How large a tree may be in this iteration, and what drafting it may use."""

    rows: int  # including the root
    depth: int  # edges from the root; 0 leaves the root alone
    price: float = 0.0  # tokens that a second would yield elsewhere; 0 if time does not count
    pace: float = 1.0  # seconds of a plain step now, relative to the calibration's
    row: float = 0.0  # the seconds that a further row adds to the step
    left: float = math.inf  # tokens that the text may still grow by
    slots: StepSlots | None = None
    """The context's slots in the target's cache, with room for rows that drafts evaluate; None without an engine.

    All drafters of an iteration take their slots from here, so that none overwrites what another has computed.
    """
    executable: Executable | None = None
    """The target, whose step a proposal must fit; None without an engine."""
    enters: bool = True
    """Whether the step may be entered behind what drafting has computed: not if it has other sessions."""


@dataclass(frozen=True, eq=False)
class Proposers:
    """Which of several drafters proposed each row of a tree."""

    names: tuple[str, ...]
    members: Int32  # [n] a bit for each drafter, the first one's lowest

    def of(self, row: int) -> str:
        """Returns the names of the drafters that proposed a row, joined by " + "."""
        bits = int(self.members[row])
        return " + ".join(dict.fromkeys(name for at, name in enumerate(self.names) if bits >> at & 1))


@dataclass(frozen=True, eq=False)
class Proposal:
    """A drafter's proposal: a tree, and the part of the step that drafting has already computed.

    Raises `InvalidOptionError` if a field has the wrong type.
    """

    tree: Tree
    prefix: Prefix | None = None  # the step is entered behind it; None: drafting has computed no part of the step
    promising: bool = False  # there is a reason to expect more of the next proposals than the last ones brought
    proposers: Proposers | None = None  # None: one drafter has proposed all rows

    def __post_init__(self) -> None:
        _require("the tree of a Proposal", self.tree, Tree, "grow one with TreeBuilder")
        if self.prefix is not None:
            _require("the prefix of a Proposal", self.prefix, Prefix, "leave it out if no row is computed")

    @property
    def share(self) -> float:
        """The share of a step's bytes that drafting has not already read."""
        return 1.0 if self.prefix is None else self.prefix.share


@dataclass(frozen=True)
class Observation:
    """What a step showed about one sequence; the arrays are valid only during the call."""

    tree: Tree  # as evaluated: part of what was proposed
    path: list[int]  # the accepted rows, from the root on
    tokens: list[int]  # the committed tokens, including the bonus token; one for each row of the path
    candidates: Int32  # [n, K] the target's likeliest next tokens at each row of the tree
    candidate_logits: Float32  # [n, K]


class Drafter:
    """Proposes trees; the base class proposes only the root. A drafter's knowledge outlives requests; contexts do not.

    Whatever a drafter proposes or remembers, the text stays the same, because verification decides it.
    """

    wants_prompt_rows: bool = False  # whether `observe_prompt` is worth the prompt rows' logits
    rests: bool = False  # whether `propose` need not be called where only the root may be proposed

    @property
    def may_rest(self) -> bool:
        """Whether `propose` is not called where only the root may be proposed: nor if it never proposes more."""
        return self.rests or type(self) is Drafter

    def begin(self, context: Context) -> None:
        """A request begins; its prompt is in the context."""

    def propose(self, context: Context, budget: Budget) -> Proposal:
        """Returns a tree under the last committed token, within the budget. Its probabilities are honest estimates."""
        return Proposal(root_only(context.tokens[-1]))

    def propose_all(self, contexts: Sequence[Context], budgets: Sequence[Budget]) -> list[Proposal | Exception]:
        """Returns what it proposes for all sessions of a step; an error in place of a proposal ends its session."""
        found: list[Proposal | Exception] = []
        for context, budget in zip(contexts, budgets, strict=True):
            try:
                found.append(self.propose(context, budget))
            except Exception as error:
                found.append(error)
        return found

    def observe(self, context: Context, observation: Observation) -> None:
        """Receives the outcome of the last proposal. The context already holds the committed tokens."""

    def observe_all(self, contexts: Sequence[Context], observations: Sequence[Observation]) -> list[Exception | None]:
        """Receives the outcomes of all sessions of a step; returns for each the error that ends its session, if any."""
        found: list[Exception | None] = []
        for context, observation in zip(contexts, observations, strict=True):
            try:
                self.observe(context, observation)
                found.append(None)
            except Exception as error:
                found.append(error)
        return found

    def observe_prompt(self, tokens: Int32, candidates: Int32, candidate_logits: Float32) -> None:
        """Receives prompt rows [n] with the target's likeliest next tokens [n, K]."""

    def rewind(self, context: Context, length: int) -> None:
        """The context, a draft's own, is cut back to `length` tokens because its end was not committed."""

    def pause(self, context: Context) -> None:
        """The request waits for room: what takes room and can be computed again may be given up."""

    def end(self, context: Context) -> None:
        """The request has ended or failed."""


def drafter_name(drafter: Drafter) -> str:
    """Returns the name under which a drafter's tokens are counted: that of its class."""
    return type(drafter).__name__


def propose(drafter: Drafter, context: Context, budget: Budget) -> Proposal:
    """Returns what `drafter` proposes; raises `InvalidOptionError` if that is not a proposal for this context."""
    return only(proposals(drafter, [context], [budget]))


def only(found: Sequence[Proposal | Exception]) -> Proposal:
    """Returns the proposal of the only session, or raises the error in its place."""
    [proposal] = found
    if isinstance(proposal, Exception):
        raise proposal
    return proposal


def proposals(drafter: Drafter, contexts: Sequence[Context], budgets: Sequence[Budget]) -> list[Proposal | Exception]:
    """Returns what `drafter` proposes for each context, or an error if that is not a proposal for it.

    The check takes microseconds. Behind it, a tree can be trusted, so that no proposal changes a text.
    """
    before = [(len(context.tokens), context.tokens[-1]) for context in contexts]
    found = drafter.propose_all(contexts, budgets)
    return [
        each if isinstance(each, Exception) else _checked(type(drafter).__name__, each, context, budget, known)
        for each, context, budget, known in zip(found, contexts, budgets, before, strict=True)
    ]


def _checked(
    name: str, proposal: Proposal, context: Context, budget: Budget, before: tuple[int, int]
) -> Proposal | Exception:
    try:
        return _check(name, proposal, context, budget, *before)
    except InvalidOptionError as error:
        return error


def _check(name: str, proposal: Proposal, context: Context, budget: Budget, length: int, last: int) -> Proposal:
    _require(f"what {name}.propose returns", proposal, Proposal, "write `return Proposal(tree)`")
    if len(context.tokens) != length or context.tokens[-1] != last:
        raise InvalidOptionError(f"{name}.propose changed the tokens of its context: copy them before changing them")
    try:
        tree = check(proposal.tree, LARGEST if budget.executable is None else budget.executable.vocabulary)
    except InvalidOptionError as error:
        raise InvalidOptionError(f"{name} proposed what is no tree ({error}): grow one with TreeBuilder") from error
    if tree.token[0] != last:
        raise InvalidOptionError(
            f"{name} proposed a tree under token {tree.token[0]}, but the last committed token is {last}: begin the "
            "tree with `TreeBuilder(context.tokens[-1])`"
        )
    if proposal.prefix is not None:
        try:
            proposal.prefix.check(budget.slots, budget.executable)
        except InvalidOptionError as error:
            raise InvalidOptionError(f"the prefix that {name} proposed does not fit the step: {error}") from error
    return proposal if tree is proposal.tree else replace(proposal, tree=tree)


def _require(what: str, value: object, kind: type, remedy: str) -> None:
    if not isinstance(value, kind):
        raise InvalidOptionError(f"{what} must be a {kind.__name__}, not {type(value).__name__}: {remedy}")


@dataclass(frozen=True, eq=False)
class RatedTree:
    """A tree, with the feature whose acceptance rate gave each edge its estimate."""

    tree: Tree
    feature: Int32  # [n] in the drafter's own numbering; the root has no edge, so its entry has no meaning

    def select(self, rows: NDArray[np.intp]) -> "RatedTree":
        """Like `Tree.select`."""
        return RatedTree(self.tree.select(rows), self.feature[rows])

    def likeliest(self, count: int) -> "RatedTree":
        """Like `Tree.likeliest`."""
        return self if len(self.tree) <= count else self.select(best_rows(self.tree, count))


class RatedTreeBuilder(TreeBuilder):
    """Grows a tree and records the feature of each row."""

    def __init__(self, root: int) -> None:
        super().__init__(root)
        self.features = [-1]

    def add_rated(self, parent: int, token: int, edge: float, feature: int) -> int:
        """Like `add`; a row that already exists keeps its feature and its probability."""
        row = self.add(parent, token, edge)
        if row == len(self.features):
            self.features.append(feature)
        return row

    def build_rated(self) -> RatedTree:
        return RatedTree(self.build(), np.array(self.features, np.int32))


@dataclass
class AcceptanceRates:
    """Acceptance rates by feature: the mean of a Beta posterior whose old evidence fades.

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

    def learn(self, proposed: RatedTree | None, tokens: Sequence[int]) -> None:
        """Observes each row of a proposed tree, if there is one, that the committed `tokens` decide."""
        if proposed is None or len(proposed.tree) == 1:
            return
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
    """Returns the rows of a proposal that the committed tokens decide, each with whether it was right.

    These are the children of the rows on the committed path, evaluated or not: a row that a policy left out is judged
    too, so that estimates recover without exploration.
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
