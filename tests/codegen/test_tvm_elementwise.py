"""Functions, row-wise operations, linears and the k largest, against torch in float64 or the interpreter."""

import math

import numpy as np
import pytest
import torch
from steps import ROW_TYPES, Step, prompt_rows, rows_of

from forerun import ir
from forerun.errors import UnsupportedOperationError
from forerun.runtime.executable import WHOLE
from tests.compiled import tvm_step


def evaluate(module, weights, rows, **options):
    """The results of `@step` on poisoned memory, and those of the interpreter."""
    executable = tvm_step(module, weights.__getitem__, max_rows=64, max_length=256, **options)
    executable.memory.arena.fill(math.nan)
    state = executable.new_state(16)
    executable.run(WHOLE, state, rows)
    results = [executable.memory.view(value).copy() for value in executable.step.returned]
    environment = ir.Environment(weights.__getitem__, ir.new_states(module, 16 * 16))
    inputs = [torch.from_numpy(getattr(rows, name)) for name in ROW_TYPES]
    return results, [each.numpy() for each in ir.evaluate(module, "step", inputs, environment)]


def indices(count):
    return prompt_rows(np.arange(count), 0, list(range(8)))


EXACT = {
    "exp": torch.exp,
    "expm1": torch.expm1,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "softplus": torch.nn.functional.softplus,
    "log1p": lambda x: torch.log1p(x.abs()),
    "rsqrt": lambda x: torch.rsqrt(x.abs()),
}


def test_functions_are_accurate_and_the_same_in_vectors_and_remainders():
    values = torch.cat((torch.linspace(-20, 20, 1500), torch.linspace(-1, 1, 500), torch.linspace(-87, 88, 39)))
    size = len(values)
    step = Step()
    rows = step.weight("values", tensor=torch.stack((values, values.roll(3))))
    results = []
    for name in EXACT:

        def body(b, table, tokens, name=name):
            x = b.add(ir.Gather, table, tokens)
            return b.map(name, b.map("abs", x) if name in ("log1p", "rsqrt") else x)

        results.append(step.kernel([rows, step.argument("tokens")], body, "row_wise"))
    module = step.finish(*results)
    results, _ = evaluate(module, step.weights, indices(2))
    for (name, exact), result in zip(EXACT.items(), results, strict=True):
        expected = exact(values.double()).numpy()
        unit = np.maximum(np.abs(np.spacing(expected.astype(np.float32))).astype(np.float64), 1e-38)
        finite = np.isfinite(expected.astype(np.float32))
        error = (np.abs(result[0] - expected) / unit)[finite]
        # tanh(x) forms of gelu lose accuracy near zero; there the error is measured against 1
        absolute = np.abs(result[0] - expected)[finite]
        assert (np.minimum(error / 4, absolute / 4e-7) <= 1).all(), (name, error.max(), absolute.max())
        assert np.array_equal(result[1], np.roll(result[0], 3)), name
    assert size % 16


def test_exp_is_within_two_units_and_exactly_zero_for_masked_scores():
    values = torch.cat(
        (torch.linspace(-87.3, 88.7, 4000), torch.tensor([-88.0, -1e30, -math.inf, 0.0, 89.0, math.inf]))
    )
    step = Step()
    table = step.weight("values", tensor=values[None])
    module = step.finish(
        step.kernel([table, step.argument("tokens")], lambda b, t, i: b.map("exp", b.add(ir.Gather, t, i)), "row_wise")
    )
    (result,), _ = evaluate(module, step.weights, indices(1))
    expected = np.exp(values[:4000].double().numpy())
    assert (np.abs(result[0, :4000] - expected) / np.spacing(expected.astype(np.float32))).max() < 2
    assert result[0, 4000:].tolist() == [0.0, 0.0, 0.0, 1.0, math.inf, math.inf]


def test_row_wise_operations_match_the_interpreter():
    step = Step(3)
    table, weight, bias = step.weight("table", 40, 37), step.weight("weight", 37), step.weight("bias", 37)

    def body(b, table, weight, bias, tokens):
        x = b.add(ir.Gather, table, tokens)
        left, right = b.slice(x, 1, 0, 20), b.slice(x, 1, 20, 37)
        mean = b.add(ir.Reduce, x, function="mean", dims=(1,), keep=True)
        large = b.map("gt", x, b.constant(0.5, "f32"))
        kinds = b.cast(b.map("floor", b.map("mul", x, b.constant(3.0, "f32"))), "i64")
        matrix = b.reshape(b.slice(x, 1, 0, 36), ("N", 6, 6))
        return (
            b.add(ir.RMSNorm, x, weight, eps=1e-6),
            b.add(ir.LayerNorm, x, weight, bias, eps=1e-5),
            b.add(ir.Softmax, x, dim=1),
            b.concat([right, b.map("neg", left)], 1),
            b.map("where", large, b.map("sub", x, mean), b.map("mul", x, x)),
            b.add(ir.Reduce, x, function="max", dims=(1,)),
            b.add(ir.Reduce, x, function="argmax", dims=(1,), keep=True),
            b.map("remainder", kinds, b.constant(4, "i64")),
            b.map("floor_div", kinds, b.constant(-3, "i64")),
            b.add(ir.MatMul, matrix, b.transpose(matrix, (0, 2, 1))),
            b.add(ir.Softmax, matrix, dim=1),
            b.add(ir.Reduce, matrix, function="sum", dims=(1,)),
            b.add(ir.Reduce, large, function="any", dims=(1,)),
            b.add(ir.Scan, x, dim=1),
            b.cast(large, "f32"),
        )

    results = step.kernel([table, weight, bias, step.argument("tokens")], body, "row_wise")
    module = step.finish(*results)
    results, expected = evaluate(module, step.weights, indices(40))
    for result, exact in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.astype(exact.dtype), exact, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("features", "outputs"), [(70, 50), (32, 64), (33, 16), (5, 97)])
