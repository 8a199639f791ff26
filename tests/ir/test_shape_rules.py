"""Every shape rule accepts what it should and rejects what it should not, with a message that says why."""

from typing import Any

import pytest

from forerun import ir
from forerun.ir import TensorType
from tests.ir.build import raw

Types = list[TensorType]


def t(*dims: int | str, dtype: str = "f32") -> TensorType:
    return TensorType.of(dims, dtype)


def i(*dims: int | str, dtype: str = "i64") -> TensorType:
    return TensorType.of(dims, dtype)


ACCEPTED: list[tuple[type[ir.SpecOperation], Types, dict[str, Any], Types]] = [
    (ir.Parameter, [], {"symbol": ir.Symbol("w"), "shape": (3, 4), "dtype": "bf16"}, [t(3, 4, dtype="bf16")]),
    (ir.Constant, [], {"value": 1.5, "dtype": "f32"}, [t()]),
    (ir.Iota, [], {"size": "2*T-1"}, [i("2*T-1")]),
    (ir.Map, [t(1, "T", 8), t(8)], {"function": "add"}, [t(1, "T", 8)]),
    (ir.Map, [t("T", 1), t(1, "T")], {"function": "lt"}, [t("T", "T", dtype="i1")]),
    (ir.Map, [t("T", dtype="i1"), t(), t(2, 1)], {"function": "where"}, [t(2, "T")]),
    (ir.Cast, [t(1, "T")], {"dtype": "i32"}, [i(1, "T", dtype="i32")]),
    (ir.Reduce, [t(1, "T", 8)], {"function": "sum", "dims": (0, 2), "keep": True}, [t(1, "T", 1)]),
    (ir.Reduce, [t(1, "T", 8)], {"function": "argmax", "dims": (2,)}, [i(1, "T")]),
    (ir.Reduce, [t(4, "T", dtype="i1")], {"function": "any", "dims": (0,)}, [t("T", dtype="i1")]),
    (ir.Constant, [], {"value": 2.0, "dtype": "i8"}, [i(dtype="i8")]),
    (ir.Scan, [i(1, "T")], {"dim": 1}, [i(1, "T")]),
    (ir.Reshape, [t(1, "T", 8)], {"shape": ("2*T", 4)}, [t("2*T", 4)]),
    (ir.Reshape, [t("T-1", 6)], {"shape": (3, "T-1", 2)}, [t(3, "T-1", 2)]),
    (ir.Broadcast, [t(1, 8)], {"shape": (3, "T", 8)}, [t(3, "T", 8)]),
    (ir.Transpose, [t(1, "T", 8)], {"permutation": (2, 0, 1)}, [t(8, 1, "T")]),
    (ir.Slice, [t("T", 8)], {"dim": 0, "start": 1, "stop": "T"}, [t("T-1", 8)]),
    (ir.Slice, [t("T", 8)], {"dim": 1, "start": 1, "stop": 8, "step": 3}, [t("T", 3)]),
    (ir.Concat, [t("T", 8), t(1, 8), t("T", 8)], {"dim": 0}, [t("2*T+1", 8)]),
    (ir.Gather, [t(9, 8), i(1, "T")], {}, [t(1, "T", 8)]),
    (ir.Gather, [t(9, 8, 7), i("T", 1, dtype="i32"), i(5)], {}, [t("T", 5, 7)]),
    (ir.TakeAlong, [t("T", 8), i("T", 2)], {"dim": 1}, [t("T", 2)]),
    (ir.Linear, [t(1, "T", 8), t(6, 8), t(6)], {}, [t(1, "T", 6)]),
    (ir.ExpertLinear, [t("T", 8), t(5, 6, 8), i("T", 2)], {}, [t("T", 2, 6)]),
    (ir.ExpertLinear, [t("T", 2, 8), t(5, 6, 8), i("T", 2, dtype="i32"), t(5, 6)], {}, [t("T", 2, 6)]),
    (ir.MatMul, [t(4, "T", 8), t(8, 3)], {}, [t(4, "T", 3)]),
    (ir.Softmax, [t(2, "T")], {"dim": 1}, [t(2, "T")]),
    (ir.TopK, [t("M", 100)], {"k": 4, "index_dtype": "i32"}, [t("M", 4), i("M", 4, dtype="i32")]),
    (ir.RMSNorm, [t("N", 8), t(8)], {"eps": 1e-6}, [t("N", 8)]),
    (ir.LayerNorm, [t("N", 8), t(8), t(8)], {"eps": 1e-6}, [t("N", 8)]),
    (ir.Rotary, [t(1, 2, "T", 8), t("T", 8), t("T", 8)], {}, [t(1, 2, "T", 8)]),
    (ir.Attention, [t(4, "T", 8), t(2, "T", 8), t(2, "T", 6)], {"scale": 1.0}, [t(4, "T", 6)]),
    (ir.StateWrite, [t("N", 2, 8), i("N")], {"symbol": ir.Symbol("s")}, []),
    (ir.StateRead, [i("N")], {"symbol": ir.Symbol("s"), "shape": (2, 8), "dtype": "f32"}, [t("N", 2, 8)]),
    (ir.StateRead, [i("N", 3)], {"symbol": ir.Symbol("s"), "shape": (8,), "dtype": "f32"}, [t("N", 3, 8)]),
    (
        ir.Ancestors,
        [i("N"), i("N"), i("N"), i("N", "D"), i("S", "B", dtype="i32")],
        {"count": 3, "block": 16},
        [i("N", 3)],
    ),
    (ir.Send, [t("N", 8)], {"payload": "x"}, []),
    (ir.Receive, [], {"payload": "x", "shape": ("N", 8), "dtype": "f32"}, [t("N", 8)]),
    (ir.Window, [t("T", 8, 2)], {"count": 3}, [t("T", 3, 8, 2)]),
    (
        ir.TreeAttention,
        [t("N", 4, 8), i("N"), i("N"), i("N"), i("N", "D"), i("S", "B")],
        {"symbol": ir.Symbol("k"), "values": ir.Symbol("v"), "value_dim": 6, "block": 16, "scale": 1.0},
        [t("N", 4, 6)],
    ),
    (ir.Return, [t("N")], {}, []),
    (ir.Yield, [t("N")], {}, []),
    (ir.Weight, [], {"symbol": ir.Symbol("w"), "shape": (3,), "dtype": "f32"}, []),
    (ir.State, [], {"symbol": ir.Symbol("s"), "per": "row", "shape": (2, 3), "dtype": "f32"}, []),
]

