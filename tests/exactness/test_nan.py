"""Logits that are not numbers: NaN counts as the smallest logit, in every kernel and on the host, and ends a text.

Where it ends is a property of the text, whatever the strategy.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import forerun
from forerun.build import lower
from forerun.codegen.backends import WEIGHT_DTYPES
from forerun.codegen.program import Config
from forerun.errors import ForerunError, NotANumberError
from forerun.execute.triton.configs import first_config
from forerun.progress import SilentProgress
from forerun.runtime.certify import certify, likeliest
from forerun.runtime.certify_loop import certify_loop
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Draw, Rows
from forerun.runtime.model import CompiledModel
from forerun.runtime.sampling import SamplingSettings, as_numbers, choose_token
from forerun.strategies import STRATEGIES, Strategy, Target
from tests.compiled import triton_step
from tests.models import GROUPED, VOCABULARY, build

LIMITS = {"max_rows": 32, "max_outputs": 32, "max_path": 8, "max_length": 96}
PROMPT = [7, 9, 31, 7, 9, 31, 7, 9]
NAN, INF = float("nan"), float("inf")
COUNT = 12


class Poisoned(nn.Module):
    """A decoder that adds to its logits the table row of the token at that position."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.model = build("llama", **GROUPED | {"num_hidden_layers": 1})
        self.table = nn.Embedding.from_pretrained(table)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits + self.table(input_ids)


def table(rows: dict[int, dict[Any, float]]) -> torch.Tensor:
    """[V, V] zeros except for the given entries."""
    found = torch.zeros(VOCABULARY, VOCABULARY)
    for token, entries in rows.items():
        for ids, value in entries.items():
            found[token, list(ids) if isinstance(ids, range) else ids] = value
    return found


EVERY = range(VOCABULARY)
ROWS: dict[int, dict[Any, float]] = {
    0: {},
    1: {0: NAN},
    2: {VOCABULARY - 1: NAN},
    3: {range(0, 100): NAN},
    4: {EVERY: NAN},
    5: {EVERY: -INF},
    6: {3: INF, 70: INF},
    7: {range(0, 200): -INF},
    8: {EVERY: -INF, 12: NAN, 40: NAN},
    9: {5: NAN, 90: INF, 91: INF},
    10: {range(0, VOCABULARY, 2): NAN},
    11: {range(3, VOCABULARY): NAN},  # fewer numbers than candidates
}


def wide(launcher: Any, launch: Any, rows: int, shared: int, pointers: Any, sizes: Any) -> Config:
    first = first_config(launch, rows, shared)
    return Config(64, first.rows) if launch.grid.kind == "products" else first


def triton(module: nn.Module, dtype: str = "float32") -> Any:
    found = lower(module, dtype, LIMITS["max_length"], progress=SilentProgress())
    executable = triton_step(found.module, found.weights, storage=WEIGHT_DTYPES[dtype], device="cpu", **LIMITS)
    executable.launcher.tuner = wide
    return executable


def executable_for(target: str, module: nn.Module, dtype: str = "float32") -> Any:
    if target == "triton":
        return triton(module, dtype)
    return forerun.compile(module, "autoregressive", dtype, target, max_length=LIMITS["max_length"]).executable


