"""Self-drafting: a part of the target proposes, with the target's own weights and cache, and the target verifies.

After Zhang et al., "Draft & Verify" (arXiv 2309.08168) and Elhoushi et al., "LayerSkip" (arXiv 2404.16710). Which part
drafts is a method's choice (`forerun.runtime.drafters.parts`). What a part computes as the target does, up to the first
branch that it leaves out, is not computed again in verification.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.base import Budget, Context, Drafter, Observation, Place
from forerun.runtime.drafters.growing import Grower, Grown, Launches
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable, Float32, Int32, Part
from forerun.runtime.prefix import ROOT, Prefix
from forerun.runtime.rows import pick, tree_rows
from forerun.runtime.tree import Tree, TreeBuilder


@dataclass(frozen=True)
class Bytes:
    """What a step's parts read of the weights, as shares of what the whole step reads."""

    branches: tuple[float, ...]
    head: float  # the final norm and the head

    @classmethod
    def of(cls, executable: Executable) -> "Bytes":
        total = sum(branch.bytes for branch in executable.branches) + executable.head_bytes
        return cls(tuple(branch.bytes / total for branch in executable.branches), executable.head_bytes / total)

    def share(self, part: Part, logits: bool = True) -> float:
        return sum(self.branches[each] for each in part.branches(len(self.branches))) + self.head * logits


class PartMethod:
    """Chooses the part of the target that drafts; this one leaves nothing out, and so has nothing to gain."""

    deepest: int | None = None  # rows below the root that are worth drafting; None: as many as the shape allows

    def begin(self, context: Context) -> None:
        """A request begins."""

    def prepare(self, context: Context, price: float) -> None:
        """A turn begins, of a sequence whose tokens but the last are in the cache. A second costs `price` tokens."""

    def part(self, depth: int) -> Part:
        """What evaluates the rows at a depth this turn; deeper rows may leave out more, and never less."""
        return Part()

    def observe(self, context: Context, observation: Observation) -> None:
        """The outcome of the last proposal."""

    def end(self, context: Context) -> None:
        """The request is over, or failed."""


class SelfDraft(Drafter):
    """Grows trees with a part of the target."""

    def __init__(self, engine: Engine, method: PartMethod, grower: Grower) -> None:
        require_branches(engine.executable)
        self.engine, self.method, self.grower = engine, method, grower
        self.bytes = Bytes.of(engine.executable)
        self._proposed: dict[Context, Tree] = {}

    def begin(self, context: Context) -> None:
        self.method.begin(context)

    def propose(self, context: Context, budget: Budget) -> Tree:
        self.method.prepare(context, budget.price)
        place, shape = context.place, self.grower.shape
        assert place is not None
        room = max(0, place.slots.left - self.engine.executable.max_outputs) // shape.beam  # the step needs slots too
        longest = self.engine.executable.max_path - 1  # a path begins with the root where that lies away from home
        depth = min(budget.depth, shape.deepest, self.method.deepest or budget.depth, room, longest)
        draft = _Turn(self, place, depth)
        grown = self.grower.grow(context.tokens[-1], Budget(budget.rows, depth, budget.price), draft.launches, draft)
        tree = grown.tree
        if draft.prefix is not None and grown.evaluated:
            if place.prefix is None or place.prefix.leave < draft.prefix.leave:
                place.prefix = draft.prefix
            tree = self._without_dear_leaves(grown, budget.price, draft.prefix.leave)
        self._proposed[context] = tree = tree.likeliest(budget.rows)
        return tree

    def observe(self, context: Context, observation: Observation) -> None:
        self.grower.observe(self._proposed[context], observation.tokens)
        self.method.observe(context, observation)

    def end(self, context: Context) -> None:
        self._proposed.pop(context, None)
        self.method.end(context)

    def _without_dear_leaves(self, grown: Grown, price: float, leave: int) -> Tree:
        """The tree, less the rows that were not evaluated where bringing them to branch `leave` costs too much."""
        tree = grown.tree
        leaves = np.setdiff1d(np.arange(len(tree)), grown.evaluated)
        share = self.bytes.share(Part(leave=leave), logits=False)
        if tree.probability[leaves].sum() > price * self.grower.cost.seconds(max(1, len(leaves)), share):
            return tree
        return tree.select(np.array(grown.evaluated, np.intp))


class _Turn:
    """One proposal's launches, over the rows of one sequence."""

    def __init__(self, draft: SelfDraft, place: Place, depth: int) -> None:
        self.engine, self.sequence, self.slots = draft.engine, place.sequence, place.slots
        self.engine.cache.reserve(self.sequence, self.sequence.length + depth + 1)
        self.parts = [draft.method.part(each) for each in range(max(1, depth))]
        count = len(draft.bytes.branches)
        self.shared = min(part.shared(count) for part in self.parts)
        behind = draft.bytes.share(Part(enter=self.shared))
        self.prefix = Prefix(self.shared, behind, self.slots) if self.shared else None
        shares = [draft.bytes.share(part) for part in self.parts]
        self.launches = Launches(lambda depth: shares[depth], catch_up=1.0 - behind)
        self._slots: list[int] = []  # of each row of the tree, 0 until it is evaluated
        self._known: list[int] = []  # its number in the prefix

    def __call__(self, builder: TreeBuilder, rows: Sequence[int]) -> tuple[Int32, Float32]:
        """Evaluate rows of one depth."""
        chosen = np.array(rows, np.intp)
        tree = builder.build()
        self._slots.extend([0] * (len(tree) - len(self._slots)))
        self._known.extend([ROOT] * (len(tree) - len(self._known)))
        for row, slot in zip(rows, self.slots.take(self.sequence.length + tree.depth[chosen]).tolist(), strict=True):
            self._slots[row] = slot
        batch = pick(tree_rows(self.sequence, tree, np.array(self._slots, np.int32)), chosen, outputs=True)
        part = self.parts[int(tree.depth[rows[0]])]
        if self.prefix is None:
            result = self.engine.run(batch, part)
        elif part == Part(leave=self.shared):
            result = self.engine.run(batch, part)
            self._keep(tree, rows, result.hidden)
        else:
            first = self.engine.run(pick(batch, np.arange(len(rows)), outputs=False), Part(leave=self.shared))
            hidden = first.hidden.copy()  # the next run takes the memory
            self._keep(tree, rows, hidden)
            result = self.engine.run(batch, Part(self.shared, part.leave, part.skipped), hidden)
        return result.candidates, result.candidate_logits

    def _keep(self, tree: Tree, rows: Sequence[int], hidden: Float32) -> None:
        """What the step that verifies need not compute again."""
        assert self.prefix is not None
        for row, stream in zip(rows, hidden, strict=True):
            parent = int(tree.parent[row])
            above = ROOT if parent < 0 else self._known[parent]
            self._known[row] = self.prefix.add(above, int(tree.token[row]), self._slots[row], stream.copy())


def require_branches(executable: Executable) -> None:
    """Raises `InvalidOptionError` for a model without parts."""
    if not executable.branches:
        raise InvalidOptionError(
            "this model has no residual stream, so that no part of it can draft: use tree_spec or a draft model "
            "(`forerun dump --residual` shows the branches of a model)"
        )
