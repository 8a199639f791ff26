"""From graphs alone, tiny models of many families give transformers' greedy tokens, bit for bit in any schedule."""

from typing import Any

import pytest
import torch

import forerun
from forerun.runtime.certify import certify
from forerun.runtime.certify_sessions import certify_sessions
from tests.models import FAMILIES, WITHOUT_STREAM

COMPILED = (
    "llama", "qwen3", "gemma3_text", "gemma2", "gpt2", "gpt_neox", "opt", "bloom", "phi3",
    "falcon", "mpt", "gptj", "cohere", "roberta", "flint", "youtu",
)  # fmt: skip
PROMPT = [7, 200, 31, 5, 99, 31, 5, 99, 140]
NEW_TOKENS = 48


@pytest.fixture(scope="module", params=COMPILED)
def family(request: pytest.FixtureRequest) -> tuple[Any, forerun.CompiledModel]:
    model = (FAMILIES | WITHOUT_STREAM)[request.param]()
    return model, forerun.compile(model, strategy=forerun.TreeSpec(policy=forerun.Fixed(12)), max_length=256)


def test_greedy_tokens_are_those_of_transformers(family: tuple[Any, forerun.CompiledModel]) -> None:
    model, compiled = family
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False)[0, len(PROMPT) :]
    assert compiled.generate(PROMPT, max_new_tokens=NEW_TOKENS).token_ids == expected.tolist()


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 3}])
def test_bits_are_those_of_plain_decoding(family: tuple[Any, forerun.CompiledModel], options: dict[str, Any]) -> None:
    compiled = family[1]
    plain = forerun.with_strategy(compiled, "autoregressive")
    fast, slow = (each.generate(PROMPT, NEW_TOKENS, return_logits=True, **options) for each in (compiled, plain))
    assert fast.token_ids == slow.token_ids
    assert fast.logits is not None
    assert slow.logits is not None
    assert fast.has_bits_of(slow)
    assert fast.stats.rows > slow.stats.rows, "the speculative run proposed nothing"


def test_sessions_are_certified(family: tuple[Any, forerun.CompiledModel]) -> None:
    model = family[1]
    report = certify_sessions(model.engine, model.drafter, model.policy, texts=6, seed=3)
    assert report.exact, str(report)
    assert report.rounds < report.tokens, "steps were shared"


def test_certified(family: tuple[Any, forerun.CompiledModel]) -> None:
    report = certify(family[1].executable, cases=10, seed=1)
    assert report.exact, str(report)
