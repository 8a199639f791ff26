"""The contract of drafts that are parts of the target: whatever a part proposes, the bits are plain decoding's."""

from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forerun
from forerun.errors import InvalidOptionError
from forerun.runtime.calibration import CostModel
from forerun.runtime.drafters.growing import Grower
from forerun.runtime.drafters.launch_cost import LaunchCost
from forerun.runtime.drafters.merged import Merged
from forerun.runtime.drafters.parts.uniform import FixedPart
from forerun.runtime.drafters.self_draft import SelfDraft
from forerun.runtime.executable import Part
from forerun.runtime.model import CompiledModel
from forerun.runtime.policy import CostAware, Fixed
from forerun.strategies import Target
from tests.models import FAMILIES

DEEP: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 5},
    "gemma2": {"num_hidden_layers": 5},
    "gpt2": {"n_layer": 5},
    "gpt_neox": {"num_hidden_layers": 5},
    "falcon": {"num_hidden_layers": 5},
    "bloom": {"n_layer": 5},
}
PARALLEL = {"gpt_neox", "falcon"}
METHODS: dict[str, forerun.Strategy] = {
    "uniform": forerun.TreeSpec(drafters=(forerun.SkipLayers(forerun.Uniform(1.5)),), policy=forerun.Fixed(12)),
    "swift": forerun.TreeSpec(drafters=(forerun.SkipLayers(forerun.Swift(skipped=0.3)),), policy=forerun.Fixed(12)),
    "clasp": forerun.TreeSpec(drafters=(forerun.SkipLayers(forerun.Clasp(skipped=0.4)),), policy=forerun.Fixed(12)),
    "feed_forward": forerun.TreeSpec(
        drafters=(forerun.SkipLayers(forerun.FeedForwardOnly()),), policy=forerun.Fixed(12)
    ),
    "decayed_depth": forerun.TreeSpec(drafters=(forerun.SkipLayers(forerun.DecayedDepth()),), policy=forerun.Fixed(12)),
    "skip_decode": forerun.TreeSpec(drafters=(forerun.SkipLayers(forerun.SkipDecode()),), policy=forerun.Fixed(12)),
    "early_exit": forerun.TreeSpec(drafters=(forerun.EarlyExit(layer=3),), policy=forerun.Fixed(12)),
    "dynamic_exit": forerun.TreeSpec(drafters=(forerun.EarlyExit(),), policy=forerun.Fixed(12)),
    "confident": forerun.TreeSpec(
        drafters=(forerun.EarlyExit(layer=4, confidence=forerun.LikeliestAbove(0.3)),), policy=forerun.Fixed(12)
    ),
    # Two parts at once, one of them with work that can be reused, besides drafters that run no part.
    "all": forerun.TreeSpec(
        drafters=(
            forerun.EarlyExit(layer=2),
            forerun.SkipLayers(forerun.Swift(skipped=0.3)),
            forerun.EarlyExit(layer=4),
            forerun.SkipLayers(forerun.Clasp(skipped=0.4)),
            forerun.PromptLookup(),
            forerun.TokenRecycling(),
        ),
        policy=forerun.Fixed(24),
    ),
}
# Where time counts, launches are weighed, leaves are dropped, and some iterations have no draft.
COST = CostModel((1, 8, 64), (1e-3, 1.1e-3, 2e-3))
PROMPT = [5, 9, 2, 7, 11, 5, 9, 2, 3, 1, 8, 5, 9]
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.7, "top_p": 0.95, "seed": 4}


@cache
def plain(family: str) -> CompiledModel:
    return forerun.compile(FAMILIES[family](**DEEP[family]), strategy="autoregressive", max_length=128)