@pytest.mark.parametrize("target", ["cpu", "reference", "triton"])
def test_a_row_chooses_alike_in_kernels_and_on_the_host(target: str) -> None:
    executable = executable_for(target, Poisoned(table(ROWS)))
    tokens = np.array(list(ROWS), np.int32)
    positions, zeros = np.arange(len(tokens), dtype=np.int32), np.zeros(len(tokens), np.int32)
    blocks = np.arange(-(-len(tokens) // executable.block), dtype=np.int32)
    rows = Rows(tokens, positions, zeros, positions, positions + 1, zeros[:, None], blocks[None], positions)
    for temperature in (None, 1.0, 0.5):
        draw = None if temperature is None else Draw(5, 0, temperature)
        result = executable.run(WHOLE, executable.new_state(16), rows, draws=[draw])
        candidates, values = result.candidates.copy(), result.candidate_logits.copy()
        broken, drawn = [result.first_nan(row) for row in range(len(tokens))], result.drawn.copy()
        logits = result.logits.copy()
        for row, own in enumerate(logits):
            nans = np.flatnonzero(np.isnan(own))
            assert broken[row] == (nans[0] if len(nans) else None)
            assert candidates[row].tolist() == likeliest(own, executable.candidates).tolist()
            assert values[row].tobytes() == as_numbers(own[candidates[row]]).tobytes()
            assert choose_token(own, SamplingSettings(), 0, 1) == candidates[row, 0]
            if len(drawn) and not len(nans):
                settings = SamplingSettings(True, temperature or 1.0, seed=5)
                assert drawn[row] == (candidates[row, 0] if draw is None else choose_token(own, settings, 0, row + 1))
        assert [each is not None for each in broken] == [token not in (0, 5, 6, 7) for token in tokens.tolist()]


def test_infinite_logits_choose_the_first_of_them() -> None:
    """Greedy and sampled decoding agree, with filters or without."""
    for row in ([1.0, INF, 2.0, INF], [-INF] * 4, [NAN] * 4, [NAN, 3.0, -INF, NAN]):
        logits = np.array(row, np.float32)
        greedy = choose_token(logits, SamplingSettings(), 0, 0)
        assert greedy == int(np.where(np.isnan(logits), -INF, logits).argmax())
        for filters in ({}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.0}):
            settings = SamplingSettings(True, 0.7, **filters)
            assert {choose_token(logits, settings, 0, position) for position in range(20)} == {greedy}


class Collector:
    """A streamer."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Any) -> None:
        self.tokens.extend(value.reshape(-1).tolist())

    def end(self) -> None: ...


SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "seed": 3}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": SAMPLED, "filtered": SAMPLED | {"top_k": 20, "top_p": 0.9}}


@cache
def poisoned(value: float, way: str) -> tuple[Poisoned, int]:
    """A module whose text meets `value` at the first occurrence of a token, and that token's place."""
    plain = Poisoned(table({}))
    target = forerun.compile(plain, "autoregressive", target="cpu", max_length=96)
    text = target.generate(PROMPT, COUNT, **WAYS[way]).token_ids
    place = next(at for at in range(4, COUNT) if text[at] not in PROMPT + text[:at])
    return Poisoned(table({text[place]: {17: value, 200: value, text[place + 1]: value}})), place


def fails(model: CompiledModel, way: str, place: int) -> list[int]:
    """The tokens that came before the error."""
    streamer = Collector()
    with pytest.raises(NotANumberError, match=f"at position {len(PROMPT) + place} ") as caught:
        model.generate(PROMPT, COUNT, streamer=streamer, **WAYS[way])
    assert isinstance(caught.value, ForerunError)
    assert caught.value.position == len(PROMPT) + place
    assert caught.value.token_id <= 17
    assert len(str(caught.value).splitlines()) == 1
    return streamer.tokens[len(PROMPT) :]


@pytest.mark.parametrize("way", WAYS)
def test_a_text_ends_at_the_first_row_whatever_the_strategy(way: str) -> None:
    module, place = poisoned(NAN, way)
    masked, _ = poisoned(-INF, way)
    plain = forerun.compile(module, "autoregressive", target="cpu", max_length=96)
    before = fails(plain, way, place)
    assert len(before) == place + 1
    assert plain.generate(PROMPT, place + 1, **WAYS[way]).token_ids == before, "the row is not needed"
    assert plain.generate(PROMPT, COUNT, eos_token_id=before[-1], **WAYS[way]).token_ids == before
    expected = forerun.compile(masked, "autoregressive", target="cpu", max_length=96).generate(
        PROMPT, COUNT, **WAYS[way]
    )
    assert len(expected.token_ids) == COUNT
    for name in ("autoregressive", "tree_spec", "prompt_lookup", "token_recycling"):
        model = forerun.with_strategy(plain, name)
        for _ in range(2):  # the second time with what a drafter has learned
            assert fails(model, way, place) == before, name
            assert model.generate(PROMPT, COUNT, allow_nan=True, **WAYS[way]).token_ids == expected.token_ids, name


@pytest.mark.parametrize("way", ["greedy", "filtered"])
def test_parts_of_the_model_draft_nan_and_end_there_too(way: str) -> None:
    """A token's embedding is NaN; so are its stream and that of all rows that attend to it."""
    model = build("llama", **GROUPED | {"num_hidden_layers": 4})
    target = forerun.compile(model, "autoregressive", target="cpu", max_length=96)
    text = target.generate(PROMPT, COUNT, **WAYS[way]).token_ids
    place = next(at for at in range(4, COUNT) if text[at] not in PROMPT + text[:at])
    with torch.no_grad():
        model.get_input_embeddings().weight[text[place], 5] = NAN
    plain = forerun.compile(model, "autoregressive", target="cpu", max_length=96)
    before = fails(plain, way, place)
    assert before == text[: place + 1]
    for name in STRATEGIES:
        drafting = forerun.with_strategy(plain, name)
        for _ in range(2):
            assert fails(drafting, way, place) == before, name
            found = drafting.generate(PROMPT, COUNT, allow_nan=True, **WAYS[way]).token_ids
            assert found == before + [0] * (COUNT - len(before)), name


def test_a_drafted_row_that_is_not_accepted_has_no_effect() -> None:
    """A token's row is NaN throughout, and is drafted at every step."""
    text = forerun.compile(Poisoned(table({})), "autoregressive", target="cpu", max_length=96).generate(PROMPT, COUNT)
    never = next(token for token in range(VOCABULARY) if token not in PROMPT + text.token_ids)

    class Wrong(forerun.PromptLookup):
        def build(self, target: Target) -> Any:
            from forerun.runtime.drafters.base import Drafter, Proposal
            from forerun.runtime.tree import chain

            class Proposes(Drafter):
                def propose(self, context: Any, budget: Any) -> Any:
                    if budget.depth == 0:
                        return super().propose(context, budget)
                    return Proposal(chain(context.tokens[-1], [never]))

            return Proposes()

    plain = forerun.compile(Poisoned(table({never: {EVERY: NAN}})), "autoregressive", target="cpu", max_length=96)
    drafting = forerun.with_strategy(plain, forerun.TreeSpec(drafters=(Wrong(),), policy=forerun.Fixed(4)))
    expected = plain.generate(PROMPT, COUNT, return_logits=True)
    assert expected.token_ids == text.token_ids
    found = drafting.generate(PROMPT, COUNT, return_logits=True)
    assert found.has_bits_of(expected)
    assert found.stats.rows > COUNT


def test_a_draft_model_of_nothing_but_nan_has_no_effect() -> None:
    plain = forerun.compile(Poisoned(table({})), "autoregressive", target="cpu", max_length=96)
    drafts = forerun.DraftModel(Poisoned(torch.full((VOCABULARY, VOCABULARY), NAN)))
    drafting = forerun.with_strategy(plain, forerun.TreeSpec(drafters=(drafts,), policy=forerun.Fixed(6)))
    for options in WAYS.values():
        expected = plain.generate(PROMPT, COUNT, return_logits=True, **options)
        assert drafting.generate(PROMPT, COUNT, return_logits=True, **options).has_bits_of(expected)


def on_triton(executable: Any, strategy: Strategy, on_device: bool) -> CompiledModel:
    target = Target(Engine(executable), None, None)
    found = strategy.on_device(target) if on_device else None
    assert (found is not None) == on_device
    return CompiledModel(executable, *strategy.build(target), engine=target.engine, on_device=found)


@pytest.mark.parametrize("way", WAYS)
def test_the_loop_on_the_device_ends_there_too(way: str) -> None:
    module, place = poisoned(NAN, way)
    executable = triton(module)
    plain = on_triton(executable, forerun.Autoregressive(), False)
    before = fails(plain, way, place)
    assert len(before) == place + 1
    expected = plain.generate(PROMPT, COUNT, allow_nan=True, **WAYS[way])
    drafting = on_triton(executable, forerun.TreeSpec(policy=forerun.Fixed(8)), True)
    for _ in range(2):
        assert fails(drafting, way, place) == before
    assert drafting.generate(PROMPT, COUNT, allow_nan=True, **WAYS[way]).token_ids == expected.token_ids


def test_certification_knows_the_rule() -> None:
    module = Poisoned(table(ROWS))
    assert certify(executable_for("cpu", module), cases=2, seed=1).exact
    report = certify_loop(triton(module), texts=1, seed=2)
    assert report is not None
    assert report.exact


class Overflowing(nn.Module):
    """The stream overflows: infinities of both signs are added."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.scale = nn.Parameter(torch.tensor(scale))
        self.head = nn.Linear(32, VOCABULARY)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(input_ids) * self.scale)


@pytest.mark.parametrize(
    ("target", "dtype", "scale"),
    [
        ("cpu", "float32", 1e39),
        ("cpu", "bfloat16", 1e39),
        ("reference", "float32", 1e39),
        ("triton", "float16", 1e7),
        ("triton", "bfloat16", 1e39),
    ],
)
def test_an_overflow_is_found(target: str, dtype: str, scale: float) -> None:
    model = CompiledModel(executable_for(target, Overflowing(scale), dtype))
    with pytest.raises(NotANumberError, match="at position 2 "):
        model.generate([1, 2, 3], 4)
    assert model.generate([1, 2, 3], 4, allow_nan=True).token_ids == [0, 0, 0, 0]
    fits = CompiledModel(executable_for(target, Overflowing(1.0), dtype))
    assert len(fits.generate([1, 2, 3], 4).token_ids) == 4
