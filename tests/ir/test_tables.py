"""Every table over operations covers all of them, and refuses by name what it does not know.

`spec.shuffle`, a permutation along the sequence, is made up here: no analysis may treat it as harmless.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from xdsl.irdl import operand_def, traits_def  # noqa: TID251
from xdsl.traits import MemoryReadEffect, MemoryWriteEffect, Pure  # noqa: TID251

from forerun import ir
from forerun.codegen.c.lowering import emit as emit_c
from forerun.codegen.loops.integers import Ranges
from forerun.codegen.triton.lowering import emit as emit_triton
from forerun.codegen.tvm.lowering import emit as emit_tvm
from forerun.errors import UnsupportedOperationError
from forerun.ir.operation import SpecOperation, Types, ValueOperation, operation
from forerun.ir.properties import INTEGER, parameter
from forerun.ir.tables import ClosedTable, Refusal
from forerun.passes.base import Pass, PassContext
from forerun.passes.canonicalize import clean
from forerun.passes.fuse_kernels import FuseKernels
from forerun.passes.insert_kv_cache import InsertKVCache
from forerun.passes.pairwise import Pairs
from forerun.passes.residual import residual
from forerun.passes.reuse_kv_cache import number
from forerun.passes.select_outputs import SelectOutputs
from forerun.passes.sequence_axis import analyse
from forerun.passes.skip_layers import SkipLayers
from forerun.passes.store_weights import StoreWeights
from tests.compiled import planned_step
from tests.ir.build import function, no_weights, tensor

STRUCTURE = {ir.Function, ir.Kernel, ir.Weight, ir.State, ir.Return, ir.Yield}
"""What holds operations together: it gives no values by itself."""
BODIES = {ir.Function, ir.Kernel, ir.Recurrence, ir.TreeRecurrence}
"""What has operations inside; the interpreter runs them, and the results follow from what they yield."""


@operation
class Shuffle(ValueOperation):
    """Row i is row (stride * i) mod T of the operand, along its first dimension."""

    name = "spec.shuffle"
    traits = traits_def(Pure())

    x = operand_def(ir.TensorType)
    stride: int = parameter(INTEGER)

    @classmethod
    def infer(cls, x: ir.TensorType, *, stride: int) -> Types:
        return [x]


def modules() -> Iterator[str]:
    for name in ("forerun.ir", "forerun.passes", "forerun.frontends", "forerun.codegen"):
        package = importlib.import_module(name)
        yield from (each.name for each in pkgutil.walk_packages(package.__path__, name + "."))


def imported() -> list[tuple[str, object]]:
    """The module-level values of the packages that know the IR, by name."""
    found: list[tuple[str, object]] = []
    for name in modules():
        if name == "forerun.codegen.triton.device":  # source text: Triton compiles its functions
            continue
        module = importlib.import_module(name)
        found += [(f"{name}.{key}", value) for key, value in vars(module).items()]
    return found


def tables() -> list[ClosedTable]:
    return list({id(value): value for _, value in imported() if isinstance(value, ClosedTable)}.values())


def defined_in_ir(kind: type = SpecOperation) -> set[type]:
    """The classes of operations below a class, by Python's own record of subclasses."""
    below = {each for inner in kind.__subclasses__() for each in defined_in_ir(inner)}
    own = kind.__module__.startswith("forerun.ir.") and "name" in vars(kind)
    return below | ({kind} if own else set())


ALL = defined_in_ir()

TITLES = {
    "transfer rules along the sequence",
    "restrictions to rows and keys",
    "bounds over rows and keys",
    "operations on rows",
    "operations over all positions",
    "flow of values",
    "matrices that are stored",
    "operations on values that are taken apart",
    "roles in kernels",
    "integer ranges",
    "elements",
    "operations that are scheduled",
    "operations in ONNX",
}
OWN_LINES = {"transfer rules along the sequence", "elements", "operations in ONNX"}
FUNCTION_TITLES = {
    "bounds of functions of numbers",
    "bounds of functions of truth values",
    "ranges of functions of integers",
    "functions of numbers",
    "functions of integers",
    "functions of truth values",
    "functions in ONNX",
}
REDUCTION_TITLES = {
    "ranges of reductions",
    "reductions",
    "reductions in ONNX",
}


def test_all_operations_are_listed() -> None:
    assert set(ir.OPERATIONS) == ALL
    assert len(ir.OPERATIONS) == len(ALL) == len({each.name for each in ALL}) >= 30


def test_each_table_covers_all_operations() -> None:
    found = {each.title: each for each in tables() if isinstance(each, ir.OperationTable)}
    assert found.keys() == TITLES
    for title, table in found.items():
        assert table.entries.keys() == ALL, title


