"""The element of a value at an index, as text of a Triton kernel.

Views become index arithmetic and maps become expressions, down to values in memory, products under way (`computed`) and
sums over a row (`statistic`), which are loops of their own in front. An expression stands in the outermost scope whose
lanes it needs, once. Integers of any width are int32; truth values are kept in memory as int32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from forerun import ir
from forerun.codegen.triton.functions import BY_KIND
from forerun.codegen.triton.index import Index, Lane, flat, reshaped, size_of
from forerun.errors import UnsupportedOperationError

LARGEST = (1 << 31) - 1
SUM_LANES = 128
"""Partial sums of a row: feature i goes into partial sum i mod this."""


class NeedsMemoryError(Exception):
    """A value must be in memory before it can be used like this; the planner writes it, and tries again."""

    def __init__(self, value: ir.SSAValue) -> None:
        super().__init__(value)
        self.value = value


@dataclass(frozen=True)
class Slot:
    """What an argument of a kernel is: an `input`, a `value` of the function, a `weight`, `keys` or `values` of a
    cache, or `scratch`."""

    kind: str
    key: Any


@dataclass(frozen=True)
class Stored:
    """A value in memory: row-major numbers of `element` ("f32", "bf16", "f16" or "i32")."""

    slot: Slot
    dims: tuple[ir.Dim, ...]
    dtype: str
    element: str


@dataclass(frozen=True)
class Term:
    """The name of a variable of the kernel, or a number, and the scope that it belongs to."""

    text: str
    depth: int = 0


@dataclass
class Scope:
    """Lines of one block of the kernel; `header` opens it."""

    header: str = ""
    lines: list[str] = field(default_factory=list[str])
    known: dict[Any, Term] = field(default_factory=dict[Any, Term])


def kind_of(dtype: str) -> str:
    """number, integer or truth; UnsupportedOperationError for a float that is not float32."""
    if dtype == "i1":
        return "truth"
    if dtype in ir.INTEGER_DTYPES:
        return "integer"
    if dtype == "f32":
        return "number"
    raise UnsupportedOperationError(f"the cuda target computes in float32, not {dtype}; load the model as float32.")


TRITON_TYPES = {"f32": "tl.float32", "bf16": "tl.bfloat16", "f16": "tl.float16", "i32": "tl.int32"}


class Expressions:
    """A kernel's text under construction."""

    def __init__(self, stored: dict[ir.SSAValue, Stored], constants: dict[ir.SSAValue, ir.Constant]) -> None:
        self.stored = stored
        self.constants = constants
        self.computed: dict[ir.SSAValue, Callable[[Sequence[Index]], Term]] = {}
        self.arguments: dict[Slot, str] = {}
        self.elements: dict[Slot, str] = {}
        self.scopes = [Scope()]
        self.sizes: set[str] = set()
        self._count = 0

    # --- text

    def argument(self, slot: Slot, element: str) -> str:
        """The name of the argument that points to a slot."""
        if slot not in self.arguments:
            prefix = slot.key if slot.kind == "input" else slot.kind
            number = sum(each.kind == slot.kind for each in self.arguments)
            self.arguments[slot] = prefix if slot.kind == "input" else f"{prefix}{number}"
            self.elements[slot] = element
        return self.arguments[slot]

    def line(self, text: str, depth: int | None = None) -> None:
        self.scopes[-1 if depth is None else depth].lines.append(text)

    def let(self, text: str, depth: int, hint: str = "x") -> Term:
        """A name for an expression, in the scope of its depth; the same name for the same text."""
        known = self.scopes[depth].known
        if ("let", text) not in known:
            self._count += 1
            known["let", text] = Term(f"{hint}{self._count}", depth)
            self.line(f"{hint}{self._count} = {text}", depth)
        return known["let", text]

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    @contextmanager
    def block(self, header: str, inside: int | None = None) -> Generator[int]:
        """A block below the scope of depth `inside`, by default the innermost one; gives its depth."""
        top = len(self.scopes) - 1 if inside is None else inside
        held = self.scopes[top + 1 :]
        self.scopes = [*self.scopes[: top + 1], Scope(header)]
        yield top + 1
        closed = self.scopes.pop()
        self.scopes[top].lines.append(closed.header)
        self.scopes[top].lines.extend("    " + each for each in closed.lines or ["pass"])
        self.scopes.extend(held)

    def size(self, dim: ir.Dim) -> Index:
        """A dimension's value."""
        index = size_of(dim)
        self.sizes.update(lane.text for lane in index.lanes)
        return index

    # --- memory

    def mask(self, index: Index) -> str:
        """`, mask=...` for an access at an index."""
        guards = sorted(index.guards)
        return f", mask={' & '.join(guards)}" if guards else ""

    def place(self, dims: Sequence[ir.Dim], index: Sequence[Index]) -> Index:
        for dim in dims:
            self.size(dim)
        place = flat(dims, index)
        if all(isinstance(dim, int) for dim in dims) and math.prod(int(dim) for dim in dims) > LARGEST:
            place = Index(tuple((_wider(lane, factor), factor) for lane, factor in place.terms), place.constant)
        return place

    def read(self, stored: Stored, index: Sequence[Index]) -> Term:
        """One element of a value in memory."""
        place, name = self.place(stored.dims, index), self.argument(stored.slot, stored.element)
        mask = self.mask(place)
        text = f"tl.load({name} + {place.text}{mask}{', other=0' if mask else ''})"
        if stored.element in ("bf16", "f16"):
            text += ".to(tl.float32)"
        if kind_of(stored.dtype) == "truth":
            text = f"({text} != 0)"
        return self.let(text, place.depth, stored.slot.kind[0])

    def write(self, stored: Stored, index: Sequence[Index], value: Term) -> None:
        """Store one element, in the innermost scope."""
        place, name = self.place(stored.dims, index), self.argument(stored.slot, stored.element)
        text = value.text
        if kind_of(stored.dtype) == "truth":
            text = f"tl.where({text}, 1, 0)"
        if stored.element in ("bf16", "f16"):
            text = f"{text}.to({TRITON_TYPES[stored.element]})"
        self.line(f"tl.store({name} + {place.text}, {text}{self.mask(place)})")

    # --- elements

    def element(self, value: ir.SSAValue, index: Sequence[Index]) -> Term:
        """The value's element, wherever it comes from."""
        if value in self.computed:
            return self.computed[value](index)
        if value in self.stored:
            return self.read(self.stored[value], index)
        return self.definition(value, index)

    def definition(self, value: ir.SSAValue, index: Sequence[Index]) -> Term:
        """The value's element as its operation gives it."""
        operation: Any = self.constants.get(value, value.owner)
        rule = RULES.get(type(operation))
        if rule is None:
            if isinstance(operation, ir.Linear):
                raise NeedsMemoryError(value)
            raise UnsupportedOperationError(
                f"the cuda target has no Triton template for {getattr(operation, 'name', operation)}; "
                "compile for the cpu or the reference target."
            )
        return rule(self, operation, list(index))

    def operand(self, value: ir.SSAValue, index: Sequence[Index]) -> Term:
        """An operand of numpy's broadcasting, at an index of the result."""
        dims = ir.tensor_type(value).dims
        own = list(index)[len(index) - len(dims) :]
        return self.element(value, [Index() if dim == 1 else at for dim, at in zip(dims, own, strict=True)])

    def statistic(
        self,
        key: object,
        outer: Sequence[Index],
        size: int,
        start: str,
        term: Callable[[Index, str], str],
        combine: str = "sum",
    ) -> Term:
        """A reduction over the last axis at an outer index that no wide lane takes part in, [ROWS, 1].

        `term(at, partial)` is the next partial result.
        """
        depth = max((each.depth for each in outer), default=0)
        known = self.scopes[depth].known
        name = ("statistic", key, tuple(outer), combine)
        if name in known:
            return known[name]
        lanes = min(SUM_LANES, 1 << max(0, (size - 1).bit_length()))
        partial, at = self.fresh("partial"), self.fresh("at")
        self.line(f"{partial} = tl.full([ROWS, {lanes}], {start}, tl.float32)", depth)
        with self.block(f"for {at}_start in range(0, {size}, {lanes}):", depth) as inside:
            self.line(f"{at} = {at}_start + tl.arange(0, {lanes})[None, :]")
            guards = frozenset[str]()
            if size % lanes:
                self.line(f"{at}_in = {at} < {size}")
                guards = frozenset({f"{at}_in"})
            following = term(Index.of(Lane(at, size, guards, inside, True)), partial)
            self.line(
                f"{partial} = tl.where({at}_in, {following}, {partial})" if guards else f"{partial} = {following}"
            )
        if combine == "sum":
            total = f"row_sum({partial}, ROWS, {lanes}, {lanes.bit_length() - 1})"
        else:
            total = f"tl.{combine}({partial}, axis=1, keep_dims=True)"  # exact in any order
        known[name] = self.let(total, depth, combine)
        return known[name]


