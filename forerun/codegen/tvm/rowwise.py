"""Row-wise work: values that are written to memory row by row, each reduction in one fixed order.

Sums over the last axis go into 16 partial sums (feature i into partial sum i mod 16), which are then added as a tree;
that order depends on the axis alone. Reductions over other axes are serial.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

from forerun import ir
from forerun.codegen.tvm.builder import (
    Buffer,
    Expr,
    across,
    fma,
    integer,
    let,
    load,
    local,
    multiply,
    number,
    splat,
    store,
    when,
)
from forerun.codegen.tvm.expressions import Expressions, Index, Stored, kind_of
from forerun.codegen.tvm.functions import exp
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import tirx
from forerun.errors import UnsupportedOperationError
from forerun.ir import dims as dimensions

UNROLLED = 8
"""Vectors of a row that are written out one by one, so that their indices are constants."""

LOWEST = -3.4028234663852886e38


def row_axis(dims: Sequence[ir.Dim]) -> int | None:
    """The first axis with a name: the one that is divided among threads."""
    return next((axis for axis, dim in enumerate(dims) if dimensions.symbol(dim)), None)


def each_vector(context: Expressions, size: ir.Dim, body: Callable[[Index], None]) -> None:
    """Call `body` with every index of an axis, 16 lanes at a time and the rest one by one."""
    if not isinstance(size, int):
        with context.frame.serial(0, context.size(size)) as at:
            body(at)
        return
    chunks, rest = divmod(size, LANES)
    if chunks <= UNROLLED:
        for chunk in range(chunks):
            with context.frame.vectorized() as lane:
                body(lane + integer(chunk * LANES))
    else:
        with context.frame.serial(0, chunks) as chunk, context.frame.vectorized() as lane:
            body(chunk * LANES + lane)
    if rest:
        with context.frame.serial(0, rest) as at:
            body(at + integer(chunks * LANES))


@contextmanager
def outer_loops(context: Expressions, dims: Sequence[ir.Dim], row: dict[int, Expr]) -> Generator[list[Index]]:
    """Serial loops over the axes, but those whose index `row` gives."""
    index: list[Index] = []
    stack: list[Any] = []
    for axis, dim in enumerate(dims):
        if axis in row:
            index.append(row[axis])
        elif dim == 1:
            index.append(0)
        else:
            loop = context.frame.serial(0, context.size(dim))
            index.append(loop.__enter__())
            stack.append(loop)
    yield index
    while stack:
        stack.pop().__exit__(None, None, None)


def reduce_last(
    context: Expressions,
    size: ir.Dim,
    start: float,
    term: Callable[[Expr, Index], Expr],
    combine: Callable[[Expr, Expr], Expr],
) -> Expr:
    """16 partial results over an axis, then a tree. `term(partial, index)` is the next partial result."""
    partial = local(LANES)
    store(partial, splat(start), 0)
    if not isinstance(size, int):
        with context.frame.serial(0, context.size(size)) as at:
            lane = tirx.truncmod(at, integer(LANES))
            store(partial, term(partial[lane], at), lane, 1)
        return across(partial, combine)
    chunks, rest = divmod(size, LANES)
    if chunks:
        with context.frame.serial(0, chunks) as chunk, context.frame.vectorized() as lane:
            store(partial, term(partial[lane], chunk * LANES + lane), lane, 1)
    for at in range(rest):
        store(partial, term(partial[integer(at)], integer(chunks * LANES + at)), integer(at), 1)
    return across(partial, combine)


class Rows:
    """Writes values to memory, one row at a time."""

    def __init__(self, context: Expressions) -> None:
        self.context = context

    def write(self, value: ir.SSAValue, stored: Stored, row: Expr | None) -> None:
        """Write one row of a value to `stored`; all of it where there is no row."""
        axis = row_axis(stored.dims)
        rows = {} if axis is None or row is None else {axis: row}
        rule = _WRITERS.get(type(value.owner), Rows.elements)
        if value in self.context.computed or self.context.stored.get(value, stored) is not stored:
            rule = Rows.elements
        rule(self, value, stored, rows)

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

    def concat(self, value: ir.SSAValue, stored: Stored, rows: dict[int, Expr]) -> None:
        operation: Any = value.owner
        dim, start = operation.parameter("dim"), 0
        for operand in operation.operands:
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

    def rms_norm(self, value: ir.SSAValue, stored: Stored, rows: dict[int, Expr]) -> None:
        operation: Any = value.owner
        x, *weight = operation.operands
        *outer, last = stored.dims
        with outer_loops(self.context, outer, rows) as index:

            def square(partial: Expr, at: Index) -> Expr:
                element = let(self.context.element(x, [*index, at]))
                return fma(element, element, partial)

            total = reduce_last(self.context, last, 0.0, square, lambda a, b: a + b)
            mean = let(total / _float(self.context.size(last)))
            factor = let(number(1.0) / tirx.op.sqrt(mean + number(operation.parameter("eps"))))

            def normalized(at: Index) -> None:
                result = multiply(self.context.element(x, [*index, at]), factor)
                if weight:
                    result = multiply(result, self.context.element(weight[0], [at]))
                self.context.write(stored, [*index, at], result)

            each_vector(self.context, last, normalized)

    def layer_norm(self, value: ir.SSAValue, stored: Stored, rows: dict[int, Expr]) -> None:
        operation: Any = value.owner
        x, *affine = operation.operands
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
            factor = let(number(1.0) / tirx.op.sqrt(variance + number(operation.parameter("eps"))))

            def normalized(at: Index) -> None:
                result = multiply(self.context.element(x, [*index, at]) - mean, factor)
                if len(affine) == 2:
                    weight, bias = (self.context.element(each, [at]) for each in affine)
                    result = fma(result, weight, bias)
                elif affine:
                    result = multiply(result, self.context.element(affine[0], [at]))
                self.context.write(stored, [*index, at], result)

            each_vector(self.context, last, normalized)

    def softmax(self, value: ir.SSAValue, stored: Stored, rows: dict[int, Expr]) -> None:
        operation: Any = value.owner
        (x,) = operation.operands
        dim = operation.parameter("dim") % len(stored.dims)
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

    def scan(self, value: ir.SSAValue, stored: Stored, rows: dict[int, Expr]) -> None:
        operation: Any = value.owner
        dim = operation.parameter("dim") % len(stored.dims)
        if dim in rows:
            raise UnsupportedOperationError("spec.scan over the rows of a step would mix rows; it cannot be compiled.")
        others = [size if axis != dim else 1 for axis, size in enumerate(stored.dims)]
        with outer_loops(self.context, others, rows) as index:
            total = _accumulator(stored, 0)
            with self.context.frame.serial(0, self.context.size(stored.dims[dim])) as k:
                at = [*index[:dim], k, *index[dim + 1 :]]
                store(total, total[integer(0)] + self.context.element(operation.operands[0], at), integer(0), 1)
                self.context.write(stored, at, total[integer(0)])

    def reduce(self, value: ir.SSAValue, stored: Stored, rows: dict[int, Expr]) -> None:
        operation: Any = value.owner
        (x,) = operation.operands
        source = ir.tensor_type(x)
        over, keep = set(operation.parameter("dims")), operation.parameter("keep", False)
        function = operation.parameter("function")
        kept = [axis for axis in range(source.rank) if axis not in over]
        if row_axis(source.dims) in over:
            raise UnsupportedOperationError(
                "spec.reduce over the rows of a step would mix rows; it cannot be compiled."
            )
        axis = row_axis(stored.dims)
        source_rows = {} if axis is None or not rows else {axis if keep else kept[axis]: rows[axis]}
        others = [1 if axis in over else dim for axis, dim in enumerate(source.dims)]
        with outer_loops(self.context, others, source_rows) as index:
            result_index = index if keep else [index[axis] for axis in kept]
            number_kind = kind_of(source.dtype) == "number"
            if over == {source.rank - 1} and number_kind and function in ("sum", "mean", "max", "min"):
                start, combine = _COMBINE[function]
                total = reduce_last(
                    self.context,
                    source.dims[-1],
                    start,
                    lambda p, k: combine(p, self.context.element(x, [*index[:-1], k])),
                    combine,
                )
                if function == "mean":
                    total = total / _float(self.context.size(source.dims[-1]))
                self.context.write(stored, result_index, total)
                return
            self._serial_reduce(operation, index, sorted(over), stored, result_index)

    def _serial_reduce(
        self, operation: Any, index: list[Index], over: list[int], stored: Stored, result_index: Sequence[Index]
    ) -> None:
        (x,) = operation.operands
        source = ir.tensor_type(x)
        function, kind = operation.parameter("function"), kind_of(source.dtype)
        dims = [dim if axis in over else 1 for axis, dim in enumerate(source.dims)]
        taken = {axis: at for axis, at in enumerate(index) if axis not in over}
        start = _START.get(function, 0.0)
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
                store(best, _SERIAL[function](held, element), integer(0), 1)
        result = where[integer(0)] if function == "argmax" else best[integer(0)]
        if function == "mean":
            count: Index = 1
            for axis in over:
                count = count * self.context.size(source.dims[axis])
            result = result / _float(count)
        if kind == "truth" and function != "argmax":
            result = tirx.NE(result, integer(0))
        self.context.write(stored, result_index, result)

    def matmul(self, value: ir.SSAValue, stored: Stored, rows: dict[int, Expr]) -> None:
        operation: Any = value.owner
        left, right = operation.operands
        inner = ir.tensor_type(left).dims[-1]
        transposed = isinstance(operation, ir.Linear)

        def element(index: Sequence[Index]) -> Expr:
            total = local(1)
            store(total, number(0.0), integer(0), 1)
            with self.context.frame.serial(0, self.context.size(inner)) as k:
                a = self.context.operand(left, [*index[:-1], k])
                at = [index[-1], k] if transposed else [*index[:-2], k, index[-1]]
                b = self.context.operand(right, at)
                store(total, fma(a, b, total[integer(0)]), integer(0), 1)
            result = total[integer(0)]
            bias = operation.operands[2:] if transposed else ()
            return result if not bias else result + self.context.element(bias[0], [index[-1]])

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


_COMBINE: dict[str, tuple[float, Callable[[Expr, Expr], Expr]]] = {
    "sum": (0.0, _add),
    "mean": (0.0, _add),
    "max": (LOWEST, tirx.max),
    "min": (-LOWEST, tirx.min),
}
_START = {"max": LOWEST, "min": -LOWEST, "argmax": LOWEST, "all": 1.0}
_SERIAL: dict[str, Callable[[Expr, Expr], Expr]] = {
    "sum": _add,
    "mean": _add,
    "max": tirx.max,
    "min": tirx.min,
    "any": tirx.max,
    "all": tirx.min,
}

_WRITERS: dict[type, Callable[[Rows, ir.SSAValue, Stored, dict[int, Expr]], None]] = {
    ir.Concat: Rows.concat,
    ir.RMSNorm: Rows.rms_norm,
    ir.LayerNorm: Rows.layer_norm,
    ir.Softmax: Rows.softmax,
    ir.Scan: Rows.scan,
    ir.Reduce: Rows.reduce,
    ir.MatMul: Rows.matmul,
    ir.Linear: Rows.matmul,
}

ROWWISE = frozenset(_WRITERS)
"""Operations whose results are written to memory by this file."""

__all__ = ["ROWWISE", "Rows", "each_vector", "load", "outer_loops", "row_axis"]
