"""States per row and per request under trees give the tokens and logits of plain decoding and of torch's forward."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from forerun.errors import ForerunError, InvalidOptionError, PromptError, TooLongError
from forerun.runtime.certify import certify
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Executable, Rows
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Request
from forerun.runtime.rows import prompt_rows
from forerun.runtime.sampling import SamplingSettings
from tests.compiled import c_step, reference_step, triton_step, tvm_step
from tests.exactness.test_nan import wide
from tests.state_models import LIMITS, MODELS, VOCABULARY, planned, source, weights

TARGETS = ("reference", "cpu", "triton", "c")
GREEDY = SamplingSettings()
PROMPT = [3, 17, 3, 40, 17, 3, 40]


@cache
def executable(name: str, target: str) -> Executable:
    module = planned(MODELS[name][0])
    if target == "reference":
        return reference_step(module, weights().__getitem__, **LIMITS)
    if target == "cpu":
        return tvm_step(module, weights().__getitem__, **LIMITS)
    if target == "c":
        return c_step(module, weights().__getitem__, **LIMITS)
    compiled = triton_step(module, weights().__getitem__, device="cpu", **LIMITS)
    compiled.launcher.tuner = wide
    return compiled


def inputs(name: str) -> dict[str, Any]:
    return {"source": source()} if name == "memory" else {}


@dataclass
class Text:
    tokens: list[int]
    logits: np.ndarray[Any, Any]
    steps: int


def generated(name: str, target: str, tree: bool, sampling: SamplingSettings = GREEDY) -> Text:
    compiled = executable(name, target)
    drafter = Merged([PromptLookup(), TokenRecycling(compiled.vocabulary)]) if tree else None
    model = CompiledModel(compiled, drafter, Fixed(8)) if tree else CompiledModel(compiled)
    steps = list(model.steps(Request(PROMPT, 40, sampling, keep_logits=True, inputs=inputs(name))))
    logits = [each.logits for each in steps if each.logits is not None]
    return Text([token for each in steps for token in each.tokens], np.concatenate(logits), len(steps))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_forward_pass(name: str, target: str) -> None:
    found = generated(name, target, tree=True)
    text = torch.tensor([*PROMPT, *found.tokens])
    expected = MODELS[name][1](text, *map(torch.from_numpy, inputs(name).values()))[len(PROMPT) - 1 : -1]
    torch.testing.assert_close(torch.as_tensor(found.logits), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingSettings(True, 0.8, seed=7)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_trees_give_the_text_of_plain_decoding(name: str, target: str, sampling: SamplingSettings) -> None:
    plain, tree = (generated(name, target, each, sampling) for each in (False, True))
    assert tree.tokens == plain.tokens
    assert tree.steps < plain.steps
    if target == "reference":  # torch's bits, which depend on the rows of a step
        np.testing.assert_allclose(tree.logits, plain.logits, atol=1e-4)
    else:
        assert np.array_equal(tree.logits, plain.logits)


@pytest.mark.parametrize("target", [each for each in TARGETS if each != "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_the_contract_is_certified(name: str, target: str) -> None:
    report = certify(executable(name, target), cases=1 if target == "triton" else 25)
    assert report.exact, str(report)


@pytest.mark.parametrize("target", [each for each in TARGETS if each != "reference"])
def test_rows_in_the_order_given_are_found(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def given(rows: Rows) -> Any:
        return np.arange(len(rows.tokens), dtype=np.int32)

    monkeypatch.setattr(Rows, "order", property(given))
    assert not certify(executable("sums", target), cases=5).exact


@pytest.mark.parametrize("target", [each for each in TARGETS if each != "reference"])
def test_a_state_of_another_request_is_found(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = executable("memory", target)
    run = type(compiled).run

    def first(self: Any, entry: Any, state: Any, given: Any, *more: Any, **named: Any) -> Any:
        if isinstance(given, Rows):
            object.__setattr__(given, "requests", np.zeros_like(given.requests))
        return run(self, entry, state, given, *more, **named)

    monkeypatch.setattr(type(compiled), "run", first)
    assert not certify(compiled, cases=5).exact


@pytest.mark.parametrize("target", TARGETS)
def test_an_entry_is_run_by_its_name(target: str) -> None:
    compiled = executable("memory", target)
    state = compiled.new_state(1, 2)
    assert compiled.run("encode", state, {"source": source(), "requests": np.array([1], np.int32)}) == ()
    assert list(compiled.entries) == ["step", "encode"]
    with pytest.raises(InvalidOptionError, match="no entry 'decode'"):
        compiled.run("decode", state, {})
    with pytest.raises(InvalidOptionError, match="takes source, requests, but got source"):
        compiled.run("encode", state, {"source": source()})
    with pytest.raises(InvalidOptionError, match="takes source"):
        compiled.run("encode", state, {"source": source()[0], "requests": np.array([1], np.int32)})
    long = {"source": np.zeros((1, 100_000), np.int32), "requests": np.array([1], np.int32)}
    with pytest.raises(TooLongError, match="@encode with L = 100000 exceeds max_length 160"):
        compiled.run("encode", state, long)


def test_states_find_inputs_that_have_grown() -> None:
    """An entry's long argument takes a larger array, which the executable's other states must read too."""
    compiled = tvm_step(planned(MODELS["memory"][0]), weights().__getitem__, **LIMITS)
    states = [compiled.new_state(1, 2) for _ in range(2)]
    places = compiled.step.entry("encode").places
    compiled.memory.inputs = np.zeros(max(places.values()) + 4, np.int32)
    for length in (3, 150):
        given = np.arange(length, dtype=np.int32)[None] % 7
        for state in states:
            compiled.memory.inputs[:] = 0
            compiled.run("encode", state, {"source": given, "requests": np.array([1], np.int32)})
    assert np.array_equal(states[0].requests, states[1].requests)
    assert states[0].requests.any()


def request(number: int) -> np.ndarray[Any, Any]:
    return np.array([number], np.int32)


def rows_of(**columns: Any) -> Rows:
    """One row of a first token, except for the columns given."""
    good = {
        **dict.fromkeys(("tokens", "positions", "sequences", "slots", "outputs"), np.zeros(1, np.int32)),
        "bases": np.ones(1, np.int32),
        **dict.fromkeys(("paths", "block_tables"), np.zeros((1, 1), np.int32)),
        "requests": np.ones(1, np.int32),
    }
    return Rows(**{**good, **columns})


ENCODED = {"source": source(), "requests": request(1)}
NO_ENTRY = "there is no entry .* besides the step: this model has encode"
MISUSES: dict[str, tuple[Any, Any, str]] = {
    "a request beyond the state": ("encode", ENCODED | {"requests": request(99)}, "requests .* from 0 to 1, not 99"),
    "a request far beyond": ("encode", ENCODED | {"requests": request(10**9)}, "requests .* not 1000000000"),
    "a request before the state": ("encode", ENCODED | {"requests": request(-1)}, "requests .* from 0 to 1, not -1"),
    "a token of 33 bits": ("encode", ENCODED | {"source": [[2**32 + 3]]}, "takes source .* cannot hold 4294967299"),
    "no tokens": ("encode", ENCODED | {"source": source()[:, :0]}, "L = 0 has nothing to read: give at least 1"),
    "lists of two lengths": (
        "encode",
        ENCODED | {"source": [[1, 2], [3]]},
        r"source as int32 \[1, L\], and list is no",
    ),
    "a tensor with gradients": (
        "encode",
        ENCODED | {"source": torch.ones((1, 3), requires_grad=True)},
        "source as int32, not float32",
    ),
    "a list as a name": (["encode"], ENCODED, NO_ENTRY),
    "no inputs": ("encode", None, "takes source, requests, but got NoneType"),
    "none of the inputs": ("encode", {}, "takes source, requests, but got none"),
    "a list of inputs": ("encode", [source(), request(1)], "but got list: give a dictionary by name"),
    "a number as a name": ("encode", ENCODED | {3: 4}, "but got source, requests, 3"),
    "rows for another entry": ("encode", rows_of(), "takes source, requests, but got Rows"),
    "inputs by name for the step": (WHOLE, ENCODED, "a part of the step runs on Rows, not dict"),
    "columns of two lengths": (WHOLE, rows_of(tokens=np.zeros(2, np.int32)), r"positions \[N\], not \[1\] .*N = 2"),
    "rows without requests": (WHOLE, rows_of(requests=np.zeros(0, np.int32)), r"requests \[S\], not \[0\] .*S = 1"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", MISUSES)
def test_what_an_entry_does_not_take_is_refused_in_one_sentence(case: str, target: str) -> None:
    compiled = executable("memory", target)
    entry, given, sentence = MISUSES[case]
    with pytest.raises(InvalidOptionError, match=sentence) as refused:
        compiled.run(entry, compiled.new_state(2, 2), given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("target", TARGETS)
def test_a_state_belongs_to_the_executable_that_made_it(target: str) -> None:
    compiled = executable("memory", target)
    for state, named in (
        (executable("sums", target).new_state(2, 2), "that of another one"),
        (None, "NoneType"),
        ({}, "dict"),
    ):
        for entry, given in (("encode", ENCODED), (WHOLE, rows_of())):
            with pytest.raises(InvalidOptionError, match=f"a state of its own, not {named}: give one"):
                compiled.run(entry, state, given)
    for wrong in (0, -1, 1.5, "a", None):
        with pytest.raises(InvalidOptionError, match=f"blocks must be .*not {wrong!r}"):
            compiled.new_state(wrong)
        with pytest.raises(InvalidOptionError, match=f"requests must be .*not {wrong!r}"):
            compiled.new_state(1, wrong)


@pytest.mark.parametrize("prompt", [[999, 2], [-1], []])
def test_the_prompt_of_a_request_is_checked(prompt: list[int]) -> None:
    with pytest.raises(PromptError, match=r"outside the vocabulary of 61|the prompt is empty"):
        CompiledModel(executable("memory", "cpu")).steps(Request(prompt, 3, inputs={"source": source()}))


def test_an_index_beyond_a_table_is_a_sentence() -> None:
    with pytest.raises(ForerunError, match="the table table has 61 entries, 939 too few: give indices from 0 to 60"):
        executable("memory", "reference").run(
            "encode", executable("memory", "reference").new_state(1, 2), ENCODED | {"source": [[999]]}
        )


@pytest.mark.parametrize("given", [None, [1]])
def test_the_inputs_of_a_request_have_names(given: Any) -> None:
    with pytest.raises(InvalidOptionError, match="inputs must be a dictionary of arrays by name, not "):
        Request(PROMPT, 2, inputs=given)
    with pytest.raises(InvalidOptionError, match="takes the inputs source, but got 3"):
        next(CompiledModel(executable("memory", "cpu")).steps(Request(PROMPT, 2, inputs={3: source()})))  # type: ignore


@pytest.mark.parametrize("target", TARGETS)
def test_the_inputs_of_a_request_are_those_of_encode(target: str) -> None:
    with pytest.raises(InvalidOptionError, match="takes the inputs source"):
        next(CompiledModel(executable("memory", target)).steps(Request(PROMPT, 2)))
    with pytest.raises(InvalidOptionError, match="takes no inputs"):
        next(CompiledModel(executable("sums", target)).steps(Request(PROMPT, 2, inputs={"source": source()})))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_a_session_is_cut_back_to_a_committed_position(name: str, target: str) -> None:
    engine = Engine(executable(name, target))
    text = np.random.default_rng(5).integers(0, VOCABULARY, 30, dtype=np.int32)
    with engine.sequence(64) as sequence:

        def logits() -> np.ndarray[Any, Any]:
            found: list[Any] = []
            for part in np.split(text[20:], [4, 8]):
                result = engine.run(prompt_rows(sequence, part, np.arange(len(part), dtype=np.int32)))
                found.append(result.logits.copy())
                sequence.length += len(part)
            return np.concatenate(found)

        engine.begin(sequence, inputs(name))
        engine.prefill(sequence, text[:20])
        expected = logits()
        sequence.cut(20)
        assert np.array_equal(logits(), expected)
        with pytest.raises(InvalidOptionError, match="cannot be cut back to 31"):
            sequence.cut(31)
