"""The element of a value at an index, as text of a Triton kernel.

Views become index arithmetic and maps become expressions, down to values in memory, products under way (`computed`) and
sums over a row (`statistic`), which are loops of their own in front. An expression stands in the outermost scope whose
lanes it needs, once. Integers of any width are int32; truth values are kept in memory as int32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

from forerun import ir
from forerun.codegen.triton.index import Index, Lane, flat, size_of
from forerun.codegen.triton.memory import SIZE_PLACES
from forerun.errors import UnsupportedOperationError

LARGEST = (1 << 31) - 1
LARGE = 1 << 40
"""Blocks of a state, or requests: more than 32 bits count, so that places are computed in 64."""
SUM_LANES = 128
"""Partial sums of a row: feature i goes into partial sum i mod this."""


class NeedsMemoryError(Exception):
    """A value must be in memory before it can be used like this; the planner writes it, and tries again."""

    def __init__(self, value: ir.SSAValue) -> None:
        super().__init__(value)
        self.value = value


@dataclass(frozen=True)
class Slot:
    """What an argument of a kernel is: an `input` that a step has, what is `given` to another entry, a `value` of
    the function, a `weight`, a `state`'s records, or `scratch`."""

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


Rule = Callable[["Expressions", Any, list[Index]], Term]


class Expressions:
    """A kernel's text under construction."""

    RULES: ClassVar[ir.OperationTable[Rule]]
    """The element of each operation's result; `rules` has them."""

    def __init__(
        self,
        stored: dict[ir.SSAValue, Stored],
        constants: dict[ir.SSAValue, ir.Constant],
        places: Mapping[str, int] = SIZE_PLACES,
    ) -> None:
        """`places`: where the sizes of dimensions stand in front of the inputs."""
        self.stored = stored
        self.constants = constants
        self.places = places
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
        operation = self.constants.get(value, value.owner)
        assert isinstance(operation, ir.SpecOperation)
        return self.RULES.of(operation)(self, operation, list(index))

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

    def serial(
        self, key: object, outer: Sequence[Index], size: Index, start: str, term: Callable[[Index, str], str]
    ) -> Term:
        """A reduction of `size` elements at an outer index, one after another in order, in each lane by itself."""
        depth = max((each.depth for each in outer), default=0)
        known = self.scopes[depth].known
        name = ("serial", key, tuple(outer))
        if name in known:
            return known[name]
        partial, at = self.fresh("partial"), self.fresh("at")
        lanes = " + ".join(lane.text for each in outer for lane in each.lanes)
        zeros = f"(({lanes}) * 0).to(tl.float32) + " if lanes else ""
        self.sizes.update(lane.text for lane in size.lanes)
        self.line(f"{partial} = {zeros}tl.full([1, 1], {start}, tl.float32)", depth)
        with self.block(f"for {at} in range(0, {size.text}):", depth) as inside:
            most = size.constant if not size.terms else None
            following = term(Index.of(Lane(at, most, frozenset(), inside)), partial)
            self.line(f"{partial} = {following}")
        known[name] = Term(partial, depth)
        return known[name]


def slot_text(slot: Term) -> str:
    """A slot as a value of the kernel; a constant is a number of the text, which has no type to widen."""
    return f"tl.full([1, 1], {slot.text}, tl.int32)" if slot.text.isdigit() else slot.text


def _wider(lane: Lane, factor: int) -> Lane:
    """A lane in 64 bits, unless 32 hold its part of a place."""
    if lane.size is not None and lane.size * factor <= LARGEST:
        return lane
    return Lane(f"{lane.text}.to(tl.int64)", lane.size, lane.guards, lane.depth, lane.wide)
