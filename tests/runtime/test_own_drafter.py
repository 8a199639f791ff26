"""A user's own drafter, as CONTRIBUTING describes it, works alone and among others; anything else is refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from oracle import Oracle

import forerun
from forerun.errors import InvalidOptionError
from forerun.runtime.cache import StepSlots
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
from forerun.runtime.generation import decode
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.prefix import ROOT, Prefix
from forerun.runtime.request import Request
from forerun.runtime.tree import Tree, TreeBuilder, root_only
from forerun.strategies import Target
from tests.models import FAMILIES

PROMPT = [5, 9, 2, 7, 11, 5, 9, 2, 3, 1, 8, 5, 9]


class Bigrams(Drafter):
    """Predicts that what followed a token last time follows it again. Its single rate depends on nothing."""

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
    assert found.stats.accepted_length > 3  # it drafts for itself


class Returns(Drafter):
    """Returns what `make` makes of the last token."""

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


class Drafts(Drafter):
    """Makes a proposal of the whole context and budget."""

    def __init__(self, make: Any) -> None:
        self.make = make

    def propose(self, context: Context, budget: Budget) -> Proposal:
        return self.make(context.tokens, budget)


def rows(tokens: list[int], **others: Any) -> Proposal:
    """Two rows under the last token, except for the columns given."""
    good = {"token": [tokens[-1], 1, 2], "parent": [-1, 0, 1], "depth": [0, 1, 2], "probability": [1.0, 0.9, 0.8]}
    return Proposal(Tree(**{name: np.array(column) for name, column in {**good, **others}.items()}))


WIDE = 30
NO_TREE = r"Drafts proposed what is no tree \(a tree.*\): grow one with TreeBuilder"
TREES: dict[str, Any] = {
    "parents in a circle": lambda tokens, _: rows(tokens, parent=[-1, 2, 1]),
    "a parent beyond the tree": lambda tokens, _: rows(tokens, parent=[-1, 0, 99]),
    "a wrong depth": lambda tokens, _: rows(tokens, depth=[0, 1, 1]),
    "a root of some depth": lambda tokens, _: rows(tokens, depth=[3, 4, 5]),
    "arrays of two lengths": lambda tokens, _: rows(tokens, depth=[0, 1]),
    "an unlikely root": lambda tokens, _: rows(
        tokens, token=[tokens[-1], *range(WIDE)], parent=[-1] + [0] * WIDE, depth=[0] + [1] * WIDE,
        probability=[0.01] + [0.9] * WIDE,
    ),
    "a likelier child": lambda tokens, _: rows(tokens, probability=[1.0, 0.01, 0.9]),
    "a token beyond the vocabulary": lambda tokens, _: rows(tokens, token=[tokens[-1], 999, 1]),
    "a token below it": lambda tokens, _: rows(tokens, token=[tokens[-1], -1, 1]),
    "no rows": lambda tokens, _: rows(tokens, token=[], parent=[], depth=[], probability=[]),
    "texts as probabilities": lambda tokens, _: rows(tokens, probability=["a", "b", "c"]),
    "no arrays": lambda tokens, _: Proposal(Tree([tokens[-1]], None, None, None)),  # type: ignore
}  # fmt: skip


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("case", TREES)
def test_what_is_no_tree_is_refused_before_it_changes_a_text(case: str, beside: bool) -> None:
    drafter: Drafter = Drafts(TREES[case])
    with pytest.raises(InvalidOptionError, match=NO_TREE):
        list(
            decode(
                Engine(Oracle()), Request([1, 2, 3], 8), Merged([drafter, Drafter()]) if beside else drafter, Fixed(4)
            )
        )


def test_a_tree_of_other_integers_is_taken() -> None:
    drafter = Drafts(lambda tokens, _: rows(tokens) if len(tokens) < 5 else Proposal(root_only(tokens[-1])))
    texts = [list(decode(Engine(Oracle()), Request([1, 2, 3], 8), each, Fixed(4))) for each in (drafter, Drafter())]
    assert len({tuple(token for step in steps for token in step.tokens) for steps in texts}) == 1


def test_a_context_is_not_changed_by_a_drafter() -> None:
    drafter = Drafts(lambda tokens, _: (tokens.append(1), Proposal(root_only(1)))[1])
    with pytest.raises(InvalidOptionError, match=r"Drafts\.propose changed the tokens of its context"):
        list(decode(Engine(Oracle()), Request([1, 2, 3], 8), drafter, Fixed(4)))


def behind(
    tokens: list[int], slots: Any, leave: Any = 1, share: Any = 0.5, slot: Any = None, hidden: Any = None
) -> Any:
    """The root alone, after a prefix that has computed it."""
    prefix = Prefix(leave, share, slots)
    taken = slots.take(np.array([len(tokens) - 1], np.int32))
    own = int(taken[0]) if slot is None else slot
    prefix.add(ROOT, tokens[-1], own, np.zeros(64, np.float32) if hidden is None else hidden)
    return Proposal(root_only(tokens[-1]), prefix)


STALE: list[Any] = []
PREFIXES: dict[str, tuple[Any, str]] = {
    "nothing left": (lambda tokens, slots: behind(tokens, slots, leave=0), "leave must be from 1 to 4, not 0"),
    "too much left": (lambda tokens, slots: behind(tokens, slots, leave=99), "leave must be from 1 to 4, not 99"),
    "half a branch": (lambda tokens, slots: behind(tokens, slots, leave=1.5), "leave must be an integer, not 1.5"),
    "no branch": (lambda tokens, slots: behind(tokens, slots, leave=None), "leave must be an integer, not None"),
    "no share": (lambda tokens, slots: behind(tokens, slots, share="a"), "share must be a number, not 'a'"),
    "a slot beyond the cache": (lambda tokens, slots: behind(tokens, slots, slot=10**9), "take it from budget.slots"),
    "a slot of the prompt": (
        lambda tokens, slots: behind(tokens, slots, slot=int(slots.sequence.blocks[0]) * slots.sequence.block),
        "take it from budget.slots",
    ),
    "a text as a slot": (lambda tokens, slots: behind(tokens, slots, slot="a"), "take it from budget.slots"),
    "a short stream": (
        lambda tokens, slots: behind(tokens, slots, hidden=np.ones(3, np.float32)),
        r"a stream of shape \[64\]: give `hidden`",
    ),
    "a number as a stream": (lambda tokens, slots: behind(tokens, slots, hidden=np.float32(1)), "a stream of shape"),
    "slots of its own": (
        lambda tokens, slots: behind(tokens, StepSlots(slots.sequence, np.zeros(0, np.int32))),
        "its slots must be those of this budget",
    ),
    "an earlier step's": (
        lambda tokens, slots: (STALE.append(behind(tokens, slots).prefix), Proposal(root_only(tokens[-1]), STALE[0]))[
            1
        ],
        "its slots must be those of this budget",
    ),
}


@pytest.mark.parametrize("case", PREFIXES)
def test_a_prefix_that_does_not_fit_the_step_is_refused(case: str, plain: CompiledModel) -> None:
    make, sentence = PREFIXES[case]
    drafter = Drafts(lambda tokens, budget: make(tokens, budget.slots))
    with pytest.raises(
        InvalidOptionError, match=f"the prefix that Drafts proposed does not fit the step: .*{sentence}"
    ):
        list(decode(plain.engine, Request(PROMPT, 8), drafter, Fixed(4)))


def test_a_context_is_tokens_alone_and_a_budget_is_only_read() -> None:
    """A drafter affects decoding only through what it returns."""
    assert list(vars(Context([1]))) == ["tokens"]
    with pytest.raises(AttributeError):
        Budget(4, 2).slots = None  # pyright: ignore
    with pytest.raises(AttributeError):
        Proposal(root_only(1)).prefix = None  # pyright: ignore
