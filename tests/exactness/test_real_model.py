"""The main job on the real model, end to end: SmolLM2-135M-Instruct from its GGUF file."""

import json

import numpy as np
import pytest
import torch

import forerun
from forerun.chat import encode_chat
from forerun.cli import main
from forerun.frontends.demo import demo_model
from forerun.frontends.gguf import load_gguf
from forerun.runtime.certify import certify
from forerun.runtime.certify_sessions import certify_sessions
from forerun.runtime.tree import chain

pytestmark = pytest.mark.real
QUESTIONS = (
    "What is the capital of France? Answer in one sentence.",
    "Repeat this list twice: apple, river, stone, apple, river, stone.",
)


@pytest.fixture(scope="module")
def model() -> forerun.CompiledModel:
    return forerun.compile(demo_model(), strategy=forerun.TreeSpec(policy=forerun.Fixed(8)), max_length=512)


@pytest.fixture(scope="module")
def prompts(model: forerun.CompiledModel) -> list[list[int]]:
    return [encode_chat(model.tokenizer, each) for each in QUESTIONS]


def test_tokens_are_those_of_transformers(model: forerun.CompiledModel, prompts: list[list[int]]) -> None:
    reference, _ = load_gguf(demo_model(), torch.float32)
    for prompt in prompts:
        expected = reference.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=24, do_sample=False
        )[0, len(prompt) :]
        assert model.generate(prompt, max_new_tokens=24).token_ids == expected.tolist()


def test_bits_are_those_of_plain_decoding(model: forerun.CompiledModel, prompts: list[list[int]]) -> None:
    plain = forerun.with_strategy(model, "autoregressive")
    for prompt in prompts:
        for options in ({}, {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 7}):
            fast, slow = (each.generate(prompt, 32, return_logits=True, **options) for each in (model, plain))
            assert fast.token_ids == slow.token_ids
            assert fast.logits is not None
            assert slow.logits is not None
            assert fast.has_bits_of(slow)


def test_drafts_are_accepted(model: forerun.CompiledModel, prompts: list[list[int]]) -> None:
    assert model.generate(prompts[1], max_new_tokens=48).stats.accepted_length > 1.3


def test_certified(model: forerun.CompiledModel) -> None:
    report = certify(model.executable, cases=5, seed=2)
    assert report.exact, str(report)


def test_sessions_are_certified(model: forerun.CompiledModel) -> None:
    report = certify_sessions(model.engine, model.drafter, model.policy, texts=6, seed=1)
    assert report.exact, str(report)


def test_several_prompts_give_what_each_gives_alone(model: forerun.CompiledModel) -> None:
    plain = forerun.with_strategy(model, "autoregressive")
    found = model.generate(list(QUESTIONS), 24, return_logits=True)
    for question, text in zip(QUESTIONS, found, strict=True):
        assert text.has_bits_of(plain.generate(question, 24, return_logits=True))
    pieces = list(model.stream(QUESTIONS[0], max_new_tokens=24))
    assert "".join(piece.text or "" for piece in pieces) == found[0].text


@pytest.fixture(scope="module")
def native() -> forerun.CompiledModel:
    strategy = forerun.TreeSpec(policy=forerun.Fixed(8))
    return forerun.compile(demo_model(), strategy=strategy, dtype="native", arithmetic="float32", max_length=512)


@pytest.fixture(scope="module")
def integers() -> forerun.CompiledModel:
    strategy = forerun.TreeSpec(policy=forerun.Fixed(8))
    return forerun.compile(demo_model(), strategy=strategy, dtype="native", max_length=512)


def test_blocks_kept_quantized_have_the_bits_of_float32(
    model: forerun.CompiledModel, native: forerun.CompiledModel, prompts: list[list[int]]
) -> None:
    for prompt in prompts:
        kept, expanded = (each.generate(prompt, 32, return_logits=True) for each in (native, model))
        assert kept.token_ids == expanded.token_ids
        assert kept.logits is not None
        assert expanded.logits is not None
        assert kept.has_bits_of(expanded)


@pytest.mark.parametrize("kind", ["native", "integers"])
def test_native_is_certified(kind: str, request: pytest.FixtureRequest) -> None:
    report = certify(request.getfixturevalue(kind).executable, cases=2, seed=2)
    assert report.exact, str(report)


def test_products_of_integers_keep_the_contract_and_are_close(
    model: forerun.CompiledModel, integers: forerun.CompiledModel, prompts: list[list[int]]
) -> None:
    plain = forerun.with_strategy(integers, "autoregressive")
    for prompt in prompts:
        fast, slow = (each.generate(prompt, 32, return_logits=True) for each in (integers, plain))
        assert fast.token_ids == slow.token_ids
        assert fast.has_bits_of(slow)
    tree = chain(prompts[0][-1], model.generate(prompts[0], 16).token_ids[:-1])
    full, rounded = (each.evaluate_trees([prompts[0]], [tree])[0] for each in (model, integers))
    assert 0 < np.abs(full - rounded).max() < 2
    assert (full.argmax(1) == rounded.argmax(1)).mean() > 0.9


def test_demo_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--max-new-tokens", "16", "--max-length", "512", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["bits_identical"] is True
    assert set(shown["strategies"]) == {"tree_spec", "autoregressive"}