def _wider(lane: Lane, factor: int) -> Lane:
    """A lane in 64 bits, unless 32 hold its part of a place."""
    if lane.size is not None and lane.size * factor <= LARGEST:
        return lane
    return Lane(f"{lane.text}.to(tl.int64)", lane.size, lane.guards, lane.depth, lane.wide)


def require_narrow(value: ir.SSAValue, outer: Sequence[Index]) -> None:
    if any(each.wide for each in outer):
        raise NeedsMemoryError(value)


def literal(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else f'float("{value}")'


def _constant(context: Expressions, operation: Any, index: list[Index]) -> Term:
    value, kind = operation.parameter("value"), kind_of(operation.parameter("dtype"))
    if kind == "number":
        return Term(literal(value))
    return Term(str(int(value))) if kind == "integer" else Term("1" if value else "0")


def _map(context: Expressions, operation: Any, index: list[Index]) -> Term:
    function = operation.parameter("function")
    dtype = ir.tensor_type(operation.operands[-1]).dtype
    functions = BY_KIND[kind_of(dtype)]
    if function not in functions:
        raise UnsupportedOperationError(f"the cuda target has no elementwise function {function} on {dtype}.")
    operands = [context.operand(each, index) for each in operation.operands]
    depth = max(each.depth for each in operands)
    return context.let(functions[function](*(each.text for each in operands)), depth, function)


def _cast(context: Expressions, operation: Any, index: list[Index]) -> Term:
    (source,) = operation.operands
    before, after = kind_of(ir.tensor_type(source).dtype), kind_of(operation.parameter("dtype"))
    value = context.element(source, index)
    if before == after:
        return value
    if before == "truth":
        one, zero = ("1", "0") if after == "integer" else ("1.0", "0.0")
        return context.let(f"tl.where({value.text}, {one}, {zero})", value.depth)
    if after == "truth":
        return context.let(f"({value.text} != 0)", value.depth)
    return context.let(f"({value.text}).to({'tl.float32' if after == 'number' else 'tl.int32'})", value.depth)


def _reshape(context: Expressions, operation: Any, index: list[Index]) -> Term:
    (source,) = operation.operands
    before, after = ir.tensor_type(source).dims, ir.tensor_type(operation.result).dims
    for dim in (*before, *after):
        context.size(dim)
    return context.element(source, reshaped(before, after, index))


def _transpose(context: Expressions, operation: Any, index: list[Index]) -> Term:
    own = [Index()] * len(index)
    for axis, source in enumerate(operation.parameter("permutation")):
        own[source] = index[axis]
    return context.element(operation.operands[0], own)


def _slice(context: Expressions, operation: Any, index: list[Index]) -> Term:
    dim = operation.parameter("dim")
    index[dim] = index[dim].times(operation.parameter("step", 1)).plus(context.size(operation.parameter("start")))
    return context.element(operation.operands[0], index)


def _broadcast(context: Expressions, operation: Any, index: list[Index]) -> Term:
    return context.operand(operation.operands[0], index)


def _iota(context: Expressions, operation: Any, index: list[Index]) -> Term:
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


def _gather(context: Expressions, operation: Any, index: list[Index]) -> Term:
    table, *indices = operation.operands
    lead = len(ir.broadcast_dims([ir.tensor_type(each).dims for each in indices]))
    dims = ir.tensor_type(table).dims
    chosen = [_lane_of(context, each, index[:lead], dims[axis]) for axis, each in enumerate(indices)]
    return context.element(table, [*chosen, *index[lead:]])


def _take_along(context: Expressions, operation: Any, index: list[Index]) -> Term:
    source, indices = operation.operands
    dim = operation.parameter("dim")
    at = _lane_of(context, indices, index, ir.tensor_type(source).dims[dim])
    return context.element(source, [*index[:dim], at, *index[dim + 1 :]])


def _concat(context: Expressions, operation: Any, index: list[Index]) -> Term:
    """One operand where the index says which; else all of them, each kept inside its own range, and a choice."""
    dim, start = operation.parameter("dim"), 0
    at, result = index[dim], None
    for operand in operation.operands:
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


def _rotary(context: Expressions, operation: Any, index: list[Index]) -> Term:
    x, cos, sin = operation.operands
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


def _rms_norm(context: Expressions, operation: Any, index: list[Index]) -> Term:
    x, *weight = operation.operands
    require_narrow(operation.result, index[:-1])
    size = int(ir.tensor_type(x).dims[-1])

    def square(at: Index, partial: str) -> str:
        element = context.element(x, [*index[:-1], at]).text
        return f"tl.fma({element}, {element}, {partial})"

    total = context.statistic(operation.result, index[:-1], size, "0.0", square)
    factor = context.let(f"1.0 / tl.sqrt({total.text} / {size} + {literal(operation.parameter('eps'))})", total.depth)
    value = context.element(x, index)
    text, depth = f"{value.text} * {factor.text}", max(value.depth, factor.depth)
    if weight:
        scale = context.element(weight[0], [index[-1]])
        text, depth = f"{text} * {scale.text}", max(depth, scale.depth)
    return context.let(f"({text})", depth, "norm")


def _layer_norm(context: Expressions, operation: Any, index: list[Index]) -> Term:
    x, *affine = operation.operands
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
    factor = context.let(f"1.0 / tl.sqrt({spread.text} / {size} + {literal(operation.parameter('eps'))})", spread.depth)
    value = context.element(x, index)
    depth = max(value.depth, factor.depth)
    result = context.let(f"(({value.text} - {mean.text}) * {factor.text})", depth, "norm")
    scale = [context.element(each, [index[-1]]) for each in affine]
    depth = max([result.depth, *(each.depth for each in scale)])
    if len(scale) == 2:
        return context.let(f"tl.fma({result.text}, {scale[0].text}, {scale[1].text})", depth, "norm")
    return context.let(f"({result.text} * {scale[0].text})", depth, "norm") if scale else result


def _softmax(context: Expressions, operation: Any, index: list[Index]) -> Term:
    (x,) = operation.operands
    dims = ir.tensor_type(x).dims
    if operation.parameter("dim") % len(dims) != len(dims) - 1:
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


def _reduce(context: Expressions, operation: Any, index: list[Index]) -> Term:
    (x,) = operation.operands
    source, function = ir.tensor_type(x), operation.parameter("function")
    last = operation.parameter("dims") == (source.rank - 1,)
    if not last or function not in ("sum", "mean", "max", "min") or kind_of(source.dtype) != "number":
        raise UnsupportedOperationError(
            f"the cuda target has no Triton template for spec.reduce {function} over {operation.parameter('dims')} of "
            f"{source}; compile for the cpu or the reference target."
        )
    outer = index[:-1] if operation.parameter("keep", False) else index
    require_narrow(operation.result, outer)
    size = int(source.dims[-1])
    start = {"max": 'float("-inf")', "min": 'float("inf")'}.get(function, "0.0")

    def term(at: Index, partial: str) -> str:
        element = context.element(x, [*outer, at]).text
        return f"tl.{function}imum({partial}, {element})" if function in ("max", "min") else f"{partial} + {element}"

    combine = function if function in ("max", "min") else "sum"
    total = context.statistic(operation.result, outer, size, start, term, combine)
    return context.let(f"{total.text} / {size}", total.depth, "mean") if function == "mean" else total


RULES: dict[type, Callable[[Expressions, Any, list[Index]], Term]] = {
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
}
"""Operations that are computed where they are used."""
