"""Sessions share steps, and no text depends on its companions."""

import signal
import threading
from itertools import product

import numpy as np
import pytest
from oracle import Oracle
from several import PROMPTS, all_free, alone, drafters, model_of, policies

from forerun.errors import NotANumberError, TooLongError
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.scheduler import Scheduler
from forerun.runtime.session import Session


@pytest.mark.parametrize(("drafter", "policy"), [*product(drafters(Oracle()), policies())])
@pytest.mark.parametrize("blocks", [None, 60])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8, "seed": 4}])
def test_texts_do_not_depend_on_their_companions(drafter: str, policy: str, blocks: int | None, options: dict):
    model = model_of(Oracle(), drafter, policy, blocks)
    found = model.generate(PROMPTS, 25, return_logits=True, **options)
    for prompt, text in zip(PROMPTS, found, strict=True):
        tokens, rows = alone(Request(prompt, 25, SamplingSettings(**options), keep_logits=True))
        assert text.token_ids == tokens
        assert [row.tobytes() for row in text.logits] == rows
    assert all_free(model)


def test_sessions_share_steps():
    oracle = Oracle()
    model = model_of(oracle, "none")
    model.engine = Engine(oracle, 200)
    CompiledModel(oracle, engine=model.engine).generate(PROMPTS, 20)
    assert len(oracle.steps) < 2 * 20, "five texts take little more steps than one"
    assert max(oracle.steps) >= len(PROMPTS)


def test_prompts_are_read_beside_decoding_rows():
    oracle = Oracle(max_rows=8, max_outputs=8, max_length=64)
    model = CompiledModel(oracle, engine=Engine(oracle, 200))
    sessions = model.sessions([[1], list(range(20)) + [3] * 10], max_new_tokens=12)
    first = next(sessions)
    assert first.index == 0
    tokens = [len(first.new_tokens)]
    while not first.finished:
        each = next(sessions)
        tokens.append(len(each.new_tokens) if each is first else 0)
    assert sum(tokens) == 12
    assert [each.generation().token_ids for each in sessions.all if each.finished] == [alone(Request([1], 12))[0]]
    assert [each.generation().token_ids for each in list(sessions)[-1:]] == [
        alone(Request(list(range(20)) + [3] * 10, 12))[0]
    ]


def test_a_shared_prefix_is_read_once():
    oracle = Oracle(max_rows=16, max_length=64)
    model = CompiledModel(oracle, engine=Engine(oracle, 100))
    prompt = [number % 24 for number in range(48)]
    expected = alone(Request(prompt, 8))[0]
    assert model.generate(prompt, 8).token_ids == expected
    read = sum(oracle.steps)
    assert model.generate(prompt, 8).token_ids == expected
    assert sum(oracle.steps) - read <= 8 + oracle.block
    before = sum(oracle.steps)
    others = model.generate([[*prompt[:40], 1, 2], [*prompt[:44], 5], prompt], 4)
    assert [text.token_ids for text in others] == [
        alone(Request(each, 4))[0] for each in ([*prompt[:40], 1, 2], [*prompt[:44], 5], prompt)
    ]
    assert sum(oracle.steps) - before <= 3 * (4 + oracle.block)
    model.engine.cache.forget_ended()
    before = sum(oracle.steps)
    model.generate(prompt, 1)
    assert sum(oracle.steps) - before == len(prompt)


def test_equal_prompts_of_one_call_are_read_once():
    oracle = Oracle(max_rows=16)
    model = CompiledModel(oracle, engine=Engine(oracle, 200))
    prompt = [number % 24 for number in range(40)]
    model.generate([prompt] * 5, 4)
    assert sum(oracle.steps) <= 40 + 5 * (4 + oracle.block)


def test_a_session_gives_up_its_room_and_reads_again():
    oracle = Oracle(max_rows=8, max_outputs=8, max_path=4, max_length=40)
    model = model_of(oracle, "both", blocks=2 + 14)  # room for one text and a half
    preempted = []
    enter = Scheduler.enter

    def watched(self, plan):
        preempted.extend(plan.preempted)
        return enter(self, plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scheduler, "enter", watched)
        found = model.generate([[1], [2], [3]], 36)
    assert preempted
    assert [text.token_ids for text in found] == [alone(Request([each], 36))[0] for each in (1, 2, 3)]
    assert all_free(model)


