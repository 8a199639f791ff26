"""Best of n and texts that a scorer ranks at borders: what plain decoding of each candidate gives."""

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.keywords import Asked
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.scheduler import Scheduler
from forerun.runtime.search.searching import search
from forerun.search import BeamSearch, BestOf, Scored
from tests.runtime.oracle import Oracle
from tests.search.brute import Smooth, grown, log_softmax, sampled
from tests.search.searched import POLICIES, SAMPLED, Words, all_free, bits, model_of, request_of, total


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


def test_functions_of_prefixes_know_the_number_of_their_text() -> None:
    def allowed(number: int, ids: Any) -> list[int]:
        return [number, number + 8]

    found = model_of().search([3], BestOf(4), max_new_tokens=6, prefix_allowed_tokens_fn=allowed, **SAMPLED)
    assert {token % 8 for text in found for token in text.token_ids[:1]} == {0, 1, 2, 3}
    assert all(len({token % 8 for token in text.token_ids}) == 1 for text in found)


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
    code = "import sys, forerun.search; sys.exit(len({'torch', 'transformers', 'tvm', 'xdsl'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_resting_sessions_are_not_scheduled() -> None:
    model = model_of(speculative=False)
    first, second = model.serving.begin([Request([1, 2], 9), Request([3], 9)])
    model.serving.wait([first])
    first.resting = True
    assert [each.session for each in Scheduler.schedule(model.serving.scheduler, [first, second]).seats] == [second]
    model.serving.cancel([first, second])
    assert all_free(model)
