"""Contrasts against transformers and the papers' formulas, by whole forward passes, and against plain decoding."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import forerun
from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.base import Budget, Context, Drafter, Proposal
from forerun.runtime.hooks.base import Hook
from forerun.runtime.hooks.contrasts import ContextAware, Contrastive, Dola, Guidance
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.tree import TreeBuilder
from tests.models import FAMILIES, RECURRENT, VOCABULARY

LAYERS = 6
NEW = 16
PROMPTS = [np.random.default_rng(number).integers(2, VOCABULARY, 3 + number).tolist() for number in range(20)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """So tiny models are slower on several threads, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Sources(NamedTuple):
    target: Any
    amateur: Any


@cache
def sources() -> Sources:
    return Sources(FAMILIES["llama"](num_hidden_layers=LAYERS), FAMILIES["qwen2"]())


@cache
def compiled(which: str) -> CompiledModel:
    return forerun.compile(getattr(sources(), which), strategy="autoregressive", max_length=128)


class Knowing(Drafter):
    """Random trees in which the text that comes is often right."""

    def __init__(self, text: Sequence[int], seed: int) -> None:
        self.text, self.random = list(text), np.random.default_rng(seed)

    def propose(self, context: Context, budget: Budget) -> Proposal:
        builder, at, known = TreeBuilder(context.tokens[-1]), 0, len(context.tokens)
        for _ in range(int(self.random.integers(0, 2 * budget.rows))):
            if len(builder) == budget.rows:
                break
            follows = self.text[known + builder.depths[at] :][:1] if builder.depths[at] < budget.depth else []
            if follows and self.random.random() < 0.7:
                at = builder.add(at, follows[0], 0.9)
            parent = int(self.random.integers(len(builder)))
            if len(builder) < budget.rows and builder.depths[parent] < budget.depth:
                builder.add(parent, int(self.random.integers(VOCABULARY)), 0.1)
        return Proposal(builder.build())


HOOKS: dict[str, Callable[[CompiledModel], Hook]] = {
    "guidance": lambda model: Guidance(model, 1.5),
    "negative": lambda model: Guidance(model, 2.5, [9, 8, 7, 6]),
    "context": lambda model: ContextAware(model, lambda prompt: prompt[2:], alpha=0.7),
    "amateur": lambda model: Contrastive(compiled("amateur"), alpha=0.2, temperature=0.8),
    "beta": lambda model: Contrastive(compiled("amateur"), alpha=0.1, beta=0.5),
    "dola": lambda model: Dola(model, [2, 3, 4]),
    "one layer": lambda model: Dola(model, "low", relative_top=0.3),
}


def decoded(model: CompiledModel, request: Request) -> tuple[list[int], bytes, bytes, int]:
    """The tokens, the bits of their logits and of their scores, and the steps."""
    steps = list(model.steps(request))
    logits = np.concatenate([step.logits for step in steps if step.logits is not None])
    scores = np.concatenate([step.scores for step in steps if step.scores is not None])
    return [token for step in steps for token in step.tokens], logits.tobytes(), scores.tobytes(), len(steps)


def assert_same_bits(model: CompiledModel, hook: Hook, sampling: SamplingSettings, seed: int) -> None:
    """With random trees, the text is that of plain decoding, in fewer steps."""
    prompt = PROMPTS[10 + seed]
    request = Request(prompt, NEW, sampling, hooks=(hook,), keep_logits=True, keep_scores=True)
    *plain, count = decoded(model, request)
    drafter = Knowing([*prompt, *plain[0]], seed)
    drafting = CompiledModel(model.executable, drafter, Fixed(12), engine=model.engine)
    *found, fewer = decoded(drafting, request)
    assert plain == found
    assert fewer < count
    cache = hook.companion.engine.cache  # type: ignore[attr-defined]
    assert cache.free == cache.blocks


@pytest.mark.parametrize("sampling", [SamplingSettings(), SamplingSettings(do_sample=True, temperature=0.8, seed=3)])
@pytest.mark.parametrize("kind", HOOKS)
def test_bits_of_plain_decoding(kind: str, sampling: SamplingSettings):
    model = compiled("target")
    for seed in range(2):
        assert_same_bits(model, HOOKS[kind](model), sampling, seed)


@pytest.mark.parametrize("negative", [False, True])
def test_guidance_gives_the_tokens_of_transformers(negative: bool):
    model, source, random = compiled("amateur"), sources().amateur, np.random.default_rng(1)
    for number, prompt in enumerate(PROMPTS):
        keywords: dict[str, Any] = {"guidance_scale": 1.5}
        if negative:
            keywords["negative_prompt_ids"] = torch.tensor([random.integers(2, VOCABULARY, 1 + number).tolist()])
        ids = torch.tensor([prompt])
        expected = source.generate(ids, max_new_tokens=NEW, do_sample=False, **keywords)[0, len(prompt) :].tolist()
        assert model.generate(ids, NEW, **keywords).token_ids == expected
        assert expected != model.generate(ids, NEW).token_ids


# --- the formulas, by whole forward passes in torch: [n, V] for the n tokens after a prompt


Formula = Callable[[list[int], list[int]], torch.Tensor]


