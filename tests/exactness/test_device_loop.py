"""Decoding on the device: whatever is drafted there, texts and logits are those of plain decoding on the host.

These tests run in Triton's interpreter; `execute/triton/interpreter.py` says what only a GPU can show.
"""

from collections.abc import Generator
from functools import cache
from itertools import pairwise, zip_longest
from typing import Any

import numpy as np
import pytest

import forerun
from forerun.build import lower
from forerun.codegen.backends import WEIGHT_DTYPES
from forerun.codegen.program import Config
from forerun.errors import TooLongError
from forerun.execute.triton.configs import first_config
from forerun.execute.triton.executable import TritonExecutable
from forerun.execute.triton.loop import TritonLoop
from forerun.progress import SilentProgress
from forerun.runtime.calibration import CostModel
from forerun.runtime.certify_loop import certify_loop
from forerun.runtime.device_loop import AHEAD, OnDevice
from forerun.runtime.engine import Engine
from forerun.runtime.model import CompiledModel
from forerun.runtime.request import Request
from forerun.runtime.round_size import MostTokens, Round, SameSize
from forerun.runtime.sampling import SamplingSettings, sample_token
from forerun.strategies import STRATEGIES, Strategy, Target
from tests.compiled import triton_step
from tests.models import GPT, GROUPED, UNTIED, build

