"""Constrained decoding: every text follows its grammar, with the tokens and the bits of plain decoding."""

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from test_generation import collect, policies

from forerun.errors import InvalidOptionError
from forerun.hooks import JsonSchema, Lark, Regex
from forerun.runtime.drafters.base import Budget, Context, Drafter, Proposal
from forerun.runtime.engine import Engine
from forerun.runtime.generation import decode
from forerun.runtime.hooks.base import Place
from forerun.runtime.hooks.grammars import Grammars
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.recording import Iteration
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings, choose_token
from forerun.runtime.tree import TreeBuilder, root_only

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
EOS, SPARE = 0, 7
"""The token that ends texts, and how many tokens a model has that its tokenizer does not know."""


def is_person(text: str, compact: bool) -> bool:
    found = json.loads(text)
    assert list(found) == ["name", "age", "open"]
    assert len(found["name"]) <= 8
    assert 0 <= found["age"] <= 999
    return found["open"] in (True, False) and (not compact or text.lower() == json.dumps(found, ensure_ascii=False))


GRAMMARS: dict[str, tuple[Any, Any]] = {
    "schema": (JsonSchema(PERSON), lambda text: is_person(text, compact=False)),
    "compact": (JsonSchema(PERSON, compact=True), lambda text: is_person(text, compact=True) or '\\' in text),
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


requests = st.builds(
    Request,
    prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12),
    max_new_tokens=st.sampled_from([1, 7, 60, 60, 60]),
    sampling=st.one_of(
        st.just(SamplingSettings()),
        st.builds(
            SamplingSettings,
            do_sample=st.just(True),
            temperature=st.sampled_from([0.5, 1.0, 1.5]),
            top_k=st.sampled_from([None, 3, 40]),
            top_p=st.sampled_from([None, 0.9]),
            seed=st.integers(0, 5),
        ),
    ),
    stop=st.sampled_from([frozenset({EOS}), frozenset({EOS, 1}), frozenset(), frozenset({VOCABULARY - 1, 70})]),
    identifier=st.integers(0, 2),
    min_new_tokens=st.sampled_from([0, 0, 5, 60]),
    keep_logits=st.just(True),
)


@settings(max_examples=80, deadline=None)
@given(request=requests, policy=policies, seed=st.integers(0, 20), name=st.sampled_from(sorted(GRAMMARS)))
def test_texts_follow_the_grammar_and_are_those_of_plain_decoding(
    request: Request, policy: Policy, seed: int, name: str
):
    grammar, matches = GRAMMARS[name]
    oracle = oracle_of(seed % 3)
    expected = reference(oracle, request, grammar)
    request = with_grammar(request, grammar)
    plain = collect(list(decode(Engine(oracle_of(seed % 3)), request, Drafter(), Fixed(1))))
    drafter = Guessing(seed, len(request.prompt), expected)
    found = collect(list(decode(Engine(oracle), request, drafter, policy)))
    assert found[0] == plain[0] == expected
    assert found[1].tobytes() == plain[1].tobytes()
    if len(expected) < request.max_new_tokens:
        text = text_of(expected[:-1] if expected[-1] in request.stop else expected)
        assert matches(text), text


@settings(max_examples=40, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(GRAMMARS)), least=st.sampled_from([0, 3]))
def test_masks_are_those_of_a_matcher_that_went_straight_there(data: st.DataObject, name: str, least: int):
    """Two texts grow by turns from any of their states, which is where the one matcher of each must go."""
    grammar, stop = GRAMMARS[name][0], frozenset({EOS, 70})
    hook = GRAMMARS_OF_MODEL.hook(grammar, stop, least)
    texts = [[(hook.begin([1]), ())], [(hook.begin([2, 3]), ())]]
    for _ in range(14):
        text = texts[data.draw(st.integers(0, 1))]
        state, tokens = text[data.draw(st.integers(0, len(text) - 1))]
        expected = expected_mask(grammar, tokens, stop, least)
        if data.draw(st.booleans()):  # both ways to ask, in either order
            assert hook.allows(state, range(VOCABULARY)) == expected.tolist()
        assert hook.mask(state).tolist() == expected.tolist()
        assert hook.allows(state, range(VOCABULARY)) == expected.tolist()
        assert hook.scores(state, np.zeros(VOCABULARY, np.float32), Place(1, 0, 9)).tolist() == [
            0 if each else -np.inf for each in expected
        ]
        if data.draw(st.integers(0, 3)) == 0:
            hook.prepare(state, root_only(1))
        after = tokens
        for token in hook.forced(state):
            if not expected_mask(grammar, after, stop, least)[token]:
                break
            after = (*after, token)
        open_tokens = [each for each in np.flatnonzero(expected).tolist() if each not in stop]
        if open_tokens:
            token = data.draw(st.sampled_from(open_tokens))
            text.append((hook.advance(state, token), (*tokens, token)))
            assert hook.advance(state, token).depth == len(tokens) + 1


