"""Row-wise work: values that are written to memory row by row, each reduction in one fixed order.

Reductions over the last axis are those of `loops`; over other axes they are serial.
"""

from collections.abc import Callable, Sequence
from typing import Any

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.regions import ROWS
from forerun.codegen.tvm.builder import (
    Buffer,
    Expr,
    fma,
    integer,
    let,
    local,
    multiply,
    number,
    store,
    when,
)
from forerun.codegen.tvm.expressions import Expressions, Index, Stored, kind_of
from forerun.codegen.tvm.functions import exp
from forerun.codegen.tvm.loops import each_vector, outer_loops, reduce_last, row_axis
from forerun.codegen.tvm.untyped import tirx
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused

LOWEST = -3.4028234663852886e38


class Rows:
    """Writes values to memory, one row at a time."""

    def __init__(self, context: Expressions) -> None:
        self.context = context

    def write(self, value: ir.SSAValue, stored: Stored, row: Expr | None) -> None:
        """Write one row of a value to `stored`; all of it where there is no row."""
        axis = row_axis(stored.dims)
        rows = {} if axis is None or row is None else {axis: row}
        operation = value.owner
        elsewhere = value in self.context.computed or self.context.stored.get(value, stored) is not stored
        if elsewhere or not isinstance(operation, ir.SpecOperation):
            self.elements(value, stored, rows)
        else:
            WRITERS.of(operation)(self, operation, stored, rows)

    def _fill(self, stored: Stored, rows: dict[int, Expr], element: Callable[[Sequence[Index]], Expr]) -> None:
        if not stored.dims:
            self.context.write(stored, [], element([]))
            return
        *outer, last = stored.dims
        with outer_loops(self.context, outer, rows) as index:
            if len(outer) in rows:
                at = [*index, rows[len(outer)]]
                self.context.write(stored, at, element(at))
                return
            each_vector(
                self.context, last, lambda lane: self.context.write(stored, [*index, lane], element([*index, lane]))
            )

    def elements(self, value: ir.SSAValue, stored: Stored, rows: dict[int, Expr]) -> None:
        own = self.context.stored.get(value) is stored and value not in self.context.computed
        self._fill(stored, rows, lambda at: (self.context.definition if own else self.context.element)(value, at))

    def inline(self, operation: ir.ValueOperation, stored: Stored, rows: dict[int, Expr]) -> None:
        """Element by element."""
        self.elements(operation.result, stored, rows)

    def concat(self, operation: ir.Concat, stored: Stored, rows: dict[int, Expr]) -> None:
        dim = operation.dim
        start: ir.Dim = 0
        for operand in operation.inputs:
            dims = ir.tensor_type(operand).dims
            offset = start
            part = _Shifted(self.context, stored, dim, offset)
            *outer, last = dims
            with outer_loops(self.context, outer, rows) as index:
                each_vector(
                    self.context,
                    last,
                    lambda lane, operand=operand, part=part, index=index: part.write(
                        [*index, lane], self.context.element(operand, [*index, lane])
                    ),
                )
            start = dimensions.add(start, dims[dim])

    def rms_norm(self, operation: ir.RMSNorm, stored: Stored, rows: dict[int, Expr]) -> None:
        x, weight = operation.x, operation.weight
        *outer, last = stored.dims
        with outer_loops(self.context, outer, rows) as index:

            def square(partial: Expr, at: Index) -> Expr:
                element = let(self.context.element(x, [*index, at]))
                return fma(element, element, partial)

            total = reduce_last(self.context, last, 0.0, square, lambda a, b: a + b)
            mean = let(total / _float(self.context.size(last)))
            factor = let(number(1.0) / tirx.op.sqrt(mean + number(operation.eps)))

            def normalized(at: Index) -> None:
                result = multiply(self.context.element(x, [*index, at]), factor)
                if weight is not None:
                    result = multiply(result, self.context.element(weight, [at]))
                self.context.write(stored, [*index, at], result)

            each_vector(self.context, last, normalized)

    def layer_norm(self, operation: ir.LayerNorm, stored: Stored, rows: dict[int, Expr]) -> None:
        x, weight, bias = operation.x, operation.weight, operation.bias
        *outer, last = stored.dims
        with outer_loops(self.context, outer, rows) as index:
            size = _float(self.context.size(last))
            total = reduce_last(
                self.context, last, 0.0, lambda p, at: p + self.context.element(x, [*index, at]), lambda a, b: a + b
            )
            mean = let(total / size)

            def square(partial: Expr, at: Index) -> Expr:
                centred = let(self.context.element(x, [*index, at]) - mean)
                return fma(centred, centred, partial)

            variance = let(reduce_last(self.context, last, 0.0, square, lambda a, b: a + b) / size)
            factor = let(number(1.0) / tirx.op.sqrt(variance + number(operation.eps)))

            def normalized(at: Index) -> None:
                result = multiply(self.context.element(x, [*index, at]) - mean, factor)
                if weight is not None and bias is not None:
                    result = fma(result, self.context.element(weight, [at]), self.context.element(bias, [at]))
                elif weight is not None:
                    result = multiply(result, self.context.element(weight, [at]))
                self.context.write(stored, [*index, at], result)

            each_vector(self.context, last, normalized)

    def softmax(self, operation: ir.Softmax, stored: Stored, rows: dict[int, Expr]) -> None:
        x, dim = operation.x, operation.dim
        others = [size if axis != dim else 1 for axis, size in enumerate(stored.dims)]
        with outer_loops(self.context, others, rows) as index:

            def at(position: Index) -> list[Index]:
                return [*index[:dim], position, *index[dim + 1 :]]

            size = stored.dims[dim]
            largest = let(
                reduce_last(
                    self.context, size, LOWEST, lambda p, k: tirx.max(p, self.context.element(x, at(k))), tirx.max
                )
            )
            each_vector(
                self.context,
                size,
                lambda k: self.context.write(stored, at(k), exp(self.context.element(x, at(k)) - largest)),
            )
            window = self.context.window(stored)

            def read(k: Index) -> Expr:
                return window[self.context.place(stored, at(k))]

            total = let(reduce_last(self.context, size, 0.0, lambda p, k: p + read(k), lambda a, b: a + b))
            each_vector(self.context, size, lambda k: self.context.write(stored, at(k), read(k) / total))

    def scan(self, operation: ir.Scan, stored: Stored, rows: dict[int, Expr]) -> None:
        dim = operation.dim
        if dim in rows:
            raise UnsupportedOperationError("spec.scan over the rows of a step would mix them and cannot be compiled.")
        others = [size if axis != dim else 1 for axis, size in enumerate(stored.dims)]
        with outer_loops(self.context, others, rows) as index:
            total = _accumulator(stored, 0)
            with self.context.frame.serial(0, self.context.size(stored.dims[dim])) as k:
                at = [*index[:dim], k, *index[dim + 1 :]]
                store(total, total[integer(0)] + self.context.element(operation.x, at), integer(0), 1)
                self.context.write(stored, at, total[integer(0)])

    def reduce(self, operation: ir.Reduce, stored: Stored, rows: dict[int, Expr]) -> None:
        x, keep = operation.x, operation.keep
        source, over = ir.tensor_type(x), set(operation.dims)
        lanes = LANE_REDUCTIONS[operation.function]
        kept = [axis for axis in range(source.rank) if axis not in over]
        if any(dimensions.symbol(source.dims[axis]) in ROWS for axis in over):
            raise UnsupportedOperationError(
                "spec.reduce over the rows of a step would mix them and cannot be compiled."
            )
        axis = row_axis(stored.dims)
        source_rows = {} if axis is None or not rows else {axis if keep else kept[axis]: rows[axis]}
        others = [1 if axis in over else dim for axis, dim in enumerate(source.dims)]
        with outer_loops(self.context, others, source_rows) as index:
            result_index = index if keep else [index[axis] for axis in kept]
            number_kind = kind_of(source.dtype) == "number"
            if over == {source.rank - 1} and number_kind and lanes is not SERIAL_ONLY:
                start, combine = lanes
                total = reduce_last(
                    self.context,
                    source.dims[-1],
                    start,
                    lambda p, k: combine(p, self.context.element(x, [*index[:-1], k])),
                    combine,
                )
                if operation.function == "mean":
                    total = total / _float(self.context.size(source.dims[-1]))
                self.context.write(stored, result_index, total)
                return
            self._serial_reduce(operation, index, sorted(over), stored, result_index)

    def _serial_reduce(
        self, operation: ir.Reduce, index: list[Index], over: list[int], stored: Stored, result_index: Sequence[Index]
    ) -> None:
        x, function = operation.x, operation.function
        source = ir.tensor_type(x)
        kind = kind_of(source.dtype)
        dims = [dim if axis in over else 1 for axis, dim in enumerate(source.dims)]
        taken = {axis: at for axis, at in enumerate(index) if axis not in over}
        start, combine = SERIAL_REDUCTIONS[function]
        best = local(1, "float32" if kind == "number" else "int32")
        where = local(1, "int32")
        first = number(start) if kind == "number" else integer(int(max(min(start, (1 << 31) - 1), -(1 << 31))))
        store(best, first, integer(0), 1)
        store(where, integer(-1), integer(0), 1)
        with outer_loops(self.context, dims, taken) as at:
            element = self.context.element(x, at)
            element = let(tirx.Select(element, integer(1), integer(0)) if kind == "truth" else element)
            held = best[integer(0)]
            if function == "argmax":
                with when(tirx.Or(where[integer(0)] < integer(0), element > held)):
                    store(best, element, integer(0), 1)
                    store(where, at[over[0]], integer(0), 1)
            else:
                store(best, combine(held, element), integer(0), 1)
        result = where[integer(0)] if function == "argmax" else best[integer(0)]
        if function == "mean":
            count: Index = 1
            for axis in over:
                count = count * self.context.size(source.dims[axis])
            result = result / _float(count)
        if kind == "truth" and function != "argmax":
            result = tirx.NE(result, integer(0))
        self.context.write(stored, result_index, result)

    def matmul(self, operation: ir.MatMul, stored: Stored, rows: dict[int, Expr]) -> None:
        self._product(operation.a, operation.b, None, False, stored, rows)

    def linear(self, operation: ir.Linear, stored: Stored, rows: dict[int, Expr]) -> None:
        """A linear whose matrix is no weight."""
        self._product(operation.x, operation.weight, operation.bias, True, stored, rows)

    def _product(
        self,
        left: ir.SSAValue,
        right: ir.SSAValue,
        bias: ir.SSAValue | None,
        transposed: bool,
        stored: Stored,
        rows: dict[int, Expr],
    ) -> None:
        inner = ir.tensor_type(left).dims[-1]

        def element(index: Sequence[Index]) -> Expr:
            total = local(1)
            store(total, number(0.0), integer(0), 1)
            with self.context.frame.serial(0, self.context.size(inner)) as k:
                a = self.context.operand(left, [*index[:-1], k])
                at = [index[-1], k] if transposed else [*index[:-2], k, index[-1]]
                b = self.context.operand(right, at)
                store(total, fma(a, b, total[integer(0)]), integer(0), 1)
            result = total[integer(0)]
            return result if bias is None else result + self.context.element(bias, [index[-1]])

        with outer_loops(self.context, stored.dims, rows) as index:
            self.context.write(stored, index, element(index))


