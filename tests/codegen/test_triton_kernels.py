"""Every Triton template in Triton's interpreter against the IR's, on odd sizes and poisoned memory."""

import math

import numpy as np
import pytest
import torch
from steps import ATTENTIONS, LENGTH, ROW_TYPES, Step, attention_step, decoder, prompt_rows, stored, tree_rows
from triton_steps import evaluate, interpreted, poisoned_state

from forerun import ir
from forerun.codegen.loops.decompose import NUMBERS
from forerun.errors import UnsupportedOperationError
from forerun.runtime.executable import WHOLE


def one_kernel(body, *shapes, tokens=5, returned=1):
    """Compares a step whose kernel works on weights [rows, ...] looked up by token with the IR's interpreter."""
    step = Step()
    tables = [step.weight(f"w{number}", *shape) for number, shape in enumerate(shapes)]
    result = step.kernel([*tables, step.argument("tokens")], body, "row_wise")
    module = step.finish(*(result if returned > 1 else (result,)))
    return evaluate(module, step.weights, prompt_rows(np.arange(tokens), 0, list(range(8))))


def assert_close(results, expected, **tolerance):
    for ours, meant in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours, meant, **({"rtol": 2e-5, "atol": 2e-6} | tolerance))


UNARY = sorted(name for name in NUMBERS if ir.FUNCTIONS[name][0] == 1 and name not in ir.COMPARISONS)
BINARY = ["add", "sub", "mul", "div", "floor_div", "remainder", "max", "min"]


def test_functions_of_numbers():
    def body(b, table, other, tokens):
        x, y = b.add(ir.Gather, table, tokens), b.add(ir.Gather, other, tokens)
        positive = b.map("add", b.map("abs", x), b.constant(0.01, "f32"))
        domain = {"log", "log1p", "log2", "sqrt", "rsqrt"}
        singles = [b.map(name, positive if name in domain else x) for name in UNARY]
        return tuple(singles + [b.map(name, x, y) for name in BINARY])

    results, expected = one_kernel(body, (5, 37), (5, 37), returned=2)
    for name, ours, meant in zip(UNARY + BINARY, results, expected, strict=True):
        np.testing.assert_allclose(ours, meant, rtol=2e-5, atol=3e-6, err_msg=name)


def test_integers_and_truth_values():
    def body(b, table, tokens):
        x = b.map("sub", b.reshape(tokens, ("N", 1)), b.constant(3, "i32"))
        y = b.constant(2, "i32")
        whole = [b.map(name, x, y) for name in ("floor_div", "remainder", "max", "xor")]
        small, odd = b.map("lt", x, y), b.map("ne", b.map("remainder", x, y), b.constant(0, "i32"))
        truth = [b.map(name, small, odd) for name in ("and", "or", "xor", "eq")]
        chosen = b.map("where", small, b.cast(x, "f32"), b.constant(0.5, "f32"))
        return (*whole, *(b.cast(each, "i32") for each in truth), b.map("not", small), chosen)

    results, expected = one_kernel(body, (2, 2), tokens=9, returned=2)
    assert_close(results, expected)


@pytest.mark.parametrize("size", [3, 64, 131, 300])
def test_norms_softmax_and_reductions(size):
    def body(b, table, weight, bias, tokens):
        x = b.add(ir.Gather, table, tokens)
        gain, shift = (b.reshape(each, (size,)) for each in (weight, bias))
        normed = b.add(ir.RMSNorm, x, gain, eps=1e-5)
        return (
            normed,
            b.add(ir.LayerNorm, x, gain, shift, eps=1e-5),
            b.add(ir.LayerNorm, b.add(ir.RMSNorm, x, eps=1e-6), eps=1e-5),
            b.add(ir.Softmax, x, dim=1),
            *(b.reduce(name, x, [1], keep=True) for name in ("sum", "mean", "max", "min")),
            b.map("add", normed, x),
        )

    results, expected = one_kernel(body, (5, size), (1, size), (1, size), returned=2)
    assert_close(results, expected, rtol=1e-4, atol=1e-5)


