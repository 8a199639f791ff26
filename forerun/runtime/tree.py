"""Trees of drafted tokens, and pure functions over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError
from forerun.runtime.executable import Int32

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Tree:
    """n rows proposed for one sequence. Row 0 is the root, the last committed token; parents come before children."""

    token: Int32  # [n]
    parent: Int32  # [n] parent[0] = -1, parent[i] < i
    depth: Int32  # [n] depth[0] = 0
    probability: Float64  # [n] the draft's estimate that the whole path to the row is accepted; the root's is 1

    def __len__(self) -> int:
        return len(self.token)

    @cached_property
    def height(self) -> int:
        """The depth of the deepest row."""
        return int(self.depth.max()) if len(self.depth) > 1 else 0

    @cached_property
    def ancestors(self) -> Int32:
        """[n, height]: entry (i, d - 1) is row i's ancestor at depth d (itself at its own depth), 0 past its depth."""
        table = np.zeros((len(self), self.height), np.int32)
        row, ancestor = np.arange(1, len(self)), np.arange(1, len(self))
        while len(row):
            table[row, self.depth[ancestor] - 1] = ancestor
            ancestor = self.parent[ancestor]
            inner = ancestor > 0
            row, ancestor = row[inner], ancestor[inner]
        return table

    @cached_property
    def edge_probability(self) -> Float64:
        """[n] the estimate that a row is accepted, given that its parent is; the root's is 1."""
        edge = self.probability / np.maximum(self.probability[self.parent], 1e-300)
        edge[0] = 1.0
        return edge

    def children(self, row: int) -> list[int]:
        return np.flatnonzero(self.parent == row).tolist()

    def child(self, row: int, token: int) -> int | None:
        """Returns the first child of `row` that holds `token`, or None."""
        return self._rows.get((row, token))

    @cached_property
    def _rows(self) -> dict[tuple[int, int], int]:
        edges = list(zip(self.parent.tolist(), self.token.tolist(), strict=True))
        return {edge: row for row, edge in reversed(list(enumerate(edges)))}  # the first of equal siblings

    def path(self, row: int) -> list[int]:
        """Returns the rows from the root to `row`, both included."""
        path = [row]
        while (row := int(self.parent[row])) >= 0:
            path.append(row)
        return path[::-1]

    def select(self, rows: NDArray[np.intp]) -> "Tree":
        """Returns the tree of these rows only; they are ascending, the root first, each row's parent among them."""
        place = np.full(len(self) + 1, -1, np.int32)  # the last entry stands for the root's parent, -1
        place[rows] = np.arange(len(rows), dtype=np.int32)
        return Tree(self.token[rows], place[self.parent[rows]], self.depth[rows], self.probability[rows])

    def likeliest(self, count: int) -> "Tree":
        """Returns the tree of the `count` likeliest rows."""
        return self if len(self) <= count else self.select(best_rows(self, count))

    def __str__(self) -> str:
        lines: list[str] = []
        open_rows = [0]
        while open_rows:
            row = open_rows.pop()
            lines.append(f"{'  ' * int(self.depth[row])}{self.token[row]}  p={self.probability[row]:.3f}  row {row}")
            open_rows.extend(reversed(self.children(row)))
        return "\n".join(lines)


class TreeBuilder:
    """Grows a tree by token prefix: a second row with the same parent and token is the same row."""

    def __init__(self, root: int) -> None:
        self.tokens, self.parents, self.depths, self.probabilities = [root], [-1], [0], [1.0]
        self._rows: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def find(self, parent: int, token: int) -> int | None:
        return self._rows.get((parent, token))

    def add(self, parent: int, token: int, edge: float) -> int:
        """Returns the row of `token` under `parent`; a new one is accepted with probability `edge` given its parent."""
        row = self._rows.setdefault((parent, token), len(self.tokens))
        if row == len(self.tokens):
            self.tokens.append(token)
            self.parents.append(parent)
            self.depths.append(self.depths[parent] + 1)
            self.probabilities.append(self.probabilities[parent] * edge)
        return row

    def build(self) -> Tree:
        return Tree(
            np.array(self.tokens, np.int32),
            np.array(self.parents, np.int32),
            np.array(self.depths, np.int32),
            np.array(self.probabilities, np.float64),
        )


NO_PARENT, NO_DEPTH, CERTAIN = np.full(1, -1, np.int32), np.zeros(1, np.int32), np.ones(1)
for _shared in (NO_PARENT, NO_DEPTH, CERTAIN):
    _shared.flags.writeable = False


def root_only(token: int) -> Tree:
    """Returns the tree of plain decoding, without speculation."""
    return Tree(np.array([token], np.int32), NO_PARENT, NO_DEPTH, CERTAIN)


def chain(root: int, tokens: Sequence[int]) -> Tree:
    """Returns a tree of one path whose rows all have probability 1."""
    builder = TreeBuilder(root)
    row = 0
    for token in tokens:
        row = builder.add(row, token, 1.0)
    return builder.build()


def best_rows(tree: Tree, count: int) -> NDArray[np.intp]:
    """Returns the root and the likeliest other rows, `count` in all, ascending.

    A path is never likelier than its prefix, so they form a tree.
    """
    unlikely = -tree.probability
    unlikely[0] = -np.inf
    order = np.argsort(unlikely, kind="stable")  # stable: on ties the parent stays before its child
    return np.sort(order[:count])