class _Shifted:
    """Writes along one axis of a stored value from an offset on."""

    def __init__(self, context: Expressions, stored: Stored, dim: int, offset: ir.Dim) -> None:
        self.context, self.stored, self.dim, self.offset = context, stored, dim, offset

    def write(self, index: list[Index], value: Expr) -> None:
        index[self.dim] = self.context.frame.simplify(index[self.dim] + self.context.size(self.offset))
        self.context.write(self.stored, index, value)


def _float(size: Index) -> Expr:
    return number(float(size)) if isinstance(size, int) else size.astype("float32")


def _accumulator(stored: Stored, start: int) -> Buffer:
    numbers = kind_of(stored.dtype) == "number"
    total = local(1, "float32" if numbers else "int32")
    store(total, number(start) if numbers else integer(start), integer(0), 1)
    return total


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


Reduction = tuple[float, Callable[[Expr, Expr], Expr]]
"""What a reduction begins with, and how it takes in an element."""

SERIAL_ONLY: Reduction = (0.0, _add)
"""Stands for reductions that have no partial results in lanes."""

LANE_REDUCTIONS: ir.ReductionTable[Reduction] = ir.ReductionTable(
    "reductions in lanes of the cpu target",
    {
        "sum": (0.0, _add),
        "mean": (0.0, _add),
        "max": (LOWEST, tirx.max),
        "min": (-LOWEST, tirx.min),
        **each_of(SERIAL_ONLY, "any", "all", "argmax"),
    },
)
SERIAL_REDUCTIONS: ir.ReductionTable[Reduction] = ir.ReductionTable(
    "serial reductions of the cpu target",
    {
        "sum": (0.0, _add),
        "mean": (0.0, _add),
        "max": (LOWEST, tirx.max),
        "min": (-LOWEST, tirx.min),
        "any": (0.0, tirx.max),
        "all": (1.0, tirx.min),
        "argmax": (LOWEST, tirx.max),
    },
)

