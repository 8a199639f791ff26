"""The expression of one element: constants, indices, loads, applied functions, and reductions along a lane.

    Expr = Const(value, kind)                        a number
         | Count(index)                              an index as an integer
         | Load(buffer, index, guard)                an element in memory; 0, and not read, where the guard is false
         | Apply(function, args, kind)               a function of scalars
         | Reduce(lane, init, step, combine, order)  the last of the partial results that `step` makes along a lane
         | Partial(lane, kind)                       in a step: the partial result so far

Equal expressions are one object, so that shared parts are computed once. Numbers are float32, integers of any width
int32; every operation rounds separately, and `fma` rounds once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self
from weakref import WeakValueDictionary

from forerun.codegen.loops.buffer import Buffer, Kind
from forerun.codegen.loops.index import Combined, Computed, Index, Lane, Substitution

Order = Literal["lanes", "serial", "prefix"]
"""`lanes`: partial results side by side, merged as a fixed tree; `serial`: one chain; `prefix`: one chain, every
partial result of which is an element."""

Operator = Callable[["Expr", "Expr | float"], "Expr"]


def _operator(function: str, reflected: bool = False) -> Operator:
    """Applies a function to an expression and another operand, which is the left one if `reflected`."""
    return lambda own, other: apply(function, other, own) if reflected else apply(function, own, other)


_KNOWN: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


class Expr:
    """A scalar: a number (float32), an integer (int32) or a boolean. Equal expressions are one object."""

    of: Kind
    """The kind, where it does not follow from the parts."""

    def __new__(cls, *given: Any) -> Self:
        key = (cls, *given) if given[-1:] != (None,) else (cls, *given[:-1])
        known = _KNOWN.get(key)
        return known if known is not None else _KNOWN.setdefault(key, super().__new__(cls))

    @property
    def kind(self) -> Kind:
        return self.of

    @property
    def parts(self) -> tuple[Expr, ...]:
        """Its subexpressions, except those inside indices."""
        return ()

    @property
    def indices(self) -> tuple[Index, ...]:
        return ()

    @cached_property
    def lanes(self) -> frozenset[Lane]:
        """The loop variables that it depends on, except those of its own reductions."""
        found = {lane for part in self.parts for lane in part.lanes}
        found.update(lane for index in self.indices for lane in index.variables)
        return frozenset(found - self.bound)

    @property
    def bound(self) -> frozenset[Lane]:
        return frozenset()

    def substitute(self, replaced: Substitution) -> Expr:
        """Returns the expression with loop variables replaced."""
        return _Substituted(replaced)(self)

    def rebuilt(self, parts: Sequence[Expr], indices: Sequence[Index]) -> Expr:
        """Returns the same expression on other parts and indices."""
        return self

    # Operators make formulas readable: 1.0 / (1.0 + exp(-x)).

    __add__ = _operator("add")
    __radd__ = _operator("add", reflected=True)
    __sub__ = _operator("sub")
    __rsub__ = _operator("sub", reflected=True)
    __mul__ = _operator("mul")
    __rmul__ = _operator("mul", reflected=True)
    __truediv__ = _operator("div")
    __rtruediv__ = _operator("div", reflected=True)
    __lt__ = _operator("lt")
    __gt__ = _operator("gt")


@dataclass(frozen=True, eq=False)
class Const(Expr):
    """A number, identified by its text: 0.0 and -0.0 differ."""

    text: str
    of: Kind

    @cached_property
    def value(self) -> float:
        return float(self.text) if self.of == "number" else int(self.text)


@dataclass(frozen=True, eq=False)
class Count(Expr):
    """An index as an integer."""

    index: Index

    @property
    def kind(self) -> Kind:
        return "integer"

    @property
    def indices(self) -> tuple[Index, ...]:
        return (self.index,)

    def rebuilt(self, parts: Sequence[Expr], indices: Sequence[Index]) -> Expr:
        return count(indices[0])


@dataclass(frozen=True, eq=False)
class Load(Expr):
    """An element of a buffer; if a guard does not hold it is 0, and memory is not read."""

    buffer: Buffer
    index: tuple[Index, ...]
    guard: Expr | None = None

    @property
    def kind(self) -> Kind:
        return self.buffer.kind

    @property
    def parts(self) -> tuple[Expr, ...]:
        return () if self.guard is None else (self.guard,)

    @property
    def indices(self) -> tuple[Index, ...]:
        return self.index

    def rebuilt(self, parts: Sequence[Expr], indices: Sequence[Index]) -> Expr:
        return Load(self.buffer, tuple(indices), parts[0] if parts else None)


@dataclass(frozen=True, eq=False)
class Apply(Expr):
    """A function of scalars of one kind (except the condition of `where`)."""

    function: str
    args: tuple[Expr, ...]
    of: Kind

    @property
    def parts(self) -> tuple[Expr, ...]:
        return self.args

    def rebuilt(self, parts: Sequence[Expr], indices: Sequence[Index]) -> Expr:
        return apply(self.function, *parts)


@dataclass(frozen=True, eq=False)
class Partial(Expr):
    """The partial result of the reduction along a lane."""

    lane: Lane
    of: Kind

    @cached_property
    def lanes(self) -> frozenset[Lane]:
        return frozenset({self.lane})


@dataclass(frozen=True, eq=False)
class Reduce(Expr):
    """A reduction: `step` for each value of the lane, starting at `init`; `combine` merges partial results of `lanes`.

    `origin` is the IR value that it is part of, which is written to memory if it cannot be computed in place.
    """

    lane: Lane
    extent: Index
    init: Expr
    step: Expr
    combine: str
    order: Order
    origin: Any

    @property
    def kind(self) -> Kind:
        return self.init.kind

    @property
    def parts(self) -> tuple[Expr, ...]:
        return (self.init, self.step)

    @property
    def indices(self) -> tuple[Index, ...]:
        return (self.extent,)

    @property
    def bound(self) -> frozenset[Lane]:
        return frozenset({self.lane})

    def rebuilt(self, parts: Sequence[Expr], indices: Sequence[Index]) -> Expr:
        return Reduce(self.lane, indices[0], parts[0], parts[1], self.combine, self.order, self.origin)


class _Substituted:
    """Replaces loop variables, each shared part once."""

    def __init__(self, replaced: Substitution) -> None:
        self.replaced = replaced
        self.done: dict[Expr, Expr] = {}

    def __call__(self, expr: Expr) -> Expr:
        if not expr.lanes:
            return expr
        if expr not in self.done:
            parts = [self(each) for each in expr.parts]
            indices = [each.substitute(self.replaced) for each in expr.indices]
            self.done[expr] = expr.rebuilt(parts, indices)
        return self.done[expr]


def number(value: float) -> Const:
    return Const(repr(float(value)), "number")


def integer(value: int) -> Const:
    return Const(str(int(value)), "integer")


def truth(value: bool) -> Const:
    return Const(str(int(value)), "truth")


def constant(value: float, kind: Kind) -> Const:
    """Returns a constant of a kind."""
    return number(value) if kind == "number" else integer(int(value)) if kind == "integer" else truth(bool(value))


def count(index: Index) -> Expr:
    """An index as an integer."""
    return integer(index.constant) if index.known is not None else Count(index)


TRUTHS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "to_truth"})
KINDS: dict[str, Kind] = {"to_number": "number", "to_integer": "integer"}


def apply(function: str, *args: Expr | float) -> Expr:
    """Applies a function to expressions; plain numbers take the kind of the other operands."""
    kind: Kind = "number"
    for each in args:
        kind = each.kind if isinstance(each, Expr) else kind
    given = tuple(each if isinstance(each, Expr) else constant(each, kind) for each in args)
    if function == "where" and isinstance(given[0], Const):
        return given[1] if given[0].value else given[2]
    if function in ("lt", "ge") and (decided := _below(*given)) is not None:
        return truth(decided == (function == "lt"))
    result: Kind = "truth" if function in TRUTHS else KINDS.get(function, kind)
    return Apply(function, given, result)


def _below(x: Expr, y: Expr) -> bool | None:
    """Whether a count is below an integer, if that is known at compile time."""
    if not isinstance(x, Count) or not isinstance(y, Const):
        return None
    if x.index.most is not None and x.index.most < y.value:
        return True
    return False if x.index.least is not None and x.index.least >= y.value else None


def fma(x: Expr | float, y: Expr | float, z: Expr | float) -> Expr:
    """x * y + z, rounded once."""
    return apply("fma", x, y, z)


def where(condition: Expr, x: Expr | float, y: Expr | float) -> Expr:
    if not isinstance(x, Expr) and not isinstance(y, Expr):
        x = number(x)
    return apply("where", condition, x, y)


def walk(expr: Expr) -> Iterator[Expr]:
    """Yields every part of an expression once, itself included, parts first; also those inside indices."""
    seen: set[Expr] = set()

    def visit(each: Expr) -> Iterator[Expr]:
        if each in seen:
            return
        seen.add(each)
        for part in (*each.parts, *inside(each)):
            yield from visit(part)
        yield each

    yield from visit(expr)


def count_uses(root: Expr, uses: dict[Expr, int]) -> None:
    """Counts how often each part of an expression is used by others, itself once, unless it is already counted."""
    if root in uses:
        return
    uses[root] = 1
    pending = [root]
    while pending:
        for part in pending.pop().parts:
            if part not in uses:
                pending.append(part)
            uses[part] = uses.get(part, 0) + 1


def inside(expr: Expr) -> list[Expr]:
    """Returns the expressions that an expression's indices are computed from."""
    return [found for index in expr.indices for lane in index.lanes for found in computed(lane)]


def computed(lane: Lane) -> list[Expr]:
    """Returns the expressions that a lane is computed from."""
    match lane.made:
        case Computed(expr):
            return [expr]
        case Combined(_, index, other):
            return [each for part in (index, other) for inner in part.lanes for each in computed(inner)]
        case _:
            return []


def reductions(expr: Expr) -> list[Reduce]:
    """Returns the reductions of an expression, inner ones first."""
    return [each for each in walk(expr) if isinstance(each, Reduce)]


def loads(expr: Expr) -> list[Load]:
    return [each for each in walk(expr) if isinstance(each, Load)]
