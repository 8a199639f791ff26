"""What a drafter is, and how it learns what its proposals are worth."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from forerun.runtime.cache import CachedSequence, StepSlots
from forerun.runtime.executable import Float32, Int32
from forerun.runtime.prefix import Prefix
from forerun.runtime.tree import Float64, Tree, root_only


@dataclass(eq=False)
class Context:
    """One sequence's committed tokens, the prompt's and those generated. It grows; what is there never changes.

    All committed tokens but the last, the next tree's root, are in the target's cache.
    """

    tokens: list[int]
    place: "Place | None" = None  # where the target's cache has it; None where no engine is


@dataclass(eq=False)
class Place:
    """A sequence in the target's cache, and what drafting has done there in a turn of the loop."""

    sequence: CachedSequence
    slots: StepSlots  # of the turn's rows: those of two drafts lie apart, so that neither overwrites the other's
    prefix: Prefix | None = None  # what drafting has computed of the coming step


@dataclass(frozen=True)
class Budget:
    """How large a tree may be, and what drafting it may cost."""

    rows: int  # the root included
    depth: int  # edges from the root; 0 leaves the root alone
    price: float = 0.0  # tokens that a second would bring elsewhere; 0 where time does not count
    pace: float = 1.0  # seconds of a plain step now over those of the calibration


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

    def propose(self, context: Context, budget: Budget) -> Tree:
        """A tree under the last committed token, within the budget. Its probabilities are honest estimates."""
        return root_only(context.tokens[-1])

    def observe(self, context: Context, observation: Observation) -> None:
        """The outcome of the last proposal. The context holds the committed tokens already."""

    def observe_prompt(self, tokens: Int32, candidates: Int32, candidate_logits: Float32) -> None:
        """Prompt rows [n] with the target's likeliest next tokens [n, K]."""

    def rewind(self, context: Context, length: int) -> None:
        """The context is cut back to `length` tokens: a draft's own context, whose end was not committed after all."""

    def end(self, context: Context) -> None:
        """The request is over, or failed."""


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
