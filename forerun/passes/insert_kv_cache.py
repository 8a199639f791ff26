"""insert_kv_cache: derives `@step` from `@forward`: row-local code runs on rows, attention reads the cache.

`@step(tokens[N], positions[N], sequences[N], slots[N], block_tables[S, B]) -> logits[N, V]` evaluates N rows, each one
token of a sequence whose earlier positions lie in the cache. The rows write their own keys and values first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from forerun import dims as dimensions
from forerun import ir
from forerun.errors import UnsupportedOperationError
from forerun.ir import (
    INTEGER_DTYPES,
    AlongAxes,
    Ancestors,
    Attention,
    Block,
    Builder,
    Cast,
    Context,
    Dim,
    Function,
    InsertPoint,
    Iota,
    ModuleOp,
    Recurrence,
    Region,
    Return,
    Scan,
    SpecOperation,
    SSAValue,
    State,
    StateRead,
    StateWrite,
    Symbol,
    TensorType,
    TreeAttention,
    TreeRecurrence,
    Window,
    Yield,
    each_of,
    neighbourhood,
    refused,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, option, step_argument
from forerun.passes.canonicalize import clean
from forerun.passes.matching import SEQUENCE
from forerun.passes.substitute import clone_with
from forerun.passes.transfer import sequence_axes
from forerun.signature import STEP

ROWS = "N"
ARGUMENTS = ("tokens", "positions", "sequences", "slots", "block_tables")
RECORDS = ("parents", "records", "order")
"""Further arguments of a step with states per row."""


@dataclass(frozen=True)
class InsertKVCache(Pass):
    """`block` is P, the number of positions in a cache block."""

    name: ClassVar[str] = "insert-kv-cache"
    needs: ClassVar[Needs | None] = Needs("forward", inputs=1, dimension="T", results=1, adds_functions=("step",))

    block: int = option(16, least=1, most=2**16)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        forward = function_named(op, "forward")
        recurs = any(isinstance(each, Recurrence) or _runs_along(each) for each in forward.body)
        names = (*ARGUMENTS[:-1], *(RECORDS if recurs else ()), ARGUMENTS[-1])
        arguments = [(name, step_argument(name)) for name in names]
        step = Function.of(STEP, arguments)
        op.body.block.add_op(step)
        _Step(op, forward, step, self.block, recurs).build_body()
        clean(step)


class _Step:
    """Clones `@forward` into `@step`, T as N, with attention over the cache."""

    def __init__(self, module: ModuleOp, forward: Function, step: Function, block: int, recurs: bool) -> None:
        self.module = module
        self.forward = forward
        self.step = step
        self.block = block
        self.build = Builder(step.block)
        self.declarations = Builder(InsertPoint.before(forward))
        self.recurs = recurs
        self.values: dict[SSAValue, SSAValue] = {}
        self.count = 0

    def build_body(self) -> None:
        (input_ids,) = self.forward.block.args
        tokens = self.build.cast(self.step.argument("tokens"), tensor_type(input_ids).dtype)
        self.values[input_ids] = self.build.reshape(tokens, _as_rows(tensor_type(input_ids).dims))
        for operation in self.forward.body:
            ON_ROWS.of(operation)(self, operation)

    def row_local(self, operation: SpecOperation) -> None:
        """The same operation on rows."""
        _require_row_local(operation, ())
        clone_with(operation, self.values, {SEQUENCE: ROWS}, self.build)

    def along_axes(self, operation: AlongAxes) -> None:
        """Returns the same operation on rows, if it works along other axes."""
        _require_row_local(operation, operation.axes)
        clone_with(operation, self.values, {SEQUENCE: ROWS}, self.build)

    def positions(self, operation: Iota) -> None:
        """Counted positions become the rows' own; other counts stay."""
        if operation.size != SEQUENCE:
            self.row_local(operation)
            return
        self.values[operation.result] = self.build.add(Cast, self.step.argument("positions"), dtype="i64")

    def scan(self, operation: Scan) -> None:
        """A running sum along the sequence is a state per row: the sum up to the row."""
        value = self.values[operation.x]
        if not _runs_along(operation):
            self.along_axes(operation)
            return
        _require_exact_sum(operation)
        self.build.location = operation.location
        dims = tensor_type(value).dims
        front = [operation.dim, *(each for each in range(len(dims)) if each != operation.dim)]
        own = self.build.cast(self.build.transpose(value, front), "f32")
        shape = tensor_type(own).dims[1:]
        record = TensorType.of(shape, "f32")
        body = Region(Block(arg_types=[record, record]))
        inner = Builder(body.block)
        total = inner.map("add", *body.block.args)
        inner.emit(Yield.make(total, total))
        (summed,) = self.recurring("scan", record, [own], body)
        summed = self.build.cast(summed, tensor_type(operation.result).dtype)
        self.values[operation.result] = self.build.transpose(summed, [front.index(each) for each in range(len(front))])

    def history(self) -> list[SSAValue]:
        """What describes each row's history before the step has trees: its position and its committed blocks."""
        argument = self.step.argument
        bases = self.build.map("add", argument("positions"), self.build.constant(1, "i32"))
        no_path = self.build.full((ROWS, 0), 0, "i32")
        return [argument("positions"), argument("sequences"), bases, no_path, argument("block_tables")]

    def returns(self, operation: Return) -> None:
        logits = self.values[operation.inputs[0]]
        self.build.emit(Return.make(self.build.reshape(logits, (ROWS, tensor_type(logits).dims[-1]))))

    def attention(self, operation: Attention) -> None:
        """Write the rows' keys and values, then attend over each row's history, all of it in blocks."""
        self.build.location = operation.location
        given = (operation.query, operation.key, operation.value)
        query, key, value = (self.rows_first(self.values[each]) for each in given)
        of = f"attention.{self.count}"
        keys, values = (self.state(f"{of}.{name}", each) for name, each in (("keys", key), ("values", value)))
        self.count += 1
        optional = {"first": operation.first, "bias": operation.bias, "sinks": operation.sinks}
        attended = self.build.add(
            TreeAttention,
            query,
            *self.history(),
            symbol=keys,
            values=values,
            block=self.block,
            value_dim=tensor_type(value).dims[-1],
            scale=operation.scale,
            softcap=operation.softcap,
            **{name: self.values[each] for name, each in optional.items() if each is not None},
            bias_by=operation.bias_by,
        )
        self.values[operation.result] = self.sequence_first(attended, operation.result)

    def recurrence(self, operation: Recurrence) -> None:
        """Each row's record is computed from that of its parent."""
        self.build.location = operation.location
        inputs = [self.values[each] for each in operation.inputs]
        made = self.recurring("recurrence", tensor_type(operation.before), inputs, operation.region.clone())
        self.values.update(zip(operation.results, made, strict=True))

    def recurring(self, kind: str, record: TensorType, inputs: Sequence[SSAValue], body: Region) -> Sequence[SSAValue]:
        """The outputs of a recurrence over the rows, with a state of its own."""
        symbol = Symbol(f"{kind}.{self.count}")
        self.count += 1
        self.declarations.emit(State.make(symbol=symbol, per="row", shape=record.dims, dtype=record.dtype))
        operands = [*map(self.step.argument, RECORDS), *inputs]
        return self.build.emit(TreeRecurrence.of(operands, body, symbol=symbol)).results

    def window(self, operation: Window) -> None:
        """Each row leaves its value, and reads what its ancestors left.

        If rows have states of their own, the window is one of these, so that memory does not grow with the text.
        """
        if tensor_type(operation.x).dtype in INTEGER_DTYPES - {"i1"}:
            raise UnsupportedOperationError(
                f"spec.window at {operation.location} reads whole numbers of earlier positions, which states in "
                "float32 cannot hold exactly; keep floating-point numbers.\n" + neighbourhood(operation)
            )
        self.build.location = operation.location
        value = self.build.cast(self.values[operation.x], "f32")
        found = (self.handed_on if self.recurs else self.left)(value, operation.count)
        self.values[operation.result] = self.build.cast(found, tensor_type(operation.x).dtype)

    def left(self, value: SSAValue, count: int) -> SSAValue:
        """A window [N, count, *shape] of what ancestors left at their positions."""
        symbol = self.state(f"window.{self.count}", value)
        self.count += 1
        slots = self.build.add(Ancestors, *self.history(), count=count, block=self.block)
        return self.build.add(StateRead, slots, symbol=symbol, shape=tensor_type(value).dims[1:], dtype="f32")

    def handed_on(self, value: SSAValue, count: int) -> SSAValue:
        """A window [N, count, *shape] that rows hand on: each drops the oldest value and appends its own."""
        kind = tensor_type(value)
        record = kind.with_dims((count, *kind.dims[1:]))
        body = Region(Block(arg_types=[record, kind.with_dims(kind.dims[1:])]))
        build, (before, own) = Builder(body.block), body.block.args
        last = build.reshape(own, (1, *kind.dims[1:]))
        after = last if count == 1 else build.concat([build.slice(before, 0, 1, count), last], 0)
        build.emit(Yield.make(after, before))
        (found,) = self.recurring("window", record, [value], body)
        return found

    def state(self, name: str, value: SSAValue) -> Symbol:
        """A state per position, in which the rows leave a value."""
        symbol, kind = Symbol(name), tensor_type(value)
        self.declarations.emit(State.make(symbol=symbol, per="position", shape=kind.dims[1:], dtype="f32"))
        self.build.emit(StateWrite.make(value, self.step.argument("slots"), symbol=symbol))
        return symbol

    def rows_first(self, value: SSAValue) -> SSAValue:
        """[..., H, N, D] as [N, H, D]."""
        rank = tensor_type(value).rank
        swapped = self.build.transpose(value, (*range(rank - 3), rank - 2, rank - 3, rank - 1))
        dims = tensor_type(swapped).dims
        if any(dim != 1 for dim in dims[:-3]):
            raise UnsupportedOperationError(
                f"The attention over {value.type} has a batch; trace the model with a batch of one."
            )
        return self.build.reshape(swapped, dims[-3:])

    def sequence_first(self, value: SSAValue, like: SSAValue) -> SSAValue:
        """[N, H, D] as [..., H, N, D]."""
        rank = tensor_type(like).rank
        full = self.build.reshape(value, (1,) * (rank - 3) + tensor_type(value).dims)
        return self.build.transpose(full, (*range(rank - 3), rank - 2, rank - 3, rank - 1))


