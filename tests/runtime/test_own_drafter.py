"""A drafter of a user's own, as CONTRIBUTING describes it, works alone and among others; anything else is refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from oracle import Oracle

import forerun
from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.base import (
    AcceptanceRates,
    Budget,
    Context,
    Drafter,
    Observation,
    Proposal,
    RatedTree,
    RatedTreeBuilder,
)
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.engine import Engine
from forerun.runtime.generation import Request, decode
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.tree import Tree, TreeBuilder, root_only
from forerun.strategies import Target
from tests.models import FAMILIES

PROMPT = [5, 9, 2, 7, 11, 5, 9, 2, 3, 1, 8, 5, 9]


class Bigrams(Drafter):
    """What followed a token last time follows it again. Its one rate goes by nothing."""

    def __init__(self) -> None:
        self.rates = AcceptanceRates(np.array([0.5]))
        self.proposed: dict[Context, RatedTree] = {}

    def propose(self, context: Context, budget: Budget) -> Proposal:
        builder = RatedTreeBuilder(context.tokens[-1])
        following = dict(zip(context.tokens, context.tokens[1:], strict=False))
        row = 0
        while len(builder) < budget.rows and builder.depths[row] < budget.depth:
            token = following.get(builder.tokens[row])
            if token is None:
                break
            row = builder.add_rated(row, token, float(self.rates.rate[0]), 0)
        self.proposed[context] = proposed = builder.build_rated()
        return Proposal(proposed.tree)

    def observe(self, context: Context, observation: Observation) -> None:
        self.rates.learn(self.proposed[context], observation.tokens)

    def end(self, context: Context) -> None:
        self.proposed.pop(context, None)


@dataclass(frozen=True)
class BigramSpec:
    def build(self, target: Target) -> Drafter:
        return Bigrams()


@pytest.fixture(scope="module")
def plain() -> CompiledModel:
    return forerun.compile(FAMILIES["llama"](), strategy="autoregressive", max_length=128)


@pytest.mark.parametrize(
    "drafters",
    [
        (BigramSpec(),),
        (BigramSpec(), forerun.PromptLookup(), forerun.TokenRecycling()),
        (forerun.EarlyExit(layer=1), BigramSpec()),
    ],
)
@pytest.mark.parametrize("policy", [forerun.Fixed(6), forerun.CostAware()])
def test_the_text_is_plain_decodings(plain: CompiledModel, drafters: tuple[Any, ...], policy: Any) -> None:
    model = forerun.with_strategy(plain, forerun.TreeSpec(drafters=drafters, policy=policy))
    for sampling in ({}, {"do_sample": True, "temperature": 0.6, "seed": 3}):
        expected = plain.generate(PROMPT, 40, return_logits=True, **sampling)
        assert model.generate(PROMPT, 40, return_logits=True, **sampling).has_bits_of(expected)
    own = next(each for each in getattr(model.drafter, "drafters", [model.drafter]) if isinstance(each, Bigrams))
    assert own.rates.rate[0] != 0.5
    assert not own.proposed


def test_it_drafts_for_a_draft_model(plain: CompiledModel) -> None:
    drafters = (forerun.DraftModel(plain, drafter=BigramSpec()),)
    model = forerun.with_strategy(plain, forerun.TreeSpec(drafters=drafters, policy=forerun.Fixed(6)))
    found = model.generate(PROMPT, 40, return_logits=True)
    assert found.has_bits_of(plain.generate(PROMPT, 40, return_logits=True))
    assert found.stats.accepted_length > 3  # it is drafted for by itself


class Returns(Drafter):
    """Returns what it is told, made of the last token."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def propose(self, context: Context, budget: Budget) -> Proposal:
        return self.make(context.tokens[-1])


def tree_of(token: int) -> Tree:
    builder = TreeBuilder(token)
    builder.add(0, 1, 0.5)
    return builder.build()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (tree_of, r"what Returns\.propose returns must be a Proposal, not Tree: write `return Proposal\(tree\)`"),
        (lambda token: None, r"what Returns\.propose returns must be a Proposal, not NoneType"),
        (lambda token: [token, 1], r"what Returns\.propose returns must be a Proposal, not list"),
        (lambda token: (tree_of(token), None), r"what Returns\.propose returns must be a Proposal, not tuple"),
        (lambda token: Proposal([token, 1]), "the tree of a Proposal must be a Tree, not list: .*TreeBuilder"),
        (lambda token: Proposal(None), "the tree of a Proposal must be a Tree, not NoneType"),
        (lambda token: Proposal(TreeBuilder(token)), "the tree of a Proposal must be a Tree, not TreeBuilder"),
        (lambda token: Proposal(tree_of(token), 3), "the prefix of a Proposal must be a Prefix, not int: leave it out"),
        (
            lambda token: Proposal(root_only(token + 1)),
            r"Returns proposed a tree under token 4, but the last committed token is 3: begin the tree with",
        ),
    ],
)
def test_what_is_no_proposal_is_refused_in_one_sentence(make: Any, sentence: str) -> None:
    for drafter in (
        Returns(make),
        Merged([Returns(make)]),
        Merged([PromptLookup(), Merged([Returns(make), Drafter()])]),
    ):
        engine = Engine(Oracle())
        free = engine.cache.free_positions
        with pytest.raises(InvalidOptionError, match=sentence) as refused:
            list(decode(engine, Request([1, 2, 3], max_new_tokens=4), drafter, Fixed(4)))
        assert "\n" not in str(refused.value)
        assert engine.cache.free_positions == free


def test_a_context_is_tokens_alone_and_a_budget_is_only_read() -> None:
    """What a drafter says goes through what it returns."""
    assert list(vars(Context([1]))) == ["tokens"]
    with pytest.raises(AttributeError):
        Budget(4, 2).slots = None  # pyright: ignore
    with pytest.raises(AttributeError):
        Proposal(root_only(1)).prefix = None  # pyright: ignore
