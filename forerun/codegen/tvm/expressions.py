"""The element of a value at an index, as an expression.

Views (reshape, transpose, slice, broadcast, ...) become index arithmetic and elementwise maps become expressions, down
to values that lie in memory. Integers of any width are computed as int32 (`integers` refuses what does not fit); truth
values are kept in memory as int32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.tvm.builder import Buffer, Expr, Frame, fma, integer, let, multiply, number, store, truncated
from forerun.codegen.tvm.formats import WeightFormat
from forerun.codegen.tvm.functions import INTEGERS, NUMBERS, TRUTHS, bit
from forerun.codegen.tvm.target import OUTPUTS
from forerun.codegen.tvm.untyped import tirx
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused

Index = Expr | int


@dataclass(frozen=True)
class Stored:
    """A value in memory from the offset in a slot on: row-major, or a matrix in the format of a linear's weight."""

    region: str
    slot: int
    dims: tuple[ir.Dim, ...]
    dtype: str
    format: WeightFormat | None = None


def kind_of(dtype: str) -> str:
    """number, integer or truth; UnsupportedOperationError for a float that is not float32."""
    if dtype == "i1":
        return "truth"
    if dtype in ir.INTEGER_DTYPES:
        return "integer"
    if dtype == "f32":
        return "number"
    raise UnsupportedOperationError(f"the cpu target computes in float32, not {dtype}; load the model as float32.")


def region_of(dtype: str) -> str:
    """The arena view a value of that dtype is kept in."""
    return "numbers" if kind_of(dtype) == "number" else "indices"


class Expressions:
    """Elements of values within one kernel function."""

    def __init__(
        self, frame: Frame, stored: dict[ir.SSAValue, Stored], records: Mapping[str, Any] | None = None
    ) -> None:
        self.frame = frame
        self.stored = stored
        self.records = records or {}
        self.computed: dict[ir.SSAValue, Callable[[Sequence[Index]], Expr]] = {}
        self._windows: dict[tuple[str, int], Buffer] = {}

    def window(self, stored: Stored) -> Buffer:
        return self._windows[(stored.region, stored.slot)]

    def open_windows(self, more: Sequence[Stored] = ()) -> None:
        """Name the memory of every stored value; before any loop, so that each use is inside the names' scope."""
        for stored in [*self.stored.values(), *more]:
            key = (stored.region, stored.slot)
            if key not in self._windows:
                self._windows[key] = self.frame.window(stored.region, self.frame.slot(stored.slot))

    def size(self, dim: ir.Dim) -> Index:
        """A dimension's value."""
        parts = dimensions.affine(dim)
        if not parts.symbol:
            return parts.offset
        return self.frame.simplify(self.frame.size(parts.symbol) * parts.scale + parts.offset)

    def flat(self, dims: Sequence[ir.Dim], index: Sequence[Index]) -> Index:
        """The row-major place of an index; axes of size 1 do not count."""
        place: Index = 0
        for dim, at in zip(dims, index, strict=True):
            place = place * self.size(dim) + (0 if dim == 1 else at)
        return self.frame.simplify(place)

    def unflat(self, dims: Sequence[ir.Dim], place: Index) -> list[Index]:
        """The index of a row-major place."""
        index: list[Index] = []
        for axis in range(len(dims) - 1, -1, -1):
            size = self.size(dims[axis])
            if dims[axis] == 1:
                index.append(0)
            elif all(dim == 1 for dim in dims[:axis]):
                index.append(place)
                place = 0
            else:
                index.append(self.frame.simplify(_floormod(place, size)))
                place = self.frame.simplify(_floordiv(place, size))
        return index[::-1]

    def place(self, stored: Stored, index: Sequence[Index]) -> Index:
        """Returns the index of an element in the window of a stored value."""
        return truncated(self.flat(stored.dims, index))

    def read(self, stored: Stored, index: Sequence[Index]) -> Expr:
        """One element as it lies in memory, or as its format gives it."""
        window = self.window(stored)
        if stored.format is None:
            return window[self.place(stored, index)]
        features = self.size(stored.dims[1])
        assert isinstance(features, int)
        output, feature = (_expression(each) for each in index)
        block, lane = tirx.floordiv(output, integer(OUTPUTS)), tirx.floormod(output, integer(OUTPUTS))
        block, lane, feature = (_expression(truncated(self.frame.simplify(each))) for each in (block, lane, feature))
        return stored.format.element(lambda place: window[place], features, block, lane, feature)

    def write(self, stored: Stored, index: Sequence[Index], value: Expr) -> None:
        """Store one element."""
        if kind_of(stored.dtype) == "truth":
            value = tirx.Select(value, integer(1), integer(0))
        store(self.window(stored), value, self.place(stored, index), 1)

    def element(self, value: ir.SSAValue, index: Sequence[Index]) -> Expr:
        """The value's element as float32, int32 or bool."""
        if value in self.computed:
            return self.computed[value](index)
        if value in self.stored:
            stored = self.stored[value]
            at = self.read(stored, index)
            return tirx.NE(at, integer(0)) if kind_of(stored.dtype) == "truth" else at
        return self.definition(value, index)

    def definition(self, value: ir.SSAValue, index: Sequence[Index]) -> Expr:
        """The value's element as its operation gives it, wherever the value is kept."""
        operation = value.owner
        assert isinstance(operation, ir.SpecOperation)
        return ELEMENTS.of(operation)(self, operation, list(index))

    def operand(self, value: ir.SSAValue, index: Sequence[Index]) -> Expr:
        """An operand of numpy's broadcasting, at an index of the result."""
        dims = ir.tensor_type(value).dims
        own = list(index)[len(index) - len(dims) :]
        return self.element(value, [0 if dim == 1 else at for dim, at in zip(dims, own, strict=True)])


