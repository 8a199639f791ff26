"""States and entries on the GPU target, in Triton's interpreter and from poisoned memory, against the IR's."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from forerun import ir
from forerun.codegen.triton import Lowering, compilation, report
from forerun.codegen.triton.compilation import compile_step
from forerun.codegen.triton.executable import TritonExecutable
from forerun.errors import InvalidOptionError, TooLongError, UnsupportedOperationError
from forerun.ir.builder import Builder
from forerun.runtime.certify_loop import certify_loop
from forerun.runtime.device_loop import Drafting, loops
from forerun.runtime.executable import WHOLE, Rows
from forerun.runtime.rows import join, reorder
from tests.codegen.steps import LENGTH, Step, prompt_rows, tree_rows
from tests.codegen.triton_steps import interpreted, poisoned_state
from tests.state_models import LIMITS, MEMORY, SUMS, planned, weights

HISTORY = ("positions", "sequences", "bases", "paths", "block_tables", "slots", "order")
Body = Callable[..., ir.SSAValue]


def recurrence(build: Builder, operands: list[ir.SSAValue], record: ir.TensorType, body: Body) -> ir.SSAValue:
    """`body(builder, before, *inputs)`; those of rows have a row's shape."""
    rows = ir.tensor_type(operands[0]).dims
    kinds = [ir.tensor_type(each) for each in operands[len(HISTORY) :]]
    own = [each.with_dims(each.dims[1:]) if each.dims[:1] == rows else each for each in kinds]
    block = ir.Block(arg_types=[record, *own])
    inner = Builder(block)
    inner.emit(ir.Yield.make(body(inner, *block.args)))
    return build.emit(ir.Recurrence.of(operands, ir.Region(block), symbol=ir.Symbol("sum"), block=16)).results[0]


def recurrent(
    shape: tuple[int, ...], body: Body, extra: tuple[int, ...] | None = None, in_front: Callable[..., Any] | None = None
) -> tuple[ir.ModuleOp, dict[str, torch.Tensor]]:
    """A step whose rows' inputs of a record's size are looked up by token; `extra` is the shape of a whole input."""
    step = Step(more=("order",))
    step.symbols.append(ir.State.make(symbol=ir.Symbol("sum"), per="row", shape=shape, dtype="f32"))
    names = [step.argument(name) for name in ("tokens", *HISTORY)]
    given = [step.weight("table", LENGTH, math.prod(shape)), *names]
    if extra is not None:
        given.append(step.weight("whole", *extra))

    def kernel(b: Builder, table: ir.SSAValue, tokens: ir.SSAValue, *rest: ir.SSAValue) -> ir.SSAValue:
        history, whole = list(rest[: len(HISTORY)]), rest[len(HISTORY) :]
        own = b.reshape(b.add(ir.Gather, table, tokens), ("N", *shape))
        own = own if in_front is None else in_front(b, own)
        return recurrence(b, [*history, own, *whole], ir.TensorType.of(shape, "f32"), body)

    return step.finish(step.kernel(given, kernel, "recurrence")), step.weights


def decaying(b: Builder, before: ir.SSAValue, own: ir.SSAValue) -> ir.SSAValue:
    return b.map("add", b.map("mul", before, b.constant(0.75, "f32")), own)


def gated(b: Builder, before: ir.SSAValue, own: ir.SSAValue, whole: ir.SSAValue) -> ir.SSAValue:
    return b.map("add", b.map("mul", before, b.map("sigmoid", whole)), b.map("tanh", own))


def shifted(b: Builder, before: ir.SSAValue, own: ir.SSAValue) -> ir.SSAValue:
    """A window over the last inputs: other numbers of the parent's record are read."""
    return b.concat([b.slice(before, 0, 1, 3), b.reshape(b.slice(own, 0, 0, 1), (1, 7))], 0)


def turned(b: Builder, before: ir.SSAValue, own: ir.SSAValue) -> ir.SSAValue:
    return b.map("sub", own, b.transpose(before, (1, 0)))


def either(b: Builder, before: ir.SSAValue, own: ir.SSAValue) -> ir.SSAValue:
    return b.map("where", b.map("lt", before, own), own, b.map("exp", b.map("neg", b.map("abs", before))))


