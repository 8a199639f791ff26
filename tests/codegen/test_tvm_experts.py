"""Products with experts: their meaning, the bits of the plain linear, and the same bits whoever shares an expert."""

import math

import gguf
import numpy as np
import pytest
import torch
from steps import Step, stored
from test_tvm_elementwise import evaluate, indices

from forerun import ir
from forerun.runtime.executable import WHOLE
from tests.compiled import tvm_step
from tests.quantized import random_blocks

EXPERTS, CHOICES, ROWS = 5, 3, 64
SHAPES = [(70, 50), (32, 64), (33, 16), (5, 97)]
BLOCKS = {32: (64, 97), 256: (256, 50)}
MATRICES = ("first", "second", "third")


def expert_step(features, outputs, storage=None, arithmetic=None):
    """Two products of what all choices of a row share, combined, and one of an input for each choice."""
    step = Step(features)
    table, wide = step.weight("table", ROWS, features), step.weight("wide", ROWS, CHOICES * features)
    generator = torch.Generator().manual_seed(features)
    choices = torch.rand(ROWS, EXPERTS, generator=generator).topk(CHOICES)[1]
    choices[5:12] = choices[4]  # more rows of one expert than others
    ids = step.weight("ids", tensor=choices)
    first, second, third = (step.weight(name, EXPERTS, outputs, features) for name in MATRICES)
    bias = step.weight("bias", EXPERTS, outputs)

    def body(b, table, wide, ids, tokens, first, second, third, bias):
        x, chosen = b.add(ir.Gather, table, tokens), b.add(ir.Gather, ids, tokens)
        each = b.reshape(b.add(ir.Gather, wide, tokens), ("N", CHOICES, features))
        up = b.add(ir.ExpertLinear, x, first, chosen, bias, arithmetic=arithmetic)
        gate = b.add(ir.ExpertLinear, x, second, chosen, arithmetic=arithmetic)
        own = b.add(ir.ExpertLinear, each, third, chosen, arithmetic=arithmetic)
        return up, b.map("mul", b.map("silu", gate), up), own

    inputs = [table, wide, ids, step.argument("tokens"), first, second, third, bias]
    module = step.finish(*step.kernel(inputs, body, "linear"))
    return (stored(module, storage, *MATRICES) if storage else module), step.weights


def quantized(weights, storage):
    """The experts in a GGUF encoding: the values, and the blocks."""
    kind = gguf.GGMLQuantizationType[storage.upper()]
    values, blocks = dict(weights), {}
    for name in MATRICES:
        experts, outputs, features = weights[name].shape
        raw = random_blocks(experts * outputs, features, storage)
        values[name] = torch.from_numpy(gguf.dequantize(raw, kind)).view(experts, outputs, features)
        blocks[name] = torch.from_numpy(raw).view(experts, outputs, -1, gguf.GGML_QUANT_SIZES[kind][1])
    return values, blocks


CASES = [
    *((*shape, each, None) for shape in SHAPES for each in (None, "bf16", "f16")),
    *((*BLOCKS[each.features], name, None) for name, each in ir.ENCODINGS.items()),
    *((*BLOCKS[each.features], name, ir.INT8) for name, each in ir.ENCODINGS.items()),
    *((*shape, "bf16", ir.BFLOAT16) for shape in SHAPES),
]


@pytest.mark.parametrize(("features", "outputs", "storage", "arithmetic"), CASES)
def test_products_mean_what_the_interpreter_says_for_any_rows(features, outputs, storage, arithmetic):
    module, weights = expert_step(features, outputs, storage, arithmetic)
    blocks = None
    if storage in ir.BLOCK_STORAGES:
        weights, blocks = quantized(weights, storage)
    weights = {name: ir.as_stored(module, weights.__getitem__)(name) for name in weights}
    results, meaning = evaluate(module, weights, indices(ROWS), blocks=blocks)
    for result, close in zip(results, meaning, strict=True):
        np.testing.assert_allclose(result, close, rtol=5e-5, atol=3e-4)
    executable = tvm_step(module, weights.__getitem__, max_rows=ROWS, max_length=256, blocks=blocks)
    for count in (1, 2, 5, 8, 11, 25):
        executable.memory.arena.fill(math.nan)
        executable.run(WHOLE, executable.new_state(1), indices(count))
        for value, result in zip(executable.step.returned, results, strict=True):
            assert np.array_equal(executable.memory.view(value), result[:count]), count


def test_a_product_has_the_bits_of_the_plain_linear():
    module, weights = expert_step(70, 50)
    (up, _, _), _ = evaluate(module, weights, indices(ROWS))
    step = Step()
    table = step.weight("table", tensor=weights["table"])
    matrices = [step.weight(f"matrix{each}", tensor=weights["first"][each]) for each in range(EXPERTS)]
    biases = [step.weight(f"bias{each}", tensor=weights["bias"][each]) for each in range(EXPERTS)]

    def body(b, table, tokens, *given):
        x = b.add(ir.Gather, table, tokens)
        return tuple(b.add(ir.Linear, x, given[each], given[EXPERTS + each]) for each in range(EXPERTS))

    plain = step.finish(*step.kernel([table, step.argument("tokens"), *matrices, *biases], body, "linear"))
    products, _ = evaluate(plain, step.weights, indices(ROWS))
    for row, chosen in enumerate(weights["ids"].tolist()):
        for choice, expert in enumerate(chosen):
            assert np.array_equal(up[row, choice], products[expert][row]), (row, choice)


def test_only_experts_that_are_chosen_are_read():
    """The weights of the others may be anything, as their rows are nowhere."""
    module, weights = expert_step(33, 16)
    weights["ids"] = torch.tensor([[0, 2, 4]]).expand(ROWS, -1).contiguous()
    expected, _ = evaluate(module, weights, indices(7))
    for name in MATRICES:
        weights[name] = weights[name].clone()
        weights[name][1::2] = math.nan
    found, _ = evaluate(module, weights, indices(7))
    assert all(np.array_equal(each, other) for each, other in zip(found, expected, strict=True))
