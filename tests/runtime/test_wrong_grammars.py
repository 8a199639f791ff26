"""What cannot be a grammar, or cannot be followed, is refused in one sentence."""

import json
import sys
from typing import Any

import numpy as np
import pytest
from constrained import EOS, PERSON, VOCABULARY, Guessing, Z, model_of, text_of, tokenizer
from oracle import Oracle

from forerun.cli import main
from forerun.errors import InvalidOptionError
from forerun.hooks import JsonSchema, Lark, Regex
from forerun.runtime.model import CompiledModel


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: {"type": "object"}, "grammar must be one of forerun.hooks' JsonSchema, Regex and Lark, not {'type'"),
        (lambda: JsonSchema("{"), "a JSON schema must be JSON: this is not (Expecting property name"),
        (lambda: JsonSchema("[" * 10**6), "a JSON schema must be JSON: this is not (maximum recursion depth"),
        (lambda: JsonSchema({"a": {1}}), "a JSON schema must be JSON: this is not (Object of type set"),
        (lambda: JsonSchema([1]), "a JSON schema must be an object, not [1]"),
        (lambda: JsonSchema({"type": "objekt"}), "the JSON schema cannot be used: Invalid type: objekt"),
        (lambda: JsonSchema({"$ref": "#/x"}), "the JSON schema cannot be used: Pointer '/x' does not exist"),
        (lambda: JsonSchema({"not": {}}), 'the JSON schema cannot be used: Unimplemented keys: ["not"]'),
        (lambda: Regex("(ab"), "the regular expression cannot be used: unclosed group"),
        (lambda: Regex("a(?=b)"), "the regular expression cannot be used: look-around, including look-ahead and look-"),
        (lambda: Regex(""), "a regular expression must be a text that is not empty, not ''"),
        (lambda: Lark("start: foo"), 'the grammar cannot be used: unknown name: "foo" at line 1, column 8'),
        (lambda: Lark(3), "a grammar must be a text that is not empty, not 3"),  # type: ignore[arg-type]
    ],
)
def test_wrong_grammars_are_refused(make: Any, told: str):
    with pytest.raises(InvalidOptionError) as caught:
        model_of([], 1).generate([3], 4, grammar=make())
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_pydantic_models_and_texts_are_schemas():
    class Person:
        @staticmethod
        def model_json_schema() -> dict[str, Any]:
            return PERSON

    assert JsonSchema(Person) == JsonSchema(PERSON) == JsonSchema(json.dumps(PERSON))
    assert len({JsonSchema(PERSON), JsonSchema(PERSON, compact=True)}) == 2
    assert model_of([], 1).generate([3], 40, grammar=JsonSchema({})).text


def test_what_a_grammar_needs_is_said(monkeypatch: pytest.MonkeyPatch):
    class Words:
        def encode(self, text: str) -> list[int]:
            return [1]

        def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
            return ""

    with pytest.raises(InvalidOptionError, match="needs the model's tokenizer, which is not beside it"):
        CompiledModel(Oracle()).generate([1], 4, grammar=Regex("a"))
    with pytest.raises(InvalidOptionError, match="needs a fast tokenizer of transformers, or one of tokenizers, not W"):
        CompiledModel(Oracle(), tokenizer=Words()).generate([1], 4, grammar=Regex("a"))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(InvalidOptionError, match=r'not installed: run `pip install "forerun\[grammar\]"`'):
        CompiledModel(Oracle()).generate([1], 4, grammar=Regex("a"))


def test_a_grammar_that_becomes_too_complex_ends_its_session_alone():
    """Whatever was drafted, after the tokens after which it ends plain decoding."""

    class Letters(Oracle):
        def logits_of(self, token: int, digest: int) -> np.ndarray:
            return np.array([float(text_of([each]) == "a") for each in range(VOCABULARY)], np.float32)

    texts: list[str | None] = []
    [a] = [token for token in range(VOCABULARY) if text_of([token]) == "a"]
    for drafter in (None, Guessing(0, 1, [a] * 100), Guessing(1, 1, [a] * 100)):
        oracle = Letters(vocabulary=VOCABULARY, max_length=160)
        model = CompiledModel(oracle, drafter, tokenizer=tokenizer(), eos_token_ids=[EOS])
        with model.sessions([[2]], max_new_tokens=100, grammar=Regex("((.{0,90}a){0,90}b){90}")) as broken:
            with model.sessions([[2]], max_new_tokens=100, grammar=Regex("a{100}")) as sound:
                assert [session.text for session in sound if session.finished] == ["a" * 100]
            [failed] = [session for session in broken if session.finished]
            told = "the grammar is too complex to be followed here (lexer error: too many expressions constructed): "
            assert str(failed.error).startswith(told)
            texts.append(failed.text)
    assert texts[0]
    assert texts == ["a" * len(texts[0])] * 3


COMMANDS = {
    "a missing schema": (["--json-schema", "/no/such/schema"], "The schema file '/no/such/schema' cannot be read"),
    "two grammars": (["--regex", "a", "--grammar", "x"], "not allowed with argument --regex"),
    "an empty expression": (["--regex", ""], "a regular expression must be a text that is not empty, not ''"),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_the_command_line_refuses(case: str, capsys: pytest.CaptureFixture[str]):
    options, told = COMMANDS[case]
    assert main(["generate", "demo", "--token-ids", "1", *options]) == 2
    assert told in capsys.readouterr().err


def test_a_token_that_must_follow_cannot_end_texts():
    model = model_of([], 1)
    with pytest.raises(InvalidOptionError, match="no token is left at position 2: all are excluded by grammar"):
        model.generate([3], 9, grammar=Regex("AZA"), eos_token_id=[Z])
