"""Drafters propose what they should, and learn how good it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.runtime.cache import CachedSequence, StepSlots
from forerun.runtime.drafters.base import (
    AcceptanceRates,
    Budget,
    Context,
    Drafter,
    Observation,
    Proposal,
    RatedTreeBuilder,
    decided_rows,
)
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup, SuffixIndex
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.prefix import Prefix
from forerun.runtime.tree import Tree, TreeBuilder, chain, check, merge_members, root_only


def observation(tree: Tree, tokens: list[int], candidates: np.ndarray | None = None) -> Observation:
    if candidates is None:
        candidates = np.zeros((len(tree), 4), np.int32) + np.arange(4, dtype=np.int32)
    logits = np.tile(np.array([3, 1, 0, -1], np.float32), (len(tree), 1))
    return Observation(tree, list(range(len(tokens))), tokens, candidates, logits)


def paths(tree: Tree) -> set[tuple[int, ...]]:
    return {tuple(tree.token[tree.path(row)].tolist()) for row in range(len(tree))}


def test_prompt_lookup_continues_the_longest_match_first():
    drafter = PromptLookup()
    context = Context([1, 2, 3, 4, 9, 3, 5, 1, 2, 3])
    drafter.begin(context)
    tree = drafter.propose(context, Budget(16, 3)).tree
    assert (3, 4, 9, 3) in paths(tree)
    assert (3, 5, 1, 2) in paths(tree)
    first, second = tree.child(0, 4), tree.child(0, 5)
    assert first is not None
    assert second is not None
    assert tree.probability[first] > tree.probability[second]


def test_prompt_lookup_goes_on_into_itself():
    drafter = PromptLookup()
    context = Context([7, 8, 7, 8, 7, 8, 7, 8, 7, 8])
    drafter.begin(context)
    assert (8, *[7, 8] * 4) in paths(drafter.propose(context, Budget(16, 8)).tree)


def test_prompt_lookup_without_a_match_proposes_the_root():
    drafter = PromptLookup()
    for tokens in ([5], [1, 2, 3]):
        context = Context(tokens)
        drafter.begin(context)
        assert len(drafter.propose(context, Budget(16, 8)).tree) == 1
        drafter.end(context)


@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=60), steps=st.integers(1, 7))
def test_suffix_index_finds_all_that_a_scan_finds(tokens: list[int], steps: int):
    index = SuffixIndex(3, 1000)
    for end in range(1, len(tokens) + 1, steps):
        index.extend(tokens[:end])
        seen = tokens[:end]
        scanned = {place for place in range(end - 1) if seen[place] == seen[-1]}
        assert set(index.matches(seen)) == scanned
        lengths = [min(3, _shared(seen, place)) for place in index.matches(seen)]
        assert lengths == sorted(lengths, reverse=True)


def _shared(tokens: list[int], place: int) -> int:
    return next((n for n in range(place + 1) if tokens[place - n] != tokens[-1 - n]), place + 1)


def test_token_recycling_proposes_what_the_target_saw():
    drafter = TokenRecycling(20, candidates=4)
    context = Context([1, 2])
    drafter.begin(context)
    assert len(drafter.propose(context, Budget(16, 4)).tree) == 1
    candidates = np.array([[3, 4, 5, 6], [7, 8, 9, 10]], np.int32)
    drafter.observe(context, observation(chain(2, [3]), [3, 7], candidates))
    context.tokens += [3, 7, 2]
    tree = drafter.propose(context, Budget(8, 4)).tree
    assert len(tree) == 8
    assert {(2, 3), (2, 3, 7), (2, 4)} <= paths(tree)
    check(tree, 20)


@settings(deadline=None)
@given(seed=st.integers(0, 200), rows=st.integers(1, 40), depth=st.integers(0, 5))
def test_token_recycling_takes_the_likeliest_rows(seed: int, rows: int, depth: int):
    random = np.random.default_rng(seed)
    drafter = TokenRecycling(12, candidates=4, deepest=4)
    drafter.successors[:] = np.argsort(random.random((12, 12)), axis=1)[:, :4]
    drafter.share[:] = random.integers(0, 15, (12, 4))
    context = Context([3])
    drafter.begin(context)
    tree = drafter.propose(context, Budget(rows, depth)).tree
    check(tree, 12)
    assert len(tree) <= rows
    assert tree.height <= depth
    everything = _all_rows(drafter, 3, min(depth, 4), 1.0, 1)
    assert np.sort(tree.probability[1:])[::-1] == pytest.approx(sorted(everything, reverse=True)[: rows - 1])


def _all_rows(drafter: TokenRecycling, token: int, depth: int, probability: float, level: int) -> list[float]:
    if depth == 0:
        return []
    found = []
    for rank in range(4):
        rate = drafter.rates.rate[int(drafter.share[token, rank]) + 15 * (min(level, 3) - 1)]
        found.append(probability * rate)
        found += _all_rows(drafter, int(drafter.successors[token, rank]), depth - 1, probability * rate, level + 1)
    return found


def test_decided_rows_are_the_children_along_the_committed_path():
    tree, _ = merge_members([chain(0, [1, 2, 3]), chain(0, [1, 4]), chain(0, [5, 6])])
    tested = {(int(tree.token[row]), right) for row, right in decided_rows(tree, [1, 4, 9])}
    assert tested == {(1, True), (5, False), (2, False), (4, True)}
    assert decided_rows(root_only(3), [1]) == []


def test_a_part_of_a_rated_tree_keeps_its_rows_features():
    builder = RatedTreeBuilder(0)
    for feature, (parent, token, edge) in enumerate([(0, 1, 0.2), (0, 2, 0.9), (2, 3, 0.8), (1, 4, 0.5)], start=10):
        builder.add_rated(parent, token, edge, feature)
    assert builder.add_rated(0, 2, 0.1, 99) == 2  # it is there already
    whole = builder.build_rated()
    assert whole.likeliest(9) is whole
    part = whole.likeliest(3)
    assert part.tree.token.tolist() == [0, 2, 3]
    assert part.feature[1:].tolist() == [11, 12]
    rates = AcceptanceRates(np.full(20, 0.5))
    rates.learn(part, [2, 7])
    assert [feature for feature in range(20) if rates.rate[feature] != 0.5] == [11, 12]
    assert rates.rate[11] > 0.5 > rates.rate[12]


def test_rates_converge_and_follow_a_change():
    rates = AcceptanceRates(np.array([0.9, 0.1]), memory=200)
    random = np.random.default_rng(0)
    for _ in range(1000):
        rates.observe(0, bool(random.random() < 0.3))
    assert rates.rate[0] == pytest.approx(0.3, abs=0.08)
    assert rates.rate[1] == pytest.approx(0.1)
    for _ in range(1000):
        rates.observe(0, bool(random.random() < 0.8))
    assert rates.rate[0] == pytest.approx(0.8, abs=0.08)


class Coin(Drafter):
    """Claims that token `token` follows with certainty `claim`."""

    def __init__(self, token: int, claim: float, prefix: Prefix | None = None) -> None:
        self.token, self.claim, self.prefix = token, claim, prefix

    def propose(self, context: Context, budget: Budget) -> Proposal:
        builder = TreeBuilder(context.tokens[-1])
        builder.add(0, self.token, self.claim)
        return Proposal(builder.build(), self.prefix)


def test_merged_learns_which_of_its_drafters_to_believe():
    merged = Merged([Coin(1, 0.95), Coin(2, 0.3)])
    context = Context([0])
    merged.begin(context)
    before = merged.propose(context, Budget(8, 4)).tree
    assert before.token[before.probability[1:].argmax() + 1] == 1
    for _ in range(100):
        tree = merged.propose(context, Budget(8, 4)).tree
        merged.observe(context, observation(tree.select(np.zeros(1, np.intp)), [2]))  # nothing drafted was evaluated
    after = merged.propose(context, Budget(8, 4)).tree
    assert after.probability[after.child(0, 2)] > 0.9
    assert after.probability[after.child(0, 1)] < 0.1


def test_merged_believes_agreement_more():
    context = Context([0])
    alone, both = Merged([Coin(1, 0.5), Coin(2, 0.4)]), Merged([Coin(1, 0.5), Coin(1, 0.4)])
    split, agreed = (each.propose(context, Budget(8, 4)).tree for each in (alone, both))
    assert agreed.probability[1] > split.probability[1]


def test_merged_hands_on_the_longest_of_its_drafters_prefixes():
    """The first of equal ones, whatever the budget leaves of the trees; none where no draft computed anything."""
    slots = StepSlots(CachedSequence(4, np.arange(4, dtype=np.int32)), np.arange(16, 24, dtype=np.int32))
    short, long, equal = (Prefix(leave, 1 - leave / 8, slots) for leave in (2, 5, 5))
    for prefixes, expected in (
        ([None, None], None),
        ([None, short], short),
        ([short, None, long], long),
        ([long, short, equal], long),
        ([equal, long], equal),
    ):
        merged = Merged([Coin(each, 0.5, prefix) for each, prefix in enumerate(prefixes)])
        nested = Merged([merged, Coin(9, 0.5)])
        for drafter in (merged, nested):
            for rows in (1, 8):
                proposal = drafter.propose(Context([0]), Budget(rows, 4, slots=slots))
                assert proposal.prefix is expected
                assert proposal.share == (1.0 if expected is None else expected.share)


def test_merged_forgets_its_contexts():
    merged = Merged([PromptLookup(), TokenRecycling(10)])
    context = Context([1, 2, 1])
    merged.begin(context)
    merged.propose(context, Budget(8, 4))
    merged.end(context)
    assert not merged._proposed
    assert not merged.drafters[0]._indices


@pytest.mark.parametrize("count", [2, 3, 6, 10])
def test_many_drafters_are_merged_in_bounded_memory(count):
    merged = Merged([Coin(1 + each % 2, 0.6) for each in range(count)])
    assert len(merged.rates.rate) <= 200_000
    context = Context([0])
    merged.begin(context)
    for _ in range(100):
        merged.observe(context, observation(merged.propose(context, Budget(8, 4)).tree, [1]))
    tree = merged.propose(context, Budget(8, 4)).tree
    assert tree.probability[tree.child(0, 1)] > 0.8
    assert tree.probability[tree.child(0, 2)] < 0.2