RECURRENCES: dict[str, tuple[tuple[int, ...], Body, tuple[int, ...] | None]] = {
    "vector": ((37,), decaying, None),
    "matrix": ((3, 5), gated, (3, 5)),
    "broadcast": ((6, 4), gated, (4,)),
    "one number": ((1,), decaying, None),
    "no axes": ((), decaying, None),
    "wide": ((4, 300), decaying, None),
    "window": ((3, 7), shifted, None),
    "turned": ((5, 5), turned, None),
    "where": ((2, 3, 4), either, None),
    "the parent's": ((8,), lambda b, before, own: before, None),
    "its own": ((8,), lambda b, before, own: own, None),
}


def some_rows(seed: int) -> list[Rows]:
    """Two prompts in one step, then a tree of each, all rows in any order; then the second prompt goes on."""
    random = np.random.default_rng(seed)
    tables, prompts = [[5, 2, 9], [7, 0, 3]], (19, 33)
    parts = [
        prompt_rows(random.integers(0, LENGTH, count), 0, table) for count, table in zip(prompts, tables, strict=True)
    ]
    free = [10 * 16, 13 * 16]
    trees = [
        tree_rows(random, table, count, 9, first) for table, count, first in zip(tables, prompts, free, strict=True)
    ]
    found = [join(parts), join(trees)]
    orders = [random.permutation(len(each.tokens)) for each in found]
    return [
        *(reorder(each, order) for each, order in zip(found, orders, strict=True)),
        prompt_rows(random.integers(0, LENGTH, 3), prompts[1], tables[1]),
    ]


def compared(module: ir.ModuleOp, weights: dict[str, torch.Tensor], steps: list[Rows], storage: str = "f32") -> None:
    """Steps one after another on one state give what the IR's interpreter gives."""
    executable = interpreted(module, weights.__getitem__, storage)
    state = poisoned_state(executable)
    environment = ir.Environment(weights.__getitem__, ir.new_states(module, 16 * 16, 4))
    names = [each.name for each in executable.entries["step"].arguments]
    for rows in steps:
        executable._arena.fill_(math.nan)
        executable.run(WHOLE, state, rows)
        sizes = {"N": len(rows.tokens), "M": len(rows.outputs)}
        inputs = [torch.from_numpy(np.ascontiguousarray(getattr(rows, name))) for name in names]
        expected = ir.evaluate(module, "step", inputs, environment)
        assert expected
        for value, meant in zip(executable.step.returned, expected, strict=True):
            np.testing.assert_allclose(executable.value(value, sizes), meant.numpy(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrences(name: str) -> None:
    shape, body, extra = RECURRENCES[name]
    compared(*recurrent(shape, body, extra), some_rows(len(name)))


def test_what_stands_in_front_of_a_recurrence_is_written_first() -> None:
    def normed(b: Builder, own: ir.SSAValue) -> ir.SSAValue:
        return b.add(ir.RMSNorm, own, eps=1e-5)

    compared(*recurrent((3, 8), decaying, in_front=normed), some_rows(1))


def test_records_of_rows_are_float32_whatever_the_cache_is() -> None:
    compared(*recurrent((37,), decaying), some_rows(2), storage="bf16")


@pytest.mark.parametrize("storage", ["f32", "bf16"])
def test_rows_of_a_bucket_beyond_those_of_a_step_leave_nothing(storage: str) -> None:
    module, weights = recurrent((37,), decaying)
    executable = interpreted(module, weights.__getitem__, storage)
    state = executable.new_state(16)
    four = prompt_rows([3, 9, 4, 1], 0, [5])
    executable.run(WHOLE, state, four)
    pool = state.pools["f32"]
    for each in state.buffers:
        each.fill_(-7.0)
    executable._arena.fill_(-7.0)
    executable.run(WHOLE, state, prompt_rows([3, 9, 4], 0, [5]))  # a bucket of four, whose last row is still there
    written = {int(place) for place in (pool.numbers != -7).nonzero()}
    assert written == {number for slot in (80, 81, 82) for number in range(slot * 37, (slot + 1) * 37)}
    [result] = executable.step.returned
    assert (executable.place(result)[3 * 37 : 4 * 37] == -7).all()


@pytest.mark.parametrize("storage", ["f32", "bf16"])
def test_a_commit_moves_records_of_positions_and_rows(storage: str) -> None:
    executable = interpreted(planned(SUMS), weights().__getitem__, storage, **LIMITS)
    state = executable.new_state(8)
    generator = torch.Generator().manual_seed(0)
    for each in state.buffers:
        each.normal_(generator=generator)
    shapes = {"attention.keys": (2, 16), "attention.values": (2, 16), "sum": (1, 32)}

    def records() -> dict[str, torch.Tensor]:
        """[slots, lead, last] of each state."""
        return {
            name: state.parts[name][: 8 * lead * 16 * last]
            .view(8, lead, 16, last)
            .transpose(1, 2)
            .flatten(0, 1)
            .clone()
            for name, (lead, last) in shapes.items()
        }

    before = records()
    assert {name: each.dtype for name, each in before.items()} == {
        "attention.keys": torch.bfloat16 if storage == "bf16" else torch.float32,
        "attention.values": torch.bfloat16 if storage == "bf16" else torch.float32,
        "sum": torch.float32,
    }
    source, target = np.array([100, 35, 7], np.int32), np.array([35, 7, 64], np.int32)
    executable.copy_slots(state, source, target)
    for name, each in records().items():
        expected = before[name].clone()
        expected[target] = before[name][source]
        assert torch.equal(each, expected), name


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (lambda b, before, own, whole: b.add(ir.Linear, before, whole), "spec.linear"),
        (lambda b, before, own, whole: b.map("sub", own, b.reduce("sum", before, [0], keep=True)), "spec.reduce"),
        (lambda b, before, own, whole: b.reduce("max", b.map("mul", whole, before), [0]), "spec.reduce"),
        (lambda b, before, own, whole: b.add(ir.RMSNorm, before, eps=1e-5), "spec.rms_norm"),
        (lambda b, before, own, whole: b.add(ir.Softmax, before, dim=0), "spec.softmax"),
    ],
)
def test_a_body_that_needs_more_than_numbers_is_refused(body: Body, named: str) -> None:
    module, weights = recurrent((8,), body, (8, 8))
    with pytest.raises(UnsupportedOperationError, match=rf"number by number, and {named} in it needs.*reference"):
        interpreted(module, weights.__getitem__)


