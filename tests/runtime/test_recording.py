"""What a generation says of its cost, and what a listener of the loop is told."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from forerun.runtime.drafters.base import Budget, Context, Drafter, Proposal, Proposers
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.recording import Iteration, accepted_by
from forerun.runtime.request import TARGET, Phases
from forerun.runtime.tree import chain
from tests.runtime.oracle import Oracle

PROMPT = [1, 2, 3]
COUNT = 40


def drafters(oracle: Oracle) -> list[Drafter]:
    return [PromptLookup(), TokenRecycling(oracle.vocabulary, oracle.candidates)]


@pytest.fixture
def model() -> CompiledModel:
    oracle = Oracle()
    return CompiledModel(oracle, Merged(drafters(oracle)), Fixed(8))


def test_the_figures_add_up(model: CompiledModel) -> None:
    stats = model.generate(PROMPT, COUNT).stats
    assert sum(stats.lengths.values()) == stats.steps
    assert sum(length * count for length, count in stats.lengths.items()) == stats.tokens == COUNT
    assert sum(stats.tokens_by.values()) == COUNT
    assert stats.tokens_by[TARGET] == stats.steps
    assert any(name != TARGET for name in stats.tokens_by), "nothing was accepted"
    assert stats.phases is not None
    assert min(vars(stats.phases).values()) > 0
    assert stats.phases.total <= stats.prefill_seconds + stats.decode_seconds


def test_plain_decoding_has_the_target_alone() -> None:
    stats = CompiledModel(Oracle()).generate(PROMPT, COUNT).stats
    assert stats.tokens_by == {TARGET: COUNT}
    assert stats.lengths == {1: COUNT}


def test_one_drafter_has_its_own_name() -> None:
    stats = CompiledModel(Oracle(), PromptLookup(), Fixed(8)).generate(PROMPT, COUNT).stats
    assert set(stats.tokens_by) <= {TARGET, "PromptLookup"}


def test_a_listener_hears_every_iteration(model: CompiledModel) -> None:
    heard: list[Iteration] = []
    with model.serving.listening(heard.append):
        generation = model.generate(PROMPT, COUNT)
    outcomes = [outcome for each in heard for outcome in each.outcomes]
    assert [token for outcome in outcomes for token in outcome.tokens] == generation.token_ids
    assert len(outcomes) == generation.stats.steps
    for before, after in pairwise(heard):
        assert before.began < before.ended <= after.began
        assert before.phases.total <= before.ended - before.began
    for outcome in outcomes:
        assert [int(outcome.tree.token[row]) for row in outcome.path[1:]] == outcome.tokens[:-1]
        assert len(outcome.proposers) == len(outcome.tree)
        assert outcome.proposers[0] == ""
        assert set(outcome.proposers[1:]) <= {"PromptLookup", "TokenRecycling", "PromptLookup + TokenRecycling"}
    before = len(heard)
    model.generate(PROMPT, 5)
    assert len(heard) == before


class Says(Drafter):
    """Proposes the same tokens after every text."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def propose(self, context: Context, budget: Budget) -> Proposal:
        return Proposal(chain(context.tokens[-1], self.tokens))


class SaysToo(Says):
    pass


@pytest.mark.parametrize("rows", [2, 3, 8])
def test_merged_drafters_know_who_proposed_a_row(rows: int) -> None:
    proposal = Merged([Says(5, 6), SaysToo(5, 7)]).propose(Context([1, 2]), Budget(rows=rows, depth=4))
    known = proposal.proposers
    assert known is not None
    assert len(proposal.tree) == len(known.members) == min(rows, 4)
    names = {int(token): known.of(row) for row, token in enumerate(proposal.tree.token) if row}
    assert names.items() <= {5: "Says + SaysToo", 6: "Says", 7: "SaysToo"}.items()
    assert accepted_by(proposal, "Merged", [5]) == ("Says + SaysToo",)
    assert accepted_by(Proposal(chain(2, [5, 6])), "Says", [5, 6]) == ("Says", "Says")


def test_the_same_listener_of_several_sessions(model: CompiledModel) -> None:
    heard: list[Iteration] = []
    with model.serving.listening(heard.append):
        found = model.generate([PROMPT, [4, 5, 6]], COUNT)
    told: dict[int, list[int]] = {}
    for each in heard:
        for outcome in each.outcomes:
            told.setdefault(id(outcome.session), []).extend(outcome.tokens)
    assert sorted(told.values()) == sorted(each.token_ids for each in found)


def test_names_of_several() -> None:
    proposers = Proposers(("A", "B", "A"), np.array([0, 1, 2, 3, 5], np.int32))
    assert [proposers.of(row) for row in range(5)] == ["", "A", "B", "A + B", "A"]
    assert replace(Proposal(chain(1, [2])), proposers=proposers).proposers is proposers


def test_phases_add() -> None:
    both = Phases(1.0, 2.0, 3.0, 4.0) + Phases(0.5, 0.0, 0.0, 1.0)
    assert both == Phases(1.5, 2.0, 3.0, 5.0)
    assert both.total == 11.5
