"""What a listener of the decoding loop is told: plain data, made only if somebody listens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forerun.runtime.drafters.base import Proposal
from forerun.runtime.request import Phases
from forerun.runtime.session import Session
from forerun.runtime.tree import Tree


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an iteration was for one session: what was proposed, evaluated and committed."""

    session: Session
    drafter: str  # the name of the drafter, or of the one that merges several
    proposal: Proposal
    tree: Tree  # as evaluated: part of what was proposed
    path: list[int]  # the accepted rows, from the root on
    tokens: list[int]  # the committed tokens, the target's own last

    @property
    def proposers(self) -> list[str]:
        """Returns [n] who proposed each row of the evaluated tree; nobody its root."""
        known, tree = self.proposal.proposers, self.proposal.tree
        if known is None:
            return ["", *[self.drafter] * (len(self.tree) - 1)]
        names, rows = [""], [0]  # rows of the proposal
        for token, parent in zip(self.tree.token[1:].tolist(), self.tree.parent[1:].tolist(), strict=True):
            rows.append(tree.child(rows[parent], token) or 0)
            names.append(known.of(rows[-1]) or self.drafter)
        return names


@dataclass(frozen=True, eq=False)
class Iteration:
    """One iteration of the loop. Times are seconds of the engine's clock."""

    began: float
    ended: float  # when drafters have learned from it
    phases: Phases
    prompt_rows: int  # of the prompts that were read beside the trees
    outcomes: tuple[Outcome, ...]


Listener = Callable[[Iteration], None]
"""Called at the end of every iteration, in the thread that runs it; it must not change what it is given."""


def accepted_by(proposal: Proposal, drafter: str, tokens: Sequence[int]) -> tuple[str, ...]:
    """Returns who proposed each of some tokens, which follow the root of a proposal one after another."""
    if proposal.proposers is None or not tokens:
        return (drafter,) * len(tokens)
    names: list[str] = []
    row = 0
    for token in tokens:
        row = proposal.tree.child(row, token) or 0
        names.append(proposal.proposers.of(row) or drafter)
    return tuple(names)