@cache
def expected(family: str, sampled: bool) -> forerun.Generation:
    return plain(family).generate(PROMPT, 40, return_logits=True, **(SAMPLED if sampled else {}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", DEEP)
def test_bits_are_those_of_plain_decoding(family: str, method: str) -> None:
    if family in PARALLEL and method == "feed_forward":
        with pytest.raises(InvalidOptionError, match="skip whole layers"):
            forerun.with_strategy(plain(family), METHODS[method])
        return
    model = forerun.with_strategy(plain(family), METHODS[method])
    for sampled in (False, True):
        reference = expected(family, sampled)
        found = model.generate(PROMPT, 40, return_logits=True, **(SAMPLED if sampled else {}))
        assert found.token_ids == reference.token_ids
        assert found.has_bits_of(reference)
        assert found.stats.rows > found.stats.steps, "nothing was proposed"


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_parts_draft_without_a_trace(family: str, data: st.DataObject) -> None:
    model = plain(family)
    count = len(model.executable.branches)
    drafters = [
        SelfDraft(
            model.engine,
            FixedPart(Part(leave=leave, skipped=frozenset(skipped))),
            Grower(forerun.Shape(deepest=deepest, beam=beam), LaunchCost(None)),
        )
        for leave, skipped, deepest, beam in data.draw(
            st.lists(
                st.tuples(
                    st.integers(1, count),
                    st.sets(st.integers(0, count - 1)),
                    st.integers(1, 6),
                    st.integers(1, 4),
                ),
                min_size=1,
                max_size=3,
            )
        )
    ]
    drafting = CompiledModel(
        model.executable, Merged(drafters), Fixed(data.draw(st.integers(2, 30))), engine=model.engine
    )
    sampled = data.draw(st.booleans())
    found = drafting.generate(PROMPT, 40, return_logits=True, **(SAMPLED if sampled else {}))
    assert found.has_bits_of(expected(family, sampled))


@pytest.mark.parametrize("method", ["uniform", "swift", "clasp", "early_exit", "dynamic_exit", "all"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_bits_are_plain_decodings_where_time_counts(family: str, method: str) -> None:
    model = plain(family)
    drafter, _ = METHODS[method].build(Target(model.engine, COST, None))
    drafting = CompiledModel(model.executable, drafter, CostAware(COST, 24), engine=model.engine)
    for sampled in (False, True, False):
        found = drafting.generate(PROMPT, 40, return_logits=True, **(SAMPLED if sampled else {}))
        assert found.has_bits_of(expected(family, sampled))


@pytest.mark.parametrize("method", ["early_exit", "all"])
def test_a_text_reaches_the_last_position(method: str) -> None:
    model = forerun.with_strategy(plain("llama"), METHODS[method])
    new = model.executable.max_length - len(PROMPT)
    found = model.generate(PROMPT, new, return_logits=True)
    assert found.has_bits_of(plain("llama").generate(PROMPT, new, return_logits=True))


@pytest.mark.parametrize("method", ["clasp", "early_exit", "all"])
def test_a_request_that_fails_leaves_no_trace(method: str) -> None:
    model = forerun.with_strategy(plain("llama"), METHODS[method])
    for fail_at in (3, 8):
        left = fail_at

        class Full:
            def put(self, value: Any) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    raise OSError("no one listens")

            def end(self) -> None:
                pass

        with pytest.raises(OSError, match="no one listens"):
            model.generate(PROMPT, 40, streamer=Full())
        assert model.generate(PROMPT, 40, return_logits=True).has_bits_of(expected("llama", False))


def test_the_target_itself_is_a_perfect_draft() -> None:
    model = plain("llama")
    grower = Grower(forerun.Shape(deepest=4, beam=1, children=1), LaunchCost(None))
    drafter = SelfDraft(model.engine, FixedPart(Part()), grower)
    drafting = CompiledModel(model.executable, drafter, Fixed(8), engine=model.engine)
    found = drafting.generate(PROMPT, 40, return_logits=True)
    assert found.has_bits_of(expected("llama", False))
    assert found.stats.accepted_length == 5.0


def test_a_step_is_entered_behind_what_the_draft_has_computed() -> None:
    model = forerun.with_strategy(plain("llama"), METHODS["early_exit"])
    parts: list[tuple[Part, int]] = []
    run = model.executable.run

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(model.executable, name)

        def run(self, part: Part, state: Any, rows: Any, *more: Any) -> Any:
            parts.append((part, len(rows.outputs)))
            return run(part, state, rows, *more)

    model.engine.executable, kept = Watched(), model.engine.executable
    try:
        model.generate(PROMPT, 12)
    finally:
        model.engine.executable = kept
    verified = [part for part, outputs in parts[1:] if part.enter or part == Part()]
    assert len(verified) > 2
    assert all(part == Part(enter=6) for part in verified[:-1]), "a verifying step did what the draft had done"


def test_a_model_without_parts_is_told_so() -> None:
    executable = plain("llama").executable
    bare = type("Bare", (), {"branches": (), "__getattr__": lambda self, name: getattr(executable, name)})()
    engine = type("Engine", (), {"executable": bare})()
    with pytest.raises(InvalidOptionError, match="no residual stream"):
        SelfDraft(engine, FixedPart(Part()), Grower(forerun.Shape(), LaunchCost(None)))  # pyright: ignore


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: forerun.EarlyExit(layer=9),
        lambda: forerun.SkipLayers(forerun.Swift(skipped=0.9)),
        lambda: forerun.SkipLayers(forerun.Clasp(skipped=0.99)),
        lambda: forerun.Shape(beam=0),
        lambda: forerun.Uniform(0.5),
        lambda: forerun.DecayedDepth(alpha=0.0),
        lambda: forerun.SkipDecode(most=0.2, least=0.5),
        lambda: forerun.DynamicExit(exits=0),
        lambda: forerun.FeedForwardOnly(skipped=2.0),
    ],
)
def test_wrong_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(InvalidOptionError):
        forerun.with_strategy(plain("llama"), forerun.TreeSpec(drafters=(wrong(),), policy=forerun.Fixed(8)))