def test_linears_of_any_size_match_and_rows_do_not_depend_on_their_number(features, outputs):
    step = Step(features)
    table = step.weight("table", 64, features)
    first, second = step.weight("first", outputs, features), step.weight("second", outputs, features)
    bias = step.weight("bias", outputs)

    def body(b, table, tokens, first, second, bias):
        x = b.add(ir.Gather, table, tokens)
        gate, up = b.add(ir.Linear, x, first, bias), b.add(ir.Linear, x, second)
        return b.map("mul", b.map("silu", gate), up), b.map("add", up, bias)

    inputs = [table, step.argument("tokens"), first, second, bias]
    module = step.finish(*step.kernel(inputs, body, "linear"))
    results, expected = evaluate(module, step.weights, indices(64))
    for result, exact in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, exact, rtol=2e-5, atol=2e-4)
    executable = tvm_step(module, step.weights.__getitem__, max_rows=64, max_length=256)
    for count in (1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 24, 25, 33):
        executable.memory.arena.fill(math.nan)
        executable.run(WHOLE, executable.new_state(1), indices(count))
        for value, result in zip(executable.step.returned, results, strict=True):
            assert np.array_equal(executable.memory.view(value), result[:count]), count


def test_the_largest_come_first_and_the_lower_id_first_among_equals():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 40, (6, 1501), generator=generator).float()
    logits[1] = torch.arange(1501)
    logits[2] = -torch.arange(1501)
    logits[3] = 7.0
    logits[4] = -math.inf
    logits[5, 1000] = math.nan
    step = Step()
    table = step.weight("table", tensor=logits)

    def body(b, table, tokens):
        values, ids = b.emit(ir.TopK.make(b.add(ir.Gather, table, tokens), k=8, index_dtype="i32")).results
        return values, ids

    module = step.finish(*step.kernel([table, step.argument("tokens")], body, "topk"))
    (values, ids), _ = evaluate(module, step.weights, indices(6))
    order = np.argsort(-np.nan_to_num(logits.numpy(), nan=-math.inf), axis=1, kind="stable")[:, :8]
    assert np.array_equal(ids, order)
    assert np.array_equal(values, np.take_along_axis(logits.numpy(), order, 1))


def test_an_unknown_operation_is_named():
    step = Step()
    table = step.weight("table", 4, 4, tensor=torch.zeros(4, 4, dtype=torch.float64))
    module = step.finish(
        step.kernel([table, step.argument("tokens")], lambda b, t, i: b.add(ir.Gather, t, i), "row_wise")
    )
    with pytest.raises(UnsupportedOperationError, match="float32"):
        tvm_step(module, step.weights.__getitem__)


def test_negative_indices_count_from_the_end_and_others_stop_at_the_rim():
    step = Step(5)
    table = step.weight("table", 40, 7)

    def body(b, table, tokens):
        behind = b.map("sub", tokens, b.constant(5, "i32"))
        ids = b.map("where", b.map("lt", tokens, b.constant(20, "i32")), behind, tokens)
        x = b.add(ir.Gather, table, ids)
        return x, b.add(ir.TakeAlong, x, b.reshape(b.map("remainder", ids, b.constant(7, "i32")), ("N", 1)), dim=1)

    module = step.finish(*step.kernel([table, step.argument("tokens")], body, "row_wise"))
    results, expected = evaluate(module, step.weights, indices(40))
    for result, exact in zip(results, expected, strict=True):
        assert np.array_equal(result, exact)
    assert np.array_equal(results[0][0], step.weights["table"][-5].numpy())


