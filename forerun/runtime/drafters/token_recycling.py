"""Token recycling: proposes each token's likeliest successors, as the target last saw them.

After Luo et al., "Turning Trash into Treasure" (arXiv 2408.08696): an adjacency table of candidates is overwritten by
every row the target evaluates, accepted or not. The paper's tree has a fixed shape; here each edge carries an estimate
from the target's own logits at the time, and the tree grows where the product of the estimates is largest.
"""

from collections.abc import Sequence

import numpy as np

from forerun.runtime.drafters.base import AcceptanceRates, Budget, Context, Drafter, Observation, Proposal, RatedTree
from forerun.runtime.executable import Float32, Int32
from forerun.runtime.tree import Float64, Tree, root_only

# Upper bounds of the classes of a candidate's share of its row's candidates.
SHARES = np.array([0.01, 0.02, 0.04, 0.08, 0.12, 0.18, 0.25, 0.35, 0.5, 0.65, 0.8, 0.9, 0.96, 0.99])
STILL_TRUE = (0.45, 0.65, 0.7)  # the initial factor on a share in another context: at depth 1, at 2, deeper


class TokenRecycling(Drafter):
    """A table [V, K] that outlives requests; tokens not seen in any request have no successors yet.

    Its rates depend on a candidate's share of probability among its row's candidates when it was seen, and on depth.
    """

    rests = True

    def __init__(self, vocabulary: int, candidates: int = 8, deepest: int = 8, wants_prompt_rows: bool = False) -> None:
        """`candidates`: K; an executable with fewer candidates fills fewer. `deepest`: the depth limit of a tree."""
        self.deepest = deepest
        self.wants_prompt_rows = wants_prompt_rows
        self.successors = np.full((vocabulary, candidates), -1, np.int32)
        self.share = np.zeros((vocabulary, candidates), np.uint8)  # the class of each successor's share
        bounds = np.concatenate([[0.0], SHARES, [1.0]])
        middle = (bounds[:-1] + bounds[1:]) / 2
        self.rates = AcceptanceRates(np.concatenate([middle * stale for stale in STILL_TRUE]))
        self._proposed: dict[Context, RatedTree] = {}

    def propose(self, context: Context, budget: Budget) -> Proposal:
        if budget.depth == 0:
            self._proposed.pop(context, None)
            return Proposal(root_only(context.tokens[-1]))
        self._proposed[context] = proposed = self._grow(context.tokens[-1], budget)
        return Proposal(proposed.tree)

    def observe(self, context: Context, observation: Observation) -> None:
        self.observe_all([context], [observation])

    def observe_all(self, contexts: Sequence[Context], observations: Sequence[Observation]) -> list[Exception | None]:
        for context, seen in zip(contexts, observations, strict=True):
            self.rates.learn(self._proposed.pop(context, None), seen.tokens)
        self._record_all([(each.tree.token, each.candidates, each.candidate_logits) for each in observations])
        # A token in several rows keeps what the committed row showed.
        partial = [each for each in observations if len(each.path) < len(each.tree)]
        self._record_all(
            [
                (each.tree.token[each.path], each.candidates[each.path], each.candidate_logits[each.path])
                for each in partial
            ]
        )
        return [None] * len(contexts)

    def observe_prompt(self, tokens: Int32, candidates: Int32, candidate_logits: Float32) -> None:
        self._record(tokens, candidates, candidate_logits)

    def end(self, context: Context) -> None:
        self._proposed.pop(context, None)

    def _record_all(self, rows: Sequence[tuple[Int32, Int32, Float32]]) -> None:
        if len(rows) == 1:
            self._record(*rows[0])
        elif rows:
            tokens, candidates, logits = zip(*rows, strict=True)
            self._record(np.concatenate(tokens), np.concatenate(candidates), np.concatenate(logits))

    def _record(self, tokens: Int32, candidates: Int32, candidate_logits: Float32) -> None:
        """tokens: [n]; candidates and candidate_logits: [n, as many as the executable gives]."""
        width = min(self.successors.shape[1], candidates.shape[1])
        with np.errstate(invalid="ignore"):  # a row without a finite logit has shares that are NaN
            share = np.exp(candidate_logits[:, :width] - candidate_logits[:, :1])
            share /= share.sum(axis=1, keepdims=True)
        self.successors[tokens, :width] = candidates[:, :width]
        self.share[tokens, :width] = np.searchsorted(SHARES, share)

    def _grow(self, root: int, budget: Budget) -> RatedTree:
        """Returns the likeliest rows, level by level; a level keeps what may still be among the best `budget.rows`."""
        classes = len(SHARES) + 1
        token, parent = [np.array([root], np.int32)], [np.array([-1], np.int32)]
        probability, features = [np.ones(1)], [np.array([-1], np.int32)]
        first = 0  # the row at which the last level begins
        for depth in range(1, min(budget.depth, self.deepest) + 1):
            feature = self.share[token[-1]] + np.int32(classes * (min(depth, len(STILL_TRUE)) - 1))
            likelihood = probability[-1][:, None] * self.rates.rate[feature]
            successor = self.successors[token[-1]]
            level, rank = np.nonzero((successor >= 0) & (likelihood > _threshold(probability, budget.rows)))
            if len(level) == 0:
                break
            likelihood = likelihood[level, rank]
            if len(level) >= budget.rows:
                best = np.sort(np.argsort(-likelihood, kind="stable")[: budget.rows - 1])
                level, rank, likelihood = level[best], rank[best], likelihood[best]
            token.append(successor[level, rank])
            parent.append((first + level).astype(np.int32))
            probability.append(likelihood)
            features.append(feature[level, rank])
            first += len(token[-2])
        depths = np.repeat(np.arange(len(token), dtype=np.int32), [len(level) for level in token])
        tree = Tree(np.concatenate(token), np.concatenate(parent), depths, np.concatenate(probability))
        return RatedTree(tree, np.concatenate(features)).likeliest(budget.rows)


def _threshold(probability: list[Float64], rows: int) -> float:
    """Returns the probability that a row must exceed to be among the best `rows` found so far."""
    found = np.concatenate(probability)
    return float(np.partition(found, len(found) - rows)[len(found) - rows]) if len(found) >= rows else 0.0
