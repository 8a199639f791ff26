"""Rules for the element of each operation's result at an index: views become index arithmetic, maps become functions,
norms and softmax become reductions, down to elements in memory. The table is closed.

An operation without such a rule (a product with a weight, an attention, a choice) is computed by its own nest, and
must be in memory, or in the registers of a tile (`Elements.computed`), where it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.loops.buffer import Buffer, kind_of
from forerun.codegen.loops.decompose import BY_KIND
from forerun.codegen.loops.elements import Elements, NeedsMemoryError, Rule
from forerun.codegen.loops.expr import (
    Expr,
    Load,
    Partial,
    Reduce,
    apply,
    constant,
    count,
    fma,
    integer,
    number,
    where,
)
from forerun.codegen.loops.index import Index, reshaped, size_of
from forerun.codegen.regions import ROWS
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused


def _map(context: Elements, operation: ir.Map, index: list[Index]) -> Expr:
    functions = BY_KIND[kind_of(ir.tensor_type(operation.inputs[-1]).dtype)]
    return functions[operation.function](*(context.operand(each, index) for each in operation.inputs))


def _cast(context: Elements, operation: ir.Cast, index: list[Index]) -> Expr:
    value, kind = context.element(operation.x, index), kind_of(operation.dtype)
    return value if value.kind == kind else apply(f"to_{kind}", value)


def _reshape(context: Elements, operation: ir.Reshape, index: list[Index]) -> Expr:
    before, after = ir.tensor_type(operation.x).dims, ir.tensor_type(operation.result).dims
    return context.element(operation.x, reshaped(before, after, index))


def _transpose(context: Elements, operation: ir.Transpose, index: list[Index]) -> Expr:
    own = [Index()] * len(index)
    for axis, source in enumerate(operation.permutation):
        own[source] = index[axis]
    return context.element(operation.x, own)


def _slice(context: Elements, operation: ir.Slice, index: list[Index]) -> Expr:
    index[operation.dim] = index[operation.dim].times(operation.step).plus(size_of(operation.start))
    return context.element(operation.x, index)


def _gather(context: Elements, operation: ir.Gather, index: list[Index]) -> Expr:
    table, indices = operation.table, operation.indices
    lead = len(ir.broadcast_dims([ir.tensor_type(each).dims for each in indices]))
    dims = ir.tensor_type(table).dims
    chosen = [context.place(each, index[:lead], dims[axis]) for axis, each in enumerate(indices)]
    return context.element(table, [*chosen, *index[lead:]])


def _take_along(context: Elements, operation: ir.TakeAlong, index: list[Index]) -> Expr:
    dim = operation.dim
    at = context.place(operation.index, index, ir.tensor_type(operation.x).dims[dim])
    return context.element(operation.x, [*index[:dim], at, *index[dim + 1 :]])


def _concat(context: Elements, operation: ir.Concat, index: list[Index]) -> Expr:
    """One operand if the index determines it; else all of them, each clamped to its own range, and a selection."""
    dim, start = operation.dim, Index()
    at, result = index[dim], None
    for operand in operation.inputs:
        dims = ir.tensor_type(operand).dims
        size, own = dims[dim], at.minus(start)
        if isinstance(size, int) and own.inside(size):
            return context.element(operand, [*index[:dim], own, *index[dim + 1 :]])
        bounded = apply("min", apply("max", count(own), 0), count(size_of(size)) - 1)
        part = context.element(operand, [*index[:dim], Index.computed(bounded, size), *index[dim + 1 :]])
        result = part if result is None else where(count(at) < count(start), result, part)
        start = start.plus(size_of(size))
    assert result is not None
    return result


def _rotary(context: Elements, operation: ir.Rotary, index: list[Index]) -> Expr:
    x, size = operation.x, int(ir.tensor_type(operation.x).dims[-1])
    half, at = size // 2, index[-1]
    other = context.element(x, [*index[:-1], at.plus(half).divided(size)[1]])
    turned = where(count(at) < half, other * -1.0, other)
    straight = context.element(x, index) * context.operand(operation.cos, index)
    return fma(turned, context.operand(operation.sin, index), straight)


def _length(size: ir.Dim) -> Expr | float:
    return float(size) if isinstance(size, int) else apply("to_number", count(size_of(size)))


def _rms_norm(context: Elements, operation: ir.RMSNorm, index: list[Index]) -> Expr:
    x, size = operation.x, ir.tensor_type(operation.x).dims[-1]

    def square(partial: Expr, at: Index) -> Expr:
        element = context.element(x, [*index[:-1], at])
        return fma(element, element, partial)

    total = context.reduce(operation.result, "squares", size, number(0.0), square)
    factor = 1.0 / apply("sqrt", total / _length(size) + operation.eps)
    result = context.element(x, index) * factor
    return result if operation.weight is None else result * context.element(operation.weight, [index[-1]])


def _layer_norm(context: Elements, operation: ir.LayerNorm, index: list[Index]) -> Expr:
    x, weight, bias = operation.x, operation.weight, operation.bias
    size = ir.tensor_type(x).dims[-1]

    def element(at: Index) -> Expr:
        return context.element(x, [*index[:-1], at])

    total = context.reduce(operation.result, "mean", size, number(0.0), lambda partial, at: partial + element(at))
    mean = total / _length(size)

    def square(partial: Expr, at: Index) -> Expr:
        centred = element(at) - mean
        return fma(centred, centred, partial)

    spread = context.reduce(operation.result, "spread", size, number(0.0), square)
    factor = 1.0 / apply("sqrt", spread / _length(size) + operation.eps)
    result = (element(index[-1]) - mean) * factor
    if weight is None:
        return result
    scale = context.element(weight, [index[-1]])
    return result * scale if bias is None else fma(result, scale, context.element(bias, [index[-1]]))


def _softmax(context: Elements, operation: ir.Softmax, index: list[Index]) -> Expr:
    x, dim = operation.x, operation.dim
    size = ir.tensor_type(x).dims[dim]

    def element(at: Index) -> Expr:
        return context.element(x, [*index[:dim], at, *index[dim + 1 :]])

    largest = context.reduce(
        operation.result, "largest", size, number(-math.inf), lambda p, at: apply("max", p, element(at)), "max"
    )

    def weight(at: Index) -> Expr:
        return apply("exp", element(at) - largest)

    total = context.reduce(operation.result, "total", size, number(0.0), lambda p, at: p + weight(at))
    return weight(index[dim]) / total


STARTS: ir.ReductionTable[tuple[str, float]] = ir.ReductionTable(
    "reductions",
    {
        **each_of(("add", 0.0), "sum", "mean"),
        **each_of(("max", -math.inf), "max", "argmax"),
        "min": ("min", math.inf),
        "any": ("max", 0.0),
        "all": ("min", 1.0),
    },
)
"""How a reduction combines elements, and its initial value."""
LOWEST = {"max": -(1 << 31), "min": (1 << 31) - 1}
"""The initial values of integer reductions."""


def _reduce(context: Elements, operation: ir.Reduce, index: list[Index]) -> Expr:
    x, function, result = operation.x, operation.function, operation.result
    source, over = ir.tensor_type(x), sorted(operation.dims)
    if any(dimensions.symbol(source.dims[axis]) in ROWS for axis in over):
        raise UnsupportedOperationError("spec.reduce over the rows of a step would mix rows; it cannot be compiled.")
    kept = iter(index)
    at = [next(kept) if axis not in over or operation.keep else Index() for axis in range(source.rank)]
    kind = kind_of(source.dtype)
    side_by_side = over == [source.rank - 1] and kind == "number"
    combine, start = STARTS[function]
    first = number(start)
    if kind != "number":
        first = integer(LOWEST.get(combine, 0) if math.isinf(start) else int(start))

    def element(at: Sequence[Index]) -> Expr:
        found = context.element(x, at)
        return apply("to_integer", found) if kind == "truth" else found

    def along(
        axes: Sequence[int], at: list[Index], partial: Expr, label: str, take: Callable[[Expr, list[Index]], Expr]
    ) -> Expr:
        """The partial result after all elements along some axes, the last one fastest."""
        if not axes:
            return take(partial, at)
        axis, size = axes[0], source.dims[axes[0]]

        def step(partial: Expr, here: Index) -> Expr:
            return along(axes[1:], [*at[:axis], here, *at[axis + 1 :]], partial, label, take)

        return context.reduce(result, f"{label}{axis}_", size, partial, step, combine, not side_by_side)

    if function == "argmax":
        return _argmax(context, operation, at, first, element)
    total = along(over, at, first, "over", lambda partial, here: apply(combine, partial, element(here)))
    if function == "mean":
        return total / _length_of([source.dims[axis] for axis in over])
    return apply("ne", total, 0) if kind == "truth" else total


def _length_of(sizes: Sequence[ir.Dim]) -> Expr | float:
    factor, symbolic = dimensions.volume(sizes)
    total: Expr | float = float(factor)
    for each in symbolic:
        total = apply("mul", apply("to_number", count(size_of(each))), total)
    return total


def _argmax(
    context: Elements,
    operation: ir.Reduce,
    at: list[Index],
    first: Expr,
    element: Callable[[Sequence[Index]], Expr],
) -> Expr:
    """The first index of the largest element."""
    (axis,) = operation.dims
    size, result = ir.tensor_type(operation.x).dims[axis], operation.result

    def here(index: Index) -> Expr:
        return element([*at[:axis], index, *at[axis + 1 :]])

    largest = context.reduce(
        result, "largest", size, first, lambda p, k: apply("max", p, here(k)), "max", first.kind != "number"
    )

    def earliest(partial: Expr, k: Index) -> Expr:
        return apply("min", partial, where(apply("eq", here(k), largest), count(k), count(size_of(size)) - 1))

    return context.reduce(result, "first", size, count(size_of(size)) - 1, earliest, "min", True)


def _scan(context: Elements, operation: ir.Scan, index: list[Index]) -> Expr:
    """A running sum: the store that runs along the lane writes each partial result."""
    x, dim, at = operation.x, operation.dim, index[operation.dim]
    dims = ir.tensor_type(x).dims
    if dimensions.symbol(dims[dim]) in ROWS:
        raise UnsupportedOperationError("spec.scan over the rows of a step would mix rows; it cannot be compiled.")
    if len(at.terms) != 1 or at.constant or at.terms[0][1] != 1 or at.terms[0][0].made is not None:
        raise NeedsMemoryError(operation.result)
    lane = at.terms[0][0]
    zero = constant(0, kind_of(ir.tensor_type(x).dtype))
    step = Partial(lane, zero.kind) + context.element(x, index)
    return Reduce(lane, size_of(dims[dim]), zero, step, "add", "prefix", operation.result)


def _matmul(context: Elements, operation: ir.MatMul, index: list[Index]) -> Expr:
    size = ir.tensor_type(operation.a).dims[-1]

    def step(partial: Expr, k: Index) -> Expr:
        a = context.operand(operation.a, [*index[:-1], k])
        return fma(a, context.operand(operation.b, [*index[:-2], k, index[-1]]), partial)

    return context.reduce(operation.result, "k", size, number(0.0), step, serial=True)


def _linear(context: Elements, operation: ir.Linear, index: list[Index]) -> Expr:
    """A linear whose matrix is computed; one with a weight has its own nest."""
    if not context.inline_products and is_product(context.buffers, operation):
        raise NeedsMemoryError(operation.result)
    size = ir.tensor_type(operation.x).dims[-1]

    def step(partial: Expr, k: Index) -> Expr:
        return fma(
            context.element(operation.x, [*index[:-1], k]), context.element(operation.weight, [index[-1], k]), partial
        )

    total = context.reduce(operation.result, "k", size, number(0.0), step, serial=True)
    return total if operation.bias is None else total + context.element(operation.bias, [index[-1]])


def is_product(buffers: Mapping[ir.SSAValue, Buffer], operation: ir.SpecOperation) -> bool:
    """Whether an operation is a product with a weight that lies in memory as numbers."""
    if not isinstance(operation, ir.WeightProduct):
        return False
    weight = buffers.get(operation.weight)
    return weight is not None and weight.space == "weight" and weight.element != "i32"


def _state_read(context: Elements, operation: ir.StateRead, index: list[Index]) -> Expr:
    """A number of a request's record, or of a position's; zero if there is no such position."""
    places = ir.tensor_type(operation.slots).rank
    slot = context.element(operation.slots, index[:places])
    if context.states[operation.symbol].buffer.space == "request":
        return Load(*context.record(operation.symbol, slot, index[places:]))
    found = Load(*context.record(operation.symbol, apply("max", slot, 0), index[places:]))
    return where(slot < 0, 0.0, found)


def _ancestors(context: Elements, operation: ir.Ancestors, index: list[Index]) -> Expr:
    """A slot in the blocks of the row's sequence, or on the row's path."""
    (row, column), block = index, operation.block
    own = [context.element(each, [row]) for each in (operation.positions, operation.sequences, operation.bases)]
    position, sequence, base = own
    before = position + (count(column) - operation.count)
    home = apply("max", before, 0)
    table = [Index.computed(sequence), Index.computed(apply("floor_div", home, block))]
    in_block = context.element(operation.block_tables, table) * block + apply("remainder", home, block)
    on_path = context.element(operation.paths, [row, Index.computed(apply("max", before - base, 0))])
    return where(before < 0, integer(-1), where(before < base, in_block, on_path))


def _in_memory(context: Elements, operation: ir.SpecOperation, index: list[Index]) -> Expr:
    raise NeedsMemoryError(operation.results[0])


ELEMENTS: ir.OperationTable[Rule] = ir.OperationTable(
    "elements",
    {
        ir.Constant: lambda context, operation, index: constant(operation.value, kind_of(operation.dtype)),
        ir.Map: _map,
        ir.Cast: _cast,
        ir.Reshape: _reshape,
        ir.Transpose: _transpose,
        ir.Slice: _slice,
        ir.Broadcast: lambda context, operation, index: context.operand(operation.x, index),
        ir.Iota: lambda context, operation, index: count(index[0]),
        ir.Gather: _gather,
        ir.TakeAlong: _take_along,
        ir.Concat: _concat,
        ir.Rotary: _rotary,
        ir.RMSNorm: _rms_norm,
        ir.LayerNorm: _layer_norm,
        ir.Softmax: _softmax,
        ir.Reduce: _reduce,
        ir.Scan: _scan,
        ir.MatMul: _matmul,
        ir.Linear: _linear,
        ir.StateRead: _state_read,
        ir.Ancestors: _ancestors,
        **each_of(_in_memory, ir.Parameter, ir.ExpertLinear, ir.TreeAttention, ir.TreeRecurrence, ir.TopK),
        ir.Exchange: refused("passes between two parts; kernels are made of one"),
        **each_of(
            refused("runs over a whole sequence; kernels are made of steps"), ir.Attention, ir.Recurrence, ir.Window
        ),
        **each_of(refused("has no elements"), ir.StateWrite, ir.Kernel, ir.Return, ir.Yield),
        **each_of(refused("has no elements"), ir.Function, ir.Weight, ir.State),
    },
)
"""The element of each operation's result."""
Elements.RULES = ELEMENTS