def test_each_table_of_functions_covers_all_functions() -> None:
    for kind, titles, known in (
        (ir.FunctionTable, FUNCTION_TITLES, ir.FUNCTIONS),
        (ir.ReductionTable, REDUCTION_TITLES, ir.REDUCTIONS),
    ):
        found = {each.title: each for each in tables() if isinstance(each, kind)}
        assert found.keys() == titles
        for title, table in found.items():
            assert table.entries.keys() == known.keys(), title


def test_there_is_no_open_table_over_operations() -> None:
    """A dict keyed by classes of operations could have gaps that go unnoticed."""
    keyed = [
        name
        for name, value in imported()
        if isinstance(value, dict) and any(isinstance(key, type) and issubclass(key, SpecOperation) for key in value)
    ]
    assert keyed == []


def test_every_value_has_a_meaning() -> None:
    assert {kind for kind in ALL if kind.evaluate is SpecOperation.evaluate} == STRUCTURE | BODIES


def test_every_operation_has_a_shape_rule() -> None:
    assert {kind for kind in ALL if kind.infer.__func__ is SpecOperation.infer.__func__} == BODIES


def test_what_reads_or_writes_states_says_which() -> None:
    for name, effect in (("reads", MemoryReadEffect), ("writes", MemoryWriteEffect)):
        base = getattr(SpecOperation, name)
        assert {kind for kind in ALL if getattr(kind, name) is not base} == {
            kind for kind in ALL if kind.has_trait(effect) and not issubclass(kind, ir.Exchange)
        }


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (dict.fromkeys(ALL - {ir.Scan}, "rule"), "The table of test colours lacks spec.scan; add a rule"),
        (dict.fromkeys({*ALL, Shuffle}, "rule"), "The table of test colours has an entry for spec.shuffle, which"),
    ],
)
def test_a_table_with_a_hole_or_a_stranger_is_not_built(entries: dict[type, str], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ir.OperationTable("test colours", entries)


def test_a_line_for_a_family_holds_where_a_class_has_none() -> None:
    entries = {
        **dict.fromkeys(ALL - {ir.Cast, ir.Map, ir.Softmax, ir.Linear}, "own"),
        ir.Computation: "computation",
        ir.Elementwise: "elementwise",
        ir.Cast: "cast",
    }
    table = ir.OperationTable("test colours", entries)
    assert table[ir.Cast] == "cast"
    assert table[ir.Map] == "elementwise"
    assert table[ir.Softmax] == table[ir.Linear] == "computation"
    with pytest.raises(UnsupportedOperationError, match=r"^spec\.shuffle has no rule"):
        table.of(lone())


def test_where_a_result_depends_on_other_rows_no_family_decides() -> None:
    """What an operation does along the sequence, and how its elements are computed, has a line of its own."""
    for table in tables():
        if isinstance(table, ir.OperationTable) and table.title in OWN_LINES:
            ruled = {kind: table.families[kind] for kind in table.families}
            assert all(isinstance(rule, Refusal) for rule in ruled.values()), table.title


def test_a_refusal_says_why() -> None:
    entries = dict.fromkeys(ALL, "rule") | {ir.Scan: ir.refused("has no colour"), ir.Map: ir.refused("no {name}")}
    table = ir.OperationTable("test colours", entries)
    assert table[ir.Cast] == "rule"
    assert ir.Scan not in table
    assert set(table) == ALL - {ir.Scan, ir.Map}
    for kind, message in ((ir.Scan, r"^spec\.scan has no colour\.$"), (ir.Map, r"^no spec\.map\.$")):
        with pytest.raises(UnsupportedOperationError, match=message):
            table[kind]


# --- spec.shuffle -----------------------------------------------------------------------------------------------------


def shuffled(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
    return build.add(Shuffle, x, stride=3)


def forward() -> ir.ModuleOp:
    """A function of tokens [1, T] that shuffles their embeddings [T, 8]."""

    def body(build: ir.Builder, tokens: ir.SSAValue) -> ir.SSAValue:
        rows = build.add(ir.Gather, build.full((9, 8), 1.0, "f32"), build.reshape(tokens, ("T",)))
        return build.reshape(shuffled(build, rows), (1, "T", 8))

    return function({"input_ids": tensor([1, "T"], "i64")}, body)


ROWS = {name: tensor(["N"], "i32") for name in ("tokens", "positions", "sequences", "slots")}


def step() -> ir.ModuleOp:
    """A step of N rows whose embeddings are shuffled."""

    def body(build: ir.Builder, tokens: ir.SSAValue, *others: ir.SSAValue) -> ir.SSAValue:
        return shuffled(build, build.add(ir.Gather, build.full((9, 8), 1.0, "f32"), tokens))

    return function(ROWS | {"block_tables": tensor(["S", "B"], "i32")}, body, "step")


def kernel() -> ir.ModuleOp:
    """A step that is one kernel with a shuffle in it."""
    made = ir.Function.of("step", [("tokens", tensor(["N"], "i32")), ("outputs", tensor(["M"], "i32"))])
    block = ir.Block(arg_types=[tensor(["N"], "i32")])
    inner = ir.Builder(block)
    inner.emit(ir.Yield.make(shuffled(inner, inner.cast(block.args[0], "f32"))))
    made.block.add_op(ir.Kernel.of([made.argument("tokens")], ir.Region(block), kind="row_wise"))
    ir.Builder(made.block).emit(ir.Return.make(*made.body[0].results))
    return ir.ModuleOp([made])


def lone() -> Shuffle:
    return Shuffle.make(*ir.Block(arg_types=[tensor(["T", 8])]).args, stride=3)


def run(each: Pass, module: ir.ModuleOp) -> None:
    ir.verify(module)
    each.apply(PassContext(), module)


def pairs() -> None:
    """A mask whose rows are shuffled."""

    def body(build: ir.Builder, x: ir.SSAValue) -> ir.SSAValue:
        places = build.add(ir.Iota, size="T")
        mask = shuffled(build, build.map("le", places, build.reshape(places, ("T", 1))))
        return build.add(ir.Attention, x, x, x, mask=mask, scale=1.0)

    module = function({"x": tensor([2, "T", 8])}, body)
    (attention,) = [each for each in ir.functions(module)["forward"].body if isinstance(each, ir.Attention)]
    assert attention.mask is not None
    Pairs(attention.mask, 16, PassContext(no_weights))


def evaluated() -> None:
    ir.evaluate(forward(), "forward", [torch.arange(5)[None]], ir.Environment(no_weights))


REFUSALS: dict[str, Callable[[], object]] = {
    "sequence-axis": lambda: analyse(ir.functions(forward())["forward"]),
    "masks": pairs,
    "insert-kv-cache": lambda: run(InsertKVCache(), forward()),
    "residual": lambda: residual(ir.functions(step())["step"]),
    "skip-layers": lambda: run(SkipLayers(), step()),
    "value numbers": lambda: number(ir.functions(step())["step"], {}),
    "store-weights": lambda: run(StoreWeights(storage="bf16"), step()),
    "fuse-kernels": lambda: run(FuseKernels(), step()),
    "the interpreter": evaluated,
    "integer ranges": lambda: Ranges().check(lone()),
    "tvm": lambda: emit_tvm(planned_step(kernel())),
    "triton": lambda: emit_triton(planned_step(kernel())),
    "c": lambda: emit_c(planned_step(kernel())),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
def test_a_shuffle_along_the_sequence_is_refused_by_name(refusal: Callable[[], object]) -> None:
    with pytest.raises(UnsupportedOperationError, match=r"^spec\.shuffle "):
        refusal()


def test_every_table_refuses_a_shuffle() -> None:
    shuffle = lone()
    for table in tables():
        if isinstance(table, ir.OperationTable):
            with pytest.raises(UnsupportedOperationError, match=rf"^spec\.shuffle has no rule among the {table.title}"):
                table.of(shuffle)


def test_a_shuffle_is_not_chosen_from_row_by_row() -> None:
    """select-outputs picks rows after it, not before: a row of its result needs other rows."""
    module = step()
    run(SelectOutputs(), module)
    (shuffle,) = [each for each in ir.functions(module)["step"].body if isinstance(each, Shuffle)]
    assert ir.tensor_type(shuffle.result).dims == ("N", 8)


def test_what_has_no_known_effects_is_neither_merged_nor_removed() -> None:
    """Without an effect trait, an operation may do anything."""

    @operation
    class Tick(ValueOperation):
        """Counts how often it was run."""

        name = "spec.tick"

        @classmethod
        def infer(cls) -> Types:
            return [tensor([])]

    def body(build: ir.Builder, x: ir.SSAValue) -> Sequence[ir.SSAValue]:
        for _ in range(2):
            build.add(Tick)
            shuffled(build, x)
        return (x,)

    module = function({"x": tensor(["T", 8])}, body)
    forward = ir.functions(module)["forward"]
    clean(forward)
    assert [each.mnemonic for each in forward.body] == ["tick", "tick", "return"]
