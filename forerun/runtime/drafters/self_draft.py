"""Self-drafting: a part of the target proposes, with the target's own weights and cache, and the target verifies.

After Zhang et al., "Draft & Verify" (arXiv 2309.08168) and Elhoushi et al., "LayerSkip" (arXiv 2404.16710). A method
(`forerun.runtime.drafters.parts`) chooses which part drafts. What a part computes as the target does, up to the first
branch that it leaves out, is not recomputed in verification.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.cache import StepSlots
from forerun.runtime.draft_rows import DraftRows
from forerun.runtime.drafters.base import (
    Budget,
    Context,
    Drafter,
    Observation,
    Proposal,
    RatedTree,
    RatedTreeBuilder,
    only,
)
from forerun.runtime.drafters.growing import Grower, Grown, Launches
from forerun.runtime.drafters.launching import Launch, Launching, levels, together
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable, Float32, Int32, Part
from forerun.runtime.prefix import ROOT, Prefix
from forerun.runtime.tree import TreeBuilder


@dataclass(frozen=True)
class Shares:
    """The weights that a step's parts read, as shares of what the whole step reads."""

    branches: tuple[float, ...]
    head: float  # the final norm and the head

    @classmethod
    def of(cls, executable: Executable) -> "Shares":
        total = sum(branch.bytes for branch in executable.branches) + executable.head_bytes
        return cls(tuple(branch.bytes / total for branch in executable.branches), executable.head_bytes / total)

    def share(self, part: Part) -> float:
        """Returns the share of a step that a part takes, including the logits of its rows."""
        return sum(self.branches[each] for each in part.branches(len(self.branches))) + self.head


@dataclass(frozen=True)
class _Plan:
    """The parts of an iteration by depth, and quantities derived from them."""

    parts: tuple[Part, ...]
    shared: int  # branches that all of them evaluate as the target does
    behind: float  # the share of a step's bytes that remains after those
    launches: Launches

    @classmethod
    def of(cls, parts: tuple[Part, ...], read: Shares, enters: bool) -> "_Plan":
        shares = [read.share(part) for part in parts]
        shared = min(part.shared(len(read.branches)) for part in parts) if enters else 0
        behind = read.share(Part(enter=shared))
        return cls(parts, shared, behind, Launches(lambda depth: shares[depth], catch_up=1.0 - behind))


class PartMethod:
    """Chooses the part of the target that drafts; the base class leaves nothing out, and so gains nothing."""

    deepest: int | None = None  # levels below the root worth drafting; None: as many as the shape allows

    def begin(self, context: Context) -> None:
        """A request begins."""

    def prepare(self, context: Context, slots: StepSlots, price: float) -> None:
        """An iteration begins. A second costs `price` tokens.

        All of the context's tokens except the last are in the cache, in the sequence to which the slots belong.
        """

    def part(self, depth: int) -> Part:
        """Returns the part that evaluates this iteration's rows at a depth; deeper rows may only leave out more."""
        return Part()


