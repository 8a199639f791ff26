"""Several drafters as one: their trees are merged by token prefix, their estimates weighed by past outcomes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from forerun.runtime.drafters.base import (
    AcceptanceRates,
    Budget,
    Context,
    Drafter,
    Observation,
    Proposal,
    Proposers,
    RatedTree,
    drafter_name,
    only,
    proposals,
)
from forerun.runtime.executable import Float32, Int32
from forerun.runtime.tree import Float64, Tree, best_rows, merge_members, with_edges

# Upper bounds of the classes of a drafter's estimate; class 0 is "not proposed".
CLASSES = np.array([0.04, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9])
# The same for the best estimate that any drafter gives to another child of the same parent.
RIVALS = np.array([0.2, 0.5, 0.8])
FEATURES = 200_000
"""The most combinations of classes: with many drafters, each has fewer classes."""


class Merged(Drafter):
    """Merges the trees of its drafters.

    Its rates depend on the combination of the drafters' estimates and the best rival's. It thus learns what a row is
    worth on which two drafters agree, or which only the weaker of them proposes.
    """

    def __init__(self, drafters: Sequence[Drafter]) -> None:
        self.drafters = list(drafters)
        self.names = tuple(drafter_name(each) for each in drafters)
        self.wants_prompt_rows = any(drafter.wants_prompt_rows for drafter in drafters)
        self.rests = all(drafter.rests for drafter in drafters)
        self.classes = _classes(len(drafters))
        self.rates = AcceptanceRates(_prior(len(drafters), self.classes))
        self._proposed: dict[Context, RatedTree] = {}

    def begin(self, context: Context) -> None:
        for drafter in self.drafters:
            drafter.begin(context)

    def propose(self, context: Context, budget: Budget) -> Proposal:
        return only(self.propose_all([context], [budget]))

    def propose_all(self, contexts: Sequence[Context], budgets: Sequence[Budget]) -> list[Proposal | Exception]:
        of_drafters = [proposals(drafter, contexts, budgets) for drafter in self.drafters]
        return [
            next((each for each in own if isinstance(each, Exception)), None)
            or self._merged(context, budget, [each for each in own if isinstance(each, Proposal)])
            for context, budget, *own in zip(contexts, budgets, *of_drafters, strict=True)
        ]

    def _merged(self, context: Context, budget: Budget, proposals: Sequence[Proposal]) -> Proposal:
        promising = any(proposal.promising for proposal in proposals)
        if budget.depth == 0:
            self._proposed.pop(context, None)
            return replace(proposals[0], promising=promising)
        tree, members = merge_members([proposal.tree for proposal in proposals])
        feature = np.searchsorted(RIVALS, _best_rival(tree)).astype(np.int32)
        digit, drafted_by = len(RIVALS) + 1, np.zeros(len(tree), np.int32)
        for index, proposal in enumerate(proposals):
            proposed = members[:, index] >= 0
            estimate = proposal.tree.edge_probability[members[proposed, index]]
            feature[proposed] += digit * (1 + np.searchsorted(self.classes, estimate)).astype(np.int32)
            digit *= len(self.classes) + 2
            drafted_by |= proposed.astype(np.int32) << index
        edges = self.rates.rate[feature]
        siblings = np.bincount(tree.parent[1:], weights=edges[1:], minlength=len(tree))
        edges[1:] /= np.maximum(1.0, siblings[tree.parent[1:]])  # at most one of them comes true
        proposed = RatedTree(with_edges(tree, edges), feature)
        if len(tree) > budget.rows:
            likeliest = best_rows(proposed.tree, budget.rows)
            proposed, drafted_by = proposed.select(likeliest), drafted_by[likeliest]
        self._proposed[context] = proposed
        prefixes = [proposal.prefix for proposal in proposals if proposal.prefix is not None]
        # The step can be entered behind only one draft: the one that has computed most, whoever proposed a row.
        prefix = max(prefixes, key=lambda prefix: prefix.leave, default=None)
        return Proposal(proposed.tree, prefix, promising, Proposers(self.names, drafted_by))

    def observe(self, context: Context, observation: Observation) -> None:
        [error] = self.observe_all([context], [observation])
        if error is not None:
            raise error

    def observe_all(self, contexts: Sequence[Context], observations: Sequence[Observation]) -> list[Exception | None]:
        of_drafters = [drafter.observe_all(contexts, observations) for drafter in self.drafters]
        for context, observation in zip(contexts, observations, strict=True):
            self.rates.learn(self._proposed.pop(context, None), observation.tokens)
        return [next((each for each in own if each is not None), None) for own in zip(*of_drafters, strict=True)]

    def observe_prompt(self, tokens: Int32, candidates: Int32, candidate_logits: Float32) -> None:
        for drafter in self.drafters:
            drafter.observe_prompt(tokens, candidates, candidate_logits)

    def rewind(self, context: Context, length: int) -> None:
        for drafter in self.drafters:
            drafter.rewind(context, length)

    def pause(self, context: Context) -> None:
        for drafter in self.drafters:
            drafter.pause(context)

    def end(self, context: Context) -> None:
        self._proposed.pop(context, None)
        for drafter in self.drafters:
            drafter.end(context)


def _best_rival(tree: Tree) -> Float64:
    """Returns [n] the largest edge probability among each row's siblings, excluding itself."""
    best, second, holder = [0.0] * len(tree), [0.0] * len(tree), [-1] * len(tree)  # of each row's children
    parents, edges = tree.parent.tolist(), tree.edge_probability.tolist()
    for row in range(1, len(tree)):
        parent, edge = parents[row], edges[row]
        if edge > best[parent]:
            second[parent], best[parent], holder[parent] = best[parent], edge, row
        elif edge > second[parent]:
            second[parent] = edge
    rivals = [second[parent] if holder[parent] == row else best[parent] for row, parent in enumerate(parents)]
    return np.array(rivals)


def _classes(drafters: int) -> Float64:
    """Returns the bounds of each drafter's classes: as many of `CLASSES` as give no more than `FEATURES` features."""
    count = next(count for count in range(len(CLASSES), -1, -1) if not count or _features(count, drafters) <= FEATURES)
    return CLASSES[np.arange(count) * len(CLASSES) // max(1, count)]


def _features(classes: int, drafters: int) -> int:
    return (classes + 2) ** drafters * (len(RIVALS) + 1)


def _prior(drafters: int, classes: Float64) -> Float64:
    """Returns [features] the prior: drafters err independently, and a rival takes from unlikely rows."""
    right = np.concatenate([[0.0], _middles(classes)])  # by class
    wrong = np.ones(1)
    for _ in range(drafters):
        wrong = ((1 - right)[:, None] * wrong).reshape(-1)  # the last drafter's class is the highest digit
    return ((1 - wrong)[:, None] * (1 - wrong[:, None] * _middles(RIVALS))).reshape(-1)


def _middles(bounds: Float64) -> Float64:
    edges = np.concatenate([[0.0], bounds, [1.0]])
    return (edges[:-1] + edges[1:]) / 2