ATTENDED = [t(4, "T", 8), t(2, "T", 8), t(2, "T", 6)]
ROWS = [t("N", 4, 8), i("N"), i("N"), i("N"), i("N", "D"), i("S", "B")]
TREE = {"symbol": ir.Symbol("k"), "values": ir.Symbol("v"), "value_dim": 6, "block": 16, "scale": 1.0}

REJECTED: list[tuple[type[ir.SpecOperation], Types, dict[str, Any], str]] = [
    (ir.Map, [t(8)], {"function": "cosh"}, "no function 'cosh'"),
    (ir.Map, [t(8)], {"function": "add"}, "needs 2 operands for add"),
    (ir.Map, [t(8), t(8), t(8)], {"function": "where"}, "needs a condition of i1 for where"),
    (ir.Map, [t(8), i(8)], {"function": "add"}, r"mixes \['f32', 'i64'\] in add"),
    (ir.Map, [t("T"), t("N")], {"function": "add"}, r"\['N', 'T'\] that do not broadcast"),
    (ir.Map, [t(3), t("T")], {"function": "add"}, "do not broadcast"),
    (ir.Reduce, [t(8)], {"function": "median", "dims": (0,)}, "no function 'median'"),
    (ir.Reduce, [t(8)], {"function": "sum", "dims": (1,)}, "has no dimensions"),
    (ir.Reduce, [t(8, 8)], {"function": "argmax", "dims": (0, 1)}, "takes argmax along exactly one dimension"),
    (ir.Reshape, [t("T", 8)], {"shape": ("T", 4)}, "cannot reshape .* which has another number of elements"),
    (ir.Reshape, [t("T")], {"shape": ("N",)}, "cannot reshape .* which has another number of elements"),
    (ir.Broadcast, [t(3)], {"shape": (4,)}, "do not broadcast"),
    (ir.Broadcast, [t(3, 4)], {"shape": (4,)}, "cannot broadcast .* to"),
    (ir.Transpose, [t(3, 4)], {"permutation": (0, 0)}, "does not list every axis of"),
    (ir.Transpose, [t(3, 4)], {"permutation": (0,)}, "does not list every axis of"),
    (ir.Slice, [t("T")], {"dim": 0, "start": 0, "stop": "T", "step": 2}, "cannot step over the named dimension T"),
    (ir.Concat, [t("T", 8), t("T", 7)], {"dim": 0}, "cannot concatenate .* along dimension 0"),
    (ir.Concat, [t("T"), i("T")], {"dim": 0}, "mixes dtypes"),
    (ir.Gather, [t(9, 8), t(3)], {}, "needs indices of i64 or i32"),
    (ir.Gather, [t(9), i(3), i(3)], {}, "2 indices into"),
    (ir.Gather, [t(9)], {}, "0 indices into"),
    (ir.Linear, [t("T", 8), t(6, 7)], {}, "cannot multiply"),
    (ir.Linear, [t("T", 8), t(6, 8, dtype="bf16")], {}, "mixes f32 and bf16"),
    (ir.Linear, [t("T", 8), t(6, 8), t(8)], {}, "one number per output"),
    (ir.ExpertLinear, [t("T", 8), t(6, 8), i("T", 2)], {}, "cannot multiply"),
    (ir.ExpertLinear, [t("T", 8), t(5, 6, 7), i("T", 2)], {}, "cannot multiply"),
    (ir.ExpertLinear, [t("T", 8), t(5, 6, 8, dtype="bf16"), i("T", 2)], {}, "mixes f32 and bf16"),
    (ir.ExpertLinear, [t("T", 8), t(5, 6, 8), t("T", 2)], {}, "cannot choose experts by"),
    (ir.ExpertLinear, [t("T", 8), t(5, 6, 8), i("T")], {}, "needs a fixed number of choices, not T"),
    (ir.ExpertLinear, [t("T", 3, 8), t(5, 6, 8), i("T", 2)], {}, "has rows .* with choices"),
    (ir.ExpertLinear, [t("T", 8), t(5, 6, 8), i("T", 2), t(6)], {}, "one number per expert and output"),
    (ir.ExpertLinear, [t("T", 8), t(5, 6, 8), i("T", 2)], {"arithmetic": "int4"}, "unknown arithmetic 'int4'"),
    (ir.ExpertLinear, [t("T", 8), t(5, 6, 8), i("T", 2)], {"arithmetic": "int8"}, "cannot divide the features"),
    (ir.MatMul, [t(3, 4), t(3, 4)], {}, "cannot multiply"),
    (ir.MatMul, [t(4), t(4, 3)], {}, "cannot multiply"),
    (ir.MatMul, [t(3, 4), t(4, 3, dtype="bf16")], {}, "mixes f32 and bf16"),
    (ir.MatMul, [t(2, 3, 4), t(3, 4, 3)], {}, "do not broadcast"),
    (ir.RMSNorm, [t("N", 8), t(7)], {"eps": 1e-6}, "one number per feature"),
    (ir.LayerNorm, [t("N", 8), t(8), t(7)], {"eps": 1e-6}, "one number per feature"),
    (ir.Rotary, [t("T", 7), t("T", 7), t("T", 7)], {}, "even last dimension"),
    (ir.Rotary, [t("T", 8), t("T", 6), t("T", 6)], {}, "do not fit"),
    (ir.Rotary, [t("T", 8), t("T", 8), t(1, 8)], {}, "do not fit"),
    (ir.Attention, [t(3, "T", 8), t(2, "T", 8), t(2, "T", 8)], {"scale": 1.0}, "3 query heads evenly among 2"),
    (ir.Attention, [t(2, "T", 8), t(2, "T", 6), t(2, "T", 8)], {"scale": 1.0}, "do not fit each other"),
    (ir.Attention, [t("T", 8), t("T", 8), t("T", 8)], {"scale": 1.0}, "needs one rank of at least 3"),
    (ir.StateWrite, [t("N", 2, 8), i("M")], {"symbol": ir.Symbol("s")}, "not one record for each slot"),
    (ir.StateWrite, [t("N", 2, 8), t("N")], {"symbol": ir.Symbol("s")}, "needs slots of i64 or i32"),
    (ir.StateRead, [i()], {"symbol": ir.Symbol("s"), "shape": (8,), "dtype": "f32"}, r"needs slots \[N, ...\]"),
    (ir.Ancestors, [*ROWS[1:4], i("N", 2), i("S")], {"count": 3, "block": 16}, r"needs block tables \[S, B\]"),
    (ir.Ancestors, [*ROWS[1:4], i("D"), ROWS[5]], {"count": 3, "block": 16}, "has paths .* which do not fit the rows"),
    (ir.Ancestors, ROWS[1:], {"count": 0, "block": 16}, "needs a count and blocks of at least 1"),
    (ir.Send, [t("N", 8)], {"payload": ""}, "needs a name for its payload"),
    (ir.Receive, [], {"payload": "", "shape": ("N", 8), "dtype": "f32"}, "needs the name of a payload"),
    (ir.Window, [t("T", 8)], {"count": 0}, "a count of at least 1"),
    (ir.Reduce, [i("T", 8)], {"function": "all", "dims": (1,)}, "takes i1 for all"),
    (ir.Reduce, [t("T", 8, dtype="i1")], {"function": "sum", "dims": (1,)}, "takes numbers for sum"),
    (ir.Reduce, [i("T", 8)], {"function": "mean", "dims": (1,)}, "takes floating-point numbers for mean"),
    (ir.Reduce, [t("T", 8)], {"function": "sum", "dims": ()}, "needs a dimension to reduce"),
    (ir.Constant, [], {"value": 2, "dtype": "i1"}, "2, which is not a number of i1"),
    (ir.Constant, [], {"value": 1.5, "dtype": "i32"}, "1.5, which is not a number of i32"),
    (ir.Constant, [], {"value": float("nan"), "dtype": "i64"}, "nan, which is not a number of i64"),
    (ir.Softmax, [t(2, "T")], {"dim": 2}, "no dimension 2"),
    (ir.Softmax, [t(2, "T")], {"dim": -1}, "no dimension -1"),
    (ir.Scan, [t(2, "T")], {"dim": 7}, "no dimension 7"),
    (ir.Slice, [t("T", 8)], {"dim": 5, "start": 0, "stop": 1}, "no dimension 5"),
    (ir.Slice, [t("T", 8)], {"dim": 1, "start": 0, "stop": 9}, "cannot slice dimension 1 of .* from 0 to 9"),
    (ir.Slice, [t("T", 8)], {"dim": 1, "start": -1, "stop": 8}, "cannot slice dimension 1"),
    (ir.Slice, [t("T", 8)], {"dim": 1, "start": 5, "stop": 4}, "cannot slice dimension 1"),
    (ir.Slice, [t("T", 8)], {"dim": 0, "start": 0, "stop": "T+1"}, "cannot slice dimension 0"),
    (ir.Slice, [t("T", 8)], {"dim": 1, "start": 0, "stop": 8, "step": 0}, "needs a step of at least 1, not 0"),
    (ir.Concat, [], {"dim": 0}, "needs at least one operand"),
    (ir.Concat, [t("T"), t("T")], {"dim": 1}, "no dimension 1"),
    (ir.TakeAlong, [t("T", 8), i("T", 2)], {"dim": 2}, "no dimension 2"),
    (ir.TakeAlong, [t("T", 8), t("T", 2)], {"dim": 1}, "needs indices of i64 or i32"),
    (ir.TakeAlong, [t("T", 8), i("T")], {"dim": 1}, "cannot index .* their ranks differ"),
    (ir.TakeAlong, [t(3, 8), i(4, 2)], {"dim": 1}, "is larger than"),
    (ir.TopK, [t("M", 100)], {"k": 101}, "cannot choose 101 elements"),
    (ir.TopK, [t("M", 100)], {"k": 0}, "a k of at least 1, not 0"),
    (ir.TopK, [t()], {"k": 1}, "needs an operand with a last dimension"),
    (
        ir.State,
        [],
        {"symbol": ir.Symbol("s"), "per": "row", "shape": (0, 2), "dtype": "f32"},
        "record sizes of at least 1",
    ),
    (ir.State, [], {"symbol": ir.Symbol("s"), "per": "token", "shape": (2,), "dtype": "f32"}, "not per 'token'"),
    (ir.Attention, ATTENDED, {"scale": 1.0, "mask": t("T", 3)}, "do(es)? not (fit|broadcast)"),
    (ir.Attention, ATTENDED, {"scale": 1.0, "mask": t(2, 4, "T", "T")}, "does not fit scores"),
    (ir.Attention, ATTENDED, {"scale": 1.0, "first": i(1, "T")}, "not one per row"),
    (ir.Attention, ATTENDED, {"scale": 1.0, "bias": t(3, 9), "bias_by": "key"}, "fit 4 heads"),
    (ir.Attention, ATTENDED, {"scale": 1.0, "bias": t(4, 9), "bias_by": "row"}, "'key' or 'distance', not 'row'"),
    (ir.Attention, ATTENDED, {"scale": 1.0, "bias": t(4, 9)}, "'key' or 'distance', not None"),
    (ir.Attention, ATTENDED, {"scale": 1.0, "sinks": t(3)}, "do not fit 4 heads"),
    (ir.LayerNorm, [t("N", 8)], {"eps": 1e-6, "bias": t(8)}, "has a bias without a weight"),
    (ir.TreeAttention, ROWS, {**TREE, "first": i("N", 2)}, "not one per row"),
    (ir.TreeAttention, ROWS, {**TREE, "sinks": t(2)}, "do not fit 4 heads"),
    (ir.TreeAttention, [t(1, "N", 4, 8), *ROWS[1:]], TREE, r"needs queries \[N, H, D\], not"),
    (ir.TreeAttention, [ROWS[0], i("M"), *ROWS[2:]], TREE, "has positions .* which do not fit the rows"),
    (ir.TreeAttention, [*ROWS[:2], i("M"), *ROWS[3:]], TREE, r"needs positions, sequences and bases \[N\]"),
    (ir.TreeAttention, [*ROWS[:4], i("D"), ROWS[5]], TREE, "has paths .* which do not fit the rows"),
    (ir.TreeAttention, ROWS, {**TREE, "block": 0}, "needs blocks of at least 1 position, not 0"),
]

