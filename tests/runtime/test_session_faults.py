"""What goes wrong for one session, or is scarce, and what the others notice of it: nothing."""

import gc
import threading
import time

import numpy as np
import pytest
from oracle import Oracle
from several import alone

from forerun.errors import DeviceMemoryError, InvalidOptionError, TooLongError
from forerun.runtime.cache import CachedSequence
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.drafters.draft_model import DraftModel
from forerun.runtime.drafters.growing import Grower, Shape
from forerun.runtime.drafters.launch_cost import LaunchCost
from forerun.runtime.drafters.vocabulary import SameVocabulary
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Request
from forerun.runtime.serving import Serving
from forerun.runtime.session import Session


def serving_of(drafter: Drafter | None = None, blocks: int | None = None, rows: int = 1, **limits) -> Serving:
    return Serving(Engine(Oracle(**limits), blocks), drafter or Drafter(), Fixed(rows))


def run(serving: Serving, *sessions: Session) -> None:
    """Decodes until all sessions have ended, with or without an error."""
    for _ in range(1000):
        live = [session for session in sessions if not session.finished]
        if not live:
            break
        serving.wait(live)
        for session in sessions:
            if session.error is None:
                list(session.take())
    assert all(session.finished for session in sessions)
    serving.cancel(sessions)


def ends_alike(session: Session) -> bool:
    return session.error is None and session.token_ids == alone(session.request)[0]


def all_free(serving: Serving) -> bool:
    cache = serving.engine.cache
    return not cache.is_used and cache.free == cache.blocks and cache.free_requests == 64


def test_a_fork_of_a_fork_publishes_its_own_history():
    serving, old = serving_of(blocks=60), list(range(12))
    [first] = serving.begin([Request([*old, 1], 6)])
    serving.wait([first])
    list(first.take())
    early = serving.fork(first, Request([*old[:4], 20], 6), 4)
    tail = [3, 2, 1, 0]
    late = serving.fork(early, Request([*old[:4], 20, 21, 22, 23, 19, 18, 17, 16, *tail, 5], 6), 4)
    run(serving, first, early, late)
    [other] = serving.begin([Request([*old, *tail, 7], 6)])
    run(serving, other)
    assert all(map(ends_alike, (first, early, late, other)))
    assert all_free(serving)


def test_a_fork_from_far_back_takes_only_room_that_is_there():
    serving = serving_of(blocks=4 + 10)
    [long] = serving.begin([Request(list(range(24)), 4)])
    serving.wait([long])
    [short] = serving.begin([Request([5, 6, 7], 20)])
    serving.wait([short])
    forked = serving.fork(long, Request([0, 1, *[9] * 18], 4), 2)
    run(serving, long, short, forked)
    assert all(map(ends_alike, (long, short, forked)))
    assert all_free(serving)


def test_admission_counts_blocks_that_may_be_given_away():
    """A published chain has a block in the middle that nobody holds, and an older session takes it."""
    serving = serving_of(blocks=2 + 30, max_rows=8, max_outputs=8, max_length=200)
    engine, cache = serving.engine, serving.engine.cache
    prompt = [(number * 5 + 1) % 24 for number in range(48)]
    [first] = serving.begin([Request([*prompt[:8], 0], 40)])
    serving.wait([first])
    held = CachedSequence.empty(4)
    cache.adopt(held, prompt[:4])
    engine.prefill(held, np.array(prompt[held.length : 40], np.int32))
    cache.publish(held, prompt[:40])
    serving.cancel([first])
    others = []
    while cache.free > len(cache.matching(prompt[:40])):
        other = CachedSequence.empty(4)
        tokens = [(cache.free * 7 + number * 11) % 24 for number in range(4 * min(cache.free, 5))]
        try:
            engine.prefill(other, np.array(tokens, np.int32))
        except TooLongError:
            break
        cache.publish(other, tokens)
        others.append(other)
    for other in others:
        cache.release(other)
    both = serving.begin([Request([23, 22] * 2, 4), Request([*prompt[:40], *[2] * 44], 4)])
    run(serving, *both)
    assert all(map(ends_alike, both[:1]))
    assert both[1].error is None or isinstance(both[1].error, TooLongError)
    cache.release(held)
    assert all_free(serving)


class Breaking(Drafter):
    """Raises in one of its methods, for texts that begin with 1."""

    wants_prompt_rows = True

    def __init__(self, where: str) -> None:
        self.where, self.begun = where, 0

    def fail(self, where: str, first: int) -> None:
        if where == self.where and first == 1:
            raise RuntimeError(where)

    def begin(self, context):
        self.fail("begin", context.tokens[0])

    def propose(self, context, budget):
        self.fail("propose", context.tokens[0])
        return super().propose(context, budget)

    def observe(self, context, observation):
        self.fail("observe", context.tokens[0])

    def observe_prompt(self, tokens, candidates, candidate_logits):
        self.fail("observe_prompt", tokens[0])

    def end(self, context):
        self.fail("end", context.tokens[0])


