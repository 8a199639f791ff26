"""Companions follow the path in a cache of their own: whatever is drafted, what they evaluate is their own text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from test_generation import RandomDrafter, collect, policies, requests

from forerun.errors import InvalidOptionError, PromptError, TooLongError
from forerun.runtime.drafters.base import Drafter
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Branch, Float32, Part
from forerun.runtime.generation import decode
from forerun.runtime.hooks.base import Hook, Place
from forerun.runtime.hooks.contrasts import ContextAware, Contrast, Contrastive, Dola, Guidance
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.request import Request, Step
from forerun.runtime.sampling import SamplingSettings, choose_token
from forerun.runtime.session import Session
from forerun.runtime.tree import chain, root_only

SMALL = {"max_rows": 5, "max_outputs": 3, "max_path": 2, "seed": 9}
"""An amateur whose steps are smaller than the target's trees."""


def model_of(oracle: Oracle, **limits: Any) -> Any:
    return SimpleNamespace(engine=Engine(oracle, **limits), tokenizer=None)


@dataclass
class Made:
    """Hooks with the oracle that each one's companion runs."""

    hooks: list[Contrast]
    oracles: list[Oracle]


def made(oracle: Oracle, kinds: Sequence[str]) -> Made:
    """All companions but the amateur share the target's executable, so that its results are poisoned by theirs."""
    model, amateur = model_of(oracle), Oracle(**SMALL)
    makers: dict[str, Callable[[], Contrast]] = {
        "guidance": lambda: Guidance(model, 1.5),
        "negative": lambda: Guidance(model, 0.7, [4, 1, 7]),
        "context": lambda: ContextAware(model, lambda prompt: [*prompt[-3:], 2], alpha=0.5),
        "amateur": lambda: Contrastive(model_of(amateur), alpha=0.02),
    }
    return Made([makers[kind]() for kind in kinds], [amateur if kind == "amateur" else oracle for kind in kinds])


def reference(oracle: Oracle, request: Request, oracles: Sequence[Oracle]) -> tuple[list[int], list[Float32]]:
    """Plain decoding with neither cache nor engine: each companion's logits are computed from its whole text."""
    tokens, generated, found = list(request.prompt), list[int](), list[Float32]()
    while len(generated) < request.max_new_tokens and not (generated and generated[-1] in request.stop):
        scores = oracle.logits(tokens)
        for hook, own in zip(request.hooks, oracles, strict=True):
            assert isinstance(hook, Contrast)
            beside = own.logits([*hook.prompt(request.prompt), *generated])
            scores = hook.contrast(scores.astype(np.float64), beside[None].astype(np.float64)).astype(np.float32)
        found.append(scores)
        tokens.append(choose_token(scores, request.sampling, request.identifier, len(tokens)))
        generated.append(tokens[-1])
    return generated, found


def tokens_of(steps: Sequence[Step]) -> list[int]:
    return [token for step in steps for token in step.tokens]


def scores_of(steps: Sequence[Step]) -> bytes:
    return np.concatenate([step.scores for step in steps if step.scores is not None]).tobytes()