MALFORMED: list[tuple[type[ir.SpecOperation], Types, dict[str, Any], str]] = [
    (ir.Reduce, [t(8)], {}, "needs the parameter 'function'"),
    (ir.Softmax, [t(8)], {}, "needs the parameter 'dim'"),
    (ir.RMSNorm, [t(8)], {}, "needs the parameter 'eps'"),
    (ir.Attention, ATTENDED, {}, "needs the parameter 'scale'"),
    (ir.Weight, [], {"symbol": ir.Symbol("w")}, "needs the parameter 'shape'"),
    (ir.Cast, [t(8)], {"dtype": "f99"}, "there is no element type 'f99'"),
    (ir.Cast, [], {"dtype": "f32"}, "does not take the operands"),
    (ir.Rotary, [t(8)], {}, "does not take the operands"),
    (ir.Cast, [t(8), t(8)], {"dtype": "f32"}, "does not take the operands .*, but .x."),
    (ir.Linear, [t(8)], {}, "does not take the operands .*, but .x, weight, bias.."),
    (ir.Gather, [], {}, "does not take the operands .*, but .table, indices...."),
    (ir.Reshape, [t(8)], {"shape": 8}, "takes dimensions as the parameter 'shape', not 8"),
    (ir.Reshape, [t(8)], {"shape": (8, 1.0)}, r"takes dimensions as the parameter 'shape', not \[8, 1.0\]"),
    (ir.Transpose, [t(8)], {"permutation": ("T",)}, "takes integers as the parameter 'permutation'"),
    (ir.Softmax, [t(8)], {"dim": "T"}, "takes an integer as the parameter 'dim', not \"T\""),
    (ir.Softmax, [t(8)], {"dim": True}, "takes an integer as the parameter 'dim', not true"),
    (ir.RMSNorm, [t(8)], {"eps": 1}, "takes a floating-point number as the parameter 'eps', not 1"),
    (ir.Reduce, [t(8)], {"function": "sum", "dims": (0,), "keep": 1}, "takes true or false as the parameter 'keep'"),
    (ir.Map, [t(8)], {"function": ir.Symbol("exp")}, "takes a string as the parameter 'function', not @exp"),
    (
        ir.Parameter,
        [],
        {"symbol": "w", "shape": (3,), "dtype": "f32"},
        "takes a nonempty symbol as the parameter 'symbol'",
    ),
    (ir.Constant, [], {"value": "one", "dtype": "f32"}, "takes a number as the parameter 'value', not \"one\""),
    (ir.Softmax, [t(8)], {"dim": 0, "axis": 1}, "has no parameter 'axis', only dim"),
    (ir.MatMul, [t(3, 4), t(4, 3)], {"transposed": True}, "has no parameter 'transposed'"),
    (ir.Function, [], {"symbol": ir.Symbol("f"), "arena": "large"}, "takes an integer as the parameter 'arena'"),
    (ir.Function, [], {"symbol": ir.Symbol("f"), "branches": ((0,),)}, "takes layers and kinds as"),
    (ir.Iota, [], {"size": "T T"}, "'T T' is not a dimension"),
    (ir.Linear, [t(), t()], {}, "cannot multiply"),
    (ir.Rotary, [t(), t(), t()], {}, "does not take the operands"),
]


