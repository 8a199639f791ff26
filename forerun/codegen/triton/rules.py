"""The element of each operation's result, for operations that are computed where they are used.

A norm, a softmax or a sum over the last axis needs its row first: `Expressions.statistic` writes that loop in front, if
no lane of a tile takes part in the row's index; else the value must be in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.regions import ROWS
from forerun.codegen.triton.expressions import LARGE, Expressions, NeedsMemoryError, Rule, Slot, Stored, Term, kind_of
from forerun.codegen.triton.functions import BY_KIND
from forerun.codegen.triton.index import Index, Lane, reshaped
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused


def require_narrow(value: ir.SSAValue, outer: Sequence[Index]) -> None:
    if any(each.wide for each in outer):
        raise NeedsMemoryError(value)


def literal(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else f'float("{value}")'


def _constant(context: Expressions, operation: ir.Constant, index: list[Index]) -> Term:
    value, kind = operation.value, kind_of(operation.dtype)
    if kind == "number":
        return Term(literal(value))
    return Term(str(int(value))) if kind == "integer" else Term("1" if value else "0")


def _map(context: Expressions, operation: ir.Map, index: list[Index]) -> Term:
    function = operation.function
    meaning = BY_KIND[kind_of(ir.tensor_type(operation.inputs[-1]).dtype)][function]
    operands = [context.operand(each, index) for each in operation.inputs]
    depth = max(each.depth for each in operands)
    return context.let(meaning(*(each.text for each in operands)), depth, function)


def _cast(context: Expressions, operation: ir.Cast, index: list[Index]) -> Term:
    before, after = kind_of(ir.tensor_type(operation.x).dtype), kind_of(operation.dtype)
    value = context.element(operation.x, index)
    if before == after:
        return value
    if before == "truth":
        one, zero = ("1", "0") if after == "integer" else ("1.0", "0.0")
        return context.let(f"tl.where({value.text}, {one}, {zero})", value.depth)
    if after == "truth":
        return context.let(f"({value.text} != 0)", value.depth)
    return context.let(f"({value.text}).to({'tl.float32' if after == 'number' else 'tl.int32'})", value.depth)


def _reshape(context: Expressions, operation: ir.Reshape, index: list[Index]) -> Term:
    before, after = ir.tensor_type(operation.x).dims, ir.tensor_type(operation.result).dims
    for dim in (*before, *after):
        context.size(dim)
    return context.element(operation.x, reshaped(before, after, index))


def _transpose(context: Expressions, operation: ir.Transpose, index: list[Index]) -> Term:
    own = [Index()] * len(index)
    for axis, source in enumerate(operation.permutation):
        own[source] = index[axis]
    return context.element(operation.x, own)


def _slice(context: Expressions, operation: ir.Slice, index: list[Index]) -> Term:
    dim = operation.dim
    index[dim] = index[dim].times(operation.step).plus(context.size(operation.start))
    return context.element(operation.x, index)


def _broadcast(context: Expressions, operation: ir.Broadcast, index: list[Index]) -> Term:
    return context.operand(operation.x, index)


def _iota(context: Expressions, operation: ir.Iota, index: list[Index]) -> Term:
    return Term(index[0].text, index[0].depth)


def _lane_of(context: Expressions, value: ir.SSAValue, index: Sequence[Index], size: ir.Dim) -> Index:
    """An integer value as an index of an axis."""
    at = context.operand(value, index)
    counted = value in context.stored and context.stored[value].slot.kind == "input"
    if not counted:
        at = context.let(f"within({at.text}, {context.size(size).text})", at.depth, "at")
    guards = frozenset(guard for each in index for guard in each.guards)
    wide = any(each.wide for each in index)
    return Index.of(Lane(at.text, size if isinstance(size, int) else None, guards, at.depth, wide))


def _gather(context: Expressions, operation: ir.Gather, index: list[Index]) -> Term:
    table, indices = operation.table, operation.indices
    lead = len(ir.broadcast_dims([ir.tensor_type(each).dims for each in indices]))
    dims = ir.tensor_type(table).dims
    chosen = [_lane_of(context, each, index[:lead], dims[axis]) for axis, each in enumerate(indices)]
    return context.element(table, [*chosen, *index[lead:]])


def _take_along(context: Expressions, operation: ir.TakeAlong, index: list[Index]) -> Term:
    dim = operation.dim
    at = _lane_of(context, operation.index, index, ir.tensor_type(operation.x).dims[dim])
    return context.element(operation.x, [*index[:dim], at, *index[dim + 1 :]])


def _concat(context: Expressions, operation: ir.Concat, index: list[Index]) -> Term:
    """One operand where the index says which; else all of them, each kept inside its own range, and a choice."""
    dim, start = operation.dim, 0
    at, result = index[dim], None
    for operand in operation.inputs:
        size = ir.tensor_type(operand).dims[dim]
        if not isinstance(size, int):
            raise UnsupportedOperationError("the cuda target has no Triton template for spec.concat along the rows.")
        least, most = at.least, at.most
        if least is not None and most is not None and start <= least and most < start + size:
            return context.element(operand, [*index[:dim], at.plus(-start), *index[dim + 1 :]])
        text = f"tl.minimum(tl.maximum({at.plus(-start).text}, 0), {size - 1})"
        own = Index.of(Lane(f"({text})", size, at.guards, at.depth, at.wide))
        part = context.element(operand, [*index[:dim], own, *index[dim + 1 :]])
        depth = max(part.depth, at.depth, 0 if result is None else result.depth)
        result = (
            part
            if result is None
            else context.let(f"tl.where({at.text} < {start}, {result.text}, {part.text})", depth, "concat")
        )
        start += size
    assert result is not None
    return result


def _rotary(context: Expressions, operation: ir.Rotary, index: list[Index]) -> Term:
    x, cos, sin = operation.x, operation.cos, operation.sin
    size = ir.tensor_type(x).dims[-1]
    assert isinstance(size, int)
    half, at = size // 2, index[-1]
    other = context.element(x, [*index[:-1], at.plus(half).divided(size)[1]])
    here, c, s = context.element(x, index), context.operand(cos, index), context.operand(sin, index)
    depth = max(other.depth, here.depth, c.depth, s.depth, at.depth)
    if at.most is not None and at.most < half:
        turned = f"({other.text} * -1.0)"
    elif at.least is not None and at.least >= half:
        turned = other.text
    else:
        turned = f"tl.where({at.text} < {half}, {other.text} * -1.0, {other.text})"
    return context.let(f"tl.fma({turned}, {s.text}, {here.text} * {c.text})", depth, "rotary")


def _rms_norm(context: Expressions, operation: ir.RMSNorm, index: list[Index]) -> Term:
    x, weight = operation.x, operation.weight
    require_narrow(operation.result, index[:-1])
    size = int(ir.tensor_type(x).dims[-1])

    def square(at: Index, partial: str) -> str:
        element = context.element(x, [*index[:-1], at]).text
        return f"tl.fma({element}, {element}, {partial})"

    total = context.statistic(operation.result, index[:-1], size, "0.0", square)
    factor = context.let(f"1.0 / tl.sqrt({total.text} / {size} + {literal(operation.eps)})", total.depth)
    value = context.element(x, index)
    text, depth = f"{value.text} * {factor.text}", max(value.depth, factor.depth)
    if weight is not None:
        scale = context.element(weight, [index[-1]])
        text, depth = f"{text} * {scale.text}", max(depth, scale.depth)
    return context.let(f"({text})", depth, "norm")


def _layer_norm(context: Expressions, operation: ir.LayerNorm, index: list[Index]) -> Term:
    x = operation.x
    require_narrow(operation.result, index[:-1])
    size = int(ir.tensor_type(x).dims[-1])

    def element(at: Index) -> str:
        return context.element(x, [*index[:-1], at]).text

    total = context.statistic(
        (operation.result, "mean"), index[:-1], size, "0.0", lambda at, partial: f"{partial} + {element(at)}"
    )
    mean = context.let(f"{total.text} / {size}", total.depth, "mean")

    def square(at: Index, partial: str) -> str:
        centred = context.let(f"({element(at)} - {mean.text})", at.depth)
        return f"tl.fma({centred.text}, {centred.text}, {partial})"

    spread = context.statistic(operation.result, index[:-1], size, "0.0", square)
    factor = context.let(f"1.0 / tl.sqrt({spread.text} / {size} + {literal(operation.eps)})", spread.depth)
    value = context.element(x, index)
    depth = max(value.depth, factor.depth)
    result = context.let(f"(({value.text} - {mean.text}) * {factor.text})", depth, "norm")
    affine = [each for each in (operation.weight, operation.bias) if each is not None]
    scale = [context.element(each, [index[-1]]) for each in affine]
    depth = max([result.depth, *(each.depth for each in scale)])
    if len(scale) == 2:
        return context.let(f"tl.fma({result.text}, {scale[0].text}, {scale[1].text})", depth, "norm")
    return context.let(f"({result.text} * {scale[0].text})", depth, "norm") if scale else result


def _softmax(context: Expressions, operation: ir.Softmax, index: list[Index]) -> Term:
    x = operation.x
    dims = ir.tensor_type(x).dims
    if operation.dim != len(dims) - 1:
        raise UnsupportedOperationError("the cuda target has no Triton template for spec.softmax along an inner axis.")
    require_narrow(operation.result, index[:-1])
    size, outer = int(dims[-1]), index[:-1]

    def larger(at: Index, partial: str) -> str:
        return f"tl.maximum({partial}, {context.element(x, [*outer, at]).text})"

    largest = context.statistic(operation.result, outer, size, 'float("-inf")', larger, "max")

    def weight(at: Index) -> str:
        element = context.element(x, [*outer, at])
        return f"tl.exp({element.text} - {largest.text})"

    total = context.statistic(
        (operation.result, "total"), outer, size, "0.0", lambda at, partial: f"{partial} + {weight(at)}"
    )
    return context.let(f"({weight(index[-1])} / {total.text})", max(index[-1].depth, total.depth), "softmax")


def _reduce(context: Expressions, operation: ir.Reduce, index: list[Index]) -> Term:
    x, function = operation.x, operation.function
    source = ir.tensor_type(x)
    start = STARTS[function]
    rows = any(dimensions.symbol(source.dims[dim]) in ROWS for dim in operation.dims)
    if len(operation.dims) == 1 and kind_of(source.dtype) == "number" and not rows and not _in_lanes(operation):
        return _reduce_inner(context, operation, index)
    if operation.dims != (source.rank - 1,) or kind_of(source.dtype) != "number":
        raise UnsupportedOperationError(
            f"the cuda target has no Triton template for spec.reduce {function} over {operation.dims} of "
            f"{source}; compile for the cpu or the reference target."
        )
    outer = index[:-1] if operation.keep else index
    require_narrow(operation.result, outer)
    size = int(source.dims[-1])

    def term(at: Index, partial: str) -> str:
        element = context.element(x, [*outer, at]).text
        return f"tl.{function}imum({partial}, {element})" if function in ("max", "min") else f"{partial} + {element}"

    combine = function if function in ("max", "min") else "sum"
    total = context.statistic(operation.result, outer, size, start, term, combine)
    return context.let(f"{total.text} / {size}", total.depth, "mean") if function == "mean" else total


def _in_lanes(operation: ir.Reduce) -> bool:
    """Whether a reduction goes over the last axis, whose size is known: it has partial results side by side."""
    dims = ir.tensor_type(operation.x).dims
    return operation.dims == (len(dims) - 1,) and isinstance(dims[-1], int)


def _reduce_inner(context: Expressions, operation: ir.Reduce, index: list[Index]) -> Term:
    """A reduction over one axis that is not the last, or whose size a call decides: element after element."""
    x, function, (dim,) = operation.x, operation.function, operation.dims
    source = ir.tensor_type(x)
    outer = [*index[:dim], *index[dim + 1 :]] if operation.keep else index
    depth = max((each.depth for each in outer), default=0)
    total, at = context.fresh("total"), context.fresh("at")
    size = context.size(source.dims[dim]).text
    lanes = "BLOCK" if any(each.wide for each in outer) else "1"
    context.line(f"{total} = tl.full([ROWS, {lanes}], {STARTS[function]}, tl.float32)", depth)
    with context.block(f"for {at} in range(0, {size}):", depth) as inside:
        own = source.dims[dim]
        along = Index.of(Lane(at, own if isinstance(own, int) else None, frozenset(), inside))
        element = context.element(x, [*outer[:dim], along, *outer[dim:]]).text
        combined = f"tl.{function}imum({total}, {element})" if function in ("max", "min") else f"{total} + {element}"
        context.line(f"{total} = {combined}")
    return context.let(f"{total} / {size}", depth, "mean") if function == "mean" else Term(total, depth)


def _state_read(context: Expressions, operation: ir.StateRead, index: list[Index]) -> Term:
    """A number of a request's record."""
    slot = context.element(operation.slots, index[:1])
    lane = Lane(slot.text, None, index[0].guards, slot.depth, index[0].wide)
    place = Stored(Slot("state", operation.symbol), (LARGE, *operation.shape), "f32", "f32")
    return context.read(place, [Index.of(lane), *index[1:]])


