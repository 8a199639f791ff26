"""What pays is used at once, what does not rests, by the clock: with synthetic costs, and texts that stay plain's."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from oracle import Oracle

from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.base import Context, Drafter, Observation, Proposal
from forerun.runtime.drafters.draft_model import HOPED, DraftModel
from forerun.runtime.drafters.growing import Grower, Shape
from forerun.runtime.drafters.launch_cost import LaunchCost
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.drafters.vocabulary import SameVocabulary
from forerun.runtime.engine import Engine
from forerun.runtime.generation import decode
from forerun.runtime.policy import CostAware, Fixed
from forerun.runtime.request import Request, Step
from forerun.runtime.tree import TreeBuilder

ROWS = (1, 2, 4, 8, 16)
PROMPT = [1, 2, 3]


class Clock:
    """A clock that only steps and drafts advance."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Timed(Oracle):
    """An oracle whose steps take `first` seconds, and `row` for each further row."""

    clock: Clock = field(default_factory=Clock)
    first: float = 1.0
    row: float = 0.1
    max_length: int = 2000
    max_path: int = 12

    def run(self, entry, state, rows, hidden=None, draws=None):
        self.clock.now += self.first + self.row * (len(rows.tokens) - 1)
        return super().run(entry, state, rows, hidden, draws)

    def cost(self) -> CostModel:
        return CostModel(ROWS, tuple(self.first + self.row * (rows - 1) for rows in ROWS))


class Model:
    """A target and a draft that share a clock; the draft is right wherever `noise` leaves its logits the target's."""

    def __init__(self, first: float, noise: float) -> None:
        self.clock = Clock()
        self.target = Timed(clock=self.clock, noise=0.0)
        self.draft = Timed(clock=self.clock, first=first, row=0.01, noise=noise, seed=0)
        self.engine = Engine(self.target, clock=self.clock)
        self.policy = CostAware(self.target.cost(), 16, clock=self.clock)
        believed, right = HOPED
        self.grower = Grower(
            Shape(6, 1, 1), LaunchCost(self.draft.cost()), 1.0, believed=believed, right=right, clock=self.clock
        )
        engine = Engine(self.draft, clock=self.clock)
        self.drafter: Drafter = DraftModel(engine, SameVocabulary(24, 24), self.grower)

    def decode(self, new: int, drafter: Drafter | None = None) -> list[Step]:
        request = Request(PROMPT, new, keep_logits=True)
        return list(decode(self.engine, request, drafter or self.drafter, self.policy))[1:]

    def is_plain(self, steps: list[Step]) -> bool:
        new = sum(len(step.tokens) for step in steps)
        plain = list(decode(Engine(self.target), Request(PROMPT, new, keep_logits=True), Drafter(), Fixed(1)))[1:]
        found, expected = ([token for step in each for token in step.tokens] for each in (steps, plain))
        bits = (np.concatenate([step.logits for step in each]).view(np.uint32) for each in (steps, plain))
        return found == expected and np.array_equal(*bits)


def test_a_good_draft_is_chosen_at_once() -> None:
    model = Model(first=0.25, noise=0.0)
    steps = model.decode(64)
    assert len(steps[0].tokens) > 1
    assert sum(len(step.tokens) for step in steps) / len(steps) > 2.5
    assert model.clock.now < 0.75 * 64
    assert model.is_plain(steps)


def test_a_good_draft_is_chosen_after_a_long_prompt() -> None:
    """Reading the prompt takes the draft as long as many steps; it does so once."""
    model = Model(first=0.25, noise=0.0)
    model.draft.row = 0.2
    request = Request(list(range(12)) * 20, 64)
    steps = list(decode(model.engine, request, model.drafter, model.policy))[1:]
    assert sum(len(step.tokens) for step in steps[4:]) / len(steps[4:]) > 2


@pytest.mark.parametrize(("first", "noise"), [(0.25, 50.0), (0.9, 0.0)])
def test_a_draft_that_does_not_pay_rests_within_32_tokens(first: float, noise: float) -> None:
    """One that is wrong, and one that is right but dear."""
    model = Model(first, noise)
    steps = model.decode(400)
    decoded, rested = 0, 0.0
    for step in steps:
        decoded += len(step.tokens)
        rested += decoded > 32 and step.rows == 1
    late = [step for number, step in enumerate(steps) if number >= 32]
    assert rested >= 0.9 * len(late)
    assert model.clock.now < 1.06 * 400 + 32
    assert model.is_plain(steps)