def test_what_does_not_fit_is_refused():
    oracle = Oracle(max_length=64)
    model = CompiledModel(oracle, engine=Engine(oracle, 8))
    with pytest.raises(TooLongError, match="more room in the cache"):
        model.generate([1] * 30, 20)
    assert all_free(model)


# --- forks and cancelling


@pytest.mark.parametrize("drafter", ["none", "both"])
def test_forks_go_on_from_where_they_were_taken(drafter: str):
    model = model_of(Oracle(), drafter, blocks=100)
    sampled = {"do_sample": True, "temperature": 1.0, "seed": 7}
    forks = {}
    with model.sessions([[1, 2, 3]], max_new_tokens=30, return_logits=True, **sampled) as sessions:
        for session in sessions:
            if session.index == 0 and len(session.token_ids) >= 7 and not forks:
                seen = list(session.token_ids)
                forks["same"] = (session.fork(), Request([1, 2, 3, *seen], 30 - len(seen), SamplingSettings(**sampled)))
                other = SamplingSettings(True, 1.0, seed=8)
                forks["seed"] = (session.fork(seed=8), Request([1, 2, 3, *seen], 30 - len(seen), other))
                forced = Request([1, 2, 3, *seen, 9, 9], 10, SamplingSettings(**sampled))
                forks["forced"] = (session.fork([9, 9], max_new_tokens=10), forced)
    whole = sessions.all[0].token_ids
    assert forks["same"][0].token_ids == whole[len(whole) - len(forks["same"][0].token_ids) :]
    for fork, request in forks.values():
        assert fork.token_ids == alone(request)[0]
    assert all_free(model)


def test_a_fork_copies_one_block_at_most():
    oracle = Oracle()
    model = CompiledModel(oracle, engine=Engine(oracle, 100))
    sessions = model.sessions([[number % 24 for number in range(30)]], max_new_tokens=20)
    session = next(sessions)
    used, copied = model.engine.cache.blocks - model.engine.cache.free, oracle.copies
    session.fork([5])
    assert model.engine.cache.blocks - model.engine.cache.free == used, "nothing is copied yet"
    list(sessions)
    assert oracle.copies - copied <= 2 * (oracle.block - 1)
    assert all_free(model)


def test_a_cancelled_session_leaves_at_once():
    model = model_of(Oracle(), blocks=100)
    with model.sessions([[1], [2]], max_new_tokens=40) as sessions:
        for session in sessions:
            if session.index == 0 and len(session.token_ids) > 5:
                session.cancel()
                assert session.finished
    first, second = sessions.all
    assert first.token_ids == alone(Request([1], 40))[0][: len(first.token_ids)]
    assert len(first.token_ids) < 20
    assert second.token_ids == alone(Request([2], 40))[0]
    assert all_free(model)


def test_leaving_the_loop_ends_the_sessions():
    model = model_of(Oracle(), blocks=100)
    with model.sessions([[1], [2]], max_new_tokens=40) as sessions:
        for _ in sessions:
            break
    assert all_free(model)
    stream = model.stream([1], max_new_tokens=40)
    next(stream)
    stream.close()
    assert list(stream) == []
    assert all_free(model)


# --- failures


class Failing(Drafter):
    """Fails at one context's third proposal."""

    def __init__(self, token: int) -> None:
        self.token, self.calls = token, 0

    def propose(self, context, budget):
        if context.tokens[0] == self.token:
            self.calls += 1
            if self.calls == 3:
                raise RuntimeError("the drafter broke")
        return super().propose(context, budget)


def test_a_session_that_fails_takes_nothing_with_it():
    oracle = Oracle()
    model = CompiledModel(oracle, Failing(2), Fixed(4), engine=Engine(oracle, 100))
    with model.sessions([[1], [2], [3]], max_new_tokens=20) as sessions:
        for _ in sessions:
            pass
    first, second, third = sessions.all
    assert isinstance(second.error, RuntimeError)
    with pytest.raises(RuntimeError, match="broke"):
        second.generation()
    assert second.token_ids == alone(Request([2], 20))[0][:2]
    assert first.token_ids == alone(Request([1], 20))[0]
    assert third.token_ids == alone(Request([3], 20))[0]
    assert all_free(model)
    model.drafter.calls = 0
    with pytest.raises(RuntimeError, match="broke"):
        model.generate([[1], [2]], 20)
    assert all_free(model)