def test_blocks_of_two_sizes_are_refused() -> None:
    text = SUMS.replace("{block = 16} {", "{block = 8} {")
    assert text != SUMS
    with pytest.raises(UnsupportedOperationError, match="blocks of one size, not of 8 and 16 positions"):
        interpreted(planned(text), weights().__getitem__, **LIMITS)


def test_a_recurrence_compiles_without_spills() -> None:
    for shape, body, extra in RECURRENCES.values():
        step = Lowering(recurrent(shape, body, extra)[0]).step
        chosen = {name: each for name, each in step.sources.items() if each.kind == "recurrence"}
        [found] = compile_step(step, chosen, (1,), (90,))
        assert found.stack == 0
        assert all("tl.debug_barrier()" in each.text for each in chosen.values())  # a parent's record is there
        assert 0 < found.registers <= 255


def test_a_report_has_no_loop_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "CAPABILITIES", (90,))
    step = Lowering(planned(MEMORY), **LIMITS).step
    told = report(step, (1,)).resources
    assert {each["kernel"].partition(",")[0] for each in told} == set(step.sources)
    assert any(name.startswith("encode_") for name in step.sources)


# --- entries ----------------------------------------------------------------------------------------------------------

MIXED = """
spec.weight @table {shape = [11, 8], dtype = "f32"}
spec.weight @matrix {shape = [6, 8], dtype = "f32"}
spec.state @kept {per = "request", shape = [2, 3], dtype = "f32"}
spec.state @count {per = "request", shape = [], dtype = "i32"}
spec.func @step(%tokens: !spec.tensor<[N], i32>, %sequences: !spec.tensor<[N], i32>,
    %requests: !spec.tensor<[S], i32>) {
  %places = spec.gather(%requests, %sequences) -> !spec.tensor<[N], i32>
  %record = spec.state_read @kept(%places) {shape = [2, 3], dtype = "f32"} -> !spec.tensor<[N, 2, 3], f32>
  %counted = spec.state_read @count(%places) {shape = [], dtype = "i32"} -> !spec.tensor<[N], i32>
  %several = spec.map(%counted, %tokens) {function = "add"} -> !spec.tensor<[N], i32>
  spec.return(%record, %several)
}
spec.func @encode(%row: !spec.tensor<[lane, unit], i32>, %more: !spec.tensor<[lane, 8], f32>,
    %requests: !spec.tensor<[lane], i32>) {
  %table = spec.parameter @table() {shape = [11, 8], dtype = "f32"} -> !spec.tensor<[11, 8], f32>
  %x = spec.gather(%table, %row) -> !spec.tensor<[lane, unit, 8], f32>
  %most = spec.reduce(%x) {function = "max", dims = [1]} -> !spec.tensor<[lane, 8], f32>
  %sum = spec.map(%most, %more) {function = "add"} -> !spec.tensor<[lane, 8], f32>
  %matrix = spec.parameter @matrix() {shape = [6, 8], dtype = "f32"} -> !spec.tensor<[6, 8], f32>
  %product = spec.linear(%sum, %matrix) -> !spec.tensor<[lane, 6], f32>
  %record = spec.reshape(%product) {shape = ["lane", 2, 3]} -> !spec.tensor<[lane, 2, 3], f32>
  spec.state_write @kept(%record, %requests)
  %one = spec.constant() {value = 40, dtype = "i32"} -> !spec.tensor<[], i32>
  %counts = spec.map(%requests, %one) {function = "add"} -> !spec.tensor<[lane], i32>
  spec.state_write @count(%counts, %requests)
  spec.return()
}
spec.func @told(%x: !spec.tensor<[A, 5, B], f32>) {
  %whole = spec.reduce(%x) {function = "sum", dims = [0, 2]} -> !spec.tensor<[5], f32>
  %inner = spec.reduce(%x) {function = "mean", dims = [1], keep = true} -> !spec.tensor<[A, 1, B], f32>
  %last = spec.reduce(%x) {function = "min", dims = [2]} -> !spec.tensor<[A, 5], f32>
  %zero = spec.constant() {value = 0.0, dtype = "f32"} -> !spec.tensor<[], f32>
  %above = spec.map(%x, %zero) {function = "gt"} -> !spec.tensor<[A, 5, B], i1>
  spec.return(%whole, %inner, %last, %above)
}
"""


