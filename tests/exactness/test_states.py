"""States per row and per request under trees: the same tokens and logits as plain decoding, and as torch's forward."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from forerun.errors import InvalidOptionError, TooLongError
from forerun.runtime.certify import certify
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Executable, Rows
from forerun.runtime.generation import Request
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.sampling import SamplingSettings
from tests.compiled import reference_step, triton_step, tvm_step
from tests.exactness.test_nan import wide
from tests.state_models import LIMITS, MODELS, VOCABULARY, planned, source, weights

TARGETS = ("reference", "cpu", "triton")
GREEDY = SamplingSettings()
PROMPT = [3, 17, 3, 40, 17, 3, 40]


@cache
def executable(name: str, target: str) -> Executable:
    module = planned(MODELS[name][0])
    if target == "reference":
        return reference_step(module, weights().__getitem__, **LIMITS)
    if target == "cpu":
        return tvm_step(module, weights().__getitem__, **LIMITS)
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
    report = certify(executable(name, target), cases=3 if target == "triton" else 25)
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
            engine.prefill(sequence, text[20:], 4, lambda _, result: found.append(result.logits.copy()))
            return np.concatenate(found)

        engine.begin(sequence, inputs(name))
        engine.prefill(sequence, text[:20])
        expected = logits()
        sequence.cut(20)
        assert np.array_equal(logits(), expected)
        with pytest.raises(InvalidOptionError, match="cannot be cut back to 31"):
            sequence.cut(31)