def test_nan_ends_one_text():
    oracle = Oracle()
    engine = Engine(oracle, 100)
    model = CompiledModel(oracle, engine=engine)
    text = alone(Request([2], 20))[0]
    broken = [2, *text[:5]]
    digest = oracle.logits(broken)
    digest[3] = np.nan
    with model.sessions([[1], [2]], max_new_tokens=20) as sessions:
        for _ in sessions:
            pass
    assert isinstance(sessions.all[1].error, NotANumberError)
    assert sessions.all[1].token_ids == text[:5]
    assert sessions.all[0].token_ids == alone(Request([1], 20))[0]
    assert all_free(model)


def test_a_failing_step_ends_those_in_it():
    oracle = Oracle()
    model = model_of(oracle, blocks=100)
    expected = model.generate([[1], [2]], 10)
    run = oracle.run
    oracle.run = lambda *arguments: 1 / 0
    with pytest.raises(ZeroDivisionError):
        model.generate([[1], [2]], 10)
    oracle.run = run
    assert [each.token_ids for each in model.generate([[1], [2]], 10)] == [each.token_ids for each in expected]
    assert all_free(model)


# --- threads


def test_any_number_of_threads_share_steps():
    oracle = Oracle()
    model = model_of(oracle, blocks=200)
    prompts = [[number, 3, number] for number in range(16)]
    found: dict[int, list[int]] = {}

    def work(number: int) -> None:
        found[number] = model.generate(prompts[number], 30).token_ids

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {number: alone(Request(prompt, 30))[0] for number, prompt in enumerate(prompts)}
    assert all_free(model)


def test_an_interrupted_thread_leaves_the_others_running():
    oracle = Oracle()
    model = model_of(oracle, "none", blocks=200)
    others: dict[int, list[int]] = {}
    run, calls, listens, interrupted = oracle.run, [], [], []

    def interrupt(number, frame):
        if listens:
            listens.clear()
            raise KeyboardInterrupt

    def interrupting(*arguments):
        calls.append(threading.current_thread())
        if len(calls) % 7 == 5:
            signal.raise_signal(signal.SIGINT)  # Python's main thread gets it, in a step of its own or waiting
        return run(*arguments)

    def generate_in_main() -> None:
        listens.append(True)
        try:
            model.generate([7], 50)
            listens.clear()
        except KeyboardInterrupt:
            interrupted.append(True)

    def work(number: int) -> None:
        others[number] = model.generate([number], 50).token_ids

    oracle.run = interrupting
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        generate_in_main()  # alone, the main thread runs its steps
        assert interrupted == [True]
        assert all_free(model)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            generate_in_main()
    finally:
        signal.signal(signal.SIGINT, before)
    oracle.run = run
    assert others == {number: alone(Request([number], 50))[0] for number in range(3)}
    assert model.generate([7], 50).token_ids == alone(Request([7], 50))[0]
    assert all_free(model)


def test_a_reader_that_pauses_blocks_nobody():
    model = model_of(Oracle(), blocks=200)
    begun, go = threading.Event(), threading.Event()
    found: list[int] = []

    def slow() -> None:
        with model.stream([1], max_new_tokens=30) as stream:
            for piece in stream:
                found.extend(piece.token_ids)
                begun.set()
                go.wait(60)

    thread = threading.Thread(target=slow)
    thread.start()
    assert begun.wait(60)
    assert model.generate([2], 30).token_ids == alone(Request([2], 30))[0]
    go.set()
    thread.join(60)
    assert found == alone(Request([1], 30))[0]
    assert all_free(model)


def test_a_plan_changes_nothing():
    engine = Engine(Oracle(), 100)
    scheduler = Scheduler(engine, Drafter())
    sessions = [Session(Request(prompt, 5)) for prompt in PROMPTS]
    assert scheduler.schedule(sessions) == scheduler.schedule(sessions)
    assert not engine.cache.is_used
    assert all(session.sequence is None for session in sessions)