def mixed() -> tuple[TritonExecutable, ir.ModuleOp, Callable[[str], torch.Tensor]]:
    module = ir.parse_ir(MIXED)
    ir.verify(module)
    generator = torch.Generator().manual_seed(3)
    given = {name: torch.randn(*each.type.dims, generator=generator) for name, each in ir.weights(module).items()}
    executable = interpreted(module, given.__getitem__, max_length=40)
    executable._arena.fill_(math.nan)
    return executable, module, given.__getitem__


def test_an_entry_writes_records_that_a_step_reads() -> None:
    executable, module, given = mixed()
    random = np.random.default_rng(0)
    state = executable.new_state(1, requests=5)
    for each in state.requests.values():
        each.fill_(-7)
    known = {name: torch.full_like(each, -7) for name, each in ir.new_states(module, 16, 5).items()}
    environment = ir.Environment(given, known)
    for requests, width in (([3, 0, 4], 7), ([1], 1), ([2, 3], 40)):
        count = len(requests)
        inputs = {
            "row": random.integers(0, 11, (count, width), dtype=np.int32),
            "more": random.standard_normal((count, 8)).astype(np.float32),
            "requests": np.array(requests, np.int32),
        }
        assert executable.run("encode", state, inputs) == ()
        ir.evaluate(module, "encode", [torch.from_numpy(each) for each in inputs.values()], environment)
        rows = replace(
            prompt_rows([4, 8, 1], 0, [0]),
            sequences=np.array([1, 0, 1], np.int32),
            block_tables=np.zeros((2, 1), np.int32),
            requests=np.array([requests[0], 2], np.int32),
        )
        executable.run(WHOLE, state, rows)
        named = [torch.from_numpy(getattr(rows, name)) for name in ("tokens", "sequences", "requests")]
        expected = ir.evaluate(module, "step", named, environment)
        for value, meant in zip(executable.step.returned, expected, strict=True):
            np.testing.assert_allclose(executable.value(value, {"N": 3, "M": 3}), meant.numpy(), rtol=1e-5, atol=1e-6)
    assert len({float(number) for number in state.requests["kept"]}) == 30  # all of them were written
    assert state.requests["count"].tolist() == [40, 41, 42, 43, 44]


