"""Best of n and texts that a scorer ranks at borders: what plain decoding of each candidate gives, and faults."""

import math
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from forerun.errors import InvalidOptionError, NotANumberError, TooLongError
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.keywords import Asked
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Generation, Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.scheduler import Scheduler
from forerun.runtime.search.searching import search
from forerun.search import BeamSearch, BestOf, Scored
from tests.runtime.oracle import Oracle
from tests.search.brute import Smooth, grown, log_softmax, sampled

SAMPLED: dict[str, Any] = {"temperature": 0.8, "top_k": 12, "seed": 4}


class Words:
    """A tokenizer of numbers."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(f"{token} " for token in token_ids)


def model_of(oracle: Oracle | None = None, speculative: bool = True, blocks: int | None = 300) -> CompiledModel:
    oracle = oracle or Smooth()
    drafter = Merged([PromptLookup(), TokenRecycling(oracle.vocabulary)]) if speculative else Drafter()
    return CompiledModel(oracle, drafter, Fixed(6), Words(), engine=Engine(oracle, blocks))


def all_free(model: CompiledModel) -> bool:
    cache = model.engine.cache
    return not cache.is_used and cache.free == cache.blocks and cache.free_requests == 64


def total(prompt_ids: list[int], token_ids: list[int], text: str | None) -> float:
    return float(sum(token_ids))


def request_of(prompt: list[int], stop: set[int], length: int, identifier: int) -> Request:
    settings = SamplingSettings(do_sample=True, **SAMPLED)
    return Request(prompt, length, settings, frozenset(stop), identifier)


def bits(texts: list[Generation]) -> list[tuple[Any, ...]]:
    return [(text.token_ids, text.score, text.logits.tobytes()) for text in texts]


def test_the_best_of_n_has_the_largest_mean_log_probability() -> None:
    model, prompt, stop = model_of(), [3, 1, 4], {5}
    found = model.search(prompt, BestOf(7), max_new_tokens=20, eos_token_id=[5], **SAMPLED)
    expected = []
    for identifier in range(7):
        tokens, rows = sampled(Smooth(), request_of(prompt, stop, 20, identifier))
        means = [float(log_softmax(row)[token]) for row, token in zip(rows, tokens, strict=True)]
        expected.append((tokens, sum(means) / len(means)))
    expected.sort(key=lambda each: -each[1])
    assert [(text.token_ids, pytest.approx(text.score)) for text in found] == expected
    assert len({tuple(tokens) for tokens, _ in expected}) > 1
    sampled_texts = model.generate(prompt, 20, do_sample=True, eos_token_id=[5], num_return_sequences=7, **SAMPLED)
    assert sorted(text.token_ids for text in found) == sorted(text.token_ids for text in sampled_texts)
    assert found[0].logits is None
    assert found[0].text == Words().decode(found[0].token_ids)
    assert all_free(model)


POLICIES = {
    "beams": BeamSearch(5),
    "groups": BeamSearch(6, num_beam_groups=3, diversity_penalty=0.6),
    "best": BestOf(5),
    "scored": Scored(lambda prompt, tokens, text: -abs(sum(tokens) - 150), (3, 9), 5, 6, 2),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_bits_do_not_depend_on_the_strategy(policy: str) -> None:
    found = []
    for speculative, blocks in ((True, 300), (False, 300), (True, 4 + 52), (False, 4 + 52)):
        model = model_of(Oracle(), speculative, blocks)
        options = {} if isinstance(POLICIES[policy], BeamSearch) else SAMPLED
        texts = model.search(
            [1, 2, 3], POLICIES[policy], max_new_tokens=26, eos_token_id=[5], return_logits=True, **options
        )
        assert all(len(text.logits) == len(text.token_ids) for text in texts)
        found.append(bits(texts))
        assert all_free(model)
    assert found[1:] == found[:1] * 3


def score(tokens: list[int]) -> float:
    return len(tokens) / 10 - abs(sum(tokens) - 9 * len(tokens)) / len(tokens)


@pytest.mark.parametrize("blocks", [300, 4 + 18])
@pytest.mark.parametrize("speculative", [False, True])
@pytest.mark.parametrize(
    ("ends", "segment", "candidates", "keep"), [((3, 9), 8, 6, 2), ((), 4, 4, 1), ("7 1", 6, 4, 4), (["2 "], 9, 6, 3)]
)
def test_a_scorer_chooses_what_goes_on(
    speculative: bool, blocks: int, ends: Any, segment: int, candidates: int, keep: int
) -> None:
    prompt, stop, asked = [3, 1, 4], {5}, list[list[int]]()
    texts = [end for end in ([ends] if isinstance(ends, str) else ends) if isinstance(end, str)]

    def scorer(prompt_ids: list[int], token_ids: list[int], text: str | None) -> float:
        assert prompt_ids == prompt
        assert text == Words().decode(token_ids)
        asked.append(token_ids)
        return score(token_ids)

    def border(tokens: list[int]) -> int | None:
        for at, token in enumerate(tokens, start=1):
            if (
                (token in ends if not texts else False)
                or at == segment
                or any(text in Words().decode(tokens[:at]) for text in texts)
            ):
                return at
        return None

    model = model_of(Smooth(), speculative, blocks)
    policy = Scored(scorer, ends, segment, candidates, keep)
    found = model.search(prompt, policy, max_new_tokens=30, eos_token_id=sorted(stop), **SAMPLED)
    expected = grown(
        Smooth(),
        lambda tokens, left, identifier: request_of([*prompt, *tokens], stop, left, identifier),
        border,
        score,
        candidates,
        keep,
        30,
    )
    assert [(text.token_ids, text.score) for text in found] == expected
    assert [text.stats.tokens for text in found] == [len(text.token_ids) for text in found]
    assert len(asked) > candidates
    assert all_free(model)


def test_segments_are_forked_not_read_again() -> None:
    oracle = Oracle(block=16, max_length=128)
    model, prompt = model_of(oracle, False, 100), [number % 24 for number in range(50)]
    policy = Scored(total, (), 5, 4, 2)
    model.search(prompt, policy, max_new_tokens=20)
    assert sum(oracle.steps) <= 49 + 4 * (20 + 16)  # the four candidates read what follows the last full block
    assert all_free(model)


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


@pytest.mark.parametrize("policy", POLICIES)
def test_ctrl_c_frees_everything(policy: str) -> None:
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
    with pytest.raises(InvalidOptionError, match="a drafter or policy cannot generate"):
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
        ([1], BeamSearch(2), {"do_sample": True}, "do_sample=True does not combine with BeamSearch"),
        ([1], BeamSearch(2), {"stopping_criteria": [print]}, "stopping_criteria does not combine with"),
        ([1], BeamSearch(2), {"stop": "a"}, "stop does not combine with BeamSearch"),
        ([1], BeamSearch(2), {"generation_config": {"do_sample": True}}, "do_sample=True does not combine with"),
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


def test_stopping_criteria_apply_to_sampled_texts() -> None:
    model, criteria = model_of(), [lambda ids, scores: ids.shape[1] >= 7]
    for policy in (BestOf(3), Scored(total, (), 3, 4, 2)):
        texts = model.search([1, 2], policy, max_new_tokens=20, stopping_criteria=criteria)
        assert {len(text.token_ids) for text in texts} == {5}
    assert all_free(model)


def test_stop_strings_are_found_across_borders() -> None:
    model, prompt = model_of(), [3, 1, 4]
    for policy in (Scored(total, (), 4, 1, 1), BestOf(1)):
        [whole] = model.search(prompt, policy, max_new_tokens=20, **SAMPLED)
        stop = Words().decode(whole.token_ids[3:6])
        [text] = model.search(prompt, policy, max_new_tokens=20, stop=stop, **SAMPLED)
        assert text.token_ids == whole.token_ids[:6]
        assert text.text == Words().decode(whole.token_ids[:3])
        assert (whole.finish_reason, text.finish_reason) == ("length", "stop")
    assert all_free(model)


class Counting(Hook):
    """Adds numbers that all tokens before decide; counts its texts."""

    def __init__(self) -> None:
        self.texts, self.most = 0, 0

    def begin(self, prompt: Sequence[int]) -> tuple[int, ...]:
        self.texts += 1
        self.most += 1
        assert list(prompt) == [3, 1, 4]
        return tuple(prompt)

    def advance(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, token)

    def scores(self, state: tuple[int, ...], scores: Any, place: Place) -> Any:
        assert len(state) == place.position == place.generated + 3
        assert place.left == 20 - place.generated
        seed = hash((state, place.left)) % 2**32
        return scores + np.random.default_rng(seed).normal(size=len(scores)).astype(np.float32)

    def end(self, state: Any) -> None:
        self.texts -= 1


@pytest.mark.parametrize("policy", POLICIES)
def test_hooks_follow_each_text(policy: str) -> None:
    found = []
    for speculative in (True, False):
        hook, model = Counting(), model_of(speculative=speculative)
        settings = SamplingSettings() if isinstance(POLICIES[policy], BeamSearch) else SamplingSettings(True, 0.9)
        request = Request([3, 1, 4], 20, settings, keep_logits=True, keep_scores=True, hooks=(hook,))
        texts = search(model.serving, Asked(request, []), POLICIES[policy], Words())
        assert all(len(text.scores) == len(text.token_ids) for text in texts)
        found.append((bits(texts), [text.scores.tobytes() for text in texts]))
        assert hook.texts == 0
        assert hook.most > 0
        assert all_free(model)
    assert found[0] == found[1]


def test_policies_are_light_to_import() -> None:
    code = "import sys, forerun.search; sys.exit(len({'torch', 'transformers', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_resting_sessions_are_not_scheduled() -> None:
    model = model_of(speculative=False)
    first, second = model.serving.begin([Request([1, 2], 9), Request([3], 9)])
    model.serving.wait([first])
    first.resting = True
    assert [each.session for each in Scheduler.schedule(model.serving.scheduler, [first, second]).seats] == [second]
    model.serving.cancel([first, second])
    assert all_free(model)
