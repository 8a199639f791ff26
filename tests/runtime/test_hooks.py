"""Hooks follow the path: whatever is drafted, their texts are those of plain decoding, and what they exclude is not."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from test_generation import RandomDrafter, collect, policies, requests

from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.base import Budget, Drafter, Proposal, Proposers
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Float32
from forerun.runtime.generation import decode
from forerun.runtime.hooks.base import Hook, HookStates, Place
from forerun.runtime.narrowing import narrowed
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.request import Request
from forerun.runtime.sampling import choose_token
from forerun.runtime.tree import TreeBuilder

VOCABULARY = Oracle().vocabulary


class Mixing(Hook):
    """Adds numbers that all tokens before decide, and the place."""

    def begin(self, prompt: Sequence[int]) -> tuple[int, ...]:
        return tuple(prompt)

    def advance(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, token)

    def scores(self, state: tuple[int, ...], scores: Float32, place: Place) -> Float32:
        assert len(state) == place.position
        seed = hash((state, place.generated, place.left)) % 2**32
        scores += np.random.default_rng(seed).normal(size=len(scores)).astype(np.float32) * 2
        return scores


@dataclass
class Alternating(Hook):
    """Allows tokens of one parity, then of the other; after token 3, only 4 and 5 may follow, in this order."""

    narrows: bool = True
    ended: list[Any] = field(default_factory=list)

    def begin(self, prompt: Sequence[int]) -> tuple[int, int]:
        return len(prompt), prompt[-1]

    def advance(self, state: tuple[int, int], token: int) -> tuple[int, int]:
        return state[0] + 1, token

    def _may(self, state: tuple[int, int], token: int) -> bool:
        forced = {3: 4, 4: 5}.get(state[1])
        return token == forced if forced else token % 2 == state[0] % 2

    def scores(self, state: tuple[int, int], scores: Float32, place: Place) -> Float32:
        scores[[not self._may(state, token) for token in range(len(scores))]] = -np.inf
        return scores

    def allows(self, state: tuple[int, int], tokens: Sequence[int]) -> list[bool]:
        return [self._may(state, token) for token in tokens]

    def forced(self, state: tuple[int, int]) -> list[int]:
        return {3: [4, 5], 4: [5]}.get(state[1], [])

    def end(self, state: tuple[int, int]) -> None:
        self.ended.append(state)


def reference(oracle: Oracle, request: Request) -> list[int]:
    """Plain decoding with neither cache nor engine."""
    tokens = list(request.prompt)
    for generated in range(request.max_new_tokens):
        scores = oracle.logits(tokens).copy()
        for hook in request.hooks:
            state = hook.begin(request.prompt)
            for token in tokens[len(request.prompt) :]:
                state = hook.advance(state, token)
            scores = hook.scores(state, scores, Place(len(tokens), generated, request.max_new_tokens - generated))
        tokens.append(choose_token(scores, request.sampling, request.identifier, len(tokens)))
        if tokens[-1] in request.stop:
            break
    return tokens[len(request.prompt) :]


@settings(max_examples=80, deadline=None)
@given(
    request=requests,
    policy=policies,
    seed=st.integers(0, 20),
    hooks=st.sampled_from([[Mixing], [Alternating], [Alternating, Mixing], [Mixing, Mixing, Alternating]]),
)
def test_texts_are_those_of_plain_decoding(request: Request, policy: Policy, seed: int, hooks: list[type[Hook]]):
    oracle = Oracle()
    request = replace(request, hooks=tuple(hook() for hook in hooks), keep_scores=True)
    expected = reference(oracle, request)
    plain = list(decode(Engine(Oracle()), request, Drafter(), Fixed(1)))
    found = list(decode(Engine(Oracle()), request, RandomDrafter(seed, oracle), policy))
    assert collect(found)[0] == collect(plain)[0] == expected
    assert collect(found)[1].tobytes() == collect(plain)[1].tobytes()
    scores = [np.concatenate([step.scores for step in steps if step.scores is not None]) for steps in (plain, found)]
    assert scores[0].tobytes() == scores[1].tobytes()
    for hook in request.hooks:
        if isinstance(hook, Alternating):
            assert len(hook.ended) == 2  # one for each text
            assert hook.ended[0][0] == len(request.prompt) + len(expected) - 1  # what plain decoding chose last from


def test_what_is_excluded_is_not_drafted_and_what_is_forced_is():
    builder = TreeBuilder(1)
    kept = builder.add(0, 3, 0.5)
    builder.add(builder.add(0, 2, 0.4), 5, 0.9)  # after one token, an odd one must follow
    builder.add(kept, 7, 0.9)
    proposal = Proposal(builder.build(), proposers=Proposers(("a", "b"), np.array([0, 1, 2, 2, 3], np.int32)))
    states = HookStates([Alternating()], 1)
    states.reach([1])
    found = narrowed(proposal, states, Budget(8, 8))
    assert found.tree.token.tolist() == [1, 3, 4, 5]
    assert found.tree.parent.tolist() == [-1, 0, 1, 2]
    assert found.tree.probability.tolist() == [1, 0.5, 0.5, 0.5]
    assert found.proposers is not None
    assert [found.proposers.of(row) for row in range(4)] == ["", "a", "Alternating", "Alternating"]
    assert len(narrowed(proposal, states, Budget(3, 8)).tree) == 3
    assert len(narrowed(proposal, states, Budget(8, 2)).tree) == 3
    assert narrowed(proposal, HookStates([Mixing()], 1), Budget(8, 8)) is proposal


def test_forced_tokens_shorten_texts():
    class Certain(Hook):
        narrows = True

        def scores(self, state: Any, scores: Float32, place: Place) -> Float32:
            return np.where(np.arange(len(scores)) == 7, scores, np.float32(-np.inf))

        def forced(self, state: Any) -> list[int]:
            return [7] * 5

    request = Request([1, 2], 18, hooks=(Certain(),))
    steps = list(decode(Engine(Oracle()), request, RandomDrafter(0, Oracle()), Fixed(6)))
    assert collect([replace(step, logits=np.zeros((0, 1))) for step in steps])[0] == [7] * 18
    assert len(steps) == 1 + 3


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda scores: scores[:-1], r"must return scores \[\d+\] of floats, not float32"),
        (lambda scores: np.full_like(scores, -np.inf), "no token is left at position 2: all are excluded by Wrong"),
        (lambda scores: np.zeros(len(scores), np.int64), "of floats, not int64"),
        (lambda scores: "nothing", "of floats, not str"),
        (lambda scores: None, "of floats, not NoneType"),
    ],
)
def test_wrong_scores_are_refused(given: Any, told: str):
    class Wrong(Hook):
        def scores(self, state: Any, scores: Float32, place: Place) -> Float32:
            return given(scores)

    with pytest.raises(InvalidOptionError, match=told):
        list(decode(Engine(Oracle()), Request([1, 2], 4, hooks=(Wrong(),)), Drafter(), Fixed(1)))
