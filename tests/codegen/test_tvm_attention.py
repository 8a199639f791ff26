"""Tree attention with all its options against the interpreter, and row determinism of whole steps."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from steps import ATTENTIONS, LENGTH, ROW_TYPES, attention_step, decoder, prompt_rows, rows_of, tree_rows

from forerun import ir
from forerun.codegen.tvm import lowering
from forerun.codegen.tvm.lowering import TEMPLATES
from forerun.execute.tvm import code as kept_code
from forerun.runtime.executable import WHOLE
from tests.compiled import tvm_step


@pytest.mark.parametrize(("heads", "groups", "key_dim", "value_dim", "options"), ATTENTIONS)
def test_tree_attention_matches_the_interpreter(heads, groups, key_dim, value_dim, options):
    module, weights = attention_step(heads, groups, key_dim, value_dim, options)
    generator = np.random.default_rng(heads)
    table = [5, 2, 9, 0, 7]
    prompt = prompt_rows(generator.integers(0, LENGTH, 53), 0, table)
    tree = tree_rows(generator, table, 53, 17, 10 * 16)
    executable = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256)
    state = executable.new_state(16)
    state.numbers[:] = torch.randn(state.numbers.shape).numpy() * 1e3
    environment = ir.Environment(weights.__getitem__, ir.new_states(module, 16 * 16))
    for rows in (prompt, tree):
        executable.memory.arena.fill(math.nan)
        result = executable.run(WHOLE, state, rows).logits
        inputs = [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES]
        (expected,) = ir.evaluate(module, "step", inputs, environment)
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_hundreds_are_weighed(sign):
    """Real models have heads all of whose scores lie far above or below what exp can represent."""
    module, weights = attention_step(6, 2, 64, 16, {})
    weights["q"], weights["k"] = weights["q"] * 0.05 + 4, weights["k"] * 0.05 + 4 * sign
    executable = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256)
    rows = prompt_rows(np.random.default_rng(0).integers(0, LENGTH, 21), 0, [5, 2, 9, 0, 7])
    environment = ir.Environment(weights.__getitem__, ir.new_states(module, 16 * 16))
    (expected,) = ir.evaluate(
        module, "step", [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES], environment
    )
    executable.memory.arena.fill(math.nan)
    result = executable.run(WHOLE, executable.new_state(16), rows).logits
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def compiled():
    module, weights = decoder()
    return module, weights, tvm_step(module, weights.__getitem__, max_rows=64, max_length=256)


def plain(executable, tokens, table=(3, 8, 1, 6, 0, 9)):
    """The logits of a text, one row per step."""
    state = executable.new_state(16)
    rows = (prompt_rows([token], at, table) for at, token in enumerate(tokens))
    return np.stack([executable.run(WHOLE, state, each).logits[0].copy() for each in rows])


def test_a_step_matches_the_interpreter(compiled):
    module, weights, executable = compiled
    rows = prompt_rows(np.random.default_rng(1).integers(0, 331, 45), 0, [4, 2, 7])
    executable.memory.arena.fill(math.nan)
    result = executable.run(WHOLE, executable.new_state(16), rows)
    environment = ir.Environment(weights.__getitem__, ir.new_states(module, 16 * 16))
    inputs = [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES]
    logits, ids, values = ir.evaluate(module, "step", inputs, environment)
    np.testing.assert_allclose(result.logits, logits.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result.candidate_logits, values.numpy(), rtol=1e-3, atol=1e-4)
    assert np.array_equal(result.candidates, np.argsort(-result.logits, 1, kind="stable")[:, :8])
    assert ids.shape == result.candidates.shape


@pytest.mark.parametrize("chunk", [2, 3, 5, 8, 12, 13, 33, 64])
def test_chunks_of_a_prompt_give_the_same_bits(compiled, chunk):
    executable = compiled[2]
    tokens = np.random.default_rng(2).integers(0, 331, 70)
    expected = plain(executable, tokens)
    state = executable.new_state(16)
    for start in range(0, 70, chunk):
        rows = prompt_rows(tokens[start : start + chunk], start, [9, 0, 4, 11, 2])
        executable.memory.arena.fill(math.nan)
        assert np.array_equal(executable.run(WHOLE, state, rows).logits, expected[start : start + chunk])


def test_a_tree_in_any_order_and_slots_gives_the_bits_of_plain_decoding(compiled):
    executable = compiled[2]
    generator = np.random.default_rng(3)
    table = [9, 0, 4, 11, 2]
    prompt = generator.integers(0, 331, 37)
    for count in (1, 2, 7, 16, 33):
        state = executable.new_state(24)
        executable.run(WHOLE, state, prompt_rows(prompt, 0, table))
        rows = tree_rows(generator, table, 37, count, 12 * 16)
        order = generator.permutation(count)
        names = ("tokens", "positions", "sequences", "slots", "bases", "paths")
        shuffled = rows_of(*(getattr(rows, name)[order] for name in names), rows.block_tables)
        result = executable.run(WHOLE, state, shuffled).logits.copy()
        for place, row in enumerate(order):
            length = rows.positions[row] - 37 + 1
            path = [int(rows.tokens[rows.slots.tolist().index(slot)]) for slot in rows.paths[row, :length]]
            if place % 5 == 0 or count < 8:
                assert np.array_equal(plain(executable, [*prompt, *path])[-1], result[place])


def test_committed_slots_may_move(compiled):
    executable = compiled[2]
    tokens = np.random.default_rng(4).integers(0, 331, 30)
    expected = plain(executable, tokens)
    state = executable.new_state(16)
    executable.run(WHOLE, state, prompt_rows(tokens[:20], 0, [1, 2]))
    executable.copy_slots(state, np.arange(16, 36, dtype=np.int32), np.arange(36, 16, -1, dtype=np.int32) + 100)
    slots = np.arange(36, 16, -1) + 100
    executable.copy_slots(state, slots.astype(np.int32), np.arange(5 * 16, 5 * 16 + 20, dtype=np.int32))
    result = executable.run(WHOLE, state, prompt_rows(tokens[20:], 20, [5, 6])).logits
    assert np.array_equal(result, expected[20:])


def test_thread_counts_give_the_same_bits(compiled):
    module, weights, executable = compiled
    single = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256, threads=1)
    rows = prompt_rows(np.arange(40), 0, [0, 1, 2])
    first = executable.run(WHOLE, executable.new_state(4), rows).logits.copy()
    assert np.array_equal(first, single.run(WHOLE, single.new_state(4), rows).logits)


def test_a_trace_has_every_kernel_and_a_planted_fault_shows_in_it(compiled):
    module, weights, executable = compiled
    rows = prompt_rows(np.arange(20), 0, [0, 1])
    entries = executable.trace(executable.new_state(4), rows)
    assert [each.kernel.rpartition("_")[0] for each in entries[:4]] == ["row_wise", "linear", "attention", "linear"]
    assert np.array_equal(entries[-3].value, executable.run(WHOLE, executable.new_state(4), rows).logits)
    faulty = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256, templates={"attention": _faulty})
    moved = faulty.trace(faulty.new_state(4), rows)
    different = [a.kernel for a, b in zip(entries, moved, strict=True) if not np.array_equal(a.value, b.value)]
    assert different[0] == "attention_2"


def test_kernels_are_timed_with_the_bytes_of_their_weights(compiled):
    _, weights, executable = compiled
    rows = prompt_rows(np.arange(20), 0, [0, 1])
    times = executable.time_kernels(executable.new_state(4), rows, rounds=2)
    names = dict.fromkeys(each.kernel for each in executable.trace(executable.new_state(4), rows))
    assert [each.kernel for each in times] == list(names)
    for each in times:
        assert each.seconds >= 0
        assert each.value_bytes > 0
        assert each.weight_bytes >= sum(weights[name].numel() * 4 for name in each.weights)
    assert 0 < sum(each.weight_bytes for each in times) <= executable.weight_bytes
    assert any(not each.weights for each in times)


def _faulty(code, nest, machine, schedule):
    """Scales scores by slightly more than it should."""
    TEMPLATES["attention"](code, replace(nest, scale=nest.scale * 1.0001), machine, schedule)


@pytest.mark.parametrize("linked", [True, False])
def test_compiled_code_is_found_again_and_a_broken_file_is_replaced(compiled, monkeypatch, tmp_path, linked):
    if linked and not kept_code.can_link():
        pytest.skip("this machine has no C compiler")
    monkeypatch.setattr(kept_code, "can_link", lambda: linked)
    module, weights, executable = compiled
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path))
    compilations = []
    build = lowering.build
    monkeypatch.setattr(lowering, "build", lambda *of: (compilations.append(of), build(*of))[1])
    rows = prompt_rows(np.arange(20), 0, [0, 1])
    expected = executable.run(WHOLE, executable.new_state(4), rows).logits.copy()
    tvm_step(module, weights.__getitem__, max_rows=64, max_length=256)
    (file,) = (each for each in tmp_path.iterdir() if each.suffix in (".ll", ".so"))
    whole = file.read_bytes()
    again = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256)
    assert len(compilations) == 1
    assert np.array_equal(again.run(WHOLE, again.new_state(4), rows).logits, expected)
    file.write_bytes(whole[: len(whole) // 2])
    tvm_step(module, weights.__getitem__, max_rows=64, max_length=256)
    assert len(compilations) == 2
    assert len(file.read_bytes()) == len(whole)
