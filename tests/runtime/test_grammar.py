"""Constrained decoding: every text follows its grammar, with the tokens and the bits of plain decoding."""

import json
import re
from typing import Any

import numpy as np
import pytest
from constrained import (
    EOS,
    GRAMMARS,
    GRAMMARS_OF_MODEL,
    PERSON,
    UNICODE,
    VOCABULARY,
    Guessing,
    Z,
    expected_mask,
    fresh,
    model_of,
    oracle_of,
    reference,
    text_of,
    tokenizer,
    with_grammar,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle
from test_generation import collect, policies

from forerun.errors import InvalidOptionError
from forerun.hooks import JsonSchema, Regex
from forerun.runtime.drafters.base import Budget, Context, Drafter, Proposal
from forerun.runtime.engine import Engine
from forerun.runtime.generation import decode
from forerun.runtime.hooks.base import Place
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed, Policy
from forerun.runtime.recording import Iteration
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.tree import root_only

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
    stop=st.sampled_from([frozenset({EOS}), frozenset({EOS, 1}), frozenset(), frozenset({VOCABULARY - 1, Z})]),
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
    grammar, stop = GRAMMARS[name][0], frozenset({EOS, Z})
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


def test_masks_are_dropped_behind_a_text():
    hook = GRAMMARS_OF_MODEL.hook(Regex("(ab|ba)*"), frozenset({EOS}))
    [a, b] = (token for letter in "ab" for token in range(VOCABULARY) if text_of([token]) == letter)
    state = hook.begin([1])
    for token in [a, b, b, a] * 9:
        hook.prepare(state, root_only(1))
        for each in (a, b):  # rows beside each other
            if hook.mask(state)[each]:
                hook.mask(hook.advance(state, each))
        state = hook.advance(state, token)
    hook.prepare(state, root_only(1))
    seen, states = 0, [state.text.beginning]
    path = [state]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    assert len(path) == 37
    while states:
        seen += 1
        states += states.pop().children.values()
    assert seen == 1
    assert sum(each.allowed is not None for each in path) == 1


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
            assert found.finish_reason == "stop"
            again = model.generate([3], len(found.token_ids), grammar=grammar, **options)
            assert (again.token_ids, again.finish_reason) == (found.token_ids, "stop")
            assert found.scores is not None
            assert [int(row.argmax()) for row in found.scores] == found.token_ids
        longest = model.generate([3], 9, grammar=Regex("a{3,}"), **options)
        assert set(longest.text or "") == {"a"}


def test_nothing_is_asked_of_other_hooks_after_the_end():
    def once(input_ids: Any, scores: Any) -> Any:
        assert text_of(input_ids[0].tolist()[1:]) != "abc"
        return scores

    options: dict[str, Any] = {"grammar": Regex("abc"), "eos_token_id": [], "logits_processor": [once]}
    plain = CompiledModel(oracle_of(0), tokenizer=tokenizer()).generate([3], 9, **options)
    assert plain.text == "abc"
    for seed in range(6):
        model = model_of(plain.token_ids, 1, seed)
        assert model.generate([3], 9, **options).token_ids == plain.token_ids


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
