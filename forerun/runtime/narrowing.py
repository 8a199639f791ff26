"""Narrowing: drafts that a hook excludes are left out, and tokens that it forces are drafted."""

from dataclasses import replace
from typing import Any

import numpy as np

from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.base import LARGEST, Budget, Proposal, Proposers
from forerun.runtime.hooks.base import Hook, HookStates, name
from forerun.runtime.tree import Tree, TreeBuilder, best_rows

FORCED = 1.0
"""The probability of a forced token, given its parent."""


def narrowed(proposal: Proposal, hooks: HookStates, budget: Budget) -> Proposal:
    """Returns a proposal without rows that a hook excludes, and with those that it forces, within the budget.

    A row below one that is left out is left out, too. The proposal stays the same if no hook narrows. Raises
    `InvalidOptionError` for answers that are none.
    """
    narrowing = [number for number, hook in enumerate(hooks.hooks) if hook.narrows]
    if not narrowing:
        return proposal
    walk = _Walk(TreeBuilder(int(proposal.tree.token[0])), [hooks.hooks[number] for number in narrowing], budget.depth)
    walk.states.append([hooks.states[number] for number in narrowing])
    kept = walk.keep(proposal.tree)
    first = len(walk.builder)
    walk.force(budget.rows, LARGEST if budget.executable is None else budget.executable.vocabulary)
    tree, proposers = walk.builder.build(), proposal.proposers
    forced = len(tree) - first
    if proposers is not None or forced:
        own = proposers or Proposers(("",), np.ones(len(proposal.tree), np.int32))
        bit = 1 << len(own.names)
        members = np.concatenate([own.members[kept], np.full(forced, bit, np.int32)]).astype(np.int32)
        proposers = Proposers((*own.names, " + ".join(map(name, walk.hooks))), members)
    if len(tree) > budget.rows:
        likeliest = best_rows(tree, budget.rows)
        tree = tree.select(likeliest)
        proposers = proposers and Proposers(proposers.names, proposers.members[likeliest])
    return replace(proposal, tree=tree, proposers=proposers)


class _Walk:
    """A tree that grows as far as hooks allow."""

    def __init__(self, builder: TreeBuilder, hooks: list[Hook], depth: int) -> None:
        self.builder, self.hooks, self.depth = builder, hooks, depth
        self.states: list[list[Any]] = []  # by row

    def keep(self, tree: Tree) -> list[int]:
        """Adds the rows of a tree that no hook excludes. Returns which they are."""
        place, kept = {0: 0}, [0]
        children: dict[int, list[int]] = {}
        for row, parent in enumerate(tree.parent.tolist()[1:], start=1):
            children.setdefault(parent, []).append(row)
        edges = tree.edge_probability
        for parent in range(len(tree)):
            if parent not in place or parent not in children:
                continue
            rows = children[parent]
            for row, allowed in zip(rows, self._allowed(place[parent], tree.token[rows].tolist()), strict=True):
                if allowed:
                    known = len(self.builder)
                    place[row] = self._add(place[parent], int(tree.token[row]), float(edges[row]))
                    kept += [row] * (len(self.builder) - known)  # not one that is there already
        return kept

    def force(self, rows: int, vocabulary: int) -> None:
        """Adds what hooks force below each row, the likeliest rows first, at most so many rows."""
        most = len(self.builder) + rows
        for row in sorted(range(len(self.builder)), key=lambda row: -self.builder.probabilities[row]):
            for index, hook in enumerate(self.hooks):
                at = row
                for token in hook.forced(self.states[row][index]):
                    if len(self.builder) >= most or self.builder.depths[at] >= self.depth:
                        break
                    if not 0 <= token < vocabulary:  # a step trusts its tokens
                        raise InvalidOptionError(
                            f"{name(hook)} forces token {token}, but there are tokens 0 to {vocabulary - 1}: return "
                            "tokens of this model"
                        )
                    if not all(self._allowed(at, [token])):
                        break
                    at = self._add(at, token, FORCED)

    def _allowed(self, row: int, tokens: list[int]) -> list[bool]:
        found = [True] * len(tokens)
        for hook, state in zip(self.hooks, self.states[row], strict=True):
            answers = hook.allows(state, tokens)
            if len(answers) != len(tokens):
                raise InvalidOptionError(
                    f"{name(hook)} answers for {len(answers)} of {len(tokens)} tokens: return a bool for each"
                )
            found = [before and bool(now) for before, now in zip(found, answers, strict=True)]
        return found

    def _add(self, parent: int, token: int, edge: float) -> int:
        row = self.builder.add(parent, token, edge)
        if row == len(self.states):
            above = zip(self.hooks, self.states[parent], strict=True)
            self.states.append([hook.advance(state, token) for hook, state in above])
        return row