@pytest.mark.parametrize("sizes", [(3, 9), (1, 1), (40, 2), (2, 0)])
def test_an_entry_returns_arrays_of_the_sizes_of_a_call(sizes: tuple[int, int]) -> None:
    executable, module, given = mixed()
    x = np.random.default_rng(1).standard_normal((sizes[0], 5, sizes[1])).astype(np.float32)
    found = executable.run("told", executable.new_state(1), {"x": x})
    if not sizes[1]:
        whole, inner, last, above = found
        assert whole.tolist() == [0.0] * 5
        assert np.isinf(last).all()
        assert inner.shape == (2, 1, 0)
        assert above.shape == (2, 5, 0)
        return
    expected = ir.evaluate(module, "told", [torch.from_numpy(x)], ir.Environment(given))
    for ours, meant in zip(found, expected, strict=True):
        assert ours.dtype == meant.numpy().dtype
        np.testing.assert_allclose(ours, meant.numpy(), rtol=1e-5, atol=1e-5)


def test_a_slot_may_be_a_constant() -> None:
    text = """
    spec.state @kept {per = "request", shape = [3], dtype = "f32"}
    spec.state @held {per = "position", shape = [2, 3], dtype = "f32"}
    spec.func @step(%tokens: !spec.tensor<[N], i32>) {
      %zero = spec.constant() {value = 1, dtype = "i32"} -> !spec.tensor<[], i32>
      %slots = spec.broadcast(%zero) {shape = ["N"]} -> !spec.tensor<[N], i32>
      %record = spec.state_read @kept(%slots) {shape = [3], dtype = "f32"} -> !spec.tensor<[N, 3], f32>
      spec.return(%record)
    }
    spec.func @note(%x: !spec.tensor<[2, 3], f32>) {
      %slots = spec.iota() {size = 2} -> !spec.tensor<[2], i64>
      spec.state_write @kept(%x, %slots)
      %pair = spec.reshape(%x) {shape = [1, 2, 3]} -> !spec.tensor<[1, 2, 3], f32>
      %two = spec.constant() {value = 2, dtype = "i32"} -> !spec.tensor<[], i32>
      %slot = spec.reshape(%two) {shape = [1]} -> !spec.tensor<[1], i32>
      spec.state_write @held(%pair, %slot)
      spec.return()
    }
    """
    module = ir.parse_ir(text)
    ir.verify(module)
    executable = interpreted(module, lambda name: torch.zeros(1))
    state, x = executable.new_state(1, 2), np.arange(6, dtype=np.float32).reshape(2, 3)
    executable.run("note", state, {"x": x})
    executable.run(WHOLE, state, prompt_rows([4, 5], 0, [0]))
    assert executable.value(executable.step.returned[0], {"N": 2, "M": 2}).tolist() == [[3.0, 4.0, 5.0]] * 2
    held = state.parts["held"].view(2, 16, 3)
    assert torch.equal(held[:, 2], torch.from_numpy(x))
    assert held.count_nonzero() == 5


def test_what_an_entry_returned_stays_when_another_one_runs() -> None:
    executable, _, _ = mixed()
    x = np.random.default_rng(2).standard_normal((2, 5, 3)).astype(np.float32)
    found = executable.run("told", executable.new_state(1), {"x": x})
    kept = [each.copy() for each in found]
    executable.run("told", executable.new_state(1), {"x": x[::-1].copy()})
    assert all(np.array_equal(ours, before) for ours, before in zip(found, kept, strict=True))