def test_integer_functions_match_the_interpreter():
    step = Step()

    def body(b, tokens):
        x = b.map("sub", b.cast(b.reshape(tokens, ("N", 1)), "i64"), b.constant(20, "i64"))
        even = b.map("eq", b.map("remainder", x, b.constant(2, "i64")), b.constant(0, "i64"))
        small = b.map("lt", x, b.constant(3, "i64"))
        return (
            x,
            b.map("mul", x, b.constant(-31, "i64")),
            *(b.map(each, x) for each in ("neg", "abs", "sign", "relu", "not")),
            *(b.map(each, x, b.constant(6, "i64")) for each in ("and", "or", "xor", "max", "min", "floor_div")),
            *(b.map(each, even, small) for each in ("lt", "le", "gt", "ge", "eq", "ne", "xor", "and", "or")),
            b.cast(b.map("remainder", x, b.constant(100, "i64")), "i8"),
        )

    module = step.finish(*step.kernel([step.argument("tokens")], body, "row_wise"))
    results, expected = evaluate(module, step.weights, indices(40))
    for result, exact in zip(results, expected, strict=True):
        assert np.array_equal(result.astype(exact.dtype), exact)


TOO_LARGE = {
    "a constant": (lambda b, x: b.map("add", x, b.constant(1 << 31, "i64")), "spec.constant may give 2147483648"),
    "a limit": (
        lambda b, x: b.cast(b.map("lt", x, b.constant(-(1 << 63), "i64")), "i64"),
        "spec.constant may give -9223372036854775808",
    ),
    "a sum": (lambda b, x: b.map("add", x, b.constant((1 << 31) - 1, "i64")), "spec.map add may give"),
    "a hash": (lambda b, x: b.map("mul", x, b.constant(2654435761 % (1 << 31), "i64")), "spec.map mul may give"),
    "a square": (lambda b, x: b.map("mul", x, x), "spec.map mul may give"),
    "a product with a rounded number": (
        lambda b, x: b.map("mul", b.cast(b.cast(x, "f32"), "i64"), b.constant(3, "i64")),
        "spec.map mul may give any value",
    ),
    "a power": (lambda b, x: b.map("pow", x, b.constant(2, "i64")), "spec.map pow has no kernel"),
    "an exponential": (lambda b, x: b.map("exp", x), "spec.map exp has no kernel"),
    "a byte": (lambda b, x: b.cast(b.cast(x, "i8"), "i64"), "spec.cast may give 16777215"),
    "a rounded short": (lambda b, x: b.cast(b.cast(b.cast(x, "f32"), "i16"), "i64"), "spec.cast may leave i16"),
}


@pytest.mark.parametrize("case", TOO_LARGE)
def test_integers_that_may_leave_int32_are_refused_in_one_sentence(case):
    body, named = TOO_LARGE[case]
    step = Step()
    # The chain crosses two kernels: what the second one refuses comes from the first.
    x = step.kernel([step.argument("tokens")], lambda b, t: b.cast(t, "i64"), "row_wise")
    module = step.finish(step.kernel([x], body, "row_wise"))
    with pytest.raises(UnsupportedOperationError) as caught:
        tvm_step(module, step.weights.__getitem__)
    assert named in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_truth_value_has_no_sine():
    step = Step()

    def body(b, tokens):
        return b.cast(b.map("sin", b.map("lt", b.reshape(tokens, ("N", 1)), b.constant(3, "i32"))), "f32")

    module = step.finish(step.kernel([step.argument("tokens")], body, "row_wise"))
    with pytest.raises(UnsupportedOperationError, match="sin on i1"):
        tvm_step(module, step.weights.__getitem__)


def test_a_table_of_large_integers_is_refused():
    step = Step()
    table = step.weight("table", tensor=torch.tensor([[1, 2], [3, 1 << 40]]))
    module = step.finish(
        step.kernel([table, step.argument("tokens")], lambda b, t, i: b.add(ir.Gather, t, i), "row_wise")
    )
    with pytest.raises(UnsupportedOperationError, match="the weight table holds 1099511627776"):
        tvm_step(module, step.weights.__getitem__)


def test_rows_of_the_helper_are_int32():
    assert rows_of([1], [0], [0], [0], [1], [[0]], [[0]]).tokens.dtype == np.int32


NAN_OF_NAN = ("exp", "expm1", "sigmoid", "tanh", "erf", "silu", "gelu", "gelu_tanh", "softplus", "sqrt", "floor", "abs")


def test_not_a_number_stays_one_and_compares_like_one():
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.5, math.nan] * 4)
    step = Step()
    table = step.weight("values", tensor=torch.stack((special, special.roll(1))))
    compared = ("eq", "ne", "lt", "le", "gt", "ge")

    def body(b, table, tokens):
        x = b.add(ir.Gather, table, tokens)
        y = b.constant(0.5, "f32")
        pairs = [b.cast(b.map(name, x, other), "f32") for name in compared for other in (x, y)]
        return (*pairs, *(b.map(name, x) for name in NAN_OF_NAN))

    module = step.finish(*step.kernel([table, step.argument("tokens")], body, "row_wise"))
    results, expected = evaluate(module, step.weights, indices(2))
    names = [f"{name} {other}" for name in compared for other in ("itself", "0.5")] + list(NAN_OF_NAN)
    missing = np.isnan(torch.stack((special, special.roll(1))).numpy())
    for name, result, right in zip(names, results, expected, strict=True):
        if name in NAN_OF_NAN:
            assert np.isnan(result[missing]).all(), name
        else:
            assert np.array_equal(result, right), name
