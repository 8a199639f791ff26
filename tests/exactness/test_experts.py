"""Mixtures of experts, from graphs alone: transformers' greedy tokens, and the same bits in any schedule."""

from typing import Any

import pytest
import torch

import forerun
from forerun.runtime.certify import certify
from tests.models import MIXTURES

PROMPT = [7, 200, 31, 5, 99, 31, 5, 99, 140]
NEW_TOKENS = 48


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest) -> tuple[Any, forerun.CompiledModel]:
    model = MIXTURES[request.param]()
    return model, forerun.compile(model, strategy=forerun.TreeSpec(policy=forerun.Fixed(12)), max_length=256)


def test_greedy_tokens_are_those_of_transformers(mixture: tuple[Any, forerun.CompiledModel]) -> None:
    model, compiled = mixture
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=NEW_TOKENS, do_sample=False)[0, len(PROMPT) :]
    assert compiled.generate(PROMPT, max_new_tokens=NEW_TOKENS).token_ids == expected.tolist()


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 3}])
def test_bits_are_those_of_plain_decoding(mixture: tuple[Any, forerun.CompiledModel], options: dict[str, Any]) -> None:
    compiled = mixture[1]
    plain = forerun.with_strategy(compiled, "autoregressive")
    fast, slow = (each.generate(PROMPT, NEW_TOKENS, return_logits=True, **options) for each in (compiled, plain))
    assert fast.token_ids == slow.token_ids
    assert fast.has_bits_of(slow)
    assert fast.stats.rows > slow.stats.rows, "the speculative run proposed nothing"


def test_certified(mixture: tuple[Any, forerun.CompiledModel]) -> None:
    report = certify(mixture[1].executable, cases=10, seed=1)
    assert report.exact, str(report)
