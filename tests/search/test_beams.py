"""Beams: transformers' tokens and scores, what brute force finds, and the paper's diversity."""

import random
from typing import Any

import numpy as np
import pytest
import torch

import forerun
from forerun.errors import InvalidOptionError, NotANumberError, TooLongError
from forerun.runtime.engine import Engine
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.hooks.companions import companion_of
from forerun.runtime.model import CompiledModel
from forerun.runtime.request import Generation, Request
from forerun.runtime.search.beam_search import search_beams
from forerun.search import BeamSearch
from tests.models import FAMILIES, RECURRENT
from tests.search.brute import Smooth, all_texts, differences, diverse_beams, log_softmax

PENALTIES = (0.0, 1.0, -0.5, 2.0)


def model_of(oracle: Smooth, blocks: int = 400) -> CompiledModel:
    return CompiledModel(oracle, engine=Engine(oracle, blocks))


def all_free(model: CompiledModel) -> bool:
    cache = model.engine.cache
    return not cache.is_used and cache.free == cache.blocks and cache.free_requests == 64


def told(texts: list[Generation]) -> list[tuple[list[int], float]]:
    return [(text.token_ids, pytest.approx(text.score, abs=1e-4)) for text in texts]


def check_against_transformers(model: Any, compiled: CompiledModel, cases: int, seed: int, **processors: Any) -> None:
    choices = random.Random(seed)
    for _ in range(cases):
        prompt = [choices.randrange(2, 256) for _ in range(choices.randrange(1, 24))]
        beams, ends = choices.choice([2, 3, 4, 7]), choices.choice([None, [5], list(range(0, 256, 7))])
        options: dict[str, Any] = {
            "max_new_tokens": choices.choice([1, 6, 20]),
            "num_beams": beams,
            "length_penalty": choices.choice(PENALTIES),
            "early_stopping": choices.choice([True, False, "never"]),
            "num_return_sequences": choices.randrange(1, beams + 1),
            "output_scores": True,
            **processors,
        }
        if ends is not None and choices.random() < 0.4:
            options["min_new_tokens"] = min(4, options["max_new_tokens"])
        given = torch.tensor([prompt])
        expected = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            return_dict_in_generate=True,
            pad_token_id=0,
            eos_token_id=ends,
            **options,
        )
        found = compiled.generate(prompt, eos_token_id=ends or [], **options)
        texts = found if isinstance(found, list) else [found]
        ended = [bool(ends) and text.token_ids[-1] in ends for text in texts]
        assert [text.finish_reason == "stop" for text in texts] == ended
        assert len(texts) == options["num_return_sequences"]
        for number, text in enumerate(texts):
            row = expected.sequences[number, len(prompt) :].tolist()
            length = len(text.token_ids)
            assert row[:length] == text.token_ids, options
            assert length == int((expected.beam_indices[number] >= 0).sum()), options
            assert text.sequences_scores[0].item() == pytest.approx(expected.sequences_scores[number].item(), abs=1e-3)
            chosen = [int(beam) for beam in expected.beam_indices[number] if beam >= 0]
            rows = torch.stack([expected.scores[at][beam] for at, beam in enumerate(chosen)])
            torch.testing.assert_close(torch.from_numpy(text.scores), rows, atol=2e-3, rtol=1e-3)
    assert all_free(compiled)


def test_texts_and_scores_are_those_of_transformers() -> None:
    model = FAMILIES["llama"]()
    check_against_transformers(model, forerun.compile(model, max_length=128), 20, 1)


PROCESSORS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"bad_words_ids": [[9], [3, 4]], "forced_eos_token_id": 7, "sequence_bias": {(11,): 3.0, (8, 2): -9.0}},
    {"renormalize_logits": True, "repetition_penalty": 0.8, "suppress_tokens": list(range(100, 140))},
]


def test_processors_change_the_scores_of_beams_as_in_transformers() -> None:
    model = FAMILIES["gpt2"]()
    compiled = forerun.compile(model, max_length=128)
    for number, processors in enumerate(PROCESSORS):
        check_against_transformers(model, compiled, 4, number, **processors)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mixtral", "mamba", "lfm2", "qwen3_next"])
def test_other_families_have_transformers_texts_and_scores(family: str) -> None:
    model = (FAMILIES | RECURRENT)[family]()
    check_against_transformers(model, forerun.compile(model, max_length=128), 20, 2)


def test_recurrent_states_fork() -> None:
    model = RECURRENT["mamba"]()
    check_against_transformers(model, forerun.compile(model, "autoregressive", max_length=64), 4, 3)