def likeliest_of(trees: Sequence[Tree], most: int) -> list[Tree]:
    """Returns the likeliest rows of several trees, at most `most` in all, each tree's root among them."""
    if sum(map(len, trees)) <= most:
        return list(trees)
    counts = rows_of_each(trees, max(0, most - len(trees)))
    return [tree.likeliest(count) for tree, count in zip(trees, counts, strict=True)]


def rows_of_each(trees: Sequence[Tree], drafted: int) -> list[int]:
    """Returns how many rows each tree has if the `drafted` likeliest of all are selected besides the roots."""
    owner = np.repeat(np.arange(len(trees)), [len(tree) - 1 for tree in trees])
    probability = np.concatenate([tree.probability[1:] for tree in trees])
    taken = owner[np.argsort(-probability, kind="stable")[:drafted]]
    return (1 + np.bincount(taken, minlength=len(trees))).tolist()


def merge_members(trees: Sequence[Tree]) -> tuple[Tree, Int32]:
    """Merges trees of one root by token prefix; members[i, k] is the row of tree k that row i holds, or -1.

    A row of several trees takes the largest of their edge probabilities.
    """
    if len({int(tree.token[0]) for tree in trees}) != 1:
        raise InvalidOptionError("trees can be merged only under one root token: give trees of the same sequence")
    builder = TreeBuilder(int(trees[0].token[0]))
    members: list[list[int]] = [[0] * len(trees)]
    edges = [1.0]
    for index, tree in enumerate(trees):
        place = [0]
        columns = (tree.token.tolist(), tree.parent.tolist(), tree.edge_probability.tolist())
        for row, (token, parent, edge) in enumerate(zip(*columns, strict=True)):
            if row == 0:
                continue
            merged = builder.add(place[parent], token, edge)
            place.append(merged)
            if merged == len(members):
                members.append([-1] * len(trees))
                edges.append(edge)
            elif edge > edges[merged]:
                edges[merged] = edge
            members[merged][index] = row
    tree = builder.build()
    return with_edges(tree, np.array(edges)), np.array(members, np.int32)


def with_edges(tree: Tree, edges: Float64) -> Tree:
    """Returns the same rows with other edge probabilities [n]."""
    probabilities = edges.tolist()
    probabilities[0] = 1.0
    for row, parent in enumerate(tree.parent.tolist()[1:], start=1):
        probabilities[row] *= probabilities[parent]
    return Tree(tree.token, tree.parent, tree.depth, np.array(probabilities))


INTEGERS, NUMBERS, UNSIGNED = np.dtype(np.int32), np.dtype(np.float64), np.dtype(np.uint32)


def check(tree: Tree, vocabulary: int) -> Tree:
    """Returns the same tree, in int32 and float64; takes microseconds.

    Raises `InvalidOptionError` unless the arrays form a tree over token ids below `vocabulary`.
    """
    token, parent, depth, probability = columns = tree.token, tree.parent, tree.depth, tree.probability
    if not _are_columns(*columns):
        token, parent, depth, probability = columns = _columns(tree)
        tree = Tree(*columns)
    rows = len(token)
    if not rows == len(parent) == len(depth) == len(probability):
        raise InvalidOptionError("a tree's arrays must have one length")
    if rows == 0 or parent[0] != -1 or depth[0] != 0 or probability[0] != 1:
        raise InvalidOptionError("a tree's row 0 must be its root, with parent -1, depth 0 and probability 1")
    count = np.count_nonzero  # many times as fast as any() and all()
    if count(token.view(UNSIGNED) >= vocabulary):  # -1 is the largest number there
        raise InvalidOptionError(f"a tree's tokens must be ids from 0 to {vocabulary - 1}")
    if rows == 1:
        return tree
    above = parent[1:]
    if count(above.view(UNSIGNED) > np.arange(rows - 1, dtype=UNSIGNED)):
        raise InvalidOptionError("a tree's rows must come after their parents")
    if count(depth[1:] != depth[above] + 1):
        raise InvalidOptionError("a tree row's depth must be its parent's plus one")
    if count(probability[1:] <= probability[above]) != rows - 1:
        raise InvalidOptionError("a tree row's probability must be a number, and at most its parent's")
    return tree


def _are_columns(token: Any, parent: Any, depth: Any, probability: Any) -> bool:
    if not type(token) is type(parent) is type(depth) is type(probability) is np.ndarray:
        return False
    one = token.ndim == parent.ndim == depth.ndim == probability.ndim == 1
    return one and token.dtype == parent.dtype == depth.dtype == INTEGERS and probability.dtype == NUMBERS


def _columns(tree: Tree) -> tuple[Any, ...]:
    """Returns the columns of a tree of other dtypes. Raises `InvalidOptionError` if the values do not allow it."""
    found: list[Any] = []
    for name, dtype, kinds in (
        *((name, INTEGERS, "iu") for name in ("token", "parent", "depth")),
        ("probability", NUMBERS, "iuf"),
    ):
        given: Any = getattr(tree, name)
        array = isinstance(given, np.ndarray)
        if not array or given.dtype.kind not in kinds or given.ndim != 1:
            told = f"{given.dtype} {list(given.shape)}" if array else type(given).__name__
            numbers = "integers" if dtype == INTEGERS else "numbers"
            raise InvalidOptionError(f"a tree's {name} must be an array [n] of {numbers}, not {told}")
        found.append(np.asarray(given).astype(dtype))
        if dtype == INTEGERS and np.count_nonzero(found[-1] != given):
            raise InvalidOptionError(f"a tree's {name} must be an array [n] of integers of 32 bits")
    return tuple(found)