def test_views_look_ups_and_a_norm_of_each_head():
    def body(b, table, cos, sin, tokens):
        x = b.reshape(b.add(ir.Gather, table, tokens), ("N", 6, 10))
        turned = b.transpose(x, (1, 0, 2))
        parts = [b.slice(turned, 2, 0, 10, 2), b.slice(turned, 2, 1, 10, 2)]
        joined = b.concat([b.reshape(each, (6, "N", 5, 1)) for each in parts], 3)
        tables = [b.broadcast(b.reshape(b.add(ir.Gather, t, tokens), ("N", 1, 10)), ("N", 6, 10)) for t in (cos, sin)]
        return (
            b.reshape(joined, (6, "N", 10)),
            b.add(ir.Rotary, b.add(ir.RMSNorm, x, eps=1e-5), *tables),
            b.slice(b.reshape(turned, (1, 6, "N", 10)), 1, 2, 5),
        )

    results, expected = one_kernel(body, (5, 60), (5, 10), (5, 10), returned=2)
    assert_close(results, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("heads", "groups", "key_dim", "value_dim", "options"), ATTENTIONS)
def test_tree_attention(heads, groups, key_dim, value_dim, options):
    module, weights = attention_step(heads, groups, key_dim, value_dim, options)
    generator = np.random.default_rng(heads)
    table = [5, 2, 9, 0, 7]
    prompt = prompt_rows(generator.integers(0, LENGTH, 70), 0, table)
    tree = tree_rows(generator, table, 70, 17, 10 * 16)
    executable = interpreted(module, weights.__getitem__, max_rows=128, max_outputs=128)
    state = poisoned_state(executable)
    environment = ir.Environment(weights.__getitem__, ir.new_states(module, 16 * 16))
    for rows in (prompt, tree):
        executable.launcher.arena.fill_(math.nan)
        result = executable.run(WHOLE, state, rows).logits
        inputs = [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES]
        (expected,) = ir.evaluate(module, "step", inputs, environment)
        np.testing.assert_allclose(result, expected.numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("rows", [3, 40])
def test_a_step_of_odd_sizes(rows):
    module, weights = decoder(layers=1)
    given = prompt_rows(np.random.default_rng(1).integers(0, 331, rows), 0, [4, 2, 7])
    (logits, ids, values), (expected, _, best) = evaluate(module, weights, given)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(values, best, rtol=1e-3, atol=1e-4)
    assert np.array_equal(ids, np.argsort(-logits, 1, kind="stable")[:, :8])


def test_candidates_across_chunks_and_the_lower_id_among_equals():
    def body(b, table, tokens):
        best = b.emit(ir.TopK.make(b.add(ir.Gather, table, tokens), k=8, index_dtype="i32"))
        return best.results[0], best.results[1]

    step = Step()
    logits = torch.randn(3, 2500, generator=step.generator).round(decimals=1)
    logits[1] = 0.0
    logits[2, 5:] = -math.inf
    table = step.weight("w", tensor=logits)
    values, ids = step.kernel([table, step.argument("tokens")], body, "topk")
    module = step.finish(values, ids)
    results, expected = evaluate(module, step.weights, prompt_rows(np.arange(3), 0, list(range(8))))
    assert np.array_equal(results[0], expected[0])
    assert np.array_equal(results[1], expected[1])


@pytest.mark.parametrize("storage", ["bf16", "f16"])
def test_16_bit_weights_round_what_they_multiply_and_what_is_cached(storage, monkeypatch):
    module, weights = decoder(layers=1)
    matrices = [name for name, each in weights.items() if each.dim() == 2 and name not in ("cos", "sin")]
    stored(module, storage, *matrices)
    rows = prompt_rows(np.random.default_rng(1).integers(0, 331, 11), 0, [4, 2, 7])
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[storage]
    exact = evaluate(module, weights, rows)[1][0]

    def rounding(self, environment, x, weight, *bias):
        return torch.nn.functional.linear(x.to(kind).float(), weight, *bias)

    monkeypatch.setattr(ir.Linear, "evaluate", rounding)
    (logits, _, _), (expected, _, _) = evaluate(module, weights, rows, storage)
    scale = np.abs(expected).max()
    error, change = np.abs(logits - expected).max() / scale, np.abs(exact - expected).max() / scale
    assert error < {"bf16": 2e-2, "f16": 2e-3}[storage]
    assert change > 1e-4, "nothing was rounded"


def test_an_operation_without_a_template_is_named():
    def body(b, table, tokens):
        return b.add(ir.Scan, b.add(ir.Gather, table, tokens), dim=1)

    with pytest.raises(UnsupportedOperationError, match=r"spec\.scan"):
        one_kernel(body, (5, 7))