def identifier(case: Any) -> str | None:
    return case.name.removeprefix("spec.") if isinstance(case, type) else None


@pytest.mark.parametrize(("operation", "operands", "parameters", "expected"), ACCEPTED, ids=identifier)
def test_accepts(
    operation: type[ir.SpecOperation], operands: Types, parameters: dict[str, Any], expected: Types
) -> None:
    block = ir.Block(arg_types=operands)
    made = operation.make(*block.args, **parameters)
    assert [each.type for each in made.results] == expected
    made.verify(verify_nested_ops=False)


@pytest.mark.parametrize(("operation", "operands", "parameters", "message"), REJECTED, ids=identifier)
def test_rejects(operation: type[ir.SpecOperation], operands: Types, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ir.VerifyException, match=message):
        operation.infer(*operands, **parameters)


@pytest.mark.parametrize(("operation", "operands", "parameters", "message"), MALFORMED, ids=identifier)
def test_the_verifier_says_what_is_malformed(
    operation: type[ir.SpecOperation], operands: Types, parameters: dict[str, Any], message: str
) -> None:
    block = ir.Block(arg_types=operands)
    with pytest.raises(ir.VerifyException, match=message):
        raw(operation, block.args, [], parameters).verify(verify_nested_ops=False)


@pytest.mark.parametrize(
    ("operation", "operands", "parameters", "message"),
    [
        (ir.Softmax, [t(8)], {}, "needs the parameter 'dim'"),
        (ir.Softmax, [t(8)], {"dim": 0, "axis": 1}, "has no parameter 'axis', only dim"),
        (ir.Softmax, [t(8)], {"dim": 0.5}, "the parameter 'dim' must be an integer, not 0.5"),
        (ir.Softmax, [], {"dim": 0}, "does not take the operands"),
        (ir.Softmax, [t(8), t(8)], {"dim": 0}, "does not take the operands"),
        (ir.Attention, ATTENDED, {"scale": 1.0, "drains": t(4)}, "no parameter 'drains', only scale, .*, sinks"),
    ],
    ids=identifier,
)
def test_the_builder_says_the_same(
    operation: type[ir.SpecOperation], operands: Types, parameters: dict[str, Any], message: str
) -> None:
    block = ir.Block(arg_types=operands)
    with pytest.raises(ir.VerifyException, match=message):
        operation.make(*block.args, **parameters)


