"""Verification: sample at every row of the path and follow the child with the sampled token."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from forerun.runtime.tree import Tree


@dataclass(frozen=True)
class Verdict:
    """The accepted path and its tokens: tokens[i] was sampled at row path[i]; the last one is the bonus token."""

    path: list[int]  # rows from the root on
    tokens: list[int]  # as many as the path has rows

    def cut(self, count: int) -> "Verdict":
        """Returns the first `count` tokens, and the rows that sampled them."""
        return Verdict(self.path[:count], self.tokens[:count])


def verify(tree: Tree, draw: Callable[[int], int], ends: Collection[int] = ()) -> Verdict:
    """Follow the sampled children from the root. `draw(row)` is called for rows of the path only, and not after `ends`.

    A sampled token is a function of its row's logits and position alone, so the tokens are those of plain decoding.
    """
    path, tokens = [0], [draw(0)]
    while tokens[-1] not in ends and (child := tree.child(path[-1], tokens[-1])) is not None:
        path.append(child)
        tokens.append(draw(child))
    return Verdict(path, tokens)