def logits_of(source: Any, prompt: list[int], new: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return source(torch.tensor([[*prompt, *new[:-1]]])).logits[0, len(prompt) - 1 :]


def exits_of(source: Any, prompt: list[int], new: list[int], layers: Sequence[int]) -> torch.Tensor:
    """[layers, n, V], by the norm and the head."""
    with torch.no_grad():
        states = source(torch.tensor([[*prompt, *new[:-1]]]), output_hidden_states=True).hidden_states
        return torch.stack([source.lm_head(source.model.norm(states[layer][0, len(prompt) - 1 :])) for layer in layers])


def context_aware(prompt: list[int], new: list[int]) -> torch.Tensor:
    given, without = (logits_of(sources().target, each, new) for each in (prompt, prompt[2:]))
    return 1.7 * given - 0.7 * without


def contrastive(prompt: list[int], new: list[int]) -> torch.Tensor:
    expert, amateur = (logits_of(each, prompt, new) for each in sources())
    p, q = F.softmax(expert, -1), F.softmax(amateur / 0.8, -1)
    return torch.where(p >= 0.2 * p.max(-1, keepdim=True).values, torch.log(p / q), -torch.inf)


def contrastive_beta(prompt: list[int], new: list[int]) -> torch.Tensor:
    """In logits, as arXiv 2309.09117 has it: the same up to a constant, which `assert_same_scores` leaves out."""
    expert, amateur = (logits_of(each, prompt, new) for each in sources())
    valid = expert >= expert.max(-1, keepdim=True).values + np.log(0.1)
    return torch.where(valid, 1.5 * expert - 0.5 * amateur, -torch.inf)


CHOSEN = set[int]()
"""The layers that were the most different."""


def dola(layers: Sequence[int], relative_top: float) -> Formula:
    def scores(prompt: list[int], new: list[int]) -> torch.Tensor:
        final, exits = logits_of(sources().target, prompt, new), exits_of(sources().target, prompt, new, layers)
        mean = 0.5 * (F.softmax(final, -1) + F.softmax(exits, -1))
        to_final = F.kl_div(F.log_softmax(final, -1).expand_as(exits), mean, reduction="none").mean(-1)
        to_exits = F.kl_div(F.log_softmax(exits, -1), mean, reduction="none").mean(-1)
        chosen = (0.5 * (to_final + to_exits)).argmax(0)
        CHOSEN.update(layers[each] for each in chosen.tolist())
        premature = F.log_softmax(exits[chosen, torch.arange(len(final))], -1)
        mature = F.log_softmax(final, -1)
        kept = mature >= mature.max(-1, keepdim=True).values + np.log(relative_top)
        return torch.where(kept, mature - premature, -torch.inf)

    return scores


FORMULAS: dict[str, Formula] = {
    "context": context_aware,
    "amateur": contrastive,
    "beta": contrastive_beta,
    "dola": dola([2, 3, 4], 0.1),
    "one layer": dola([2], 0.3),
}


def assert_same_scores(found: np.ndarray, expected: np.ndarray, constant: bool) -> None:
    kept = expected > -np.inf
    assert np.array_equal(found > -np.inf, kept)
    rest = found[kept] - expected[kept]
    assert np.abs(rest - (rest.mean() if constant else 0)).max() < 2e-3


@pytest.mark.parametrize("kind", FORMULAS)
def test_scores_are_those_of_the_formula(kind: str):
    model = compiled("target")
    hook = HOOKS[kind](model)
    for prompt in PROMPTS[4:8]:
        steps = list(model.steps(Request(prompt, NEW, hooks=(hook,), keep_scores=True)))
        scores = np.concatenate([step.scores for step in steps if step.scores is not None])
        new = [token for step in steps for token in step.tokens]
        for row, expected in zip(scores, FORMULAS[kind](prompt, new).numpy(), strict=True):
            assert_same_scores(row, expected, kind == "beta")
            assert row.argmax() == expected.argmax()
    assert kind != "dola" or len(CHOSEN) > 1


def test_exits_without_entering_late(monkeypatch: pytest.MonkeyPatch):
    model = compiled("target")
    request = Request(PROMPTS[3], 8, hooks=(Dola(model, [0, 2, 4]),), keep_scores=True, keep_logits=True)
    expected = decoded(model, request)
    monkeypatch.setattr(model.executable, "enters", False)
    assert decoded(model, request) == expected


def test_layers_that_dola_contrasts():
    model = compiled("target")
    assert Dola(model).layers == Dola(model, "low").layers == [2]
    assert Dola(model, "high").layers == [3, 5]
    assert Dola(model, (4, 1, 4)).layers == [1, 4]
    for wrong, told in (
        ("middle", "'low', 'high' or a list"),
        ([6], "from 0 to 5"),
        ([], "at least one"),
        (3, "not 3"),
    ):
        with pytest.raises(InvalidOptionError, match=told):
            Dola(model, wrong)  # type: ignore[arg-type]


@pytest.mark.slow  # compiles for 20 seconds
def test_recurrent_states_follow_the_path():
    source = RECURRENT["falcon_h1"]()
    model = forerun.compile(source, strategy="autoregressive", max_length=64)
    prompt = torch.tensor([PROMPTS[5]])
    expected = source.generate(prompt, max_new_tokens=NEW, do_sample=False, guidance_scale=1.5)
    assert model.generate(prompt, NEW, guidance_scale=1.5).sequences.tolist() == expected.tolist()
    for hook in (Guidance(model, 1.5, [5, 6, 7]), Dola(model, [1])):
        assert_same_bits(model, hook, SamplingSettings(), 0)
