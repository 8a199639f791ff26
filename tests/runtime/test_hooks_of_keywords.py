"""Hooks of keywords: random ones under random drafts, others' processors, forks, and defaults of a model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from test_generation import RandomDrafter, collect, policies, requests
from test_hooks import reference
from transformers import GenerationConfig, LogitsProcessor

from forerun import hooks as public
from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.generation import decode
from forerun.runtime.hooks.keywords import Given, hooks_of
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.request import Request, Step

VOCABULARY = Oracle().vocabulary
PROMPT = [1, 2, 3, 1, 2]
tokens = st.integers(0, VOCABULARY - 1)
some = st.lists(tokens, min_size=1, max_size=6)
numbers = st.floats(-3, 3, width=32)
KEYWORDS: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.floats(0.5, 2),
    "presence_penalty": numbers,
    "frequency_penalty": numbers,
    "no_repeat_ngram_size": st.integers(0, 4),
    "logit_bias": st.dictionaries(tokens, numbers, max_size=5),
    "sequence_bias": st.dictionaries(st.lists(tokens, min_size=1, max_size=2).map(tuple), numbers, min_size=1),
    "bad_words_ids": st.lists(st.lists(tokens, min_size=1, max_size=2), min_size=1, max_size=9),
    "suppress_tokens": some,
    "begin_suppress_tokens": some,
    "forced_bos_token_id": tokens,
    "forced_eos_token_id": tokens,
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 4), st.floats(0.5, 2)),
    "allowed_token_ids": st.lists(tokens, min_size=20, max_size=40),
    "logits_processor": st.just([lambda ids, scores: scores - (scores.argsort() % (ids.shape[1] % 5 + 1))]),
}
given_keywords = st.lists(st.sampled_from(sorted(KEYWORDS)), min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: KEYWORDS[name] for name in names})
)


def fast(**options: Any) -> CompiledModel:
    oracle = Oracle()
    return CompiledModel(oracle, Merged([PromptLookup(), TokenRecycling(oracle.vocabulary)]), Fixed(8), **options)


def slow(**options: Any) -> CompiledModel:
    return CompiledModel(Oracle(), **options)


def attempted(request: Request, drafter: Drafter, policy: Policy) -> list[Step] | None:
    """The steps of a text; None if the hooks leave no token."""
    try:
        return list(decode(Engine(Oracle()), request, drafter, policy))
    except InvalidOptionError:
        return None


@settings(max_examples=150, deadline=None)
@given(request=requests, policy=policies, seed=st.integers(0, 20), keywords=given_keywords, least=st.integers(0, 5))
def test_texts_are_those_of_plain_decoding(
    request: Request, policy: Policy, seed: int, keywords: dict[str, Any], least: int
) -> None:
    oracle = Oracle()
    keywords = keywords | {"min_new_tokens": least}
    hooks = hooks_of(Given(keywords, len(request.prompt), request.stop, least, VOCABULARY))
    request = replace(request, hooks=hooks, keep_scores=True, min_new_tokens=0)
    plain = attempted(request, Drafter(), Fixed(1))
    found = attempted(request, RandomDrafter(seed, oracle), policy)
    if plain is None or found is None:
        assert plain is found
        return
    expected = reference(oracle, request)
    assert collect(found)[0] == collect(plain)[0] == expected
    scores = [np.concatenate([step.scores for step in steps if step.scores is not None]) for steps in (plain, found)]
    assert scores[0].tobytes() == scores[1].tobytes()


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda ids, scores: None, r"must return a tensor of scores \[1, 24\], not NoneType"),
        (lambda ids, scores: scores[0], r"must return scores \[1, 24\] of floats, not float32 \[24\]"),
        (lambda ids, scores: scores.long(), r"of floats, not int64 \[1, 24\]"),
        (lambda ids, scores: scores * float("nan"), "no token is left at position 5"),
    ],
)
def test_what_a_processor_may_return(returned: Any, told: str) -> None:
    def mine(ids: torch.Tensor, scores: torch.Tensor) -> Any:
        return returned(ids, scores)

    with pytest.raises(InvalidOptionError, match=told) as caught:
        fast().generate(PROMPT, 4, logits_processor=mine)
    assert "mine" in str(caught.value)
    wanted = fast().generate(PROMPT, 4).token_ids
    double = fast().generate(PROMPT, 4, logits_processor=lambda ids, scores: scores.double().requires_grad_())
    assert double.token_ids == wanted


@pytest.mark.parametrize(
    ("returned", "told"),
    [([], "allows no token at position 5"), ([24], "from 0 to 23"), ([1.5], "token ids"), (None, "token ids")],
)
def test_what_allowed_tokens_may_be(returned: Any, told: str) -> None:
    with pytest.raises(InvalidOptionError, match=told):
        fast().generate(PROMPT, 4, prefix_allowed_tokens_fn=lambda number, ids: returned)


WRONG: dict[str, list[Any]] = {
    "repetition_penalty": ["1.1", True, 0, -1.0, float("nan"), float("inf")],
    "presence_penalty": ["1.1", True, float("nan"), float("inf")],
    "frequency_penalty": ["1.1", float("-inf")],
    "no_repeat_ngram_size": ["3", 2.0, True, -1],
    "logit_bias": [[1], {"1": 2}, {24: 1}, {-1: 1}, {1: "2"}, {1: float("nan")}, 3],
    "sequence_bias": [3, [3], {1: 2}, {(): 1}, {(24,): 1}, {(1,): "2"}, {(1.5,): 2}, [[[1], 2, 3]]],
    "bad_words_ids": [3, [3], [[]], [[24]], [[-1]], [["x"]], "x"],
    "suppress_tokens": [24, [-1], [1.5], "x", [[1], [2, 3]]],
    "begin_suppress_tokens": [24, [-1], [1.5]],
    "allowed_token_ids": [24, [-1], [], "x"],
    "forced_bos_token_id": [24, -1, 1.5],
    "forced_eos_token_id": [24, [-1], "x"],
    "exponential_decay_length_penalty": [3, (1,), (1, "x"), (-1, 2.0), (1.5, 2.0), (1, 0.0)],
    "prefix_allowed_tokens_fn": [3, [3]],
    "logits_processor": [3, "x", [3], LogitsProcessor],
}


@pytest.mark.parametrize("name", WRONG)
def test_values_of_the_wrong_kind_are_refused_by_name(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(InvalidOptionError, match=name) as caught:
            fast().generate(PROMPT, 4, eos_token_id=5, **{name: value})
        assert len(str(caught.value).splitlines()) == 1


def test_texts_of_a_list_have_numbers() -> None:
    seen: set[tuple[int, int]] = set()

    def allowed(number: int, ids: torch.Tensor) -> torch.Tensor:
        seen.add((number, int(ids[0])))
        return torch.arange(number, 24)

    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, "prefix_allowed_tokens_fn": allowed}
    fast().generate([[1, 2], [3]], 3, **options)
    assert seen == {(0, 1), (1, 1), (2, 3), (3, 3)}


def test_errors_of_a_processor_end_its_text_alone() -> None:
    def fails(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if int(ids[0, 0]) == 3:
            raise ZeroDivisionError
        return scores

    with fast().sessions([[1, 2], [3, 2]], max_new_tokens=6, logits_processor=fails) as sessions:
        for _ in sessions:
            pass
        good, bad = sessions.all
    assert good.token_ids == slow().generate([1, 2], 6).token_ids
    assert isinstance(bad.error, ZeroDivisionError)


@pytest.mark.parametrize("way", [{}, {"do_sample": True, "seed": 4}])
@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": 1.5},
        {"exponential_decay_length_penalty": (4, 1.5), "eos_token_id": 7},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 10, "eos_token_id": [3, 4, 5, 6]},
        {"forced_eos_token_id": 9},
    ],
)
def test_forks_count_from_the_first_prompt(options: dict[str, Any], way: dict[str, Any]) -> None:
    whole = slow().generate(PROMPT, 16, **options, **way).token_ids
    for model in (fast(), slow()):
        with model.sessions(PROMPT, max_new_tokens=16, **options, **way) as sessions:
            forked, at = None, 0
            for session in sessions:
                if forked is None and len(session.token_ids) >= 4 and not session.finished:
                    forked, at = session.fork(), len(session.token_ids)
        assert sessions.all[0].token_ids == whole
        if forked is not None:
            assert forked.token_ids == whole[at:]


def test_ends_are_kept_out_in_transformers_order() -> None:
    """A forced end comes after min_new_tokens, which alone would exclude it."""
    options: dict[str, Any] = {"min_new_tokens": 9, "forced_eos_token_id": 5, "eos_token_id": 5}
    assert fast().generate(PROMPT, 4, **options).token_ids[-1] == 5
    assert fast().generate(PROMPT, 4, **options, logits_processor=lambda ids, scores: scores).token_ids[-1] == 5


def test_defaults_of_a_model() -> None:
    defaults = {"repetition_penalty": 1.8, "temperature": 0.7, "top_k": 5, "min_length": 9}
    model, bare = fast(defaults=defaults), slow()
    greedy = {"repetition_penalty": 1.8, "min_length": 9}
    assert model.generate(PROMPT, 9).token_ids == bare.generate(PROMPT, 9, **greedy).token_ids
    assert (
        model.generate(PROMPT, 9, repetition_penalty=1.0, min_length=0).token_ids == bare.generate(PROMPT, 9).token_ids
    )
    sampled = {"do_sample": True, "seed": 2}
    expected = bare.generate(PROMPT, 9, **sampled, **greedy, temperature=0.7, top_k=5).token_ids
    assert model.generate(PROMPT, 9, **sampled).token_ids == expected
    sampling = fast(defaults=defaults | {"do_sample": True})
    assert sampling.generate(PROMPT, 9, seed=2).token_ids == expected
    assert sampling.generate(PROMPT, 9, do_sample=False).token_ids == bare.generate(PROMPT, 9, **greedy).token_ids
    warm = bare.generate(PROMPT, 9, **sampled, **greedy, temperature=3.0, top_k=5).token_ids
    assert sampling.generate(PROMPT, 9, seed=2, temperature=3.0).token_ids == warm
    config = GenerationConfig(temperature=3.0)
    assert sampling.generate(PROMPT, 9, seed=2, generation_config=config).token_ids == warm
    assert (
        sampling.generate(PROMPT, 9, generation_config=GenerationConfig(do_sample=False)).token_ids
        == bare.generate(PROMPT, 9, **greedy).token_ids
    )
    free = bare.generate(PROMPT, 9).token_ids
    both = {"min_new_tokens": 3, "eos_token_id": free[0]}
    assert (
        fast(defaults={"min_length": 14}).generate(PROMPT, 9, **both).token_ids
        == bare.generate(PROMPT, 9, **both).token_ids
    )


def test_public_names() -> None:
    assert sorted(public.__all__) == public.__all__
    assert all(getattr(public, name).__name__ == name for name in public.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = public.Nothing
    for hook in (public.LogitBias({24: 1.0}), public.SuppressTokens([24]), public.BadWords([[1, 24]])):
        with pytest.raises(InvalidOptionError, match="outside the vocabulary of 24"):
            fast().generate(PROMPT, 4, logits_processor=hook)
    mine = fast().generate(PROMPT, 12, logits_processor=[public.RepetitionPenalty(1.5), public.NoRepeatedNgrams(2)])
    assert mine.token_ids == slow().generate(PROMPT, 12, repetition_penalty=1.5, no_repeat_ngram_size=2).token_ids