def test_an_optional_operand_is_given_by_name_or_place() -> None:
    block = ir.Block(arg_types=[*ATTENDED, t(4)])
    query, key, value, sinks = block.args
    named = ir.Attention.make(query, key, value, sinks=sinks, scale=1.0)
    placed = ir.Attention.make(query, key, value, None, None, None, sinks, scale=1.0)
    for made in (named, placed):
        made.verify(verify_nested_ops=False)
        assert (made.mask, made.first, made.bias, made.sinks) == (None, None, None, sinks)
        assert made.placed([*"qkvs"]) == ["q", "k", "v", None, None, None, "s"]


def test_every_operation_is_accepted_once() -> None:
    bodies = {ir.Function, ir.Kernel, ir.Recurrence, ir.TreeRecurrence}
    assert {case[0] for case in ACCEPTED} == set(ir.OPERATIONS) - bodies


@pytest.mark.parametrize(
    ("operation", "operands", "parameters", "expected"), [case for case in ACCEPTED if case[3]], ids=identifier
)
def test_the_verifier_shares_the_rule(
    operation: type[ir.SpecOperation], operands: Types, parameters: dict[str, Any], expected: Types
) -> None:
    block = ir.Block(arg_types=operands)
    made = operation.make(*block.args, **parameters)
    other = [each.with_dims((*each.dims, 5)) for each in expected]
    wrong = operation.create(operands=block.args, result_types=other, properties=made.properties)
    with pytest.raises(ir.VerifyException, match="gives"):
        wrong.verify(verify_nested_ops=False)
