"""ONNX's operators and onnxruntime's own, each in a small graph: `@forward` gives what onnxruntime gives."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

import forerun
from forerun import ir
from forerun.errors import UnsupportedOperationError
from forerun.frontends.onnx_rules import KNOWN_RULES, MICROSOFT, RULES
from forerun.frontends.source import open_source
from forerun.runtime.certify import certify
from tests.frontends.onnx_graphs import (
    WIDTH,
    embedded,
    inputs_of,
    int4,
    numbers,
    of_forward,
    packed,
    require_same,
    saved,
    session,
)

RANDOM = np.random.default_rng(5)
VECTOR = numbers(WIDTH)
MATRIX = numbers(WIDTH, WIDTH, scale=0.2)


def angles(pairs: int) -> list[Any]:
    """The cosines and sines [64, pairs] of a rotary embedding."""
    turned = np.arange(64)[:, None] * numbers(1, pairs, seed=3)
    return [function(turned).astype(np.float32) for function in (np.cos, np.sin)]


(COS, SIN), (COS2, SIN2), (COS8, SIN8) = angles(4), angles(2), angles(8)
I64: Any = np.int64

ELEMENTWISE = {
    "arithmetic": ("a = Mul(x, w)\n b = Sub(a, x)\n c = Abs(b)\n d = Sqrt(c)\n logits = Div(x, d)", {"w": VECTOR}),
    "functions": ("a = Tanh(x)\n b = Erf(a)\n c = Exp(b)\n d = Log(c)\n e = Sigmoid(d)\n logits = Neg(e)", {}),
    "rounding": ("a = Floor(x)\n b = Ceil(x)\n c = Round(x)\n d = Sign(x)\n logits = Sum(a, b, c, d)", {}),
    "trigonometry": ("a = Sin(x)\n b = Cos(a)\n c = Reciprocal(b)\n d = Softplus(c)\n logits = Relu(d)", {}),
    "pow": ("a = Abs(x)\n logits = Pow(a, p)", {"p": np.float32(1.7)}),
    "an integer exponent": ("logits = Pow(x, p)", {"p": np.int64(3)}),
    "clip": ("logits = Clip(x, low, high)", {"low": np.float32(-0.3), "high": np.float32(0.4)}),
    "clip from above": ("logits = Clip(x, , high)", {"high": np.float32(0.4)}),
    "extrema": ("a = Max(x, w)\n b = Min(a, v)\n logits = Identity(b)", {"w": VECTOR, "v": numbers(WIDTH, seed=2)}),
    "choice": ("a = Less(x, w)\n b = Not(a)\n c = Greater(x, v)\n d = And(b, c)\n e = Xor(d, a)\n"
               "logits = Where(e, x, w)", {"w": VECTOR, "v": numbers(WIDTH, seed=2)}),
    "comparisons": ("a = LessOrEqual(x, w)\n b = GreaterOrEqual(x, v)\n c = Or(a, b)\n logits = Cast<to = 1>(c)",
                    {"w": VECTOR, "v": numbers(WIDTH, seed=2)}),
    "isnan": ("a = Log(x)\n b = IsNaN(a)\n logits = Where(b, w, a)", {"w": VECTOR}),
    "gelu": ("a = Gelu(x)\n b = Gelu<approximate = \"tanh\">(x)\n logits = Sub(a, b)", {}),
    "leaky relu": ("logits = LeakyRelu<alpha = 0.3>(x)", {}),
    "whole quotients": ("a = Mul(x, w)\n b = Cast<to = 7>(a)\n c = Div(b, three)\n d = Mod(b, three)\n e = Add(c, d)\n"
                        "logits = Cast<to = 1>(e)", {"w": VECTOR * 9, "three": I64(3)}),
    "dropout": ("logits = Dropout(x)", {}),
    "fast gelu": ("logits = com.microsoft.FastGelu(x, b)", {"b": VECTOR}),
    "fast gelu alone": ("logits = com.microsoft.FastGelu(x)", {}),
    "quick gelu": ("logits = com.microsoft.QuickGelu<alpha = 1.3>(x)", {}),
    "bias gelu": ("logits = com.microsoft.BiasGelu(x, b)", {"b": VECTOR}),
    "microsoft gelu": ("logits = com.microsoft.Gelu(x)", {}),
}  # fmt: skip

REDUCTIONS = {
    "softmax": ("logits = Softmax(x)", {}),
    "log softmax": ("logits = LogSoftmax<axis = 2>(x)", {}),
    "sums": ("a = ReduceSum(x, last)\n b = ReduceMax(x, last)\n c = ReduceMin(x, last)\n d = ReduceMean(x, last)\n"
             "e = Sum(a, b, c, d)\n logits = Add(x, e)", {"last": np.array([-1])}),
    "squares": ("a = ReduceSumSquare(x, last)\n b = ReduceL2(x, last)\n c = Add(a, b)\n logits = Add(x, c)",
                {"last": np.array([2])}),
    "sums without their axis": ("a = ReduceSum<keepdims = 0>(x, last)\n b = Unsqueeze(a, last)\n logits = Add(x, b)",
                                {"last": np.array([2])}),
    "nothing to reduce": ("a = ReduceSum<noop_with_empty_axes = 1>(x)\n logits = Add(a, x)", {}),
    "running sum": ("a = CumSum(x, one)\n b = CumSum<exclusive = 1>(x, one)\n logits = Mul(a, b)", {"one": I64(1)}),
    "layer norm": ("logits = LayerNormalization<epsilon = 0.01>(x, w, b)", {"w": VECTOR, "b": numbers(WIDTH, seed=2)}),
    "rms norm": ("logits = RMSNormalization<epsilon = 0.01>(x, w)", {"w": VECTOR}),
    "simplified norm": ("logits = SimplifiedLayerNormalization<epsilon = 0.01>(x, w)", {"w": VECTOR}),
    "skip norm": ("y, , , z = com.microsoft.SkipLayerNormalization<epsilon = 0.01>(x, x, w, b, c)\n logits = Add(y, z)",
                  {"w": VECTOR, "b": numbers(WIDTH, seed=2), "c": numbers(WIDTH, seed=3)}),
    "skip rms norm": ("y, , , z = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.01>(x, x, w, c)\n"
                      "logits = Add(y, z)", {"w": VECTOR, "c": numbers(WIDTH, seed=3)}),
    "the largest": ("v, i = TopK(x, k)\n j = Cast<to = 1>(i)\n logits = Add(v, j)", {"k": np.array([3])}),
    "the place of the largest": ("a = ArgMax<axis = 2>(x)\n b = Cast<to = 1>(a)\n logits = Add(x, b)", {}),
}  # fmt: skip

PRODUCTS = {
    "matmul": ("logits = MatMul(x, w)", {"w": MATRIX}),
    "batched matmul": ("a = Transpose<perm = [0, 2, 1]>(x)\n b = MatMul(x, w)\n c = Reshape(b, s)\n d = Reshape(x, t)\n"
                       "e = MatMul(c, d)\n logits = Reshape(e, u)",
                       {"w": MATRIX, "s": np.array([0, -1, 4, 8]), "t": np.array([0, -1, 8, 4]),
                        "u": np.array([1, -1, 16])}),
    "gemm": ("a = Reshape(x, s)\n b = Gemm<alpha = 0.5, beta = 2.0>(a, w, c)\n logits = Reshape(b, u)",
             {"w": MATRIX, "c": VECTOR, "s": np.array([-1, WIDTH]), "u": np.array([1, -1, WIDTH])}),
    "gemm with a matrix [out, in]": ("a = Reshape(x, s)\n b = Gemm<transB = 1>(a, w)\n logits = Reshape(b, u)",
                                     {"w": MATRIX, "s": np.array([-1, WIDTH]), "u": np.array([1, -1, WIDTH])}),
    "nbits": ("logits = com.microsoft.MatMulNBits<K = 32, N = 8, bits = 4, block_size = 16>(x, q, s)",
              {"q": packed(RANDOM.integers(0, 16, (8, 2, 16))), "s": numbers(8, 2, scale=0.1)}),
    "nbits with zero points": (
        "logits = com.microsoft.MatMulNBits<K = 32, N = 8, bits = 4, block_size = 16>(x, q, s, z, , b)",
        {"q": packed(RANDOM.integers(0, 16, (8, 2, 16))), "s": numbers(8, 2, scale=0.1),
         "z": packed(RANDOM.integers(0, 16, (8, 2))).ravel(), "b": numbers(8)}),
    "nbits of a byte": ("logits = com.microsoft.MatMulNBits<K = 32, N = 8, bits = 8, block_size = 16>(x, q, s)",
                        {"q": RANDOM.integers(0, 256, (8, 2, 16), np.uint8), "s": numbers(8, 2, scale=0.1)}),
    "dequantized by axis": ("w = DequantizeLinear<axis = 1>(q, s, z)\n logits = MatMul(x, w)",
                            {"q": RANDOM.integers(-128, 128, (WIDTH, 8), np.int8), "s": numbers(8, scale=0.1),
                             "z": RANDOM.integers(-128, 128, 8, np.int8)}),
    "dequantized whole": ("w = DequantizeLinear(q, s, z)\n logits = MatMul(x, w)",
                          {"q": RANDOM.integers(0, 256, (WIDTH, 8), np.uint8), "s": np.float32(0.03),
                           "z": np.uint8(120)}),
    "dequantized by blocks": ("w = DequantizeLinear<axis = 0, block_size = 16>(q, s, z)\n logits = MatMul(x, w)",
                              {"q": int4("q", RANDOM.integers(-8, 8, (WIDTH, 8))), "s": numbers(2, 8, scale=0.1),
                               "z": int4("z", RANDOM.integers(-8, 8, (2, 8)))}),
}  # fmt: skip

VIEWS = {
    "slices": ("a = Slice(x, zero, eight, last)\n b = Slice(x, back, end, last)\n c = Concat<axis = -1>(b, a)\n"
               "logits = Tile(c, twice)",
               {"zero": np.array([0]), "eight": np.array([8]), "last": np.array([-1]), "back": np.array([-4]),
                "end": np.array([2**63 - 1]), "twice": np.array([1, 1, 2])}),
    "steps": ("logits = Slice(x, one, end, last, three)",
              {"one": np.array([1]), "end": np.array([2**63 - 1]), "last": np.array([2]), "three": np.array([3])}),
    "backwards": ("logits = Slice(x, last, end, two, back)",
                  {"last": np.array([-1]), "end": np.array([-(2**62)]), "two": np.array([2]), "back": np.array([-1])}),
    "splits": ("a, b = Split<axis = 2>(x, s)\n c, d = Split<axis = 2, num_outputs = 2>(b)\n"
               "logits = Concat<axis = 2>(d, a, c)", {"s": np.array([8, 24])}),
    "squeezing": ("a = Squeeze(x, zero)\n b = Unsqueeze(a, outer)\n c = Flatten<axis = 2>(b)\n"
                  "logits = Unsqueeze(c, zero)", {"zero": np.array([0]), "outer": np.array([0, -2])}),
    "columns": ("a = Gather<axis = 2>(x, i)\n b = Gather<axis = -1>(x, j)\n c = Unsqueeze(b, last)\n"
                "logits = Concat<axis = 2>(a, c)", {"i": np.array([3, 1, -1]), "j": I64(-2), "last": np.array([2])}),
    "elements": ("s = Shape(x)\n i = Expand(j, s)\n logits = GatherElements<axis = 2>(x, i)",
                 {"j": RANDOM.integers(0, WIDTH, (1, 1, WIDTH))}),
    "rows by several indices": ("a = Unsqueeze(input_ids, last)\n z = Mod(a, two)\n i = Concat<axis = -1>(a, z)\n"
                                "logits = GatherND(t, i)",
                                {"t": numbers(16, 2, 8), "last": np.array([2]), "two": I64(2)}),
    "shape arithmetic": ("s = Shape(x)\n n = Gather(s, one)\n w = Shape<start = 2>(x)\n h = Div(w, four)\n"
                         "m = Unsqueeze(n, zero)\n u = Concat<axis = 0>(o, m, four, h)\n a = Reshape(x, u)\n"
                         "b = Transpose<perm = [0, 2, 1, 3]>(a)\n c = Slice(b, zero, m, two)\n"
                         "d = Transpose<perm = [0, 2, 1, 3]>(c)\n logits = Reshape(d, s)",
                         {"one": I64(1), "zero": np.array([0]), "o": np.array([1]), "four": np.array([4]),
                          "two": np.array([2])}),
    "positions": ("s = Shape<start = 1, end = 2>(x)\n n = Squeeze(s)\n r = Range(zero, n, one)\n m = Sub(n, one)\n"
                  "k = ConstantOfShape<value = int64[1] {2}>(s)\n p = Mul(r, k)\n f = Cast<to = 1>(p)\n"
                  "e = Unsqueeze(f, u)\n logits = Add(x, e)", {"zero": I64(0), "one": I64(1), "u": np.array([0, 2])}),
    "choices between sizes": ("s = Shape(x)\n e = Equal(s, minus)\n k = ConstantOfShape<value = int64[1] {1}>(r)\n"
                              "t = Where(e, k, s)\n y = Expand(x, t)\n c = Size(x)\n v = Unsqueeze(c, zero)\n"
                              "g = Greater(v, zero)\n a, b = Split<axis = 2, num_outputs = 2>(y)\n"
                              "f = Squeeze(g)\n logits = Where(f, a, b)",
                              {"minus": I64(-1), "r": np.array([3]), "zero": np.array([0])}),
    "constants": ("c = Constant<value_float = 0.5>()\n i = Constant<value_ints = [1, 1, 32]>()\n a = Mul(x, c)\n"
                  "e = Expand(w, i)\n logits = Add(a, e)", {"w": VECTOR}),
    "a matrix with ones": ("e = EyeLike<k = 1>(w)\n logits = MatMul(x, e)", {"w": MATRIX}),
    "a scatter in a shape": ("s = Shape(x)\n t = ScatterND(s, i, v)\n logits = Reshape(x, t)",
                             {"i": np.array([[1], [2]]), "v": np.array([-1, 32])}),
}  # fmt: skip

TRIANGLE = """
    s = Shape<start = 1, end = 2>(x)
    q = Concat<axis = 0>(s, s)
    o = ConstantOfShape<value = float[1] {-10000.0}>(q)
    m = Trilu<upper = 1>(o, one)
    k = Transpose<perm = [0, 2, 1]>(x)
    a = MatMul(x, k)
    b = Add(a, m)
    p = Softmax(b)
    logits = MatMul(p, x)"""

ATTENTION = {
    "a triangle": (TRIANGLE, {"one": I64(1)}),
    "attention": ("logits = Attention<q_num_heads = 4, kv_num_heads = 4, is_causal = 1, scale = 0.3>(x, x, x)", {}),
    "attention with a cap": (
        "logits = Attention<q_num_heads = 4, kv_num_heads = 4, is_causal = 1, softcap = 2.0>(x, x, x)", {}),
    "grouped attention": ("k = MatMul(x, w)\n v = MatMul(x, u)\n"
                          "logits = Attention<q_num_heads = 4, kv_num_heads = 2, is_causal = 1>(x, k, v)",
                          {"w": numbers(WIDTH, 16), "u": numbers(WIDTH, 16, seed=2)}),
    "rotary": ("logits = RotaryEmbedding<num_heads = 4>(x, c, s, p)", {"c": COS, "s": SIN}),
    "interleaved rotary": ("logits = RotaryEmbedding<num_heads = 4, interleaved = 1>(x, c, s, p)",
                           {"c": COS, "s": SIN}),
    "partial rotary": ("logits = RotaryEmbedding<num_heads = 4, rotary_embedding_dim = 4>(x, c, s, p)",
                       {"c": COS2, "s": SIN2}),
    "microsoft rotary": ("logits = com.microsoft.RotaryEmbedding(x, p, c, s)", {"c": COS, "s": SIN}),
    "microsoft rotary from the start": ("logits = com.microsoft.RotaryEmbedding<interleaved = 1>(x, z, c, s)",
                                        {"c": COS, "s": SIN, "z": np.array([0])}),
    "microsoft partial rotary": (
        "logits = com.microsoft.RotaryEmbedding<num_heads = 4, rotary_embedding_dim = 4>(x, p, c, s)",
        {"c": COS2, "s": SIN2}),
    "multi-head attention": (
        "k = MatMul(x, w)\n v = MatMul(x, w)\n"
        "logits = com.microsoft.MultiHeadAttention<num_heads = 4, unidirectional = 1, scale = 0.3>(x, k, v, b)",
        {"w": MATRIX, "b": numbers(3 * WIDTH)}),
}  # fmt: skip

OLDER = ("simplified norm", "dequantized by blocks")
"""Cases for which onnxruntime has no kernel of the newest opset."""
CASES = ELEMENTWISE | REDUCTIONS | PRODUCTS | VIEWS | ATTENTION


@pytest.mark.parametrize("case", CASES)
def test_an_operator_gives_what_onnxruntime_gives(case: str, tmp_path: Path) -> None:
    body, weights = CASES[case]
    positions = ", int64[1,T] position_ids" if ", p" in body and "Rotary" in body else ""
    body = body.replace(", p", ", position_ids") if positions else body
    require_same(saved(embedded(body, weights, positions, opset=21 if case in OLDER else 23), tmp_path))


GROUPED = """
    n = ReduceSum<keepdims = 0>(attention_mask, one)
    m = Sub(n, one)
    lengths = Cast<to = 6>(m)
    shape = Shape(attention_mask)
    rows = Gather(shape, place)
    total = Cast<to = 6>(rows)
    {projected}
    y, presentkey, presentvalue = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2{attributes}>
        ({given}, pastkey, pastvalue, lengths, total{tables})
    logits = MatMul(y, o)"""
APART = "q = MatMul(x, r)\n k = MatMul(x, w)\n v = MatMul(x, u)", "q, k, v"
TABLES = {"c": COS8, "s": SIN8}
GROUPED_CASES = {
    "plain": (*APART, "", "", {}),
    "packed": ("q = MatMul(x, f)", "q, , ", "", "", {"f": numbers(WIDTH, 128, scale=0.3)}),
    "scaled and capped": (*APART, ", scale = 0.4, softcap = 3.0", "", {}),
    "a window": (*APART, ", local_window_size = 4", "", {}),
    "rotary": (*APART, ", do_rotary = 1", ", c, s", TABLES),
    "interleaved rotary": (*APART, ", do_rotary = 1, rotary_interleaved = 1", ", c, s", TABLES),
    "sinks": (*APART, "", ", , , , , sinks", {"sinks": numbers(4)}),
    "packed, rotary and a window": (
        "q = MatMul(x, f)", "q, , ", ", do_rotary = 1, local_window_size = 7", ", c, s",
        TABLES | {"f": numbers(WIDTH, 128, scale=0.3)}),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPED_CASES)
def test_grouped_query_attention_gives_what_onnxruntime_gives(case: str, tmp_path: Path) -> None:
    projected, given, attributes, tables, weights = GROUPED_CASES[case]
    body = GROUPED.format(projected=projected, given=given, attributes=attributes, tables=tables)
    past = "".join(f", float[1,2,P,16] past{each}" for each in ("key", "value"))
    present = "".join(f", float[1,2,Q,16] present{each}" for each in ("key", "value"))
    known = {
        **{"r": numbers(WIDTH, 64, scale=0.3), "w": numbers(WIDTH, WIDTH, scale=0.3), "u": MATRIX},
        **{"o": numbers(64, 8, scale=0.2), "one": I64([1]), "place": I64(1)},
    }
    model = embedded(body, known | weights, f", int64[1,Q] attention_mask{past}", present)
    path = saved(model, tmp_path)
    require_same(path)
    forward = ir.print_ir(open_source(path).import_(64)[0])
    assert "spec.attention" in forward


BUILT = """
    n = ReduceSum<keepdims = 0>(attention_mask, one)
    m = Sub(n, one)
    lengths = Cast<to = 6>(m)
    shape = Shape(attention_mask)
    rows = Gather(shape, place)
    total = Cast<to = 6>(rows)
    a = SimplifiedLayerNormalization<epsilon = 0.000001>(x, g)
    q = com.microsoft.MatMulNBits<K = 32, N = 128, bits = 4, block_size = 32>(a, wq, sq)
    y, presentkey, presentvalue = com.microsoft.GroupQueryAttention<num_heads = 4, kv_num_heads = 2, do_rotary = 1>
        (q, , , pastkey, pastvalue, lengths, total, c, s)
    o = com.microsoft.MatMulNBits<K = 64, N = 32, bits = 4, block_size = 32>(y, wo, so)
    h, , , r = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.000001>(x, o, g)
    u = com.microsoft.MatMulNBits<K = 32, N = 64, bits = 8, block_size = 32>(h, wu, su)
    i = com.microsoft.QuickGelu<alpha = 1.0>(u)
    d = com.microsoft.MatMulNBits<K = 64, N = 32, bits = 4, block_size = 32>(i, wd, sd)
    e, , , z = com.microsoft.SkipSimplifiedLayerNormalization<epsilon = 0.000001>(r, d, g)
    logits = MatMul(e, head)"""
CACHED = ", int64[1,Q] attention_mask" + "".join(f", float[1,2,P,16] past{each}" for each in ("key", "value"))


def nbits(outputs: int, features: int, bits: int = 4) -> tuple[Any, Any]:
    """A quantized matrix, and its scales."""
    drawn = RANDOM.integers(0, 2**bits, (outputs, features // 32, 32), np.uint8)
    return packed(drawn) if bits == 4 else drawn, numbers(outputs, features // 32, scale=0.5 / 2**bits)


def test_a_model_of_fused_operators_is_certified(tmp_path: Path) -> None:
    """Fused and quantized throughout, with its cache: the logits are those of onnxruntime, token by token too."""
    matrices = {"q": nbits(128, 32), "o": nbits(32, 64), "u": nbits(64, 32, 8), "d": nbits(32, 64)}
    known = {"one": I64([1]), "place": I64(1), "g": VECTOR, "c": COS8, "s": SIN8, "head": numbers(WIDTH, 16)}
    for name, (matrix, scales) in matrices.items():
        known |= {f"w{name}": matrix, f"s{name}": scales}
    present = "".join(f", float[1,2,Q,16] present{each}" for each in ("key", "value"))
    path = saved(embedded(BUILT, known, CACHED, present, opset=21), tmp_path)
    require_same(path, 1e-4)
    ids, past, rows = torch.randint(0, 16, (1, 12), generator=torch.Generator().manual_seed(3)), None, []
    running = session(path)
    for at in range(ids.shape[1]):
        found = running.run(["logits", "presentkey", "presentvalue"], inputs_of(running, ids[:, at : at + 1], past))
        past = {"pastkey": found[1], "pastvalue": found[2]}
        rows.append(torch.from_numpy(found[0]))
    torch.testing.assert_close(of_forward(path, ids), torch.cat(rows, 1), rtol=1e-4, atol=1e-4)
    report = certify(forerun.compile(path, "autoregressive", target="cpu", max_length=64).executable, cases=4, seed=1)
    assert report.exact, str(report)


def test_every_rule_is_of_an_operator_that_exists() -> None:
    """The tables name operators of the standard, or of onnxruntime."""
    standard = {each.name for each in onnx.defs.get_all_schemas()} | {"SimplifiedLayerNormalization"}
    assert {name for domain, name in RULES if not domain} | set(KNOWN_RULES) <= standard
    assert {domain for domain, _ in RULES} == {"", MICROSOFT}


def test_an_operator_without_a_rule_is_named(tmp_path: Path) -> None:
    model = embedded("logits = Celu(x)", {})
    model.graph.node[1].name = "layers.3.act"
    with pytest.raises(UnsupportedOperationError, match=r"Celu, node 'layers.3.act', has no rule; .*CONTRIBUTING"):
        open_source(saved(model, tmp_path)).import_(64)


@pytest.mark.parametrize(
    ("body", "weights", "words"),
    [
        ("logits = ScatterND(x, i, v)", {"i": I64([[0, 1]]), "v": numbers(1, WIDTH)}, "only some elements"),
        ("logits = CumSum<reverse = 1>(x, one)", {"one": I64(1)}, "reverse = 1"),
        ("logits = LayerNormalization<axis = 1>(x, w)", {"w": VECTOR}, "axis = 1"),
        ("logits = com.microsoft.MatMulNBits<K = 32, N = 8, bits = 2, block_size = 16>(x, q, s)",
         {"q": RANDOM.integers(0, 255, (8, 2, 4), np.uint8), "s": numbers(8, 2)}, "bits = 2"),
        ("s = Shape(x)\n f = Cast<to = 1>(s)\n r = Sqrt(f)\n m = ReduceMax(r)\n logits = Mul(x, m)", {}, "size"),
        ("s = Shape<start = 1, end = 2>(x)\n b = Greater(s, ten)\n logits = Where(b, x, x)", {"ten": I64([10])},
         "differs between sequences of 2 to 64 positions"),
        ("logits = com.microsoft.RotaryEmbedding(x, z, c, s)", {"c": COS, "s": SIN, "z": I64([3])}, "position 3"),
        ("logits = Dropout(x, r, t)", {"r": np.float32(0.5), "t": np.bool_(True)}, "training"),
        ("logits = Slice(x, zero, ten, one)", {"zero": I64([0]), "ten": I64([10]), "one": I64([1])},
         "an extremum of the sizes"),
        ("logits = Cast<to = 2>(x)", {}, "data type 2"),
        ("y, m = LayerNormalization(x, w)\n logits = Sub(y, m)", {"w": VECTOR}, "uses 'm', an output"),
        ("q = QuantizeLinear(x, s)\n logits = DequantizeLinear(q, s)", {"s": np.float32(0.1)}, "QuantizeLinear"),
    ],
)  # fmt: skip
def test_a_form_without_a_rule_is_named(body: str, weights: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperationError, match=words) as caught:
        open_source(saved(embedded(body, weights), tmp_path)).import_(64)
    assert "\n" not in str(caught.value)


def test_a_local_function_is_written_out(tmp_path: Path) -> None:
    model = embedded("logits = local.twice(x)", {})
    model.opset_import.append(helper.make_opsetid("local", 1))
    body = [helper.make_node("Add", ["v", "v"], ["w"])]
    opsets = [helper.make_opsetid("", 23)]
    model.functions.append(helper.make_function("local", "twice", ["v"], ["w"], body, opsets))
    require_same(saved(model, tmp_path))


def test_half_precision_is_widened(tmp_path: Path) -> None:
    halves = MATRIX.astype(np.float16)
    body = "a = Cast<to = 10>(x)\n b = MatMul(a, w)\n logits = Cast<to = 1>(b)"
    module, weights = open_source(saved(embedded(body, {"w": halves}), tmp_path)).import_(64)
    assert {each.dtype for each in weights.values()} == {torch.float32}
    assert torch.equal(weights["w"], torch.from_numpy(halves.astype(np.float32).T))
    assert "f16" not in ir.print_ir(module)


def test_weights_that_are_written_twice_are_one(tmp_path: Path) -> None:
    table = numbers(16, WIDTH)
    weights = open_source(saved(embedded("logits = MatMul(x, head)", {"head": table.T}), tmp_path)).import_(64)[1]
    assert list(weights) == ["table"]
