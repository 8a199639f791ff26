"""Grammars, a tokenizer, and plain decoding under a grammar without a hook."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from oracle import Oracle

from forerun.hooks import JsonSchema, Lark, Regex
from forerun.runtime.drafters.base import Budget, Context, Drafter, Proposal
from forerun.runtime.hooks.grammars import Grammars
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Request
from forerun.runtime.sampling import choose_token
from forerun.runtime.tree import TreeBuilder

pytest.importorskip("llguidance")
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXTS = [
    json.dumps({"name": "Ärger, Müller", "age": 34, "tags": ["a", "bee", "sea"], "open": True, "size": None}),
    'The "name": of {"age": 12, "name": "x"} is true, false or null. 😀😀 €€ äöü äöü',
] * 3
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 999},
        "open": {"type": "boolean"},
    },
    "required": ["name", "age", "open"],
    "additionalProperties": False,
}
UNICODE = "([äöü€]|😀){2,5}!"
EOS, SPARE, Z = 0, 7, 59
"""The token that ends texts, how many tokens a model has that its tokenizer does not know, and the token "Z"."""


def is_person(text: str, compact: bool) -> bool:
    found = json.loads(text)
    assert list(found) == ["name", "age", "open"]
    assert len(found["name"]) <= 8
    assert 0 <= found["age"] <= 999
    assert found["open"] in (True, False)
    return not compact or "\\" in text or text == json.dumps(found, ensure_ascii=False)


GRAMMARS: dict[str, tuple[Any, Any]] = {
    "schema": (JsonSchema(PERSON), lambda text: is_person(text, compact=False)),
    "compact": (JsonSchema(PERSON, compact=True), lambda text: is_person(text, compact=True)),
    "regex": (Regex(r"a(bc?|d{2,4})(e|xyz)*f?"), lambda text: re.fullmatch(r"a(bc?|d{2,4})(e|xyz)*f?", text)),
    "unicode": (Regex(UNICODE), lambda text: re.fullmatch(UNICODE, text)),
    "nested": (Lark('start: "(" start* ")"'), lambda text: text.count("(") == text.count(")") > 0),
}  # fmt: skip


@cache
def tokenizer() -> Tokenizer:
    """A byte-level tokenizer of some 330 tokens, several characters of which are cut into bytes."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>", "<|turn|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(TEXTS, trainer)
    return found


VOCABULARY = tokenizer().get_vocab_size() + SPARE
GRAMMARS_OF_MODEL = Grammars(tokenizer(), VOCABULARY, [EOS])


class Guessing(Drafter):
    """Random trees; some of their rows are `text`, which follows the prompt."""

    def __init__(self, seed: int, prompt: int, text: Sequence[int]) -> None:
        self.random, self.prompt, self.text = np.random.default_rng(seed), prompt, text

    def propose(self, context: Context, budget: Budget) -> Proposal:
        builder = TreeBuilder(context.tokens[-1])
        at, right = 0, len(context.tokens) - self.prompt
        for _ in range(2 * budget.rows):
            if len(builder) == budget.rows:
                break
            parent = int(self.random.integers(len(builder)))
            if self.random.random() < 0.6 and 0 <= right < len(self.text) and builder.depths[at] < budget.depth:
                at = builder.add(at, self.text[right], float(self.random.random()))
                right += 1
            elif builder.depths[parent] < budget.depth:
                builder.add(parent, int(self.random.integers(VOCABULARY)), float(self.random.random()))
        return Proposal(builder.build())


def fresh(grammar: Any, tokens: Sequence[int]) -> LLMatcher:
    """llguidance's own matcher after some tokens, which it has seen once and in order."""
    kinds = {Regex: LLMatcher.grammar_from_regex, Lark: LLMatcher.grammar_from_lark}
    if isinstance(grammar, JsonSchema):
        spaces = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
        text = LLMatcher.grammar_from_json_schema(grammar.schema, overrides=spaces if grammar.compact else None)
    else:
        text = kinds[type(grammar)](next(iter(vars(grammar).values())))
    matcher = LLMatcher(LLTokenizer(tokenizer().to_str(), eos_token=EOS), text, log_level=0)
    assert matcher.consume_tokens(list(tokens)), matcher.get_error()
    return matcher


def expected_mask(grammar: Any, tokens: Sequence[int], stop: frozenset[int], least: int = 0) -> np.ndarray:
    """[V] by `compute_logit_bias`, which the hook does not use."""
    matcher = fresh(grammar, tokens)
    found = np.zeros(VOCABULARY, bool)
    found[: VOCABULARY - SPARE] = np.frombuffer(matcher.compute_logit_bias(), np.uint8)[: VOCABULARY - SPARE] > 0
    found[[EOS, *stop]] = False
    found[list(stop)] = matcher.is_accepting() and len(tokens) >= least
    return found


def reference(oracle: Oracle, request: Request, grammar: Any) -> list[int]:
    """Plain decoding with neither cache nor engine nor hook."""
    tokens: list[int] = []
    while len(tokens) < request.max_new_tokens:
        allowed = expected_mask(grammar, tokens, request.stop, request.min_new_tokens)
        if not allowed.any():
            break
        scores = np.where(allowed, oracle.logits([*request.prompt, *tokens]), np.float32(-np.inf))
        position = len(request.prompt) + len(tokens)
        tokens.append(choose_token(scores, request.sampling, request.identifier, position))
        if tokens[-1] in request.stop:
            break
    return tokens


def text_of(tokens: Sequence[int]) -> str:
    return tokenizer().decode([each for each in tokens if each < VOCABULARY - SPARE], skip_special_tokens=True)


def oracle_of(seed: int) -> Oracle:
    return Oracle(vocabulary=VOCABULARY, max_length=160, seed=seed, noise=1.0)


def with_grammar(request: Request, grammar: Any) -> Request:
    return replace(request, hooks=(GRAMMARS_OF_MODEL.hook(grammar, request.stop, request.min_new_tokens),))


def model_of(grammar_text: Sequence[int], prompt: int, seed: int = 1, **options: Any) -> CompiledModel:
    drafter = Guessing(seed, prompt, grammar_text)
    return CompiledModel(oracle_of(0), drafter, Fixed(8), tokenizer(), [EOS], **options)