def _runs_along(operation: SpecOperation) -> bool:
    """Whether an operation is a running sum along the sequence."""
    return isinstance(operation, Scan) and tensor_type(operation.x).dims[operation.dim] == SEQUENCE


def _as_rows(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    return tuple(dimensions.substitute(dim, SEQUENCE, ROWS) for dim in dims)


def _require_row_local(operation: SpecOperation, along: Sequence[int]) -> None:
    """A row-local operation must not work along the sequence: that would need a state of its own."""
    for value in operation.operands:
        axes = sequence_axes(value)
        shifted = any(tensor_type(value).dims[axis] != SEQUENCE for axis in axes)
        if shifted or any(dim - tensor_type(value).rank in axes for dim in along):
            raise UnsupportedOperationError(
                f"spec.{operation.mnemonic} at {operation.location} mixes positions outside an attention, which needs "
                "a state that forerun cannot derive yet; use a model that relates positions only in attention.\n"
                + neighbourhood(operation)
            )


def _require_exact_sum(operation: Scan) -> None:
    """A state is in float32, in which a sum of truths is exact, but a sum of whole numbers may not be."""
    value = operation.x
    while isinstance(value.owner, Cast):
        value = value.owner.x
    if tensor_type(operation.x).dtype in INTEGER_DTYPES and tensor_type(value).dtype != "i1":
        raise UnsupportedOperationError(
            f"spec.scan at {operation.location} adds up whole numbers along the sequence, which float32 cannot hold "
            "exactly; add up truth values (a mask), or floating-point numbers.\n" + neighbourhood(operation)
        )


LOCAL = _Step.row_local

ON_ROWS: ir.OperationTable[Callable[[_Step, Any], None]] = ir.OperationTable(
    "operations on rows",
    {
        **each_of(LOCAL, ir.Elementwise, ir.Parameter, ir.Constant, ir.Reshape, ir.Broadcast, ir.Transpose),
        **each_of(LOCAL, ir.Gather, ir.Linear, ir.ExpertLinear, ir.MatMul),
        AlongAxes: _Step.along_axes,
        Scan: _Step.scan,
        Iota: _Step.positions,
        Attention: _Step.attention,
        Recurrence: _Step.recurrence,
        Window: _Step.window,
        Return: _Step.returns,
        ir.StepOperation: refused("already works on rows, but @forward works on a sequence"),
        **each_of(refused("hides its operations; insert the cache before fuse-kernels"), ir.Kernel, ir.Yield),
        **each_of(refused("cannot stand in a function"), Function, ir.Weight, State),
    },
)
"""How each operation of `@forward` becomes one of `@step`."""