def _floordiv(x: Index, y: Index) -> Index:
    return x // y if isinstance(x, int) and isinstance(y, int) else tirx.floordiv(_expression(x), _expression(y))


def _floormod(x: Index, y: Index) -> Index:
    return x % y if isinstance(x, int) and isinstance(y, int) else tirx.floormod(_expression(x), _expression(y))


def _expression(x: Index) -> Expr:
    return integer(x) if isinstance(x, int) else x


def _constant(context: Expressions, operation: ir.Constant, index: list[Index]) -> Expr:
    value, kind = operation.value, kind_of(operation.dtype)
    if kind == "number":
        return number(float(value))
    if kind == "truth":
        return tirx.IntImm("bool", int(bool(value)))
    return integer(int(value))


def _map(context: Expressions, operation: ir.Map, index: list[Index]) -> Expr:
    operands = [context.operand(each, index) for each in operation.inputs]
    functions = FUNCTIONS_OF[kind_of(ir.tensor_type(operation.inputs[-1]).dtype)]
    return functions[operation.function](*operands)


FUNCTIONS_OF = {"number": NUMBERS, "integer": INTEGERS, "truth": TRUTHS}


def convert(value: Expr, source: str, target: str) -> Expr:
    """A cast between the dialect's dtypes."""
    before, after = kind_of(source), kind_of(target)
    if before == after:
        return value
    if before == "truth":
        return bit(value) if after == "integer" else tirx.Select(value, number(1.0), number(0.0))
    if after == "truth":
        return tirx.NE(value, number(0.0) if before == "number" else integer(0))
    return value.astype("float32" if after == "number" else "int32")


def _cast(context: Expressions, operation: ir.Cast, index: list[Index]) -> Expr:
    return convert(context.element(operation.x, index), ir.tensor_type(operation.x).dtype, operation.dtype)


def _reshape(context: Expressions, operation: ir.Reshape, index: list[Index]) -> Expr:
    before, after = ir.tensor_type(operation.x).dims, ir.tensor_type(operation.result).dims
    return context.element(operation.x, reshape_index(context, before, after, index))


def reshape_index(
    context: Expressions, before: Sequence[ir.Dim], after: Sequence[ir.Dim], index: Sequence[Index]
) -> list[Index]:
    """The index before a reshape of an index after it, through the smallest groups of axes of one volume."""
    result: list[Index] = []
    for left, right in dimensions.groups(before, after):
        if tuple(before[left]) == tuple(after[right]):
            result.extend(index[right])
        else:
            result.extend(context.unflat(before[left], context.flat(after[right], index[right])))
    return result