@pytest.mark.parametrize("stop", [set(), {2}, {0, 4}])
def test_enough_beams_find_the_likeliest_of_all_texts(stop: set[int]) -> None:
    oracle = Smooth(vocabulary=6, candidates=3, seed=len(stop))
    everything = sorted(all_texts(oracle, [1, 3], 3, stop), key=lambda each: -each[1])
    model = model_of(oracle)
    policy = BeamSearch(40, length_penalty=0, early_stopping="never")
    found = model.search([1, 3], policy, max_new_tokens=3, eos_token_id=sorted(stop))
    assert told(found) == everything[:40]
    assert max(oracle.steps) == oracle.max_outputs, "beams that do not fit into one step take several"
    assert all_free(model)


class Wavering(Hook):
    """Adds numbers that all tokens before decide, and excludes some."""

    def __init__(self) -> None:
        self.ended = 0

    def begin(self, prompt: Any) -> tuple[int, ...]:
        return tuple(prompt)

    def advance(self, state: tuple[int, ...], token: int) -> tuple[int, ...]:
        return (*state, token)

    def scores(self, state: tuple[int, ...], scores: Any, place: Place) -> Any:
        assert len(state) == place.position
        numbers = np.random.default_rng(hash((state, place.left)) % 2**32).normal(size=len(scores))
        return np.where(numbers > 1, -np.inf, scores + numbers).astype(np.float32)

    def end(self, state: Any) -> None:
        self.ended += 1


@pytest.mark.parametrize(("beams", "groups", "penalty"), [(5, 1, 0.0), (6, 3, 0.8), (4, 4, 2.5), (8, 2, 0.3)])
@pytest.mark.parametrize("hooked", [False, True])
def test_groups_are_those_of_the_paper(beams: int, groups: int, penalty: float, hooked: bool) -> None:
    hook = Wavering()
    for seed in range(6):
        oracle, prompt = Smooth(seed=seed), [seed + 1] * (seed + 1)
        hooks = (hook,) if hooked else ()
        settings = BeamSearch(beams, num_beam_groups=groups, diversity_penalty=penalty)
        engine = Engine(oracle, 200)
        found = search_beams(engine, Request(prompt, 9, hooks=hooks), settings, None)
        assert told(found) == diverse_beams(Smooth(seed=seed), prompt, 9, beams, groups, penalty, hooks)
        assert engine.cache.free == engine.cache.blocks
    assert hook.ended == 6 * hooked


class Guided(Hook):
    """Classifier-free guidance by evaluating both texts anew."""

    def __init__(self, oracle: Smooth, scale: float, negative: list[int]) -> None:
        self.oracle, self.scale, self.negative = oracle, scale, negative

    def begin(self, prompt: Any) -> list[int]:
        return []

    def advance(self, state: list[int], token: int) -> list[int]:
        return [*state, token]

    def scores(self, state: list[int], scores: Any, place: Place) -> Any:
        other = log_softmax(self.oracle.logits([*self.negative, *state]))
        return self.scale * (scores - other) + other


def test_guidance_follows_each_beam() -> None:
    for seed in range(4):
        model = model_of(Smooth(seed=seed), 200)
        found = model.search([1, 2], BeamSearch(4), max_new_tokens=8, guidance_scale=1.6, negative_prompt_ids=[3, 5, 4])
        hook = Guided(Smooth(seed=seed), 1.6, [3, 5, 4])
        assert told(found) == diverse_beams(Smooth(seed=seed), [1, 2], 8, 4, 1, 0.0, (hook,))
        assert all_free(model)
        assert not companion_of(model).engine.cache.is_used


def test_a_hook_ends_texts() -> None:
    class Sevens(Hook):
        def begin(self, prompt: Any) -> int:
            return 0

        def advance(self, state: int, token: int) -> int:
            return token

        def finishes(self, state: int) -> bool:
            return state in (7, 8)

    oracle = Smooth(seed=5)
    with_hook = search_beams(Engine(oracle, 200), Request([1], 12, hooks=(Sevens(),)), BeamSearch(6), None)
    with_ends = search_beams(Engine(oracle, 200), Request([1], 12, stop=frozenset((7, 8))), BeamSearch(6), None)
    assert told(with_hook) == [(text.token_ids, text.score) for text in with_ends]
    assert [text.finish_reason for text in with_hook] == [text.finish_reason for text in with_ends]
    assert "stop" in [text.finish_reason for text in with_hook]


def test_penalties_make_texts_differ() -> None:
    model = model_of(Smooth(noise=0.3))
    alike = model.generate([1, 2], 12, num_beams=6, num_return_sequences=6)
    other = model.generate([1, 2], 12, num_beams=6, num_return_sequences=6, num_beam_groups=6, diversity_penalty=4.0)
    assert differences([text.token_ids for text in alike]) < differences([text.token_ids for text in other])


