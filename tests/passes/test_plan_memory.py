"""Buffers that live together never overlap, and the arena is little larger than what lives at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forerun import ir
from forerun.passes.base import PassContext
from forerun.passes.pipeline import step_pipeline
from forerun.passes.plan_memory import ALIGNMENT, Buffer, PlanMemory, place
from tests.ir.build import function, tensor
from tests.passes.programs import BLOCK, LENGTH, Row, Stepper, program, texts

lifetimes = st.tuples(st.integers(1, 40), st.integers(0, 30), st.integers(0, 12))


def buffers_of(drawn: list[tuple[int, int, int]]) -> list[Buffer]:
    block = ir.Block(arg_types=[tensor([1])] * len(drawn))
    return [
        Buffer(value, size * ALIGNMENT, start, start + lived)
        for value, (size, start, lived) in zip(block.args, drawn, strict=True)
    ]


@given(st.lists(lifetimes, max_size=40))
def test_no_two_live_buffers_overlap(drawn: list[tuple[int, int, int]]) -> None:
    buffers = buffers_of(drawn)
    offsets = place(buffers)
    for index, one in enumerate(buffers):
        for other in buffers[:index]:
            together = one.start <= other.stop and other.start <= one.stop
            apart = (
                offsets[one.value] + one.size <= offsets[other.value]
                or offsets[other.value] + other.size <= offsets[one.value]
            )
            assert apart or not together


@given(st.lists(lifetimes, min_size=1, max_size=40))
def test_the_arena_is_at_most_twice_what_lives_at_once(drawn: list[tuple[int, int, int]]) -> None:
    buffers = buffers_of(drawn)
    offsets = place(buffers)
    arena = max(offsets[each.value] + each.size for each in buffers)
    moments = range(max(each.stop for each in buffers) + 1)
    most = max(sum(each.size for each in buffers if each.start <= moment <= each.stop) for moment in moments)
    assert most <= arena <= 2 * most


def planned(family: str, rows: int) -> ir.ModuleOp:
    changed = program(family)
    context = PassContext(changed.weights.__getitem__, max_length=LENGTH)
    for each in step_pipeline(max_rows=rows, max_outputs=rows, block=BLOCK, candidates=4):
        each.apply(context, changed.module)
    return changed.module


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "gpt_neox"])
def test_a_step_that_lives_in_its_arena_gives_the_same_logits(family: str) -> None:
    """Every result is written to its place in one block of bytes, and read from there."""
    (text,) = texts(7, 1, 6)
    rows = [Row(0, tuple(text[: at + 1]), ()) for at in range(len(text))]
    module = planned(family, len(rows))
    weights = program(family).weights
    stepper = Stepper(type(program(family))(module, weights), sequences=1, seed=0)
    expected = stepper.run(rows)
    step = stepper.step
    arena = torch.full((step.arena,), 0x7F, dtype=torch.uint8)
    kernels = [each for each in step.body if isinstance(each, ir.Kernel)]
    places = {value: offset for each in kernels for value, offset in zip(each.results, each.offsets, strict=True)}
    bindings = {"N": len(rows), "M": len(rows)}

    def seen(value: ir.SSAValue) -> torch.Tensor:
        kind = ir.tensor_type(value)
        shape, dtype = kind.sizes(bindings), ir.torch_dtype(kind.dtype)
        size = torch.Size(shape).numel() * dtype.itemsize
        return arena[places[value] : places[value] + size].view(dtype).view(shape)

    values = dict(zip(step.block.args, stepper.inputs(rows), strict=True))
    environment = ir.Environment(stepper.weights, stepper.states, bindings)
    for kernel in kernels:
        inner = {
            argument: seen(value) if value in places else values[value]
            for argument, value in zip(kernel.regions[0].block.args, kernel.operands, strict=True)
        }
        ir.run_body(kernel.body, inner, environment, keep=set(kernel.yielded))
        for value, result in zip(kernel.results, kernel.yielded, strict=True):
            seen(value).copy_(inner[result])
    assert torch.equal(seen(step.returned[0]), expected)


def test_a_result_that_nobody_reads_has_its_own_place_while_it_is_written() -> None:
    kind = tensor(["N", 16])

    def kernel(build: ir.Builder, x: ir.SSAValue, results: int) -> list[ir.SSAValue]:
        block = ir.Block(arg_types=[kind])
        block.add_op(ir.Yield.make(*[ir.Builder(block).map("exp", block.args[0]) for _ in range(results)]))
        return list(build.emit(ir.Kernel.of([x], ir.Region(block), kind="row_wise")).results)

    def body(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
        (first,) = kernel(build, x, 1)
        second, _ = kernel(build, first, 2)
        return kernel(build, second, 1)[0]

    module = function({"x": kind}, body, "step")
    PlanMemory(max_rows=1).apply(PassContext(), module)
    kernels = [each for each in ir.functions(module)["step"].body if isinstance(each, ir.Kernel)]
    (first,), (second, unread) = (each.offsets for each in kernels[:2])
    assert len({first, second, unread}) == 3
