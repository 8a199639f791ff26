"""What goes wrong in hooks comes where plain decoding has it: after the same tokens, with the same words."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from test_generation import RandomDrafter, policies, requests
from test_hooks import Mixing

from forerun.errors import InvalidOptionError, NotANumberError
from forerun.runtime.drafters.base import Budget, Drafter, Proposal
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Float32
from forerun.runtime.generation import decode
from forerun.runtime.hooks.base import Hook, HookStates, Place
from forerun.runtime.hooks.contrasts import Contrastive
from forerun.runtime.model import CompiledModel
from forerun.runtime.narrowing import narrowed
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.request import Request, Step
from forerun.runtime.tree import chain, root_only
from forerun.search import Scored


class Failing(Mixing):
    """Fails after some number of new tokens, in texts that `concerns` names."""

    def __init__(self, after: int, concerns: Any = lambda new: True) -> None:
        self.after, self.concerns = after, concerns

    def begin(self, prompt: Sequence[int]) -> tuple[int, ...]:
        self.prompt = len(prompt)
        return super().begin(prompt)

    def scores(self, state: tuple[int, ...], scores: Float32, place: Place) -> Float32:
        if place.generated >= self.after and self.concerns(state[self.prompt :]):
            raise ArithmeticError(f"after {list(state)}")
        return super().scores(state, scores, place)


def told(steps: Iterable[Step]) -> tuple[list[int], str | None]:
    """The tokens before an error, and what it says."""
    tokens: list[int] = []
    try:
        for step in steps:
            tokens += step.tokens
    except (ArithmeticError, NotANumberError) as error:
        return tokens, str(error)
    return tokens, None


@settings(max_examples=60, deadline=None)
@given(request=requests, policy=policies, seed=st.integers(0, 20), after=st.integers(0, 12))
def test_errors_come_after_the_tokens_of_plain_decoding(request: Request, policy: Policy, seed: int, after: int):
    oracle = Oracle()
    request = replace(request, hooks=(Failing(after),))
    expected = told(decode(Engine(Oracle()), request, Drafter(), Fixed(1)))
    engine = Engine(oracle)
    assert told(decode(engine, request, RandomDrafter(seed, oracle), policy)) == expected
    assert expected[1] is None or len(expected[0]) == after
    assert engine.cache.free == engine.cache.blocks


class Known(Drafter):
    """Drafts texts that are known, which follow a prompt of two tokens."""

    def __init__(self, *texts: Sequence[int]) -> None:
        self.texts = [list(text) for text in texts]

    def propose(self, context: Any, budget: Budget) -> Proposal:
        new = context.tokens[2:]
        text = next((text for text in self.texts if text[: len(new)] == new), [])
        return Proposal(chain(context.tokens[-1], text[len(new) :][: min(budget.depth, budget.rows - 1)]))


def test_a_text_that_ends_before_an_error_has_none():
    criterion = {"stopping_criteria": lambda ids, scores: ids.shape[1] == 2 + 5}
    options: dict[str, Any] = {"max_new_tokens": 12, "logits_processor": Failing(6), **criterion}
    whole = CompiledModel(Oracle()).generate([1, 2], 12, logits_processor=Failing(99))
    text = whole.token_ids[:5]
    assert CompiledModel(Oracle()).generate([1, 2], **options).token_ids == text
    for model in (CompiledModel(Oracle()), CompiledModel(Oracle(), Known(whole.token_ids), Fixed(8))):
        assert model.generate([1, 2], **options).token_ids == text
        assert [token for piece in model.stream([1, 2], **options) for token in piece.token_ids] == text
        with model.sessions([1, 2], **options) as sessions:
            model.generate([5], 30)  # meanwhile it decodes as far as it gets
            [found] = sessions.generations()
            assert found.token_ids == text
        with pytest.raises(ArithmeticError):
            model.generate([[1, 2], [1, 2]], 12, logits_processor=Failing(6))


def test_errors_of_texts_that_a_search_has_left_are_not_its_own():
    options: dict[str, Any] = {"max_new_tokens": 15, "seed": 1}
    seen: list[list[int]] = []

    def scorer(prompt_ids: list[int], token_ids: list[int], text: str | None) -> float:
        seen.append(token_ids)
        return float(-token_ids[0])

    CompiledModel(Oracle()).search([1, 2], Scored(scorer, (), 5, 6), logits_processor=Failing(99), **options)
    drafted, policy = Known(*seen), Scored(scorer, (), 3, 6)
    free = CompiledModel(Oracle()).search([1, 2], policy, logits_processor=Failing(99), **options)
    failing = Failing(4, lambda new: new[0] != free[0].token_ids[0])
    for model in (CompiledModel(Oracle()), CompiledModel(Oracle(), drafted, Fixed(12))):
        found = model.search([1, 2], policy, logits_processor=failing, **options)
        assert found[0].token_ids == free[0].token_ids


@pytest.mark.parametrize("broken", [slice(3, 4), slice(None)])
def test_logits_that_are_not_numbers_are_said_to_be(broken: slice):
    """Hooks are not called for them, nor blamed."""
    text = CompiledModel(Oracle()).generate([1, 2], 12, logits_processor=Mixing()).token_ids
    calls: list[int] = []

    class Counting(Mixing):
        def scores(self, state: Any, scores: Float32, place: Place) -> Float32:
            calls.append(place.generated)
            return super().scores(state, scores, place)

    for drafter in (Drafter(), Known(text)):
        oracle = Oracle()
        oracle.logits([1, 2, *text[:5]])[broken] = math.nan
        calls.clear()
        request = Request([1, 2], 12, hooks=(Counting(),))
        tokens, error = told(decode(Engine(oracle), request, drafter, Fixed(8)))
        assert tokens == text[:5]
        assert error is not None
        assert error.startswith("the logits at position 6 are not numbers")
        assert calls == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("forced", "answers", "told"),
    [
        ([24], [True], "Wrong forces token 24, but there are tokens 0 to 23"),
        ([-1], [True], "Wrong forces token -1, but"),
        ([3], [], "Wrong answers for 0 of 1 tokens: return a bool for each"),
    ],
)
def test_wrong_answers_about_drafts_are_refused(forced: list[int], answers: list[bool], told: str):
    class Wrong(Hook):
        narrows = True

        def forced(self, state: Any) -> list[int]:
            return forced

        def allows(self, state: Any, tokens: Sequence[int]) -> list[bool]:
            return answers

    states = HookStates([Wrong()], 1)
    states.reach([1])
    with pytest.raises(InvalidOptionError, match=told):
        narrowed(Proposal(root_only(1)), states, Budget(8, 8, executable=Oracle()))


def test_an_infinite_score_has_all_probability_in_a_contrast():
    amateur = CompiledModel(Oracle(seed=9))
    found = CompiledModel(Oracle()).generate([1, 2], 5, logit_bias={7: np.inf}, logits_processor=Contrastive(amateur))
    assert found.token_ids == [7] * 5


def test_a_hook_cannot_generate_with_the_model_that_it_serves():
    model = CompiledModel(Oracle())

    class Generating(Hook):
        def scores(self, state: Any, scores: Float32, place: Place) -> Float32:
            return scores + model.generate([1], 2).token_ids[0]

    with pytest.raises(InvalidOptionError, match="a drafter, policy or hook cannot generate with the model"):
        model.generate([1, 2], 5, logits_processor=Generating())
