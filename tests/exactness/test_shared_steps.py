"""Sessions that share steps, under many compositions of drafters, give the bits of each text alone."""

from functools import cache
from typing import Any

import pytest

import forerun
from forerun.runtime.certify_sessions import certify_sessions
from forerun.runtime.engine import Engine
from tests.models import FAMILIES

FIXED = forerun.Fixed(8)
LOOKUP, RECYCLING = forerun.PromptLookup(), forerun.TokenRecycling()
COMPOSITIONS = {
    "none": forerun.Autoregressive(),
    "lookup": forerun.TreeSpec((LOOKUP,), FIXED),
    "both, sized by cost": forerun.TreeSpec(),
    "recycling of prompts": forerun.TreeSpec((forerun.TokenRecycling(prompt_rows=True),), FIXED),
    "layers skipped": forerun.TreeSpec((forerun.SkipLayers(),), FIXED),
    "early exit and both": forerun.TreeSpec((forerun.EarlyExit(layer=1), LOOKUP, RECYCLING), FIXED),
    "searched layers": forerun.TreeSpec((forerun.SkipLayers(forerun.Swift()),), FIXED),
    "exit chosen": forerun.TreeSpec((forerun.EarlyExit(), RECYCLING), FIXED),
}


@cache
def llama() -> forerun.CompiledModel:
    return forerun.compile(FAMILIES["llama"](num_hidden_layers=6), "autoregressive", max_length=256)


@cache
def small() -> forerun.CompiledModel:
    return forerun.compile(FAMILIES["gpt2"](), "autoregressive", max_length=256)


@pytest.mark.parametrize("name", [*COMPOSITIONS, "a model that drafts", "a model that drafts by parallel layers"])
def test_certified(name: str) -> None:
    layers = 2 if "parallel" in name else 1
    drafts = forerun.TreeSpec((forerun.DraftModel(small(), vocabulary="same", parallel_layers=layers), LOOKUP), FIXED)
    model = forerun.with_strategy(llama(), COMPOSITIONS.get(name, drafts))
    report = certify_sessions(model.engine, model.drafter, model.policy, texts=8, seed=5)
    assert report.exact, str(report)
    assert report.tokens > 8 * 12
    assert not model.engine.cache.is_used


def test_certified_in_a_cache_too_small_for_all() -> None:
    """Sessions give up their places, and read what they have decoded again."""
    plain = llama()
    engine = Engine(plain.executable, blocks=-(-plain.executable.max_rows // plain.executable.block) + 20)
    model = forerun.with_strategy(plain, forerun.TreeSpec(policy=FIXED))
    report = certify_sessions(engine, model.drafter, model.policy, texts=12, seed=6)
    assert report.exact, str(report)
    assert not engine.cache.is_used


@pytest.mark.parametrize("name", ["a model that drafts", "layers skipped"])
def test_drafts_of_all_sessions_are_launched_together(name: str) -> None:
    drafts = forerun.TreeSpec((forerun.DraftModel(small(), vocabulary="same"),), FIXED)
    runs: list[float] = []
    for count in (1, 4):
        model = forerun.with_strategy(llama(), COMPOSITIONS.get(name, drafts))
        drafter: Any = model.drafter
        before, steps = drafter.engine.runs, model.serving.scheduler.iteration
        model.generate([[5 + number, 9, 200, 31, 5 + number, 9] for number in range(count)], 40)
        runs.append((drafter.engine.runs - before) / (model.serving.scheduler.iteration - steps))
    assert runs[0] > 2, "it drafts"
    assert runs[1] < 1.5 * runs[0], "four sessions take little more launches than one"
