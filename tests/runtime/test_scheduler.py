"""Random operations on sessions: every text is that of its request alone, and all blocks come back."""

from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from oracle import Oracle

from forerun.runtime.drafters.base import Drafter
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.generation import decode
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.serving import Serving
from forerun.runtime.session import Session

STEPS, EXAMPLES = 50, 40
LIMITS = {"max_rows": 12, "max_outputs": 8, "max_path": 6, "max_length": 48, "block": 4}
GREEDY, SAMPLED = SamplingSettings(), SamplingSettings(True, 1.5, seed=3)
TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=20)


@cache
def alone(prompt: tuple[int, ...], new_tokens: int, sampled: bool) -> list[int]:
    request = Request(list(prompt), new_tokens, SAMPLED if sampled else GREEDY)
    steps = decode(Engine(Oracle(**LIMITS)), request, Drafter(), Fixed(1))
    return [token for step in steps for token in step.tokens]


class Sessions(RuleBasedStateMachine):
    """Arrivals, steps, forks and cancellations, with a cache that holds two or three texts."""

    @initialize(blocks=st.integers(16, 40), rows=st.integers(1, 8), prompts=st.booleans())
    def begin(self, blocks: int, rows: int, prompts: bool):
        self.oracle = Oracle(**LIMITS)
        drafter = Merged([PromptLookup(), TokenRecycling(24, wants_prompt_rows=prompts)])
        self.serving = Serving(Engine(self.oracle, blocks), drafter if rows > 1 else Drafter(), Fixed(rows))
        self.live: list[Session] = []

    @rule(prompt=TOKENS, new_tokens=st.integers(1, 24), sampled=st.booleans())
    def arrive(self, prompt: list[int], new_tokens: int, sampled: bool):
        self.live += self.serving.begin([Request(prompt, new_tokens, SAMPLED if sampled else GREEDY)])

    @rule(choice=st.integers(0, 100))
    @precondition(lambda self: self.live)
    def step(self, choice: int):
        session = self.live[choice % len(self.live)]
        self.serving.wait([session])
        list(session.take())
        self.settle(session)

    @rule(choice=st.integers(0, 100), tokens=st.lists(st.integers(0, 3), max_size=3), back=st.integers(0, 5))
    @precondition(lambda self: self.live)
    def fork(self, choice: int, tokens: list[int], back: int):
        session = self.live[choice % len(self.live)]
        shared = max(1, len(session.context.tokens) - back)
        prompt = [*session.context.tokens[:shared], *tokens]
        if len(prompt) <= 40:
            request = Request(prompt, 8, session.request.sampling)
            self.live.append(self.serving.fork(session, request, shared))

    @rule(choice=st.integers(0, 100))
    @precondition(lambda self: self.live)
    def cancel(self, choice: int):
        session = self.live.pop(choice % len(self.live))
        self.serving.cancel([session])
        self.check(session)

    @invariant()
    def no_block_is_lost(self):
        if not hasattr(self, "serving"):
            return
        held = {}
        for session in self.serving.sessions:
            if session.sequence is not None:
                for block in session.sequence.blocks.tolist():
                    held[block] = held.get(block, 0) + 1
        blocks = self.serving.engine.cache
        assert len(held) + blocks.free == blocks.blocks

    def settle(self, session: Session):
        if session.finished:
            self.live.remove(session)
            self.check(session)

    def check(self, session: Session):
        request = session.request
        assert session.error is None
        expected = alone(tuple(request.prompt), request.max_new_tokens, request.sampling.do_sample)
        assert session.token_ids == expected[: session.generated]

    def teardown(self):
        if not hasattr(self, "serving"):
            return
        for session in list(self.live):
            while not session.finished:
                self.serving.wait([session])
                list(session.take())
            self.settle(session)
        cache = self.serving.engine.cache
        assert not cache.is_used
        assert cache.free_requests == 64
        cache.forget_ended()
        assert cache.free == cache.blocks


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_machine_can_fail():
    """A cache that copies nothing at a fork is found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Oracle, "copy_slots", lambda *arguments: None)
        with pytest.raises((AssertionError, ExceptionGroup)):
            run_state_machine_as_test(Sessions, settings=settings(TestSessions.settings, phases=[Phase.generate]))