def improved() -> Model:
    """The draft was wrong for 400 tokens, and is right from now on."""
    model = Model(0.25, 50.0)
    model.decode(400)
    model.draft.noise = 0.0
    model.draft.known.clear()
    return model


def test_a_draft_at_rest_is_tried_again_and_used_when_it_has_become_good() -> None:
    model = improved()
    steps = model.decode(1200)
    late = steps[-100:]
    assert sum(len(step.tokens) for step in late) / len(late) > 2.5
    assert model.is_plain(steps)


def test_a_draft_that_rests_is_asked_what_it_would_have_guessed() -> None:
    """In a text that suits it, it is used again within the tokens of a few probes, though trials are far away."""
    model = improved()
    steps = model.decode(96)
    late = steps[-8:]
    assert sum(len(step.tokens) for step in late) / len(late) > 2.5
    assert model.is_plain(steps)


def test_a_prompt_is_read_only_where_drafts_can_bring_as_much() -> None:
    model = Model(first=0.25, noise=0.0)
    model.draft.row = 0.5
    prompt = list(range(12)) * 20
    request = Request(prompt, 8)
    assert all(step.rows == 1 for step in list(decode(model.engine, request, model.drafter, model.policy))[1:])
    assert model.clock.now < len(prompt) * model.draft.row


class Slow(Drafter):
    """Takes `seconds` to propose; what it proposes is right if `right` says so, and it is always sure of it."""

    def __init__(self, model: Model, seconds: float, right: Callable[[int], bool]) -> None:
        self.model, self.seconds, self.right = model, seconds, right
        self.proposals: list[int] = []  # the context's length at each

    def propose(self, context: Context, budget) -> Proposal:
        builder = TreeBuilder(context.tokens[-1])
        if budget.rows > 1 and budget.depth > 0:
            self.model.clock.now += self.seconds
            self.proposals.append(len(context.tokens))
            likeliest = int(self.model.target.logits(context.tokens).argmax())
            right = self.right(len(context.tokens))
            builder.add(0, likeliest if right else (likeliest + 1) % 24, 0.9)
        return Proposal(builder.build())

    def observe(self, context: Context, observation: Observation) -> None:
        pass


@pytest.mark.parametrize("seconds", [0.1, 0.5])
def test_speculation_slower_than_plain_decoding_rests_within_32_tokens(seconds: float) -> None:
    """It was good for 100 tokens; then it proposes what is wrong, as surely as before."""
    model = Model(0.25, 0.0)
    drafter = Slow(model, seconds, lambda length: length < 100)
    steps = model.decode(500, drafter)
    late = [each for each in drafter.proposals if each >= 100 + 32]
    assert len(late) <= 0.15 * 370
    if seconds == 0.5:
        assert len(late) <= 0.03 * 370
    assert model.is_plain(steps)


def test_speculation_at_rest_is_used_again_when_it_pays() -> None:
    model = Model(0.25, 0.0)
    drafter = Slow(model, 0.2, lambda length: length >= 300)
    steps = model.decode(600, drafter)
    assert sum(150 <= each < 300 for each in drafter.proposals) <= 10
    assert sum(each >= 400 for each in drafter.proposals) >= 90
    assert model.is_plain(steps)


def test_a_machine_that_becomes_slow_for_trees_is_noticed() -> None:
    """Rows become dear while large trees are right, as where another process takes a core."""
    model, sizes, changed = Model(0.25, 0.0), list[int](), 0.0
    for step in decode(model.engine, Request(PROMPT, 500), PromptLookup(), model.policy):
        sizes.append(step.rows)
        if len(sizes) == 20:
            assert min(sizes[-5:]) > 8
            model.target.row, changed = 1.5, model.clock.now
    after = sizes[20 + 12 :]
    assert sum(rows > 8 for rows in after) < 0.1 * len(after)
    assert model.clock.now - changed < 1.3 * (500 - sum(sizes[:20]))  # the change itself included


def test_lookup_and_recycling_stay_beside_the_draft() -> None:
    model = Model(0.25, 0.0)
    drafter = Merged([PromptLookup(), TokenRecycling(24), model.drafter])
    steps = model.decode(300, drafter)
    assert sum(len(step.tokens) for step in steps) / len(steps) > 2.5
    assert model.is_plain(steps)