def test_sizes_and_requests_that_do_not_fit_are_named() -> None:
    executable, _, _ = mixed()
    state = executable.new_state(1, 2)
    with pytest.raises(TooLongError, match="@told takes at most 40 of B, and 41 are given"):
        executable.run("told", state, {"x": np.zeros((1, 5, 41), np.float32)})
    rows = replace(prompt_rows([4], 0, [0]), requests=np.zeros(2, np.int32))
    with pytest.raises(InvalidOptionError, match="1 sequences is given the requests of 2"):
        executable.run(WHOLE, state, rows)


def test_tokens_outside_of_a_table_read_nothing_else() -> None:
    """The inputs of a request are a caller's; those of a step are the runtime's."""
    executable, _, given = mixed()
    state = executable.new_state(1, 1)
    inputs = {"more": np.zeros((1, 8), np.float32), "requests": np.zeros(1, np.int32)}
    executable.run("encode", state, {"row": np.array([[10**9]], np.int32), **inputs})
    expected = torch.nn.functional.linear(given("table")[10], given("matrix"))
    torch.testing.assert_close(state.requests["kept"], expected, atol=1e-5, rtol=1e-5)


def test_an_argument_is_no_result() -> None:
    text = MIXED.replace("spec.return(%whole, %inner, %last, %above)", "spec.return(%x)")
    with pytest.raises(UnsupportedOperationError, match="@told computes, not its arguments"):
        interpreted(ir.parse_ir(text), lambda name: torch.zeros(1))


def test_entries_share_the_sources_of_kernels() -> None:
    text = MEMORY + MEMORY[MEMORY.index("spec.func @encode") : MEMORY.index("spec.func @step")].replace(
        "@encode", "@again"
    )
    step = interpreted(planned(text), weights().__getitem__, **LIMITS).step
    first, second = (
        [launch.source for kernel in step.entries[name].kernels for launch in kernel.launches]
        for name in ("encode", "again")
    )
    assert first == second
    assert len(first) == 1


def test_an_entry_over_the_rows_of_a_step_attends_as_the_step_does() -> None:
    """As a draft derived from the step does: paths and block tables are as wide as a step's may be."""
    text = SUMS.replace("spec.func @step", "spec.func @draft")
    module = planned(SUMS + text[text.index("spec.func @draft") :])
    executable = interpreted(module, weights().__getitem__, **LIMITS)
    state, other = executable.new_state(24), executable.new_state(24)
    rows = [replace(each, tokens=each.tokens % 61) for each in some_rows(5)]
    for each in rows:
        expected = executable.run(WHOLE, state, each)
        logits, best = expected.logits.copy(), expected.candidate_logits.copy()
        inputs = {argument.name: getattr(each, argument.name) for argument in executable.entries["draft"].arguments}
        found = executable.run("draft", other, inputs)
        np.testing.assert_allclose(found[0], logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found[2], best, rtol=1e-5, atol=1e-5)
    assert len(executable.entries) == 2


# --- the loop on the device -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [SUMS, MEMORY])
def test_such_models_decode_from_the_host(text: str) -> None:
    executable = interpreted(planned(text), weights().__getitem__, **LIMITS)
    assert executable.candidates
    assert loops(executable) is None
    assert certify_loop(executable, 1) is None
    with pytest.raises(InvalidOptionError, match="decode it from the host"):
        executable.loop(executable.new_state(4), Drafting(), 4)


def test_a_model_with_an_entry_of_another_kind_goes_on_by_itself() -> None:
    """An entry that no session begins with is nothing to the loop."""
    start = MEMORY.index("spec.func @encode")
    entry = MEMORY[start : MEMORY.index("spec.func @step")].replace("@encode", "@note")
    plain = SUMS.replace(SUMS[SUMS.index("  %added = spec.recurrence") : SUMS.index("  %mixed")], "")
    plain = plain.replace("spec.map(%x, %added)", "spec.map(%x, %x)").replace(", %order: !spec.tensor<[N], i32>", "")
    plain = plain.replace("%order: !spec.tensor<[N], i32>, ", "")
    declared = 'spec.state @memory {per = "request", shape = [32], dtype = "f32"}\n'
    executable = interpreted(planned(declared + entry + plain), weights().__getitem__, **LIMITS)
    assert list(executable.entries) == ["step", "note"]
    assert loops(executable) is executable
