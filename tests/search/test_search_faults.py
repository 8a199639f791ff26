"""What goes wrong in a search, or beside it: everything is freed, and others notice nothing."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from forerun.errors import InvalidOptionError, NotANumberError, TooLongError
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.search import BeamSearch, BestOf, Scored
from tests.runtime.oracle import Oracle
from tests.search.brute import Smooth, sampled
from tests.search.searched import POLICIES, SAMPLED, all_free, bits, model_of, request_of, total

# --- faults


def failing(after: int, what: Callable[[], float]) -> Callable[[list[int], list[int], str | None], float]:
    calls: list[int] = []

    def scorer(prompt_ids: list[int], token_ids: list[int], text: str | None) -> float:
        calls.append(1)
        return what() if len(calls) > after else float(len(calls))

    return scorer


@pytest.mark.parametrize("after", [0, 5])
def test_an_error_of_the_scorer_ends_the_search(after: int) -> None:
    model = model_of()
    with pytest.raises(ZeroDivisionError):
        model.search([1, 2], Scored(failing(after, lambda: 1 / 0), (), 4), max_new_tokens=20)
    assert all_free(model)
    assert not model.serving.sessions


@pytest.mark.parametrize("wrong", [math.nan, "good", None, True, [1.0]])
def test_what_is_not_a_number_is_refused(wrong: Any) -> None:
    model = model_of()
    with pytest.raises(InvalidOptionError, match=r"^the scorer must return a number, not .*: rank a bad text"):
        model.search([1, 2], Scored(failing(4, lambda: wrong), (), 4), max_new_tokens=20)
    assert all_free(model)


def test_a_scorer_may_generate_and_veto() -> None:
    model = model_of()

    def scorer(prompt_ids: list[int], token_ids: list[int], text: str | None) -> float:
        return float("-inf") if model.generate(token_ids, 3).token_ids[0] % 2 else 1.0

    found = model.search([1, 2], Scored(scorer, (), 6, 4, 2), max_new_tokens=12)
    assert [len(text.token_ids) for text in found] == [12, 12]
    assert all_free(model)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the shell started the tests with it ignored."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


@pytest.mark.parametrize("policy", POLICIES)
def test_ctrl_c_frees_everything(policy: str, interruptible: None) -> None:
    oracle = Smooth()
    model = model_of(oracle)
    run, calls = oracle.run, list[int]()

    def interrupting(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            signal.raise_signal(signal.SIGINT)
        return run(*arguments)

    oracle.run = interrupting
    with pytest.raises(KeyboardInterrupt):
        model.search([1, 2], POLICIES[policy], max_new_tokens=26)
    assert all_free(model)
    assert not model.serving.sessions


@pytest.mark.parametrize("policy", POLICIES)
def test_a_failing_step_frees_everything(policy: str) -> None:
    oracle = Smooth()
    model = model_of(oracle)
    run, calls = oracle.run, list[int]()

    def breaking(*arguments: Any) -> Any:
        calls.append(1)
        return 1 / 0 if len(calls) == 6 else run(*arguments)

    oracle.run = breaking
    with pytest.raises(ZeroDivisionError):
        model.search([1, 2], POLICIES[policy], max_new_tokens=26)
    assert all_free(model)
    assert model.search([1, 2], POLICIES[policy], max_new_tokens=26)


def test_nan_ends_a_search() -> None:
    oracle = Smooth()
    model = model_of(oracle)
    text, _ = sampled(Smooth(), request_of([2], set(), 20, 3))
    oracle.logits([2, *text[:5]])[3] = math.nan
    with pytest.raises(NotANumberError):
        model.search([2], BestOf(5), max_new_tokens=20, **SAMPLED)
    assert all_free(model)


@pytest.mark.parametrize("blocks", [300, 4 + 45])
def test_searches_of_several_threads(blocks: int) -> None:
    model = model_of(Oracle(), blocks=blocks)
    work: list[tuple[list[int], Any]] = [([number], policy) for number in range(3) for policy in POLICIES.values()]
    expected = [bits(model.search(*each, max_new_tokens=24, return_logits=True)) for each in work]
    text, found = model.generate([9, 9], 40).token_ids, dict[int, Any]()

    def run(number: int) -> None:
        try:
            texts = model.search(*work[number], max_new_tokens=24, return_logits=True)
            found[number] = bits(texts), model.generate([9, 9], 40).token_ids
        except Exception as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {number: (each, text) for number, each in enumerate(expected)}
    assert all_free(model)


def test_texts_at_rest_give_way_to_those_that_wait() -> None:
    """While a scorer thinks, other texts take the room that its texts hold."""
    model = model_of(Oracle(), blocks=4 + 16)
    expected, other = [], model_of(Oracle()).generate([9], 60).token_ids
    calls: list[list[int]] = []

    def scorer(prompt_ids: list[int], token_ids: list[int], text: str | None) -> float:
        calls.append(token_ids)
        if len(calls) == 5:  # eight texts of 8 positions are at rest
            thread = threading.Thread(target=lambda: expected.append(model.generate([9], 60).token_ids))
            thread.start()
            thread.join(60)
        return float(sum(token_ids))

    policy = Scored(scorer, (), 7, 8, 4)
    found = model.search([1], policy, max_new_tokens=14)
    assert expected == [other]
    again = model_of(Oracle()).search([1], policy, max_new_tokens=14)
    assert [(text.token_ids, text.score) for text in found] == [(text.token_ids, text.score) for text in again]
    assert all_free(model)


def test_a_drafter_cannot_search_with_the_model_that_it_serves() -> None:
    class Searching(Drafter):
        def propose(self, context: Any, budget: Any) -> Any:
            model.search([1], POLICIES["beams"], max_new_tokens=2)

    oracle = Smooth()
    model = CompiledModel(oracle, Searching(), Fixed(4), engine=Engine(oracle, 200))
    with pytest.raises(InvalidOptionError, match="a drafter, policy or hook cannot generate"):
        model.generate([1], 5)
    assert all_free(model)


def test_one_text_must_fit() -> None:
    model = model_of(blocks=4 + 6)
    with pytest.raises(TooLongError, match="positions"):
        model.search([1] * 10, BestOf(2), max_new_tokens=30)
    assert all_free(model)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: BestOf(0), "n of BestOf must be 1 or more"),
        (lambda: Scored(3), r"scorer of Scored must be a function \(prompt_ids, token_ids, text\)"),
        (lambda: Scored(lambda text: 0), "scorer of Scored must be a function"),
        (lambda: Scored(total, (), 4, 5, 2), "keep=2 must divide candidates=5"),
        (lambda: Scored(total, ("",)), "ends of Scored cannot be empty texts"),
        (lambda: Scored(total, (1.5,)), "ends of Scored must be an integer"),
        (lambda: BeamSearch(4, early_stopping=2), "early_stopping of BeamSearch must be"),
    ],
)
def test_wrong_policies_are_refused(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(InvalidOptionError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("prompt", "policy", "options", "sentence"),
    [
        ([1], "best", {}, "policy must be a BeamSearch, BestOf or Scored"),
        ([1], BestOf(2), {"num_beams": 2}, "search does not take num_beams: its policy, BestOf, says it"),
        ([1], BestOf(2), {"num_return_sequences": 2}, "search does not take num_return_sequences"),
        ([1], BestOf(2), {"do_sample": False}, "BestOf does not combine with do_sample=False"),
        ([1], BeamSearch(2), {"do_sample": True}, "BeamSearch does not combine with do_sample=True"),
        ([1], BeamSearch(2), {"stopping_criteria": [print]}, "stopping_criteria does not combine with"),
        ([1], BeamSearch(2), {"stop": "a"}, "stop does not combine with BeamSearch"),
        ([1], BeamSearch(2), {"generation_config": {"num_beams": 2}}, "only generate takes num_beams"),
        ([1], BestOf(2), {"streamer": object()}, "only generate takes a streamer"),
        ([[1], [2]], BestOf(2), {}, "a search takes one prompt"),
        ([1], Scored(total, ("a",)), {}, "the model has no tokenizer"),
    ],
)
def test_what_a_search_does_not_take(prompt: Any, policy: Any, options: dict[str, Any], sentence: str) -> None:
    model = CompiledModel(Smooth())
    with pytest.raises(InvalidOptionError, match=sentence):
        model.search(prompt, policy, max_new_tokens=4, **options)