INLINED = Rows.inline

WRITERS: ir.OperationTable[Callable[[Rows, Any, Stored, dict[int, Expr]], None]] = ir.OperationTable(
    "writers of rows of the cpu target",
    {
        ir.Concat: Rows.concat,
        ir.RMSNorm: Rows.rms_norm,
        ir.LayerNorm: Rows.layer_norm,
        ir.Softmax: Rows.softmax,
        ir.Scan: Rows.scan,
        ir.Reduce: Rows.reduce,
        ir.MatMul: Rows.matmul,
        ir.Linear: Rows.linear,
        **each_of(INLINED, ir.Elementwise, ir.Constant, ir.Parameter, ir.Iota, ir.Reshape, ir.Transpose, ir.Slice),
        **each_of(INLINED, ir.Broadcast, ir.Gather, ir.TakeAlong, ir.Rotary, ir.StateRead),
        **each_of(refused("has a phase of its own in the cpu target"), ir.TreeAttention, ir.TopK, ir.StateWrite),
        ir.Recurrence: refused("has a phase of its own in the cpu target"),
        ir.Attention: refused("attends over a whole sequence; the cpu target only compiles steps"),
        **each_of(
            refused("does not give a value per row"), ir.Kernel, ir.Return, ir.Yield, ir.Function, ir.Weight, ir.State
        ),
    },
)

ROWWISE = frozenset(kind for kind, writer in WRITERS.items() if writer is not INLINED)
"""Operations whose results are written to memory by this file."""
