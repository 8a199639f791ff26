"""From graphs alone, tiny models of many families give transformers' greedy tokens, bit for bit in any schedule."""

from typing import Any

import pytest

import forerun
from forerun.runtime.certify import certify
from forerun.runtime.certify_sessions import certify_sessions
from tests.contract import SAMPLINGS, check_bits_of_plain_decoding, check_tokens_of_transformers
from tests.models import FAMILIES, WITHOUT_STREAM

COMPILED = (
    "llama", "qwen3", "gemma3_text", "gemma2", "gpt2", "gpt_neox", "opt", "bloom", "phi3",
    "falcon", "mpt", "gptj", "cohere", "roberta", "flint", "youtu",
)  # fmt: skip
NEW_TOKENS = 48


@pytest.fixture(scope="module", params=COMPILED)
def family(request: pytest.FixtureRequest) -> tuple[Any, forerun.CompiledModel]:
    model = (FAMILIES | WITHOUT_STREAM)[request.param]()
    return model, forerun.compile(model, strategy=forerun.TreeSpec(policy=forerun.Fixed(12)), max_length=256)


def test_greedy_tokens_are_those_of_transformers(family: tuple[Any, forerun.CompiledModel]) -> None:
    check_tokens_of_transformers(*family, NEW_TOKENS)


@pytest.mark.parametrize("options", SAMPLINGS)
def test_bits_are_those_of_plain_decoding(family: tuple[Any, forerun.CompiledModel], options: dict[str, Any]) -> None:
    check_bits_of_plain_decoding(family[1], options, NEW_TOKENS)


def test_sessions_are_certified(family: tuple[Any, forerun.CompiledModel]) -> None:
    model = family[1]
    report = certify_sessions(model.engine, model.drafter, model.policy, texts=6, seed=3)
    assert report.exact, str(report)
    assert report.rounds < report.tokens, "steps were shared"


def test_certified(family: tuple[Any, forerun.CompiledModel]) -> None:
    report = certify(family[1].executable, cases=10, seed=1)
    assert report.exact, str(report)
