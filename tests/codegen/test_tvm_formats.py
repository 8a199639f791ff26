"""Weights stored in fewer bytes: their values, the bits of linears and lookups, and the row determinism of both."""

import math

import gguf
import numpy as np
import pytest
import torch
from steps import Step, decoder, prompt_rows, stored
from test_tvm_elementwise import evaluate, indices

from forerun import ir
from forerun.codegen.tvm.quantized import FORMATS
from forerun.runtime.certify import certify
from forerun.runtime.executable import WHOLE
from tests.compiled import tvm_step
from tests.quantized import random_blocks

SHAPES = [(70, 50), (32, 64), (33, 16), (5, 97)]
BLOCKS = {32: [(96, 50), (64, 97)], 256: [(768, 97)]}
"""Features and outputs, by the features of a block."""
assert set(FORMATS) == {"packed f32", *ir.STORAGES}


def rounded(tensor):
    return tensor.to(torch.bfloat16).float()


def quantized(weights, storage):
    """The weights in a GGUF encoding: the values, and the blocks."""
    kind = gguf.GGMLQuantizationType[storage.upper()]
    values, blocks = dict(weights), {}
    for name, each in weights.items():
        if each.dim() == 2:
            raw = random_blocks(len(each), each.shape[1], storage)
            values[name] = torch.from_numpy(gguf.dequantize(raw, kind))
            blocks[name] = torch.from_numpy(raw).view(len(raw), -1, gguf.GGML_QUANT_SIZES[kind][1])
    return values, blocks


def linear_step(features, outputs, storage=None):
    step = Step(features)
    table = step.weight("table", 64, features)
    first, second = step.weight("first", outputs, features), step.weight("second", outputs, features)
    bias = step.weight("bias", outputs)

    def body(b, table, tokens, first, second, bias):
        x = b.add(ir.Gather, table, tokens)
        gate, up = b.add(ir.Linear, x, first, bias), b.add(ir.Linear, x, second)
        return x, gate, b.map("mul", b.map("silu", gate), up)

    results = step.kernel([table, step.argument("tokens"), first, second, bias], body, "linear")
    module = step.finish(*results)
    return (stored(module, storage, "table", "first", "second") if storage else module), step.weights


@pytest.mark.parametrize(
    ("features", "outputs", "storage"),
    [
        *((*shape, each) for shape in SHAPES for each in ("bf16", "f16")),
        *((*shape, name) for name, each in ir.ENCODINGS.items() for shape in BLOCKS[each.features]),
    ],
)
def test_linears_have_the_bits_of_the_stored_values_in_float32(features, outputs, storage):
    """Widening is exact and changes no order: the bits are those of a float32 weight of the same values."""
    module, weights = linear_step(features, outputs, storage)
    plain, _ = linear_step(features, outputs)
    blocks = None
    if storage in ir.BLOCK_STORAGES:
        weights, blocks = quantized(weights, storage)
    exact = {name: ir.as_stored(module, weights.__getitem__)(name) for name in weights}
    results, meaning = evaluate(module, weights, indices(64), blocks=blocks)
    expected, _ = evaluate(plain, exact, indices(64))
    for result, same, close in zip(results, expected, meaning, strict=True):
        assert np.array_equal(result, same)
        np.testing.assert_allclose(result, close, rtol=2e-5, atol=2e-4)
    executable = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256, blocks=blocks)
    for count in (1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 24, 25, 33):
        executable.memory.arena.fill(math.nan)
        executable.run(WHOLE, executable.new_state(1), indices(count))
        for value, result in zip(executable.step.returned, results, strict=True):
            assert np.array_equal(executable.memory.view(value), result[:count]), count


def test_bfloat16_rounds_to_nearest_even_and_matches_torch():
    module, weights = linear_step(70, 50, "bf16")
    (x, gate, _), _ = evaluate(module, weights, indices(64))
    assert np.array_equal(x, rounded(weights["table"]).numpy())
    expected = torch.nn.functional.linear(torch.from_numpy(x), rounded(weights["first"]), weights["bias"])
    np.testing.assert_allclose(gate, expected.numpy(), rtol=2e-5, atol=1e-4)
    ties = torch.tensor([[1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 3e38, 1e-40, 0.0]])
    step = Step()
    table = step.weight("table", tensor=ties)
    step.finish(step.kernel([table, step.argument("tokens")], lambda b, t, i: b.add(ir.Gather, t, i), "row_wise"))
    module = stored(ir.ModuleOp([each.clone() for each in (*step.symbols, step.function)]), "bf16", "table")
    (values,), _ = evaluate(module, step.weights, indices(1))
    assert np.array_equal(values[0], rounded(ties)[0].numpy())
    assert values[0, :3].tolist() == [1.0, 1 + 2**-6, -1.0]


def test_a_decoder_with_stored_weights_is_certified_and_agrees_with_the_interpreter():
    module, weights = decoder()
    names = [name for name, each in weights.items() if each.dim() == 2 and name not in ("cos", "sin")]
    stored(module, "bf16", *names)
    executable = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256)
    full = tvm_step(decoder()[0], weights.__getitem__, max_rows=64, max_length=256)
    assert executable.weights.size < 0.6 * full.weights.size
    report = certify(executable, cases=10, seed=1)
    assert report.exact, str(report)
    rows = prompt_rows(np.arange(20) * 7, 0, list(range(8)))
    results, meaning = evaluate(module, weights, rows)
    for result, expected in zip(results[:1], meaning[:1], strict=True):
        assert np.abs(result - expected).max() < 1e-4
