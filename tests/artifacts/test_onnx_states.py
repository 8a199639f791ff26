"""States other than keys and values in exported graphs: constant for a request, or refused."""

from typing import Any

import numpy as np
import pytest
import torch

import forerun
from forerun.codegen.onnx.lowering import emit
from forerun.codegen.planned import PlannedStep, StepLimits
from forerun.execute.onnx.executable import bind
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.prompt_lookup import PromptLookup
from forerun.runtime.drafters.token_recycling import TokenRecycling
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import Fixed
from forerun.runtime.request import Request
from forerun.runtime.sampling import SamplingSettings
from forerun.runtime.tree import chain
from tests.state_models import LIMITS, MEMORY, MODELS, SUMS, memory, planned, source, weights

PROMPT = [3, 17, 3, 40, 17, 3, 40]


def exported(text: str) -> Any:
    return bind(emit(PlannedStep(planned(text, fused=False), weights().__getitem__, StepLimits(**LIMITS))))


@pytest.mark.parametrize(
    "sampling", [SamplingSettings(), SamplingSettings(True, 0.8, seed=7)], ids=["greedy", "sampled"]
)
def test_a_state_per_request_is_written_once_and_read_by_every_step(sampling: SamplingSettings) -> None:
    executable = exported(MEMORY)
    assert set(executable.entries) == {"step", "encode"}
    texts: list[list[int]] = []
    for drafter in (None, Merged([PromptLookup(), TokenRecycling(executable.vocabulary)])):
        model = CompiledModel(executable, drafter, None if drafter is None else Fixed(8))
        steps = list(model.steps(Request(PROMPT, 40, sampling, keep_logits=True, inputs={"source": source()})))
        texts.append([token for each in steps for token in each.tokens])
        logits = np.concatenate([each.logits for each in steps if each.logits is not None])
        expected = memory(torch.tensor([*PROMPT, *texts[-1]]), torch.from_numpy(source()))[len(PROMPT) - 1 : -1]
        torch.testing.assert_close(torch.as_tensor(logits), expected, atol=2e-4, rtol=2e-4)
    assert texts[0] == texts[1]


def test_several_texts_share_a_step() -> None:
    """Each row sees its own text alone, whatever else the step evaluates."""
    executable = exported(MEMORY)
    prompts, sources = ([3, 17, 3], [40, 17, 3, 40, 5]), (source(1), source(2))
    engine = Engine(executable)
    with engine.sequence(8) as one, engine.sequence(8) as other:
        for sequence, prompt, given in zip((one, other), prompts, sources, strict=True):
            engine.begin(sequence, {"source": given})
            engine.prefill(sequence, np.array(prompt[:-1], np.int32))
        trees = [chain(prompt[-1], [9]) for prompt in prompts]
        results = engine.step([one, other], trees)
        for prompt, given, result in zip(prompts, sources, results, strict=True):
            expected = memory(torch.tensor([*prompt, 9]), torch.from_numpy(given))[-2:]
            found = np.stack([result.logits(row) for row in range(2)])
            torch.testing.assert_close(torch.as_tensor(found), expected, atol=2e-4, rtol=2e-4)


def test_a_state_per_row_is_refused_in_one_sentence() -> None:
    assert MODELS["sums"][0] is SUMS
    with pytest.raises(forerun.errors.UnsupportedOperationError, match=r"spec\.tree_recurrence keeps a state per row"):
        exported(SUMS)
