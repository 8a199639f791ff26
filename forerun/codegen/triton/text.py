"""Expressions as the text of a Triton kernel.

An expression is computed once, in the outermost scope that has its lanes. A lane has its text, the depth of its scope,
the guards that must hold to use it, and whether it runs along the last axis of a tile (`wide`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.decompose import FORMULAS
from forerun.codegen.loops.expr import Apply, Const, Count, Expr, Load, Partial, Reduce
from forerun.codegen.loops.index import Combined, Computed, Index, Lane, NamedSize, flat
from forerun.codegen.loops.nest import Store, invariants
from forerun.codegen.triton.functions import LEAVES, literal
from forerun.errors import UnsupportedOperationError

LARGEST = (1 << 31) - 1
SUM_LANES = 128
"""Partial sums of a row: feature i goes into partial sum i mod this."""
TYPES = {"f32": "tl.float32", "bf16": "tl.bfloat16", "f16": "tl.float16", "i32": "tl.int32"}
COMBINED = {"quotient": "({} // {})", "remainder": "({} % {})", "product": "({} * {})"}
HINTS = {"number": "x", "integer": "n", "truth": "is"}


@dataclass(frozen=True)
class Bound:
    """The text of a lane, and where it is valid."""

    text: str
    guards: frozenset[str] = frozenset()
    depth: int = 0
    wide: bool = False


@dataclass
class Scope:
    """Lines of one block of the kernel; `header` opens it."""

    header: str = ""
    lines: list[str] = field(default_factory=list[str])
    names: dict[str, str] = field(default_factory=dict[str, str])  # by text
    known: dict[Expr, str] = field(default_factory=dict[Expr, str])


class Text:
    """A kernel's body under construction."""

    def __init__(self) -> None:
        self.arguments: dict[Buffer, str] = {}
        self.scopes = [Scope()]
        self.sizes: set[str] = set()
        self.bound: dict[Lane, Bound] = {}
        self._count = 0

    # --- text

    def argument(self, buffer: Buffer) -> str:
        """The name of the argument that points to a buffer."""
        for other, name in self.arguments.items():
            if (other.space, other.key, other.element) == (buffer.space, buffer.key, buffer.element):
                return name
        prefix = str(buffer.key) if buffer.space == "input" else buffer.space
        number = sum(each.space == buffer.space for each in self.arguments)
        self.arguments[buffer] = prefix if buffer.space == "input" else f"{prefix}{number}"
        return self.arguments[buffer]

    @property
    def depth(self) -> int:
        """The depth of the innermost scope."""
        return len(self.scopes) - 1

    def line(self, text: str, depth: int | None = None) -> None:
        self.scopes[-1 if depth is None else depth].lines.append(text)

    def let(self, text: str, depth: int, hint: str = "x") -> str:
        """Names a text, in the scope of that depth; the same text gets the same name."""
        names = self.scopes[depth].names
        if text not in names:
            names[text] = self.fresh(hint)
            self.line(f"{names[text]} = {text}", depth)
        return names[text]

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    @contextmanager
    def block(self, header: str, inside: int | None = None) -> Generator[int]:
        """Opens a block inside the scope of depth `inside`, by default the innermost one; yields its depth."""
        top = self.depth if inside is None else inside
        held = self.scopes[top + 1 :]
        self.scopes = [*self.scopes[: top + 1], Scope(header)]
        yield top + 1
        closed = self.scopes.pop()
        self.scopes[top].lines.append(closed.header)
        self.scopes[top].lines.extend("    " + each for each in closed.lines or ["pass"])
        self.scopes.extend(held)

    def bind(self, lane: Lane, text: str, *guards: str, depth: int = 0, wide: bool = False) -> Index:
        """Binds a lane to a text."""
        self.bound[lane] = Bound(text, frozenset(guards), depth, wide)
        return Index.of(lane)

    def know(self, expr: Expr, text: str, depth: int) -> None:
        """Records the text of an expression."""
        self.scopes[depth].known[expr] = text

    # --- lanes

    def lanes(self, variables: Collection[Lane]) -> list[Bound]:
        return [self.bound[each] for each in variables if each in self.bound]

    def depth_of(self, variables: Collection[Lane]) -> int:
        return max((each.depth for each in self.lanes(variables)), default=0)

    def is_wide(self, variables: Collection[Lane]) -> bool:
        return any(each.wide for each in self.lanes(variables))

    def guards(self, variables: Collection[Lane]) -> list[str]:
        return sorted({guard for each in self.lanes(variables) for guard in each.guards})

    def index(self, index: Index, large: bool = False) -> str:
        """Renders an index; `large` computes it in 64 bits if it may not fit in 32."""
        parts: list[str] = []
        for lane, factor in index.terms:
            text = self.lane(lane)
            if large and not (lane.size is not None and lane.size * factor <= LARGEST):
                text = f"{text}.to(tl.int64)"
            parts.append(text if factor == 1 else f"{text} * {factor}")
        if index.constant or not parts:
            parts.append(str(index.constant))
        joined = " + ".join(parts).replace("+ -", "- ")
        return joined if len(parts) == 1 and "*" not in joined else f"({joined})"

    def lane(self, lane: Lane) -> str:
        match lane.made:
            case Combined(function, index, other):
                return COMBINED[function].format(self.index(index), self.index(other))
            case Computed(expr):
                return self.render(expr)
            case NamedSize():
                self.sizes.add(lane.name)
                return lane.name
            case None:
                return self.bound[lane].text

    # --- memory

    def place(self, dims: Sequence[ir.Dim], index: Sequence[Index]) -> str:
        """Returns the place of an element."""
        large = all(isinstance(dim, int) for dim in dims) and math.prod(int(dim) for dim in dims) > LARGEST
        return self.index(flat(dims, index), large)

    def pointer(self, buffer: Buffer, index: Sequence[Index]) -> str:
        return f"{self.argument(buffer)} + {self.place(buffer.dims, index)}"

    def store(self, store: Store) -> None:
        """Writes a store's element, or the elements of its wide lanes."""
        self.write(store.buffer, store.index, store.value)

    def write(self, buffer: Buffer, index: Sequence[Index], value: Expr | str) -> None:
        """Stores one element, in the innermost scope."""
        text = value if isinstance(value, str) else self.render(value)
        if buffer.kind == "truth":
            text = f"tl.where({text}, 1, 0)"
        if buffer.element in ("bf16", "f16"):
            text = f"{text}.to({TYPES[buffer.element]})"
        guards = self.guards({each for one in index for each in one.variables})
        mask = f", mask={' & '.join(guards)}" if guards else ""
        self.line(f"tl.store({self.pointer(buffer, index)}, {text}{mask})")

    # --- expressions

    def render(self, expr: Expr) -> str:
        """Renders an expression as a name or a number."""
        for scope in self.scopes:
            if expr in scope.known:
                return scope.known[expr]
        depth = self.depth_of(expr.lanes)
        match expr:
            case Const():
                return literal(expr)
            case Count(index):
                return self.index(index)
            case Load():
                text = self.let(self._load(expr), depth, expr.buffer.space[0])
            case Apply(function, args):
                given = [self.render(each) for each in args]
                text = self.let(self._applied(expr, function, given), depth, HINTS[expr.kind])
            case Reduce():
                text = self._reduce(expr, depth)
            case _:
                raise AssertionError(f"{expr} is not known here")
        self.know(expr, text, depth)
        return text

    def _load(self, expr: Load) -> str:
        buffer = expr.buffer
        pointer = self.pointer(buffer, expr.index)
        guards = self.guards({each for one in expr.index for each in one.variables})
        if expr.guard is not None:
            guards.append(self.render(expr.guard))
        mask = f", mask={' & '.join(guards)}, other=0" if guards else ""
        text = f"tl.load({pointer}{mask})"
        if buffer.element in ("bf16", "f16"):
            text += ".to(tl.float32)"
        return f"({text} != 0)" if buffer.kind == "truth" else text

    def _applied(self, expr: Apply, function: str, given: Sequence[str]) -> str:
        leaf = LEAVES.get((function, expr.args[-1].kind))
        if leaf is not None:
            return leaf(*given)
        if function not in FORMULAS:
            raise UnsupportedOperationError(f"the cuda target has no function {function} of {expr.args[-1].kind}s.")
        return f"{function}({', '.join(given)})"

    # --- reductions

    def _reduce(self, expr: Reduce, depth: int) -> str:
        if expr.order == "prefix":
            raise UnsupportedOperationError(
                "the cuda target has no Triton template for spec.scan; compile for the cpu or the reference target."
            )
        for each in invariants(expr.step, {expr.lane}):
            self.render(each)
        return self._in_lanes(expr, depth) if expr.order == "lanes" else self._serial(expr, depth)

    def _in_lanes(self, expr: Reduce, depth: int) -> str:
        """Partial results side by side, [ROWS, lanes], then a tree; one after another where lanes are wide already."""
        size = expr.extent.known
        if size is None or self.is_wide(expr.lanes):
            return self._serial(expr, depth)
        lanes = min(SUM_LANES, 1 << max(0, (size - 1).bit_length()))
        partial, at = self.fresh("partial"), self.fresh("at")
        self.line(f"{partial} = tl.full([ROWS, {lanes}], {self.render(expr.init)}, tl.float32)", depth)
        with self.block(f"for {at}_start in range(0, {size}, {lanes}):", depth) as inside:
            self.line(f"{at} = {at}_start + tl.arange(0, {lanes})[None, :]")
            ragged = [f"{at}_in"] if size % lanes else []
            if ragged:
                self.line(f"{at}_in = {at} < {size}")
            self.bind(expr.lane, at, *ragged, depth=inside, wide=True)
            self.know(Partial(expr.lane, expr.kind), partial, inside)
            following = self.render(expr.step)
            self.line(
                f"{partial} = tl.where({at}_in, {following}, {partial})" if ragged else f"{partial} = {following}"
            )
        if expr.combine == "add":
            return self.let(f"row_sum({partial}, ROWS, {lanes}, {lanes.bit_length() - 1})", depth, "sum")
        return self.let(f"tl.{expr.combine}({partial}, axis=1, keep_dims=True)", depth, expr.combine)  # exact

    def _serial(self, expr: Reduce, depth: int) -> str:
        """Element after element."""
        total, at = self.fresh("total"), self.fresh("at")
        lanes = "BLOCK" if self.is_wide(expr.lanes) else "1"
        kind = "tl.float32" if expr.kind == "number" else "tl.int32"
        init = self.render(expr.init)
        start = f"tl.full([ROWS, {lanes}], {init}, {kind})" if isinstance(expr.init, Const) else init
        self.line(f"{total} = {start}", depth)
        with self.block(f"for {at} in range(0, {self.index(expr.extent)}):", depth) as inside:
            self.bind(expr.lane, at, depth=inside)
            self.know(Partial(expr.lane, expr.kind), total, inside)
            self.line(f"{total} = {self.render(expr.step)}")
        return total
