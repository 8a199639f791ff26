"""Rules of the module verifier that text cannot break; the others are in tests/filecheck/verify."""

import pytest

from forerun import ir
from forerun.errors import VerificationError
from tests.ir.build import function, raw, tensor


def test_a_value_of_another_function_is_rejected_with_its_neighbourhood() -> None:
    module = function({"x": tensor([1, "T"])}, lambda build, x: build.map("exp", x))
    stranger = ir.Function.of("stranger", [("y", tensor([1, "T"]))])
    build = ir.Builder(stranger.block)
    before = build.map("sin", stranger.block.args[0])
    build.emit(ir.Return.make(build.map("add", before, ir.functions(module)["forward"].block.args[0])))
    module.body.block.add_op(stranger)
    with pytest.raises(VerificationError, match="one of another function") as error:
        ir.verify(module)
    _, *around = str(error.value).splitlines()
    assert [line[:4] for line in around] == ["    ", "  > ", "    "]
    assert "spec.map" in around[1]


def test_what_holds_is_accepted() -> None:
    ir.verify(ir.ModuleOp([]))
    ir.verify(function({"x": tensor([1, "T"])}, lambda build, x: build.slice(x, 1, 0, "T-1")))


def test_the_neighbourhood_of_an_operation_in_a_kernel_is_the_kernel() -> None:
    kind = tensor(["N"])
    step = ir.Function.of("step", [("x", kind)])
    block = ir.Block(arg_types=[kind])
    wrong = raw(ir.Map, block.args, [tensor(["N", 2])], {"function": "exp"})
    block.add_ops([wrong, ir.Yield.make(*wrong.results)])
    kernel = ir.Kernel.of(step.block.args, ir.Region(block), kind="row_wise")
    step.block.add_ops([kernel, ir.Return.make(*kernel.results)])
    with pytest.raises(VerificationError, match="gives") as error:
        ir.verify(ir.ModuleOp([step]))
    assert "spec.yield" in str(error.value)