LIMITS = {"max_rows": 32, "max_outputs": 32, "max_path": 8, "max_length": 96}
MODELS = {
    "llama": lambda: build("llama", **GROUPED | {"num_hidden_layers": 1}),
    "gpt2": lambda: build("gpt2", **GPT | {"n_layer": 1}),
    "gemma2": lambda: build(
        "gemma2",
        **GROUPED | UNTIED | {"num_hidden_layers": 1, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    ),
}
CASES = [("llama", "float32"), ("gpt2", "float32"), ("gemma2", "float32"), ("llama", "bfloat16")]
PROMPT = [7, 9, 31, 7, 9, 31, 7, 9]


def wide(launcher: Any, launch: Any, rows: int, shared: int, pointers: Any, sizes: Any) -> Config:
    first = first_config(launch, rows, shared)
    return Config(64, first.rows) if launch.grid.kind == "products" else first


@cache
def compiled(family: str = "llama", dtype: str = "float32") -> TritonExecutable:
    found = lower(MODELS[family](), dtype, LIMITS["max_length"], progress=SilentProgress())
    executable = triton_step(found.module, found.weights, storage=WEIGHT_DTYPES[dtype], device="cpu", **LIMITS)
    executable.launcher.tuner = wide
    return executable


def model(strategy: Strategy, on_device: bool = True, family: str = "llama", dtype: str = "float32") -> CompiledModel:
    executable = compiled(family, dtype)
    target = Target(Engine(executable), CostModel((1, 32), (1.0, 1.2)), None)
    found = strategy.on_device(target) if on_device else None
    return CompiledModel(executable, *strategy.build(target), engine=target.engine, on_device=found)


@cache
def plain(family: str, dtype: str, count: int, **sampling: Any) -> Any:
    """The result of one row per step, decided on the host."""
    found = model(forerun.Autoregressive(), False, family, dtype)
    return found.generate(PROMPT, count, return_logits=True, **sampling)


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_the_bits_of_plain_decoding(family: str, dtype: str) -> None:
    expected = plain(family, dtype, 10)
    drafting = model(forerun.TreeSpec(policy=forerun.Fixed(6)), True, family, dtype)
    rows = 0
    for _ in range(2):  # the second time with what the first one learned
        found = drafting.generate(PROMPT, 10, return_logits=True)
        assert found.has_bits_of(expected)
        rows = found.stats.rows
    assert found.stats.steps < 10
    assert rows > 10
    assert drafting.generate(PROMPT, 10).token_ids == expected.token_ids


@pytest.mark.parametrize("sampling", [{"seed": 3}, {"seed": 2**63 + 5, "temperature": 0.7}])
def test_what_is_drawn_is_drawn_alike(sampling: dict[str, Any]) -> None:
    """Against the host's loop, and against numpy's random numbers on logits."""
    expected = plain("llama", "float32", 8, do_sample=True, **sampling)
    drafting = model(forerun.TreeSpec(policy=forerun.Fixed(8)))
    for _ in range(2):
        assert drafting.generate(PROMPT, 8, do_sample=True, return_logits=True, **sampling).has_bits_of(expected)
    assert drafting.generate(PROMPT, 8, do_sample=True, **sampling).token_ids == expected.token_ids
    settings = SamplingSettings(True, **sampling)
    for number, (token, logits) in enumerate(zip(expected.token_ids, expected.logits, strict=True)):
        assert token == sample_token(logits, settings, 0, len(PROMPT) + number)
    assert drafting.generate(PROMPT, 8).token_ids == plain("llama", "float32", 10).token_ids[:8], "greedy again"


def test_filters_are_left_to_the_host() -> None:
    found = model(forerun.TreeSpec(policy=forerun.Fixed(6)))
    assert found.on_device is not None
    for filters in ({"top_k": 20}, {"top_p": 0.8}):
        request = Request(PROMPT, 4, SamplingSettings(True, **filters))
        assert not found.on_device.serves(found.executable, request)
        expected = plain("llama", "float32", 4, do_sample=True, **filters)
        assert found.generate(PROMPT, 4, do_sample=True, return_logits=True, **filters).has_bits_of(expected)


@pytest.mark.parametrize("name", ["autoregressive", "tree_spec", "prompt_lookup", "token_recycling"])
def test_named_strategies_go_on_by_themselves(name: str) -> None:
    found = model(STRATEGIES[name])
    assert found.on_device is not None
    assert found.generate(PROMPT, 10).token_ids == plain("llama", "float32", 10).token_ids[:10]


@pytest.mark.parametrize("drafter", [forerun.EarlyExit(1), forerun.TokenRecycling(prompt_rows=True)])
def test_other_drafters_stay_on_the_host(drafter: Any) -> None:
    assert model(forerun.TreeSpec(drafters=(forerun.PromptLookup(), drafter))).on_device is None


def test_a_text_ends_where_it_should() -> None:
    expected = plain("llama", "float32", 10).token_ids
    found = model(forerun.TreeSpec(policy=forerun.Fixed(8)))
    for stop in {expected[0], expected[4], expected[9]}:
        ended = found.generate(PROMPT, 10, eos_token_id=stop).token_ids
        assert ended == expected[: expected.index(stop) + 1]
    for count in (1, 2, 3):
        assert found.generate(PROMPT, count).token_ids == expected[:count]
    assert (
        found.generate(PROMPT[:1], 3).token_ids
        == model(forerun.Autoregressive(), False).generate(PROMPT[:1], 3).token_ids
    )


def test_up_to_the_last_position() -> None:
    """The whole cache, including its last block."""
    prompt = np.random.default_rng(0).integers(0, 200, LIMITS["max_length"] - 9).tolist()
    expected = model(forerun.Autoregressive(), False).generate(prompt, 9, return_logits=True)
    found = model(forerun.TreeSpec(policy=forerun.Fixed(8)))
    assert found.generate(prompt, 9, return_logits=True).has_bits_of(expected)
    with pytest.raises(TooLongError):
        found.generate(prompt, 10)


def test_a_text_given_up_half_way_leaves_the_model_as_it_was() -> None:
    expected = plain("llama", "float32", 10).token_ids
    found = model(forerun.TreeSpec(policy=forerun.Fixed(8)))
    free = found.engine.cache.free_positions
    steps: Generator[Any] = found.steps(Request([3, 1, 4, 1, 5], 30))
    for _ in range(3):
        next(steps)
    steps.close()
    assert found.engine.cache.free_positions == free
    assert found.on_device is not None
    assert found.on_device.loop.pending == 0
    assert found.generate(PROMPT, 10).token_ids == expected


def test_the_host_reads_behind_and_never_first() -> None:
    """While the host waits for an iteration, up to AHEAD more are enqueued, but no more than the text may need."""
    found = model(forerun.TreeSpec(policy=forerun.Fixed(4)))
    on_device = found.on_device
    assert on_device is not None
    waits: list[tuple[int, int]] = []  # iterations under way, tokens missing
    report, missing = on_device.loop.report, 8

    def counted() -> Round:
        nonlocal missing
        waits.append((on_device.loop.pending, missing))
        done = report()
        missing -= len(done.tokens)
        return done

    on_device.loop.report = counted
    found.generate(PROMPT, 8)
    assert waits[0] == (AHEAD + 1, 8)
    assert all(pending == min(AHEAD + 1, left) for pending, left in waits)
    waits.clear()
    found.generate(PROMPT, 8, return_logits=True)
    assert {pending for pending, _ in waits} == {1}, "logits are those of the last round that ran"


def test_two_texts_may_alternate_and_one_may_begin_within_another() -> None:
    """One of them is decoded on the device, the others on the host."""
    found = model(forerun.TreeSpec(policy=forerun.Fixed(6)))
    prompts = [PROMPT, [3, 1, 4, 1, 5, 3, 1, 4]]
    expected = [found.generate(prompt, 6).token_ids for prompt in prompts]
    texts = [found.steps(Request(prompt, 6)) for prompt in prompts]
    tokens: list[list[int]] = [[], []]
    for steps in zip_longest(*texts):
        for mine, step in zip(tokens, steps, strict=True):
            mine.extend(step.tokens if step else [])
    assert tokens == expected
    held = found.steps(Request(prompts[0], 6))
    next(held)
    next(held)
    assert found.generate(prompts[1], 6).token_ids == expected[1]
    held.close()
    assert found.on_device is not None
    assert not found.on_device.busy


def test_certify_the_loop() -> None:
    report = certify_loop(compiled(), texts=3, seed=1)
    assert report is not None
    assert report.exact, str(report)
    assert report.rounds < report.tokens


@pytest.mark.parametrize("kept", [True, False])
def test_certify_finds_a_planted_difference(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An iteration reports another token, or other logits, than it chose."""
    if kept:
        right = TritonLoop.logits
        monkeypatch.setattr(TritonLoop, "logits", lambda loop, rows: np.nextafter(right(loop, rows), np.float32(9)))
    else:
        told = TritonLoop.report

        def report(loop: TritonLoop) -> Round:
            true = told(loop)
            last = (true.tokens[-1] + 1) % loop.launcher.step.vocabulary
            return Round(true.rows, true.path, [*true.tokens[:-1], last])

        monkeypatch.setattr(TritonLoop, "report", report)
    found = certify_loop(compiled(), texts=1, seed=1)
    assert found is not None
    assert not found.exact
    assert "text 0, iterations of 1 rows: token 0 differs" in str(found)


def test_there_is_no_loop_on_the_reference_target() -> None:
    built = forerun.compile(MODELS["llama"](), "autoregressive", target="reference", max_length=32)
    assert built.on_device is None
    assert certify_loop(built.executable) is None


def sizes_chosen(cost: CostModel, seconds: Any, right: Any, rounds: int = 600) -> list[int]:
    """The sizes over iterations in which a row is right with probability right(iteration) if the row before it is."""
    random, policy = np.random.default_rng(0), MostTokens(cost, (1, 2, 4, 8, 16))
    found: list[int] = []
    for number in range(rounds):
        size = policy.choose()
        path = [0]
        while path[-1] + 1 < size and random.random() < right(number):
            path.append(path[-1] + 1)
        policy.observe(size, Round(size, path, path, seconds(size)))
        found.append(size)
    return found


FLAT, STEEP = CostModel((1, 16), (1.0, 1.05)), CostModel((1, 16), (1.0, 16.0))


def test_sizes_follow_what_rounds_bring() -> None:
    likely, unlikely = (lambda _: 0.8), (lambda _: 0.1)
    assert np.median(sizes_chosen(FLAT, FLAT.seconds, likely)[100:]) == 16
    assert np.median(sizes_chosen(STEEP, STEEP.seconds, unlikely)[100:]) == 1
    assert np.median(sizes_chosen(FLAT, STEEP.seconds, unlikely)[300:]) == 1, "the calibration was wrong"
    assert np.median(sizes_chosen(STEEP, FLAT.seconds, likely)[300:]) == 16
    assert np.median(sizes_chosen(FLAT, lambda _: None, likely)[100:]) == 16, "no round was timed"


def test_a_constant_that_the_calibration_adds_changes_nothing() -> None:
    """Steps that the host waits for take longer than iterations, all by the same amount."""

    def device(size: int) -> float:
        return 0.5 + 0.02 * size

    waited = CostModel((1, 16), (device(1) + 5.0, device(16) + 5.0))
    chosen = sizes_chosen(waited, device, lambda _: 0.3)[100:]
    tokens = {size: sum(0.3**depth for depth in range(size)) for size in (1, 2, 4, 8, 16)}
    reached = sum(tokens[size] for size in chosen) / sum(device(size) for size in chosen)
    assert reached > 0.97 * max(tokens[size] / device(size) for size in tokens)


def test_sizes_follow_a_text_that_changes() -> None:
    found = sizes_chosen(FLAT, FLAT.seconds, lambda number: 0.02 if number < 400 else 0.9, 700)
    assert np.median(found[200:400]) < 16
    assert np.median(found[550:]) == 16


def test_a_smaller_tree_is_the_beginning_of_a_larger_one() -> None:
    """This lets one iteration tell what others would have brought."""
    loops = [model(forerun.TreeSpec(policy=forerun.Fixed(rows))) for rows in (4, 12)]
    tokens: list[list[int]] = []
    for each in loops:
        assert isinstance(each.on_device, OnDevice)
        assert isinstance(each.on_device.size, SameSize)
        each.generate(PROMPT, 6)
        loop: Any = each.on_device.loop
        with each.engine.sequence(40) as sequence:
            each.engine.prefill(sequence, np.array(PROMPT[:-1], np.int32))
            loop.known.successors.copy_(loops[0].on_device.loop.known.successors)  # pyright: ignore
            loop.known.shares.copy_(loops[0].on_device.loop.known.shares)  # pyright: ignore
            loop.known.hits.fill_(3.0)
            loop.known.trials.fill_(6.0)
            loop.begin(sequence, each.engine.cache.spare, PROMPT, 38)
            size = loop.size(each.on_device.size.rows)
            for call in loop.calls.before(size):
                loop.run(call)
            tokens.append(size.input("tokens")[: int(size.inputs[0])].tolist())
    assert all(len(shorter) < len(longer) for shorter, longer in pairwise(tokens))
    assert tokens[1][: len(tokens[0])] == tokens[0]


def test_a_least_length_is_left_to_the_host() -> None:
    found = model(forerun.TreeSpec(policy=forerun.Fixed(6)))
    assert found.on_device is not None
    free = plain("llama", "float32", 10).token_ids
    for sampling in ({}, {"do_sample": True, "seed": 3}):
        stop = found.generate(PROMPT, 10, **sampling).token_ids[2]
        request = Request(PROMPT, 10, stop=frozenset([stop]), min_new_tokens=5)
        assert not found.on_device.serves(found.executable, request)
        expected = plain("llama", "float32", 10, eos_token_id=stop, min_new_tokens=5, **sampling)
        assert stop not in expected.token_ids[:5]
        options = {"eos_token_id": stop, "min_new_tokens": 5, "return_logits": True, **sampling}
        assert found.generate(PROMPT, 10, **options).has_bits_of(expected)
    assert found.generate(PROMPT, 10, min_new_tokens=5).token_ids == free, "no token ends the text"


def test_a_criterion_ends_a_text_on_the_device() -> None:
    found = model(forerun.TreeSpec(policy=forerun.Fixed(6)))
    free = plain("llama", "float32", 10).token_ids
    for count in (1, 4):
        seen: list[list[int]] = []

        def ends(ids: Any, scores: Any, seen: list[list[int]] = seen, count: int = count) -> bool:
            seen.append(ids[0, len(PROMPT) :].tolist())
            return len(seen) == count

        assert found.generate(PROMPT, 10, stopping_criteria=[ends]).token_ids == free[:count]
        assert seen == [free[: n + 1] for n in range(count)]
    assert found.generate(PROMPT, 10).token_ids == free