def model_of(grammar_text: Sequence[int], prompt: int, seed: int = 1, **options: Any) -> CompiledModel:
    drafter = Guessing(seed, prompt, grammar_text)
    return CompiledModel(oracle_of(0), drafter, Fixed(8), tokenizer(), [EOS], **options)


def test_no_evaluated_row_breaks_the_grammar():
    model, evaluated = model_of([], 2), list[Iteration]()
    for name, (grammar, _) in GRAMMARS.items():
        evaluated.clear()
        with model.serving.listening(evaluated.append):
            model.generate([3, 4], 40, grammar=grammar, do_sample=True)
        rows = 0
        done: list[int] = []
        for outcome in (outcome for iteration in evaluated for outcome in iteration.outcomes):
            tree = outcome.tree
            for row in range(1, len(tree)):
                path = [int(tree.token[each]) for each in tree.path(row)[1:]]
                if EOS not in path[:-1]:
                    assert expected_mask(grammar, [*done, *path[:-1]], frozenset({EOS}))[path[-1]], name
                    rows += 1
            done += outcome.tokens
        assert rows > 0, name


def test_what_must_follow_is_drafted_without_a_drafter_that_knows_it():
    class Nothing(Drafter):
        def propose(self, context: Context, budget: Budget) -> Proposal:
            return Proposal(root_only(context.tokens[-1]))

    words = '["one certain text, word for word"]'
    grammar = JsonSchema({"const": ["one certain text, word for word"]}, compact=True)
    model = CompiledModel(oracle_of(0), Nothing(), Fixed(12), tokenizer(), [EOS])
    found = model.generate([5], 60, grammar=grammar, do_sample=True, top_k=1)
    assert found.text == words
    assert found.token_ids[-1] == EOS
    assert found.stats.tokens_by["grammar"] > 0
    plain = CompiledModel(oracle_of(0), tokenizer=tokenizer(), eos_token_ids=[EOS])
    assert plain.generate([5], 60, grammar=grammar, do_sample=True, top_k=1).token_ids == found.token_ids

    class Canonical(Oracle):  # a model that cuts words as the tokenizer does, as one that was trained on its text
        def logits_of(self, token: int, digest: int) -> np.ndarray:
            return LENGTHS

    model = CompiledModel(Canonical(vocabulary=VOCABULARY, max_length=160), Nothing(), Fixed(12), tokenizer(), [EOS])
    found = model.generate([5], 60, grammar=grammar, return_logits=True)
    assert found.text == words
    assert found.stats.accepted_length > 5
    assert found.stats.tokens_by["grammar"] >= 0.8 * found.stats.tokens


LENGTHS = np.array([len(text_of([token])) for token in range(VOCABULARY)], np.float32)
"""Scores by which the longest token wins."""


def test_sessions_and_forks_have_matchers_of_their_own():
    grammar, matches = GRAMMARS["schema"]
    model = model_of([], 2)
    prompts = [[3, 4], [5, 6], [3, 4], [9]]
    alone = [model.generate(prompt, 60, grammar=grammar, do_sample=True, seed=2).token_ids for prompt in prompts]
    together = model.generate(prompts, 60, grammar=grammar, do_sample=True, seed=2)
    assert [each.token_ids for each in together] == alone
    copies = model.generate([3, 4], 60, grammar=grammar, do_sample=True, seed=2, num_return_sequences=3)
    assert copies[0].token_ids == alone[0]
    assert len({each.text for each in copies}) > 1

    sessions = model.sessions([3, 4], max_new_tokens=60, grammar=grammar, do_sample=True, seed=2)
    forks = []
    for session in sessions:
        if session.index == 0 and len(session.token_ids) > 4 and not forks:
            forks = [session.fork(), session.fork(seed=7), session.fork(tokens=[1])]
    same, other, broken = (sessions.all[each.index] for each in forks)
    assert sessions.all[0].token_ids == alone[0]
    at = same.asked.request.prompt[2:]
    assert at + same.token_ids == alone[0]
    assert at + other.token_ids != alone[0]
    assert matches(text_of(at + other.token_ids))
    assert isinstance(broken.error, InvalidOptionError)
    assert re.fullmatch(
        r"the grammar does not allow the new token \d+, \d+: go on from fewer tokens", str(broken.error)
    )