def assert_free(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        if isinstance(hook, Contrast):
            cache = hook.companion.engine.cache
            assert cache.free == cache.blocks
            assert not hook.companion._texts


@settings(max_examples=40, deadline=None)
@given(
    request=requests,
    policy=policies,
    seed=st.integers(0, 20),
    kinds=st.sampled_from(
        [["guidance"], ["negative"], ["context"], ["amateur"], ["guidance", "context"], ["amateur", "negative"]]
    ),
)
def test_texts_are_those_of_plain_decoding(request: Request, policy: Policy, seed: int, kinds: list[str]):
    oracle = Oracle()
    own = made(oracle, kinds)
    request = replace(request, hooks=tuple(own.hooks), keep_scores=True)
    expected, scores = reference(oracle, request, own.oracles)
    plain = list(decode(Engine(oracle), request, Drafter(), Fixed(1)))
    found = list(decode(Engine(oracle), request, RandomDrafter(seed, oracle), policy))
    assert tokens_of(plain) == tokens_of(found) == expected
    assert scores_of(plain) == scores_of(found)
    assert collect(plain)[1].tobytes() == collect(found)[1].tobytes()
    if not request.sampling.do_sample:
        assert scores_of(plain) == np.stack(scores).tobytes()
    assert_free(own.hooks)


def serve(model: CompiledModel, wanted: Sequence[Request]) -> list[list[int]]:
    """All requests together."""
    sessions: list[Session] = model.serving.begin(wanted)
    found: list[list[int]] = [[] for _ in sessions]
    while not all(session.finished and not session.has_steps for session in sessions):
        waiting = [session for session in sessions if not session.finished or session.has_steps]
        model.serving.wait(waiting)
        for number, session in enumerate(sessions):
            found[number] += tokens_of(list(session.take()))
    return found


@pytest.mark.parametrize("blocks", [None, 16 + 16])  # room for all texts, or for one, beside spare slots
@pytest.mark.parametrize("sampled", [False, True])
def test_sessions_share_a_hook_and_its_launches(blocks: int | None, sampled: bool):
    oracle, random = Oracle(max_rows=64), np.random.default_rng(3)
    model = CompiledModel(oracle, RandomDrafter(0, oracle), Fixed(4))
    hooks = Guidance(model, 1.5, [4, 1, 7]), ContextAware(model, [3, 2])
    companion = hooks[0].companion
    assert hooks[1].companion is companion
    engine = companion.engine = Engine(oracle, blocks)
    engine.serving = companion.serving
    sampling = SamplingSettings(do_sample=True, seed=5) if sampled else SamplingSettings()
    prompts = [random.integers(0, 24, int(random.integers(1, 20))).tolist() for _ in range(4)]
    wanted = [Request(each, 20, sampling, identifier=at, hooks=hooks) for at, each in enumerate(prompts)]
    target = model.engine.runs
    assert serve(model, wanted) == [reference(oracle, each, [oracle, oracle])[0] for each in wanted]
    assert_free(hooks)
    if blocks is None:
        most = 3  # launches for 8 trees of 4 rows: all but the last have more than 16 - 4 rows
        assert engine.runs <= most * (model.engine.runs - target) + len(prompts) * len(hooks)


def test_a_launch_for_each_iteration():
    oracle = Oracle()
    own = made(oracle, ["guidance"])
    engine, drafter = Engine(oracle), RandomDrafter(1, oracle)
    steps = list(decode(engine, Request([1, 2, 3], 40, hooks=tuple(own.hooks)), drafter, Fixed(8)))
    assert own.hooks[0].companion.engine.runs == len(steps) - 1 < 40


def test_forks_and_copies_follow_their_own_paths():
    oracle = Oracle()
    model = CompiledModel(oracle, RandomDrafter(2, oracle), Fixed(6))
    sessions = model.sessions([1, 2, 3], max_new_tokens=24, guidance_scale=1.5, negative_prompt_ids=[4, 1, 7])
    [first] = sessions.all
    for _ in sessions:
        if len(first.token_ids) >= 8:
            break
    forked = first.fork([9, 5], max_new_tokens=16)
    begun = [1, 2, 3, *first.token_ids, 9, 5]
    texts = sessions.generations()
    request = Request([1, 2, 3], 24, hooks=(Guidance(model, 1.5, [4, 1, 7]),))
    assert texts[0].token_ids == reference(oracle, request, [oracle])[0]
    own = list(texts[1].token_ids)
    for at in range(16):
        given, beside = [*begun, *own[:at]], [4, 1, 7, *begun[3:], *own[:at]]
        logits = [oracle.logits(each).astype(np.float64) for each in (given, beside)]
        assert own[at] == int(request.hooks[0].contrast(logits[0], logits[1][None]).astype(np.float32).argmax())  # type: ignore[attr-defined]
    assert forked.finished
    assert_free(request.hooks)
    copies = model.generate([1, 2, 3], 12, do_sample=True, guidance_scale=1.5, num_return_sequences=3)
    for number, each in enumerate(copies):
        copy = Request(
            [1, 2, 3], 12, SamplingSettings(do_sample=True), identifier=number, hooks=(Guidance(model, 1.5),)
        )
        assert each.token_ids == reference(oracle, copy, [oracle])[0]


def test_a_text_may_be_reached_in_any_way():
    """Without a tree, after another path, and again after its blocks were given away."""
    oracle = Oracle()
    hook = Guidance(model_of(oracle), 1.5, [4, 1, 7])
    other = hook.begin([1])
    start = hook.begin([1, 2])
    left, right = hook.advance(hook.advance(start, 5), 6), hook.advance(start, 9)
    hook.prepare(start, chain(2, [5, 6]))

    def check(state: Any, tokens: list[int]) -> None:
        assert hook.companion.logits(state)[0].tobytes() == oracle.logits([4, 1, 7, *tokens]).tobytes()

    check(left, [5, 6])
    check(right, [9])
    check(start, [])
    check(left, [5, 6])
    check(other, [])
    hook.companion._forget(left.text)
    hook.prepare(left, root_only(6))
    hook.evaluate()
    check(hook.advance(left, 3), [5, 6, 3])
    check(left, [5, 6])
    hook.end(left)
    hook.end(other)
    assert_free([hook])


def test_an_error_frees_what_was_begun():
    class Fails(Hook):
        def begin(self, prompt: Sequence[int]) -> None:
            raise ValueError("not today")

    class FailsLater(Hook):
        def scores(self, state: Any, scores: Float32, place: Place) -> Float32:
            if place.generated == 3:
                raise ValueError("not any more")
            return scores

    for failing, told in ((Fails(), "not today"), (FailsLater(), "not any more")):
        own = made(Oracle(), ["guidance", "context"])
        request = Request([1, 2, 3], 8, hooks=(*own.hooks, failing))
        with pytest.raises(ValueError, match=told):
            list(decode(Engine(own.oracles[0]), request, Drafter(), Fixed(1)))
        assert_free(own.hooks)
    own = made(Oracle(), ["guidance"])
    steps = decode(Engine(own.oracles[0]), Request([1, 2, 3], 8, hooks=tuple(own.hooks)), Drafter(), Fixed(1))
    next(steps), next(steps)
    steps.close()
    assert_free(own.hooks)


def test_one_that_fails_ends_alone():
    oracle = Oracle()
    model = CompiledModel(oracle, RandomDrafter(0, oracle), Fixed(4))
    wrong = Contrastive(model_of(Oracle(vocabulary=30)))
    good = Request([1, 2], 9, hooks=(Guidance(model, 1.5),))
    sessions = model.serving.begin([good, Request([1, 2], 9, hooks=(wrong,)), Request([3], 9)])
    while waiting := [session for session in sessions if not session.finished]:
        model.serving.wait(waiting)
        for session in waiting:
            list(session.pending())
    assert [session.error is None for session in sessions] == [True, False, True]
    assert sessions[0].token_ids == reference(oracle, good, [oracle])[0]
    assert_free([wrong, *good.hooks])


def hooked(hook: Hook, prompt: Sequence[int] = (1, 2, 20), new: int = 4, oracle: Oracle | None = None) -> None:
    list(decode(Engine(oracle or Oracle()), Request([*prompt], new, hooks=(hook,)), Drafter(), Fixed(1)))


def with_nan() -> Oracle:
    broken = Oracle(seed=4)
    broken.bigram[:, 3] = np.nan
    return broken


class Whole(Oracle):
    """Has branches, but no parts."""

    def run(self, entry: Part, *arguments: Any, **keywords: Any) -> Any:
        if entry != WHOLE:
            raise InvalidOptionError("there is no such part")
        return super().run(entry, *arguments, **keywords)


LAYERS = tuple(Branch(layer, kind, 1) for layer in range(4) for kind in ("attention", "feed_forward"))

WRONG: dict[str, tuple[type[Exception], Callable[[], Any], str]] = {
    "a smaller vocabulary": (
        InvalidOptionError,
        lambda: hooked(Contrastive(model_of(Oracle(vocabulary=12)))),
        "token id 20 is outside the companion's vocabulary of 12: give a model with the target's vocabulary",
    ),
    "a smaller vocabulary, in small tokens": (
        InvalidOptionError,
        lambda: hooked(Contrastive(model_of(Oracle(vocabulary=12))), [1]),
        "the companion of Contrastive has a vocabulary of 12, but the target one of 24",
    ),
    "a larger vocabulary": (InvalidOptionError, lambda: hooked(Contrastive(model_of(Oracle(vocabulary=30)))), "of 30"),
    "a shorter companion": (
        TooLongError, lambda: hooked(Contrastive(model_of(Oracle(max_length=16))), [1] * 14), "exceed max_length 16"
    ),
    "a long negative prompt": (
        TooLongError, lambda: hooked(Guidance(model_of(Oracle(max_length=16)), 2, [1] * 17)), "max_length 16: shorten"
    ),
    "NaN": (InvalidOptionError, lambda: hooked(Contrastive(model_of(with_nan()))), "NaN logits at position 2"),
    "an empty prompt": (PromptError, lambda: hooked(ContextAware(model_of(Oracle()), lambda prompt: [])), "is empty"),
    "a text without a tokenizer": (PromptError, lambda: ContextAware(model_of(Oracle()), "text"), "no tokenizer"),
    "two negative prompts": (InvalidOptionError, lambda: Guidance(model_of(Oracle()), 2, [[1], [2]]), "not 2: give"),
    "no model": (InvalidOptionError, lambda: Contrastive("gpt2"), "Contrastive needs a compiled model, not str"),  # type: ignore[arg-type]
    "a scale in words": (InvalidOptionError, lambda: Guidance(model_of(Oracle()), "much"), "scale of Guidance"),  # type: ignore[arg-type]
    "no alpha": (InvalidOptionError, lambda: Contrastive(model_of(Oracle()), alpha=0), "above 0"),
    "no inner exits": (InvalidOptionError, lambda: Dola(model_of(Oracle())), "no inner exits"),
    "no parts": (InvalidOptionError, lambda: Dola(model_of(Whole(branches=LAYERS)), [1]), "cannot be left"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_companions_are_refused(case: str):
    error, call, told = WRONG[case]
    with pytest.raises(error, match=told):
        call()


def test_the_keywords_of_guidance():
    model = CompiledModel(Oracle(), Drafter(), Fixed(1))
    plain = model.generate([1, 2, 3], 8)
    assert model.generate([1, 2, 3], 8, guidance_scale=1).token_ids == plain.token_ids
    guided = model.generate([1, 2, 3], 8, guidance_scale=3.0)
    assert guided.token_ids == model.generate([1, 2, 3], 8, guidance_scale=3.0, negative_prompt_ids=[3]).token_ids
    both = model.generate([[1, 2, 3], [4, 5]], 8, guidance_scale=3.0, negative_prompt_ids=[[3, 0], [7, 8]])
    for prompt, negative, each in zip([[1, 2, 3], [4, 5]], ([3, 0], [7, 8]), both, strict=True):
        alone = model.generate(prompt, 8, guidance_scale=3.0, negative_prompt_ids=negative)
        assert each.token_ids == alone.token_ids
    by_hand = model.generate([1, 2, 3], 8, logits_processor=Guidance(model, 3.0))
    assert by_hand.token_ids == guided.token_ids
    padded = np.array([[0, 6], [7, 8]]), np.array([[0, 1], [1, 1]])
    keywords = {"negative_prompt_ids": padded[0], "negative_prompt_attention_mask": padded[1]}
    masked = model.generate([[1, 2, 3], [4, 5]], 8, guidance_scale=3.0, **keywords)
    assert masked[0].token_ids == model.generate([1, 2, 3], 8, guidance_scale=3.0, negative_prompt_ids=[6]).token_ids
    for wrong, told in (
        ({"negative_prompt_ids": [1]}, "needs guidance_scale"),
        ({"guidance_scale": "much"}, "guidance_scale must be a number"),
        ({"guidance_scale": 2, "negative_prompt_ids": [[1], [2]]}, "2 negative prompts for 1 prompts"),
        ({"guidance_scale": 2, "negative_prompt_attention_mask": [1]}, "without negative_prompt_ids"),
    ):
        with pytest.raises(InvalidOptionError, match=told):
            model.generate([1, 2], 4, **wrong)
