"""A dtype is part of the target: within one, every schedule gives the same bits, and the interpreter says which."""

from typing import Any

import numpy as np
import pytest
import torch

import forerun
from forerun import ir
from forerun.build import lower
from forerun.errors import InvalidOptionError
from forerun.progress import SilentProgress
from forerun.runtime.certify import certify
from forerun.runtime.model import CompiledModel
from forerun.runtime.tree import chain
from tests.compiled import reference_step
from tests.contract import PROMPT, SAMPLINGS, check_bits_of_plain_decoding
from tests.models import FAMILIES

NEW_TOKENS = 48


@pytest.fixture(scope="module", params=["llama", pytest.param("gemma2", marks=pytest.mark.slow), "gpt2"])
def family(request: pytest.FixtureRequest) -> tuple[Any, forerun.CompiledModel]:
    model = FAMILIES[request.param]()
    strategy = forerun.TreeSpec(policy=forerun.Fixed(12))
    return model, forerun.compile(model, strategy=strategy, dtype="bfloat16", max_length=256)


@pytest.mark.parametrize("options", SAMPLINGS)
def test_bits_are_those_of_plain_decoding(family: tuple[Any, forerun.CompiledModel], options: dict[str, Any]) -> None:
    check_bits_of_plain_decoding(family[1], options, NEW_TOKENS)


def test_certified(family: tuple[Any, forerun.CompiledModel]) -> None:
    report = certify(family[1].executable, cases=10, seed=1)
    assert report.exact, str(report)


def test_the_interpreter_rounds_the_same_weights_and_rows(family: tuple[Any, forerun.CompiledModel]) -> None:
    model, compiled = family
    lowered = lower(model, "bfloat16", 256, progress=SilentProgress(), arithmetic="bfloat16")
    stored = [each for each in ir.weights(lowered.module).values() if each.storage == "bf16"]
    assert stored
    limits = {"max_rows": 64, "max_outputs": 64, "max_path": 64, "max_length": 256}
    reference = CompiledModel(reference_step(lowered.module, lowered.weights, **limits))
    tree = chain(PROMPT[-1], [5, 99, 31, 7])
    (meaning,), (result,) = (each.evaluate_trees([PROMPT], [tree]) for each in (reference, compiled))
    # A last bit of float32 may round a row's number to its other neighbour; rows not rounded differ by 4e-3 or more.
    assert np.abs(result - meaning).max() < 1e-3 * np.abs(meaning).max()
    with torch.inference_mode():
        full = model(torch.tensor([[*PROMPT, 5, 99, 31, 7]])).logits[0, len(PROMPT) - 1 :].numpy()
    assert np.abs(result - full).max() > 1e-3, "nothing was rounded"


def test_an_unknown_dtype_is_named_with_those_that_exist() -> None:
    with pytest.raises(InvalidOptionError, match=r"'int3'.*float32, bfloat16"):
        forerun.compile(FAMILIES["llama"](), dtype="int3")
