"""Trees and the cache's slots."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.errors import InvalidOptionError, TooLongError
from forerun.runtime.blocks import BlockCache
from forerun.runtime.cache import CachedSequence
from forerun.runtime.rows import tree_slots
from forerun.runtime.tree import Tree, TreeBuilder, best_rows, chain, check, merge_members, root_only
from forerun.runtime.verify import verify


@st.composite
def trees(draw, rows: int = 20, vocabulary: int = 4) -> Tree:
    builder = TreeBuilder(0)
    for _ in range(draw(st.integers(0, rows - 1))):
        parent = draw(st.integers(0, len(builder) - 1))
        builder.add(parent, draw(st.integers(0, vocabulary - 1)), draw(st.floats(0, 1)))
    return builder.build()


def prefixes(tree: Tree) -> dict[tuple[int, ...], int]:
    return {tuple(tree.token[tree.path(row)].tolist()): row for row in range(len(tree))}


@given(tree=trees())
def test_paths_children_and_ancestors_agree(tree: Tree):
    check(tree, 4)
    for row in range(len(tree)):
        path = tree.path(row)
        assert tree.ancestors[row].tolist() == path[1:] + [0] * (tree.height - len(path) + 1)
        assert all(tree.parent[child] == row for child in tree.children(row))
        for child in tree.children(row):
            assert tree.child(row, int(tree.token[child])) == child


@given(parts=st.lists(trees(), min_size=1, max_size=4))
def test_merging_keeps_every_prefix_once(parts: list[Tree]):
    merged, members = merge_members(parts)
    check(merged, 4)
    assert set(prefixes(merged)) == set().union(*(prefixes(part) for part in parts))
    assert len(prefixes(merged)) == len(merged)
    for prefix, row in prefixes(merged).items():
        assert [prefixes(part).get(prefix, -1) for part in parts] == members[row].tolist()
        best = max(part.edge_probability[prefixes(part)[prefix]] for part in parts if prefix in prefixes(part))
        assert merged.edge_probability[row] == pytest.approx(best) or merged.probability[merged.parent[row]] < 1e-100


def test_trees_of_different_roots_do_not_merge():
    with pytest.raises(InvalidOptionError, match="one root"):
        merge_members([root_only(1), root_only(2)])


@given(tree=trees(), count=st.integers(1, 20))
def test_best_rows_make_a_tree(tree: Tree, count: int):
    part = tree.select(best_rows(tree, count))
    check(part, 4)
    assert len(part) == min(count, len(tree))
    assert set(prefixes(part)) <= set(prefixes(tree))
    assert sum(part.probability) == pytest.approx(sum(sorted(tree.probability)[-count:]))


@given(tree=trees(), tokens=st.lists(st.integers(0, 3), min_size=21, max_size=21))
def test_verification_follows_the_drawn_children(tree: Tree, tokens: list[int]):
    asked = []

    def draw(row: int) -> int:
        asked.append(row)
        return tokens[tree.depth[row]]

    verdict = verify(tree, draw)
    assert verdict.path == asked
    assert verdict.tokens == tokens[: len(asked)]
    accepted = (0, *verdict.tokens[:-1])
    assert prefixes(tree)[accepted] == verdict.path[-1]
    assert (*accepted, verdict.tokens[-1]) not in prefixes(tree)


def test_text_of_a_tree():
    tree, _ = merge_members([chain(7, [1, 2]), chain(7, [3])])
    assert [line.split()[0] for line in str(tree).splitlines()] == ["7", "1", "2", "3"]
    assert str(tree).splitlines()[2].startswith("    2")


def broken(**columns: list[int]) -> Tree:
    good = {"token": [0, 1, 2], "parent": [-1, 0, 1], "depth": [0, 1, 2], "probability": [1.0, 0.5, 0.25]}
    good = {**good, **columns}
    return Tree(
        **{name: np.array(column, None if name in columns and column else np.int64) for name, column in good.items()}
    )


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"token": [0]}, "one length"),
        ({"parent": [0, 0, 1]}, "root"),
        ({"depth": [1, 1, 2]}, "root"),
        ({"parent": [-1, 2, 1]}, "after their parents"),
        ({"parent": [-1, -1, 1]}, "after their parents"),
        ({"depth": [0, 1, 1]}, "plus one"),
        ({"probability": [1.0, 0.5, 0.6]}, "at most its parent's"),
        ({"probability": [1.0, 0.5, np.nan]}, "must be a number"),
        ({"probability": [0.01, 0.01, 0.01]}, "root, with parent -1, depth 0 and probability 1"),
        ({"token": [], "parent": [], "depth": [], "probability": []}, "root"),
        ({"token": [0.0, 1.5, 2.0]}, r"token must be an array \[n\] of integers, not float64 \[3\]"),
        ({"token": [0, 1, 2**32 + 2]}, "integers of 32 bits"),
        ({"parent": [[-1, 0, 1]]}, r"parent must be an array \[n\] of integers, not int64 \[1, 3\]"),
        ({"probability": ["a", "b", "c"]}, r"probability must be an array \[n\] of numbers, not <U1"),
        ({"token": [0, 1, 9]}, "0 to 8"),
        ({"token": [0, 1, -1]}, "0 to 8"),
    ],
)
def test_what_is_no_tree_is_refused(columns: dict, sentence: str):
    check(broken(), 9)
    with pytest.raises(InvalidOptionError, match=sentence):
        check(broken(**columns), 9)


def test_a_checked_tree_has_the_dtypes_of_a_step():
    columns = {"token": [0, 1], "parent": [-1, 0], "depth": [0, 1], "probability": [1, 1]}
    found = check(Tree(**{name: np.array(column, np.int8) for name, column in columns.items()}), 9)
    assert [each.dtype for each in vars(found).values()] == [np.int32, np.int32, np.int32, np.float64]
    assert check(found, 9) is found
    lists: Any = columns
    with pytest.raises(InvalidOptionError, match=r"token must be an array .*, not list"):
        check(Tree(**lists), 9)


def test_the_root_is_always_among_the_best_rows():
    tree = Tree(*(np.array(each) for each in ([0, 1, 2], [-1, 0, 0], [0, 1, 1], [0.01, 0.8, 0.9])))
    assert [best_rows(tree, count).tolist() for count in (1, 2, 3)] == [[0], [0, 2], [0, 1, 2]]


@settings(deadline=None)
@given(
    block=st.integers(1, 5),
    spare=st.integers(1, 12),
    actions=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=30),
    seed=st.integers(0, 10),
)
def test_no_slot_has_two_owners(block: int, spare: int, actions: list[tuple[int, int]], seed: int):
    blocks = 12 + -(-spare // block)
    cache = BlockCache(blocks, block, spare, np.random.default_rng(seed).permutation(blocks).tolist())
    empty = np.empty(0, np.int32)
    sequences = [CachedSequence(block, empty) for _ in range(4)]
    for which, positions in actions:
        before = sequences[which].blocks.tolist()
        if positions == 0:
            cache.release(sequences[which])
        else:
            try:
                cache.reserve(sequences[which], positions)
                assert len(sequences[which].blocks) * block >= positions
                assert sequences[which].blocks.tolist()[: len(before)] == before
            except TooLongError:
                assert sequences[which].blocks.tolist() == before
        held = [len(sequence.blocks) * block for sequence in sequences]
        homes = [sequence.home(np.arange(n, dtype=np.int32)) for sequence, n in zip(sequences, held, strict=True)]
        slots = np.concatenate([cache.spare, *homes])
        assert len(set(slots.tolist())) == len(slots)
        assert not len(slots) or slots.max() < blocks * block
        assert cache.free_positions + sum(held) == 12 * block


@given(tree=trees())
def test_one_row_of_each_depth_lies_at_home(tree: Tree):
    cache = BlockCache(40, 3, 20)
    with cache.sequence(60) as sequence:
        sequence.length = 7
        slots, used = tree_slots(sequence, tree, cache.spare)
        home = sequence.home(7 + tree.depth)
        assert len(set(slots.tolist())) == len(tree)
        assert sorted(tree.depth[slots == home].tolist()) == list(range(tree.height + 1))
        assert used == (slots != home).sum()


def test_a_cache_without_room():
    with pytest.raises(TooLongError, match="add blocks"):
        BlockCache(2, 4, 8)
    with pytest.raises(InvalidOptionError, match="order"):
        BlockCache(3, 4, 4, [0, 1, 1])
    cache = BlockCache(4, 4, 4)
    with pytest.raises(TooLongError, match="13 positions"), cache.sequence(13):
        pass
    assert cache.free_positions == 12