def test_bits_do_not_depend_on_the_strategy() -> None:
    model = FAMILIES["gpt2"]()
    compiled = forerun.compile(model, strategy=forerun.TreeSpec(policy=forerun.Fixed(8)), max_length=64)
    others = [forerun.with_strategy(compiled, "autoregressive"), forerun.with_strategy(compiled, "prompt_lookup")]
    for policy in (BeamSearch(5), BeamSearch(6, num_beam_groups=2, diversity_penalty=1.0)):
        first, *rest = [
            each.search([5, 9, 200], policy, max_new_tokens=24, return_logits=True) for each in (compiled, *others)
        ]
        for texts in rest:
            assert all(one.has_bits_of(other) for one, other in zip(first, texts, strict=True))
            assert [text.score for text in first] == [text.score for text in texts]
        logits = torch.tensor(first[0].logits).log_softmax(-1)
        own = logits.gather(1, torch.tensor(first[0].token_ids)[:, None])
        if policy.num_beam_groups == 1:
            assert first[0].score == pytest.approx(own.mean().item(), abs=1e-4)


def test_several_prompts_and_one_beam() -> None:
    model = model_of(Smooth())
    found = model.generate([[1, 2], [3]], 8, num_beams=3, num_return_sequences=2)
    assert [text.prompt_ids for text in found] == [[1, 2], [1, 2], [3], [3]]
    alone = [model.search(prompt, BeamSearch(3), max_new_tokens=8)[:2] for prompt in ([1, 2], [3])]
    assert told(found) == [(text.token_ids, text.score) for texts in alone for text in texts]
    assert model.search([3], BeamSearch(1), max_new_tokens=8)[0].token_ids == model.generate([3], 8).token_ids
    assert model.generate([3], 8, num_beams=1, length_penalty=2.0, early_stopping=True).score is None


def test_a_prompt_is_read_once_and_shared() -> None:
    oracle = Smooth()
    model, prompt = model_of(oracle, 60), [number % 24 for number in range(41)]
    model.generate(prompt, 6, num_beams=5)
    rows, copies = sum(oracle.steps), oracle.copies
    assert rows == 40 + 1 + 5 * 5
    assert copies <= 6 * 5 * (oracle.block - 1)
    model.generate(prompt, 6, num_beams=5)
    assert sum(oracle.steps) - rows == 1 + 5 * 5, "its blocks are still there"
    assert all_free(model)


def test_room_is_asked_for_at_the_beginning() -> None:
    oracle = Smooth()
    model = model_of(oracle, 4 + 20)
    with pytest.raises(TooLongError, match=r"^8 beams of 30 new tokens after a prompt of 2 need 256 positions .* 80"):
        model.generate([1, 2], 30, num_beams=8)
    assert not oracle.steps
    assert model.generate([1, 2], 30, num_beams=2).score is not None
    assert all_free(model)


def test_nan_ends_a_search() -> None:
    oracle = Smooth()
    model = model_of(oracle)
    text = model.generate([2], 6, num_beams=3).token_ids
    oracle.logits([2, *text[:3]])[5] = np.nan
    with pytest.raises(NotANumberError, match="position 3"):
        model.generate([2], 6, num_beams=3)
    assert model.generate([2], 6, num_beams=3, allow_nan=True).token_ids
    assert all_free(model)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 4, "do_sample": True}, "num_beams=4 does not combine with do_sample=True"),
        ({"num_beams": 4, "stopping_criteria": [lambda ids, scores: True]}, "stopping_criteria does not combine with"),
        ({"num_beams": 4, "stop": ["x"]}, "stop does not combine with num_beams=4"),
        ({"generation_config": {"num_beams": 3, "stop_strings": "x"}}, "stop_strings does not combine with"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 exceeds num_beams=2"),
        ({"num_beams": 4, "num_beam_groups": 3}, "num_beam_groups=3 must divide num_beams=4"),
        ({"num_beams": 4, "diversity_penalty": 0.5}, "diversity_penalty needs num_beam_groups"),
        ({"num_beam_groups": 2}, "num_beam_groups=2 needs num_beams"),
        ({"num_beams": 4, "early_stopping": "sometimes"}, 'must be True, False or "never"'),
        ({"num_beams": 4, "length_penalty": float("nan")}, "length_penalty of BeamSearch must be a number"),
        ({"num_beams": 0}, "num_beams must be 1 or more"),
        ({"num_beams": True}, "num_beams must be an integer"),
    ],
)
def test_what_does_not_combine_is_refused_by_name(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidOptionError, match=sentence):
        model_of(Smooth()).generate([1], 5, **options)


def test_streams_and_sessions_take_no_beams() -> None:
    model = model_of(Smooth())
    for begin in (model.stream, model.sessions):
        with pytest.raises(InvalidOptionError, match="only generate takes num_beams"):
            begin([1], max_new_tokens=5, num_beams=2)

    class Streamer:
        def put(self, value: Any) -> None: ...

        def end(self) -> None: ...

    with pytest.raises(InvalidOptionError, match="streamer does not combine with num_beams=2"):
        model.generate([1], 5, num_beams=2, streamer=Streamer())
