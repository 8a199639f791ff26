"""Text and back: parameters of every kind, bit for bit, in both forms."""

import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun import ir
from forerun.errors import VerificationError
from tests.ir.build import function, raw, tensor

FORMS = pytest.mark.parametrize("generic", [False, True], ids=["pretty", "generic"])


def again(module: ir.ModuleOp, generic: bool) -> ir.ModuleOp:
    return ir.parse_ir(ir.print_ir(module, generic))


def constant(value: Any) -> ir.ModuleOp:
    made = raw(ir.Constant, [], [tensor([], "f64")], {"value": value, "dtype": "f64"})
    return function({"x": tensor([1, "T"])}, lambda build, x: (x, build.emit(made).result))


def made_first(module: ir.ModuleOp) -> ir.Constant:
    first = ir.functions(module)["forward"].body[0]
    assert isinstance(first, ir.Constant)
    return first


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


@FORMS
@pytest.mark.parametrize(
    "value", [1 / math.sqrt(48), 1e-6, 0.1, -0.0, 1e22, 123456789.0, 5e-324, math.inf, -math.inf, math.nan, 2.0**-30]
)
def test_floats_survive(value: float, generic: bool) -> None:
    read = made_first(again(constant(value), generic)).value
    assert isinstance(read, float)
    assert bits(read) == bits(value)


@given(st.floats(allow_nan=False), st.booleans())
def test_any_float_survives(value: float, generic: bool) -> None:
    read = made_first(again(constant(value), generic)).value
    assert isinstance(read, float)
    assert bits(read) == bits(value)


@FORMS
@pytest.mark.parametrize(
    "value",
    [True, False, 0, 1, -(2**63), 2**63 - 1, "text", 'a "quoted" \\ one', "", (), (1, "T", 2.5, True), ((1,), (2, 3))],
    ids=repr,
)
def test_parameters_survive_with_their_type(value: Any, generic: bool) -> None:
    read = made_first(again(constant(value), generic))
    assert read.properties["value"] == ir.encode(value)
    if isinstance(value, bool | int | float):
        assert read.value == value
        assert type(read.value) is type(value)


@FORMS
@pytest.mark.parametrize("text", ["model.layers.0.self_attn.q_proj.weight", "0.weight", 'a "b"\\\n', "\0", "größe"])
def test_symbols_survive(generic: bool, text: str) -> None:
    name = ir.Symbol(text)
    module = ir.ModuleOp([ir.Weight.make(symbol=name, shape=(2, 3), dtype="bf16", derived=None)])
    module.body.block.add_op(ir.Function.of(f"{text} of a function", []))
    ir.functions(module)[f"{text} of a function"].block.add_op(ir.Return.make())
    ir.verify(module)
    assert set(ir.weights(again(module, generic))) == {name}
    assert set(ir.functions(again(module, generic))) == {f"{text} of a function"}


@FORMS
def test_optional_operands_are_read_by_name_in_any_order(generic: bool) -> None:
    kinds = {"x": tensor([2, "T", 4]), "sinks": tensor([2]), "first": tensor(["T"], "i64")}
    names = ", ".join(f"%{name}: {kind}" for name, kind in kinds.items())
    text = (
        f"spec.func @forward({names}) {{\n"
        '  %y = spec.attention(%x, %x, %x, %sinks, %first) {scale = 0.5, extra = ["sinks", "first"], causal = true}'
        " -> !spec.tensor<[2, T, 4], f32>\n  spec.return(%y)\n}"
    )
    module = again(ir.parse_ir(text), generic)
    ir.verify(module)
    forward = ir.functions(module)["forward"]
    attention = forward.body[0]
    assert isinstance(attention, ir.Attention)
    assert (attention.mask, attention.bias) == (None, None)
    assert (attention.first, attention.sinks) == (forward.argument("first"), forward.argument("sinks"))
    shown = '(%x, %x, %x, %first, %sinks) {scale = 0.5, extra = ["first", "sinks"], causal = true}'
    assert shown in ir.print_ir(module)


@pytest.mark.parametrize("sizes", ["array<i32: 1, 1, 1, 1, 1, 0, 0>", "array<i32: 1, 1>", "5 : i64", None])
def test_sizes_of_operands_that_do_not_fit_are_refused(sizes: str | None) -> None:
    given = "" if sizes is None else f", operandSegmentSizes = {sizes}"
    kind = tensor([2, "T", 4])
    text = (
        f'spec.func @forward(%x: {kind}) {{\n  %y = "spec.attention"(%x, %x, %x) <{{scale = 1.0{given}}}>'
        f" : ({kind}, {kind}, {kind}) -> {kind}\n  spec.return(%y)\n}}"
    )
    with pytest.raises(VerificationError, match=r"spec\.attention .*operandSegmentSizes"):
        ir.verify(ir.parse_ir(text))


@FORMS
def test_names_of_arguments_survive(generic: bool) -> None:
    kind = tensor([1, "T"])
    made = ir.ModuleOp([])
    for name in ("forward", "step"):
        inner = function({"positions": kind, "tokens": kind}, lambda build, x, y: build.map("add", x, y), name)
        made.body.block.add_op(ir.functions(inner)[name].clone())
    for each in ir.functions(again(made, generic)).values():
        assert [argument.name_hint for argument in each.block.args] == ["positions", "tokens"]


@FORMS
def test_locations_survive(generic: bool) -> None:
    module = constant(1.0)
    place = ir.FileLineColLoc(ir.StringAttr("model.py"), ir.IntAttr(7), ir.IntAttr(0))
    ir.functions(module)["forward"].body[0].location = place
    text = ir.print_ir(module, generic, locations=True)
    assert ir.functions(ir.parse_ir(text))["forward"].body[0].location == place
    assert "model.py" not in ir.print_ir(module, generic)


def test_a_text_that_is_no_ir_is_named() -> None:
    with pytest.raises(VerificationError, match=r"broken\.mlir is not IR of the spec dialect"):
        ir.parse_ir("spec.func @f(", "broken.mlir")
