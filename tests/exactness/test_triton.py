"""The contract on Triton kernels, in the interpreter: a row's bits are its own, whoever shares its launches.

`execute/triton/interpreter.py` says what this shows and what only a GPU can.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import forerun
from forerun.build import Lowered, lower
from forerun.codegen.backends import WEIGHT_DTYPES
from forerun.codegen.program import Config
from forerun.errors import InvalidOptionError
from forerun.execute.triton.configs import candidates, first_config
from forerun.execute.triton.executable import TritonExecutable
from forerun.progress import SilentProgress
from forerun.runtime.certify import certify
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Draw, Part, Rows
from forerun.runtime.model import CompiledModel
from forerun.runtime.rows import join, reorder
from forerun.runtime.sampling import SamplingSettings, sample_token
from forerun.strategies import Target
from tests.compiled import reference_step, triton_step
from tests.models import FAMILIES, GPT, GROUPED, UNTIED, build

LIMITS = {"max_rows": 64, "max_outputs": 64, "max_path": 16, "max_length": 160}
LENGTH = 72
"""More positions than a split has."""
MODELS = {
    "llama": lambda: build("llama", **GROUPED | {"num_hidden_layers": 1}),
    "gpt2": lambda: build("gpt2", **GPT | {"n_layer": 1}),
    "gemma2": lambda: build(
        "gemma2",
        **GROUPED | UNTIED | {"num_hidden_layers": 1, "head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16},
    ),
}


@cache
def lowered(family: str, dtype: str) -> Lowered:
    return lower(MODELS[family](), dtype, LIMITS["max_length"], progress=SilentProgress())


@cache
def compiled(family: str, dtype: str = "float32") -> TritonExecutable:
    found = lowered(family, dtype)
    executable = triton_step(found.module, found.weights, storage=WEIGHT_DTYPES[dtype], device="cpu", **LIMITS)
    executable.launcher.tuner = _wide
    return executable


def _wide(launcher: Any, launch: Any, rows: int, shared: int, pointers: Any, sizes: Any) -> Config:
    first = first_config(launch, rows, shared)
    return Config(64, first.rows) if launch.grid.kind in ("products", "head") else first


def tokens_of(executable: TritonExecutable, seed: int = 0, count: int = LENGTH) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, executable.vocabulary, count, dtype=np.int32)


def text_rows(tokens: Any, start: int, table: Any) -> Rows:
    """Rows of a text's positions from `start` on, at home."""
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    table = np.asarray(table, np.int32)
    slots = table[positions // 16] * 16 + positions % 16
    zeros, every = np.zeros(len(tokens), np.int32), np.arange(len(tokens), dtype=np.int32)
    return Rows(tokens, positions, zeros, slots, positions + 1, zeros[:, None], table[None], every)


@cache
def plain(family: str, dtype: str = "float32", seed: int = 0) -> np.ndarray[Any, Any]:
    """The logits of a text: its first positions in one chunk, the last ones one row per step."""
    executable = compiled(family, dtype)
    tokens, state, table = tokens_of(executable, seed), executable.new_state(24), [3, 8, 1, 6, 0, 9, 2, 4, 5, 7]
    found: list[Any] = []
    for at in [*range(6), *range(58, LENGTH)]:
        first, last = (6, 59) if at == 58 else (at, at + 1)
        found.append(executable.run(WHOLE, state, text_rows(tokens[first:last], first, table)).logits[-1].copy())
    return np.stack(found)


PLAIN = [*range(6), *range(58, LENGTH)]
"""The positions that `plain` has."""
CASES = [
    ("llama", "float32"),
    pytest.param("gpt2", "float32", marks=pytest.mark.slow),
    ("gemma2", "float32"),
    ("llama", "bfloat16"),
]


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_chunks_give_the_bits_of_single_rows(family: str, dtype: str) -> None:
    executable, expected = compiled(family, dtype), plain(family, dtype)
    tokens, table = tokens_of(executable), [9, 0, 4, 11, 2, 13, 6, 7, 8, 10]
    for chunks in ([LENGTH - 8, 8], [5, 33, 29, 5]):
        state = executable.new_state(24)
        state.numbers.fill_(float("nan"))
        found: list[Any] = []
        start = 0
        for size in chunks:
            rows = text_rows(tokens[start : start + size], start, table)
            found.append(executable.run(WHOLE, state, rows).logits.copy())
            start += size
        together = np.concatenate(found)[PLAIN]
        assert together.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_trees_in_any_order_and_slots_beside_another_sequence(family: str, dtype: str) -> None:
    executable, expected = compiled(family, dtype), plain(family, dtype)
    tokens, other = tokens_of(executable), tokens_of(executable, 1)
    random = np.random.default_rng(2)
    table, beside = [9, 0, 4, 11, 2, 13], [20, 21, 22]
    for committed, count, alone in ((66, 6, True), (66, 6, False), (60, 12, False), (2, 4, False)):
        state = executable.new_state(40)
        state.numbers.fill_(float("nan"))
        executable.run(WHOLE, state, text_rows(tokens[:committed][:64], 0, table))
        if committed > 64:
            executable.run(WHOLE, state, text_rows(tokens[64:committed], 64, table))
        if not alone:
            executable.run(WHOLE, state, text_rows(other[:20], 0, beside))
        chain = text_rows(tokens[committed : committed + count], committed, table)
        slots = (30 * 16 + random.permutation(48)[: 2 * count]).astype(np.int32)
        paths = np.zeros((2 * count, count), np.int32)
        for row in range(count):
            paths[row, : row + 1] = slots[: row + 1]
            paths[count + row, : row + 1] = [*slots[:row], slots[count + row]]  # a sibling of each row, another token
        twice = {name: np.tile(getattr(chain, name), 2) for name in ("positions", "sequences")}
        strange = tokens_of(executable, 5, count)
        tree = replace(
            chain, **twice, tokens=np.concatenate([chain.tokens, strange]), slots=slots, paths=paths,
            bases=np.full(2 * count, committed, np.int32), outputs=np.arange(2 * count, dtype=np.int32),
        )  # fmt: skip
        rows = tree if alone else join([tree, text_rows(other[20:29], 20, beside)])
        rows = reorder(rows, random.permutation(len(rows.tokens)))
        result = executable.run(WHOLE, state, rows)
        first = PLAIN.index(committed)
        assert result.logits[:count].tobytes() == expected[first : first + count].tobytes()
        best = np.argsort(-result.logits, 1, kind="stable")[:, : executable.candidates]
        assert np.array_equal(result.candidates, best)


def test_certify_finds_no_difference() -> None:
    report = certify(compiled("llama"), cases=1, seed=3)
    assert report.exact, str(report)
    assert report.rows > 10


def test_certify_finds_a_planted_difference() -> None:
    """The generated file is replaced by a kernel whose sums depend on the number of rows."""
    found = lowered("llama", "float32")
    name = "layers_mlp_gate_up_products"
    sound = compiled("llama").launcher.sources[name].text
    broken = sound.replace("N = tl.load(sizes + 0)\n", "N = tl.load(sizes + 0)\n    N_rows = N * 1.0\n")
    broken = broken.replace(".to(tl.float32)\n", ".to(tl.float32) * (1.0 + N_rows * 1e-6)\n")
    assert broken.count("N_rows") > 1
    executable = triton_step(found.module, found.weights, device="cpu", kernels={f"{name}.py": broken}, **LIMITS)
    executable.launcher.tuner = _wide
    report = certify(executable, cases=1, seed=3)
    assert not report.exact
    assert report.first is not None
    assert report.first.kernel == "layers.0.mlp.gate_up"


def test_parts_meet_to_the_bits_of_the_whole() -> None:
    executable = compiled("llama")
    tokens, table = tokens_of(executable), [3, 8, 1]
    rows = text_rows(tokens[:9], 0, table)
    whole = executable.run(WHOLE, executable.new_state(24), rows)
    expected, stream = whole.logits.copy(), whole.hidden.copy()
    for leave in range(len(executable.branches) + 1):
        state = executable.new_state(24)
        first = executable.run(Part(leave=leave), state, replace(rows, outputs=rows.outputs[:0])).hidden.copy()
        second = executable.run(Part(enter=leave), state, rows, first if leave else None)
        assert second.logits.tobytes() == expected.tobytes()
        assert second.hidden.tobytes() == stream.tobytes()
    with pytest.raises(InvalidOptionError):
        executable.run(Part(enter=1), executable.new_state(24), rows)


def test_layers_that_share_an_input_give_what_the_interpreter_says() -> None:
    deep = FAMILIES["llama"](num_hidden_layers=3)
    found = lower(deep, "float32", LIMITS["max_length"], progress=SilentProgress())
    executable = triton_step(found.module, found.weights, device="cpu", **LIMITS)
    executable.launcher.tuner = _wide
    reference = reference_step(found.module, found.weights, **LIMITS)
    rows = text_rows(tokens_of(executable)[:9], 0, [3, 8, 1])
    whole = executable.run(WHOLE, executable.new_state(24), rows).logits.copy()
    for part in (Part(parallel=2), Part(leave=5, parallel=4)):
        ours, meant = (each.run(part, each.new_state(24), rows) for each in (executable, reference))
        np.testing.assert_allclose(ours.logits, meant.logits, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(ours.hidden, meant.hidden, rtol=2e-3, atol=2e-3)
        assert not np.allclose(whole, ours.logits, rtol=2e-3, atol=2e-3)


def test_a_skipped_branch_writes_no_keys_and_slots_are_copied() -> None:
    executable = compiled("llama")
    state, rows = executable.new_state(24), text_rows(tokens_of(executable)[:20], 0, [3, 8])
    executable.run(Part(skipped=frozenset(range(len(executable.branches)))), state, rows)
    assert not state.numbers.any()
    executable.run(WHOLE, state, rows)
    moved = replace(text_rows(rows.tokens[-1:], 19, [3, 8]), block_tables=np.array([[5, 6]], np.int32))
    before = executable.run(WHOLE, state, text_rows(rows.tokens[-1:], 19, [3, 8])).logits.copy()
    executable.copy_slots(state, rows.slots, np.concatenate([np.arange(80, 96), np.arange(96, 100)]).astype(np.int32))
    moved = replace(moved, slots=np.array([99], np.int32))
    assert executable.run(WHOLE, state, moved).logits.tobytes() == before.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_candidate_of_the_autotuner_changes_a_bit(dtype: str) -> None:
    executable = compiled("llama", dtype)
    table, tokens = [9, 0, 4, 11, 2], tokens_of(executable)
    tried: set[str] = set()
    for count in (1, 18) if dtype == "float32" else (1,):
        rows = text_rows(tokens[:count], 0, table)
        expected = executable.run(WHOLE, executable.new_state(24), rows).logits.copy()
        for number in range(7):

            def choose(_: Any, launch: Any, rows: int, shared: int, *more: Any, number: int = number) -> Config:
                options = candidates(launch, rows, shared)
                chosen = options[number % len(options)]
                tried.add(f"{launch.source} {rows} {chosen}")
                return chosen

            other = TritonExecutable(executable.step, executable.launcher.weights, "cpu", choose)
            assert other.run(WHOLE, other.new_state(24), rows).logits.tobytes() == expected.tobytes()
    assert len(tried) > 30


def test_logits_stay_where_they_are_until_asked_for() -> None:
    executable = compiled("llama")
    result = executable.run(WHOLE, executable.new_state(24), text_rows(tokens_of(executable)[:3], 0, [1]))
    assert "logits" not in vars(result)
    assert result.logits.shape == (3, executable.vocabulary)
    assert "logits" in vars(result)
    assert all(kernel.on_demand == () for kernel in executable.step.kernels[:-1])
    assert executable.step.kernels[-1].on_demand
    assert torch.is_tensor(executable.launcher.weights["model.lm_head.weight"])


@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "temperature": 1.3, "seed": 2**64 - 1}])
def test_a_model_on_it_generates_the_same_bits_under_both_strategies(sampling: dict[str, Any]) -> None:
    executable = compiled("llama")
    results: list[Any] = []
    drafting = forerun.TreeSpec(
        drafters=(forerun.EarlyExit(1, shape=forerun.Shape(deepest=2)), forerun.TokenRecycling()),
        policy=forerun.Fixed(5),
    )
    for strategy in (drafting, forerun.Autoregressive()):
        engine = Engine(executable)
        model = CompiledModel(executable, *strategy.build(Target(engine, None, None)), engine=engine)
        results.append(model.generate([7, 9, 31, 7, 9, 31, 7, 9], 8, return_logits=True, **sampling))
    fast, slow = results
    assert fast.token_ids == slow.token_ids
    assert fast.has_bits_of(slow)
    assert fast.stats.rows > slow.stats.rows
    settings = SamplingSettings(**sampling)
    for number, (row, token) in enumerate(zip(slow.logits, slow.token_ids, strict=True)):
        host = sample_token(row, settings, 0, 8 + number) if settings.do_sample else int(row.argmax())
        assert token == host


@pytest.mark.parametrize("family", MODELS)
def test_a_token_drawn_in_any_step_is_the_one_of_its_position(family: str) -> None:
    """It is also what the host samples from the logits, which come after a norm with a bias and after a soft cap."""
    executable = compiled(family)
    tokens, draws = tokens_of(executable), [Draw(5, 1, 0.9)]
    state, whole = executable.new_state(24), text_rows(tokens[:9], 0, [3])
    result = executable.run(WHOLE, state, whole, draws=draws)
    ids, drawn = result.candidates.copy(), result.drawn.copy()
    settings = SamplingSettings(do_sample=True, temperature=0.9, seed=5)
    assert drawn.tolist() == [sample_token(row, settings, 1, place + 1) for place, row in enumerate(result.logits)]
    assert ids.tobytes() == np.argsort(-result.logits, 1, kind="stable")[:, : ids.shape[1]].astype(np.int32).tobytes()
    for at in (0, 3, 4):
        alone = executable.run(WHOLE, state, text_rows(tokens[at : at + 1], at, [3]), draws=draws)
        assert alone.drawn.tolist() == [drawn[at]]
        assert alone.candidates.tobytes() == ids[at].tobytes()