def _transpose(context: Expressions, operation: ir.Transpose, index: list[Index]) -> Expr:
    own: list[Index] = [0] * len(index)
    for axis, source in enumerate(operation.permutation):
        own[source] = index[axis]
    return context.element(operation.x, own)


def _slice(context: Expressions, operation: ir.Slice, index: list[Index]) -> Expr:
    dim, start = operation.dim, context.size(operation.start)
    index[dim] = context.frame.simplify(index[dim] * operation.step + start)
    return context.element(operation.x, index)


def _broadcast(context: Expressions, operation: ir.Broadcast, index: list[Index]) -> Expr:
    return context.operand(operation.x, index)


def _iota(context: Expressions, operation: ir.Iota, index: list[Index]) -> Expr:
    return _expression(truncated(index[0]))


def _inside(at: Expr, size: Index, wraps: bool = True) -> Expr:
    """An index within an axis: a negative one counts from the end, and what lies outside then is moved to the rim.

    The inputs of a step need not wrap, for none is negative.
    """
    size = _expression(size)
    if wraps:
        at = let(at)
        at = tirx.Select(at < integer(0), at + size, at)
    return let(tirx.max(tirx.min(at, size - integer(1)), integer(0)))


def _gather(context: Expressions, operation: ir.Gather, index: list[Index]) -> Expr:
    lead = len(ir.broadcast_dims([ir.tensor_type(each).dims for each in operation.indices]))
    dims = ir.tensor_type(operation.table).dims
    chosen: list[Index] = []
    for axis, each in enumerate(operation.indices):
        counted = each in context.stored and context.stored[each].region == "inputs"
        chosen.append(_inside(context.operand(each, index[:lead]), context.size(dims[axis]), wraps=not counted))
    return context.element(operation.table, [*chosen, *index[lead:]])


def _take_along(context: Expressions, operation: ir.TakeAlong, index: list[Index]) -> Expr:
    dim = operation.dim
    at = _inside(context.element(operation.index, index), context.size(ir.tensor_type(operation.x).dims[dim]))
    return context.element(operation.x, [*index[:dim], at, *index[dim + 1 :]])


def _rotary(context: Expressions, operation: ir.Rotary, index: list[Index]) -> Expr:
    x = operation.x
    size = ir.tensor_type(x).dims[-1]
    assert isinstance(size, int)
    half, at = size // 2, _expression(index[-1])
    other = context.element(x, [*index[:-1], context.frame.simplify(tirx.floormod(at + half, integer(size)))])
    below = context.frame.simplify(at < integer(half))
    turned = tirx.Select(below, multiply(other, number(-1.0)), other)
    straight = multiply(context.element(x, index), context.operand(operation.cos, index))
    return fma(turned, context.operand(operation.sin, index), straight)


def _state_read(context: Expressions, operation: ir.StateRead, index: list[Index]) -> Expr:
    """A number of a request's record."""
    records = context.records[operation.symbol]
    slot = let(context.element(operation.slots, index[:1]))
    at = records.place([_expression(each) for each in index[1:]], integer(0)).astype("int64")
    return context.frame.memories[records.form.region][records.origin(context, slot) + at]


IN_MEMORY = refused("has no elements in the cpu target: its result is written to memory first")

ELEMENTS: ir.OperationTable[Callable[[Expressions, Any, list[Index]], Expr]] = ir.OperationTable(
    "elements of the cpu target",
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
        ir.Rotary: _rotary,
        ir.StateRead: _state_read,
        ir.Parameter: refused("has no elements in the cpu target: a weight lies in memory"),
        **each_of(IN_MEMORY, ir.AlongAxes, ir.MatMul, ir.Linear, ir.TreeAttention, ir.Recurrence, ir.Kernel),
        ir.Attention: refused("attends over a whole sequence; the cpu target only compiles steps"),
        **each_of(refused("has no elements"), ir.StateWrite, ir.Return, ir.Yield, ir.Function, ir.Weight, ir.State),
    },
)

INLINE = frozenset(ELEMENTS) | {ir.Parameter}
"""Operations that need no memory of their own."""