@pytest.mark.parametrize("where", ["begin", "propose", "observe", "observe_prompt", "end"])
def test_a_drafter_that_fails_for_one_text_ends_that_text(where: str):
    serving = serving_of(Breaking(where), rows=4)
    sessions = serving.begin([Request([1, 2], 8), Request([3, 4, 5], 8)])
    run(serving, *sessions)
    assert isinstance(sessions[0].error, RuntimeError)
    assert ends_alike(sessions[1])
    assert all_free(serving)


def test_a_drafter_that_fails_at_a_fork_leaves_nothing_behind():
    drafter = Breaking("none")
    serving = serving_of(drafter)
    [session] = serving.begin([Request([1, 2, 3, 4, 5, 6, 7], 8)])
    serving.wait([session])
    drafter.where = "begin"
    forked = serving.fork(session, Request([1, 2, 3, 4, 5, 6, 7], 3), 7)
    run(serving, session, forked)
    assert ends_alike(session)
    assert isinstance(forked.error, RuntimeError)
    assert all_free(serving)


def test_a_session_cancelled_in_a_step_that_fails_it_takes_nothing_with_it():
    class Cancelling(Drafter):
        def propose(self, context, budget):
            if context is first.context and first.generated == 2:
                serving.cancel([first])
                raise RuntimeError("too late")
            return super().propose(context, budget)

    serving = serving_of(Cancelling(), rows=4)
    first, second = serving.begin([Request([1, 2], 10), Request([3], 10)])
    run(serving, first, second)
    assert first.error is None
    assert first.generated == 2
    assert ends_alike(second)
    assert all_free(serving)


def test_a_draft_without_room_proposes_nothing():
    """Preempted sessions give up their drafts' blocks, and a draft's cache that is too small fails no text."""
    for blocks in (4 + 24, 4 + 6):
        drafter = DraftModel(Engine(Oracle(), blocks), SameVocabulary(24, 24), Grower(Shape(), LaunchCost(None)))
        serving = serving_of(drafter, 4 + 24, rows=6)
        prompts = [[number, *((number * at) % 24 for at in range(20))] for number in range(4)]
        sessions = serving.begin([Request(prompt, 30) for prompt in prompts])
        run(serving, *sessions)
        assert all(map(ends_alike, sessions))
        assert all_free(serving)
        assert not drafter.engine.cache.is_used


def test_nobody_waits_forever_for_a_step_that_failed():
    class Slow(Oracle):
        def run(self, *arguments):
            time.sleep(0.05)
            return super().run(*arguments)

    serving = Serving(Engine(Slow(max_outputs=1)), Breaking("end"), Fixed(1))
    sessions = serving.begin([Request([1], 5), Request([3], 5), Request([4], 5)])

    def follow(session: Session) -> None:
        while not session.finished:
            serving.wait([session])
            list(session.take())

    threads = [threading.Thread(target=follow, args=(session,), daemon=True) for session in sessions[1:]]
    for thread in threads:
        thread.start()
    time.sleep(0.12)
    serving.cancel(sessions[:1])
    for thread in threads:
        thread.join(20)
    assert all(map(ends_alike, sessions[1:]))


def test_abandoned_sessions_are_ended_by_the_collector():
    oracle = Oracle()
    model = CompiledModel(oracle, engine=Engine(oracle, 100))
    for _ in range(3):
        sessions = model.sessions([[1], [2]], max_new_tokens=40)
        next(sessions)
        next(model.stream([3], max_new_tokens=40))
        del sessions
        gc.collect()
    model.generate([4], 2)
    assert model.serving.is_idle
    assert all_free(model.serving)


def test_a_drafter_cannot_generate_with_the_model_that_it_serves():
    class Recursive(Drafter):
        def propose(self, context, budget):
            model.generate([1], 2)
            return super().propose(context, budget)

    oracle = Oracle()
    model = CompiledModel(oracle, Recursive(), Fixed(4), engine=Engine(oracle, 100))
    with pytest.raises(InvalidOptionError, match="compile another one"):
        model.generate([1], 4)
    assert all_free(model.serving)


def test_a_machine_with_little_memory_gets_a_cache_for_one_text():
    class Small(Oracle):
        def new_state(self, blocks, requests=1, rows=None):
            if blocks > 100:
                raise DeviceMemoryError("no room")
            return super().new_state(blocks, requests)

    assert Engine(Small()).cache.free_positions == 64
    assert Engine(Small(slot_bytes=1)).cache.free_positions == 64
    assert Engine(Oracle(slot_bytes=1)).cache.free_positions == 64 * 64
    with pytest.raises(DeviceMemoryError):
        Engine(Small(max_length=1000))