def _linear(context: Expressions, operation: ir.Linear, index: list[Index]) -> Term:
    """A product is computed by a launch of its own."""
    raise NeedsMemoryError(operation.result)


NO_TEMPLATE = refused("the cuda target has no Triton template for {name}; compile for the cpu or the reference target")

NO_REDUCTION = refused(
    "the cuda target has no Triton template for spec.reduce {name}; compile for the cpu or the reference target"
)

STARTS: ir.ReductionTable[str] = ir.ReductionTable(
    "reductions of the cuda target",
    {
        **each_of("0.0", "sum", "mean"),
        "max": 'float("-inf")',
        "min": 'float("inf")',
        **each_of(NO_REDUCTION, "any", "all", "argmax"),
    },
)
"""What a sum over the last axis begins with."""

RULES: ir.OperationTable[Rule] = ir.OperationTable(
    "elements of the cuda target",
    {
        ir.Constant: _constant,
        ir.Map: _map,
        ir.Cast: _cast,
        ir.Reshape: _reshape,
        ir.Transpose: _transpose,
        ir.Slice: _slice,
        ir.Broadcast: _broadcast,
        ir.Iota: _iota,
        ir.Gather: _gather,
        ir.TakeAlong: _take_along,
        ir.Concat: _concat,
        ir.Rotary: _rotary,
        ir.RMSNorm: _rms_norm,
        ir.LayerNorm: _layer_norm,
        ir.Softmax: _softmax,
        ir.Reduce: _reduce,
        ir.Linear: _linear,
        ir.StateRead: _state_read,
        **each_of(NO_TEMPLATE, ir.Scan, ir.MatMul, ir.Attention),
        **each_of(refused("has a launch of its own in the cuda target"), ir.TreeAttention, ir.TopK, ir.StateWrite),
        ir.Recurrence: refused("has a launch of its own in the cuda target"),
        ir.Parameter: refused("lies in memory in the cuda target"),
        **each_of(refused("has no elements"), ir.Kernel, ir.Return, ir.Yield, ir.Function, ir.Weight, ir.State),
    },
)
Expressions.RULES = RULES
