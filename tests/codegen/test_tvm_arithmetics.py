"""Products of narrow rows: their meaning, the same bits for any rows and on any processor, and what is no number."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from steps import ROW_TYPES, Step
from test_tvm_elementwise import evaluate, indices
from test_tvm_formats import BLOCKS, SHAPES, linear_step, quantized

from forerun import ir
from forerun.codegen.tvm.dots import BFLOAT16_DOT, INT8_DOT
from forerun.codegen.tvm.lowering import Lowering
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import IRBuilder, T, tirx, tvm
from forerun.execute.tvm import executable as tvm_executable
from forerun.runtime.executable import WHOLE
from tests.compiled import planned_step, tvm_step

HIDDEN = {"no VNNI": ("avx512vnni", "avxvnni", "avx512bf16"), "no AVX-512": ("avx512", "avxvnni")}
"""Features of this machine, by their first letters, without which it is another processor."""


def narrow_step(features, outputs, storage):
    """A step of two products with narrow matrices, and what they stand for."""
    module, weights = linear_step(features, outputs, storage)
    if storage in ir.BLOCK_STORAGES:
        return narrowed(module), *quantized(weights, storage)
    return narrowed(module, ir.BFLOAT16), weights, None


def narrowed(module, arithmetic=ir.INT8):
    """The same module, whose products are of narrow rows."""
    for each in ir.walk(ir.functions(module)["step"].body):
        if isinstance(each, ir.Linear):
            each.arithmetic = arithmetic
    return module


@pytest.mark.parametrize(
    ("features", "outputs", "storage"),
    [
        *((*BLOCKS[each.features][-1], name) for name, each in ir.ENCODINGS.items()),
        *((*shape, "bf16") for shape in SHAPES),
    ],
)
def test_products_of_narrow_rows_mean_what_the_interpreter_says(features, outputs, storage):
    module, weights, blocks = narrow_step(features, outputs, storage)
    results, meaning = evaluate(module, weights, indices(64), blocks=blocks)
    exact = ir.evaluate(linear_step(features, outputs)[0], "step", *_inputs(weights))
    for result, close in zip(results, meaning, strict=True):
        np.testing.assert_allclose(result, close, rtol=2e-5, atol=2e-5)
    assert not np.allclose(results[1], exact[1].numpy(), rtol=2e-5, atol=2e-5), "nothing was rounded"
    executable = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256, blocks=blocks)
    for count in (1, 2, 5, 8, 11, 25):
        executable.memory.arena.fill(math.nan)
        executable.run(WHOLE, executable.new_state(1), indices(count))
        for value, result in zip(executable.step.returned, results, strict=True):
            assert np.array_equal(executable.memory.view(value), result[:count]), count


@pytest.mark.parametrize("storages", [("q6_k", "q4_k"), ("q2_k", "q3_k"), ("q8_0", "iq4_nl"), ("q5_1", "bf16")])
def test_matrices_of_several_formats_multiply_the_same_rows(storages):
    module, weights = linear_step(768, 97)
    values, blocks = dict(weights), {}
    for name, storage in zip(("first", "second"), storages, strict=True):
        ir.weights(module)[name].storage = storage
        if storage in ir.BLOCK_STORAGES:
            one, held = quantized({name: weights[name]}, storage)
            values |= one
            blocks |= held
    linears = (each for each in ir.walk(ir.functions(module)["step"].body) if isinstance(each, ir.Linear))
    for linear, storage in zip(linears, storages, strict=True):
        linear.arithmetic = ir.BFLOAT16 if storage == "bf16" else ir.INT8
    results, meaning = evaluate(module, values, indices(64), blocks=blocks)
    for result, close in zip(results, meaning, strict=True):
        np.testing.assert_allclose(result, close, rtol=2e-5, atol=2e-4)


def _inputs(weights):
    rows = indices(64)
    return [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES], ir.Environment(weights.__getitem__, {})


@pytest.mark.parametrize("storage", ["q6_k", "q4_1", "bf16"])
@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
def test_a_product_has_the_same_bits_on_other_processors(hidden, storage):
    module, weights, blocks = narrow_step(512, 50, storage)
    lowering = Lowering(planned_step(module, weights.__getitem__, max_rows=64, max_length=256, blocks=blocks))
    host = lowering.machine
    features = tuple(f"-{each[1:]}" if each[1:].startswith(hidden) else each for each in host.features)
    registers, width = (32, 16) if "+avx512f" in features else (16, 8)
    other = replace(host, cpu="x86-64", features=features, registers=registers, width=width)
    found = []
    for lowering.machine in (host, other):
        executable = tvm_executable.bind(lowering.program(), cache=False)
        executable.memory.arena.fill(math.nan)
        executable.run(WHOLE, executable.new_state(1), indices(9))
        found.append([executable.memory.view(value).copy() for value in executable.step.returned])
    for own, other in zip(*found, strict=True):
        assert np.array_equal(own, other)


def _present():
    return set(Machine.host().processor.features)


@pytest.mark.parametrize("way", INT8_DOT.ways, ids=lambda each: each.feature or "plain")
def test_every_dot_product_gives_the_same_integers(way):
    if way.feature in ("i8mm", "dotprod"):
        pytest.skip("this instruction is another architecture's; its code is looked at below")
    if way.feature == "avxvnni" and "avx512vnni" not in _present() and "avxvnni" not in _present():
        pytest.skip("this machine has no VNNI")
    if way.feature and way.feature != "avxvnni" and way.feature not in _present():
        pytest.skip(f"this machine has no {way.feature}")
    random = np.random.default_rng(0)
    sums = random.integers(-(2**20), 2**20, LANES, dtype=np.int32)
    unsigned = random.integers(0, 256, (LANES, 4), dtype=np.uint8)
    signed = random.integers(-127, 128, (LANES, 4), dtype=np.int8)
    unsigned[0], signed[0] = 255, 127  # what 16 bits would not hold
    unsigned[1], signed[1] = 255, -127
    given = [tvm.runtime.tensor(each) for each in (sums, unsigned.view(np.int32)[:, 0], signed.view(np.int32)[:, 0])]
    result = tvm.runtime.tensor(np.full(LANES, -1, np.int32))
    _built(INT8_DOT, way, Machine.host())(*given, result)
    expected = sums + (unsigned.astype(np.int32) * signed).sum(1)
    assert np.array_equal(result.numpy(), expected)


@pytest.mark.parametrize(("feature", "instruction"), [("i8mm", "usdot"), ("dotprod", "sdot")])
def test_arm_multiplies_bytes_in_one_instruction(feature, instruction):
    way = next(each for each in INT8_DOT.ways if each.feature == feature)
    machine = Machine.of("aarch64-linux-gnu", "neoverse-n2")
    assert instruction in _built(INT8_DOT, way, machine).inspect_source("asm").lower()


@pytest.mark.parametrize("way", BFLOAT16_DOT.ways, ids=lambda each: each.feature or "plain")
def test_every_dot_product_of_bfloat16_rounds_twice(way):
    if way.feature and way.feature not in _present():
        pytest.skip(f"this machine has no {way.feature}")
    random = np.random.default_rng(0)
    sums = random.normal(size=LANES).astype(np.float32)
    a, b = (torch.from_numpy(random.normal(size=(LANES, 2))).bfloat16() for _ in range(2))
    words = [each.view(torch.int16).numpy().view(np.int32)[:, 0] for each in (a, b)]
    result = tvm.runtime.tensor(np.full(LANES, np.nan, np.float32))
    _built(BFLOAT16_DOT, way, Machine.host())(*map(tvm.runtime.tensor, (sums, *words)), result)
    products = a.double() * b.double()  # exact, and so is a sum of two numbers of few bits before it is rounded
    upper = (torch.from_numpy(sums).double() + products[:, 1]).float()
    assert np.array_equal(result.numpy(), (upper.double() + products[:, 0]).float().numpy())


def _built(dot, way, machine):
    """A function of four arrays that calls a dot product."""
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": "main", "tirx.noalias": True})
        dtypes = {"s": dot.dtype, "a": "int32", "b": "int32", "r": dot.dtype}
        arrays = [T.match_buffer(T.arg(name, T.handle()), (LANES,), dtype) for name, dtype in dtypes.items()]
        ramp = tirx.Ramp(tirx.IntImm("int32", 0), 1, LANES)
        with T.attr(0, "pragma_import_llvm", dot.text(way)):
            T.buffer_store(arrays[3], dot(*(each[ramp] for each in arrays[:3])), [ramp])
    return tvm.tirx.build(tvm.IRModule({"main": builder.get()}), target=machine.target)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_stays_so(poison):
    step = Step(64)
    values = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    values[1, 40] = poison
    table, weight = step.weight("table", tensor=values), step.weight("first", 32, 64)
    x = step.kernel([table, step.argument("tokens")], lambda b, t, i: b.add(ir.Gather, t, i), "row_wise")
    module = step.finish(step.kernel([x, weight], lambda b, x, w: b.add(ir.Linear, x, w), "linear"))
    ir.weights(module)["first"].storage = "q8_0"
    narrowed(module)
    weights, blocks = quantized({"first": step.weights["first"]}, "q8_0")
    weights["table"] = values
    (result,), _ = evaluate(module, weights, indices(3), blocks=blocks)
    assert np.isnan(result[1]).all()
    assert np.isfinite(result[[0, 2]]).all()