class SelfDraft(Drafter):
    """Grows trees with a part of the target."""

    def __init__(self, engine: Engine, method: PartMethod, grower: Grower) -> None:
        require_branches(engine.executable)
        self.engine, self.method, self.grower = engine, method, grower
        self.shares = Shares.of(engine.executable)
        self._last: _Plan | None = None
        self._proposed: dict[Context, RatedTree] = {}

    def begin(self, context: Context) -> None:
        self.method.begin(context)

    def propose(self, context: Context, budget: Budget) -> Proposal:
        return only(self.propose_all([context], [budget]))

    def propose_all(self, contexts: Sequence[Context], budgets: Sequence[Budget]) -> list[Proposal | Exception]:
        return together(self.engine, [self._propose(*each) for each in zip(contexts, budgets, strict=True)])

    def _propose(self, context: Context, budget: Budget) -> Launching[Proposal]:
        assert budget.slots is not None
        self.method.prepare(context, budget.slots, budget.price)
        proposed, prefix = yield from self._draft(context, budget, budget.slots)
        self._proposed[context] = proposed = proposed.likeliest(budget.rows)
        return Proposal(proposed.tree, prefix)

    def observe(self, context: Context, observation: Observation) -> None:
        self.grower.observe(self._proposed[context], observation.tokens, len(observation.tokens), context)

    def end(self, context: Context) -> None:
        self._proposed.pop(context, None)
        self.grower.forget(context)

    def _draft(self, context: Context, budget: Budget, slots: StepSlots) -> Launching[tuple[RatedTree, Prefix | None]]:
        """Returns a tree under the last token, and what the part has computed of it as the target does."""
        root = context.tokens[-1]
        room = slots.left - (budget.rows if budget.enters else 0)  # a step that enters late needs slots of its own
        if budget.depth == 0 or room < self.grower.shape.beam:
            return RatedTreeBuilder(root).build_rated(), None
        shape = self.grower.shape.within(self.method.deepest or budget.depth, room, self.engine.executable)
        plan = self._plan(min(budget.depth, shape.deepest))
        if not self.grower.drafts(budget, plan.launches, len(plan.parts)):
            return self.grower.begin(root, budget, context).build_rated(), None
        evaluation = _Evaluation(self.engine, plan, slots, budget.enters)
        own = replace(budget, depth=len(plan.parts))
        growing = self.grower.growing(root, own, plan.launches, shape, context)
        grown = yield from levels(growing, evaluation)
        if evaluation.prefix is None or not grown.evaluated:
            return grown.proposed, None
        kept = self._without_dear_leaves(grown, budget.price * budget.pace, plan.launches.catch_up)
        return kept, evaluation.prefix

    def _plan(self, depth: int) -> _Plan:
        """Returns the plan of this iteration's parts; it is kept for the next, which mostly has the same parts."""
        parts = tuple(self.method.part(each) for each in range(depth))
        if self._last is None or self._last.parts != parts:
            self._last = _Plan.of(parts, self.shares, self.engine.executable.enters)
        return self._last

    def _without_dear_leaves(self, grown: Grown, price: float, entry: float) -> RatedTree:
        """Returns the tree without unevaluated rows that cost too much to bring to the step's entry."""
        tree = grown.tree
        leaves = len(tree) - len(grown.evaluated)
        likely = tree.probability.sum() - tree.probability[grown.evaluated].sum()
        if likely > price * self.grower.cost.seconds(max(1, leaves), entry):
            return grown.proposed
        return grown.proposed.select(np.array(grown.evaluated, np.intp))


class _Evaluation:
    """One proposal's launches, over the rows of one sequence."""

    def __init__(self, engine: Engine, plan: _Plan, slots: StepSlots, enters: bool) -> None:
        self.engine, self.plan = engine, plan
        engine.cache.reserve(slots.sequence, slots.sequence.length + len(plan.parts) + 1)
        self.rows = DraftRows(slots.sequence, slots)
        self.prefix = Prefix(plan.shared, plan.behind, slots) if plan.shared and enters else None
        self._known = {-1: ROOT}  # by evaluated row, its number in the prefix

    def __call__(self, builder: TreeBuilder, rows: Sequence[int]) -> Launching[tuple[Int32, Float32]]:
        """Evaluates rows of one depth."""
        batch, part = self.rows.batch(builder, rows), self.plan.parts[builder.depths[rows[0]]]
        if self.prefix is None:
            result = yield Launch(batch, part)
        elif part == Part(leave=self.prefix.leave):
            result = yield Launch(batch, part)
            self._keep(self.prefix, builder, rows, result.hidden.copy())
        else:
            enter = self.prefix.leave
            first = yield Launch(replace(batch, outputs=batch.outputs[:0]), Part(leave=enter))
            hidden = first.hidden.copy()  # the next run reuses the memory
            self._keep(self.prefix, builder, rows, hidden)
            result = yield Launch(batch, replace(part, enter=enter), hidden)
        return result.candidates, result.candidate_logits

    def _keep(self, prefix: Prefix, builder: TreeBuilder, rows: Sequence[int], hidden: Float32) -> None:
        """Keeps what the verifying step need not recompute."""
        for row, stream in zip(rows, hidden, strict=True):
            above = self._known[builder.parents[row]]
            self._known[row] = prefix.add(above, builder.tokens[row], self.rows.slots[row], stream)


def require_branches(executable: Executable) -> None:
    """Raises `InvalidOptionError` for a model without parts."""
    if not executable.branches:
        raise InvalidOptionError(
            "this model has no residual stream, so no part of it can draft: use tree_spec or a draft model "
            "(`forerun dump --residual` shows the branches of a model)"
        )