def test_nothing_can_be_forked_from_a_finished_text():
    model = model_of([], 1)
    with model.sessions([3], max_new_tokens=60, grammar=Regex("abc")) as sessions:
        [first] = [session for session in sessions if session.finished]
        assert first.token_ids[-1] == EOS
        later = first.fork(max_new_tokens=4)
        for _ in sessions:
            pass
        assert str(later.error).startswith("grammar lets nothing follow the first ")


@pytest.mark.parametrize(("options", "last"), [({}, [EOS]), ({"eos_token_id": []}, []), ({"min_new_tokens": 50}, [])])
def test_complete_texts_end(options: dict[str, Any], last: list[int]):
    """With a token that ends texts if one may come, else by themselves."""
    for model in (model_of([], 1), CompiledModel(oracle_of(0), tokenizer=tokenizer(), eos_token_ids=[EOS])):
        for grammar in (Regex("abc?"), JsonSchema({"const": [1, 2]})):
            found = model.generate([3], max_new_tokens=60, grammar=grammar, output_scores=True, **options)
            assert found.text in ("ab", "abc") or json.loads(found.text or "") == [1, 2]
            assert found.token_ids[-1:] == last or not last
            assert (EOS in found.token_ids) == bool(last)
            assert found.scores is not None
            assert [int(row.argmax()) for row in found.scores] == found.token_ids
        longest = model.generate([3], 9, grammar=Regex("a{3,}"), **options)
        assert set(longest.text or "") == {"a"}


def test_long_texts_are_cut_at_max_new_tokens():
    model = model_of([], 1)
    for new in range(1, 12):
        found = model.generate([3], new, grammar=JsonSchema(PERSON), do_sample=True, seed=3)
        assert len(found.token_ids) == new
        assert not fresh(JsonSchema(PERSON), found.token_ids).is_error()


def test_other_keywords_apply_as_well():
    """A grammar has no say in what temperature and filters do with what it leaves."""
    model = model_of([], 1)
    with pytest.warns(UserWarning, match="takes precedence"):
        found = model.generate([3], 9, max_length=30, grammar=Regex("[a-z]{30}"), top_k=1, do_sample=True)
    assert found.token_ids == model.generate([3], 9, grammar=Regex("[a-z]{30}")).token_ids
    assert model.generate([3], 9, grammar=Regex("[a-z]{30}"), streamer=None, eos_token_id=[5]).text
    pieces = [each.text for each in model.stream([3], max_new_tokens=60, grammar=Regex(UNICODE))]
    assert re.fullmatch(UNICODE, "".join(each or "" for each in pieces))
    assert None not in pieces


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: {"type": "object"}, "grammar must be one of forerun.hooks' JsonSchema, Regex and Lark, not {'type'"),
        (lambda: JsonSchema("{"), "a JSON schema must be JSON: this is not (Expecting property name"),
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
    class Letters(Oracle):
        def logits_of(self, token: int, digest: int) -> np.ndarray:
            return np.array([float(text_of([each]) == "a") for each in range(VOCABULARY)], np.float32)

    model = CompiledModel(Letters(vocabulary=VOCABULARY, max_length=160), tokenizer=tokenizer(), eos_token_ids=[EOS])
    with model.sessions([[2]], max_new_tokens=100, grammar=Regex("((.{0,90}a){0,90}b){90}")) as broken:
        with model.sessions([[2]], max_new_tokens=100, grammar=Regex("a{100}")) as sound:
            assert [session.text for session in sound if session.finished] == ["a" * 100]
        [failed] = [session for session in broken if session.finished]
        told = (
            "the grammar is too complex to be followed here (lexer error: too many expressions constructed): simplify"
        )
        assert str(failed.error).startswith(told)
        assert failed.text
        assert failed.text.strip("a") == ""
