"""Expressions as TIR: shared values are computed once under a name, memory is loaded through windows on it.

A kernel's function receives an offset for each buffer that it uses (`Frame.slot`), and for a state also the size of a
whole record, so that kernels that differ only in their buffers share code.
"""

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from forerun.codegen.loops.buffer import Buffer, Kind
from forerun.codegen.loops.decompose import FORMULAS
from forerun.codegen.loops.expr import Apply, Const, Count, Expr, Load, Partial, Reduce, count_uses
from forerun.codegen.loops.index import Combined, Computed, Index, Lane, NamedSize, flat
from forerun.codegen.loops.nest import invariants
from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import Frame, across, integer, let, local, number, splat, store, vectorized
from forerun.codegen.tvm.formats import WeightFormat
from forerun.codegen.tvm.functions import BY_KIND, alike
from forerun.codegen.tvm.target import LANES, OUTPUTS
from forerun.codegen.tvm.untyped import T, tirx
from forerun.errors import UnsupportedOperationError

Term = Any
"""An expression of TIR."""

COMBINED = {"quotient": tirx.truncdiv, "remainder": tirx.truncmod, "product": lambda x, y: x * y}
MERGE: dict[str, Callable[[Term, Term], Term]] = {"add": lambda x, y: x + y, "max": tirx.max, "min": tirx.min}


class Code:
    """The function of a kernel under construction."""

    def __init__(self, frame: Frame, buffers: Collection[Buffer], formats: Mapping[str, WeightFormat]) -> None:
        self.frame, self.formats = frame, formats
        ends = accumulate(2 if each.of_state else 1 for each in buffers)
        self.slots = dict(zip(buffers, (0, *ends), strict=False))  # of a state: its offset, and the size of a record
        self.bound: dict[Lane, Term] = {}
        self._known: list[dict[Expr, Term]] = [{}]
        self._uses: dict[Expr, int] = {}
        self._windows = {
            each: frame.window(self._region(each), frame.slot(slot))
            for each, slot in self.slots.items()
            if not each.of_state
        }

    # --- scopes

    @contextmanager
    def scope(self) -> Generator[None]:
        """A scope: names made inside it are not known after it."""
        self._known.append({})
        yield
        self._known.pop()

    @contextmanager
    def serial(self, lane: Lane, start: Term | int, stop: Term | int) -> Generator[Term]:
        """Opens a serial loop over a lane."""
        with T.serial(start, stop) as at, self.scope():
            self.bound[lane] = at
            yield at

    @contextmanager
    def vectorized(self, lane: Lane) -> Generator[Term]:
        with vectorized() as at, self.scope():
            self.bound[lane] = at
            yield at

    def know(self, expr: Expr, term: Term) -> None:
        self._known[-1][expr] = term

    def at(self, expr: Expr, bound: Mapping[Lane, Term]) -> Term:
        """Renders an expression with some lanes bound to given terms."""
        with self.scope():
            self.bound.update(bound)
            return self.render(expr)

    def call(self, function: str, *operands: Term, kind: Kind = "number") -> Term:
        """Applies a formula to terms."""
        given = [Partial(Lane(f"{function}{number}"), kind) for number in range(len(operands))]
        with self.scope():
            for each, operand in zip(given, operands, strict=True):
                self.know(each, operand)
            return self.render(FORMULAS[function](*given))

    # --- memory

    def _region(self, buffer: Buffer) -> str:
        """The memory that a buffer lies in."""
        whole = buffer.element == "i32"
        match buffer.space:
            case "weight":
                form = self.formats.get(buffer.element)
                return form.region if form is not None else "tables" if whole else "weights"
            case "input":
                return "inputs" if whole else "numbers"
            case "state":
                return "state"
            case "request":
                return "requests"
            case _:
                return "indices" if whole else "numbers"

    def window(self, buffer: Buffer) -> Memory:
        return self._windows[buffer]

    def origin(self, buffer: Buffer, block: Term) -> Term:
        """The offset (int64) of a state's records of a block."""
        slot = self.slots[buffer]
        return block.astype("int64") * self.frame.slot(slot + 1) + self.frame.slot(slot)

    def block_window(self, buffer: Buffer, block: Term) -> Memory:
        """A window on a state's records of one block."""
        return self.frame.window(self._region(buffer), self.origin(buffer, block))

    def get(self, buffer: Buffer, *index: Term) -> Term:
        """Loads the element at an index of terms."""
        lanes = [Lane(f"axis{axis}") for axis in range(len(index))]
        return self.at(Load(buffer, tuple(map(Index.of, lanes))), dict(zip(lanes, index, strict=True)))

    def _place(self, buffer: Buffer, index: Sequence[Index]) -> tuple[Memory, Term]:
        """The memory of an element, and its place there.

        A state's region has one name for all its blocks, so that a kernel may read what it has written.
        """
        if not buffer.of_state:
            return self.window(buffer), self.index(flat(buffer.dims, index))
        block = let(self.index(index[0]))
        at = self.index(flat(buffer.dims[1:], index[1:])).astype("int64")
        return self.frame.memories[self._region(buffer)], self.origin(buffer, block) + at

    def load(self, buffer: Buffer, index: Sequence[Index]) -> Term:
        """Loads an element, unpacked by its format if it has one."""
        form = self.formats.get(buffer.element) if buffer.space == "weight" else None
        if form is None:
            memory, at = self._place(buffer, index)
            return memory[at]
        output, feature = index
        places = map(self.index, (*output.divided(OUTPUTS), feature))
        return form.element(lambda place: self.window(buffer)[place], int(buffer.dims[1]), *places)

    def write(self, buffer: Buffer, index: Sequence[Index], value: Term) -> None:
        """Stores one element."""
        if buffer.kind == "truth":
            value = tirx.Select(value, integer(1), integer(0))
        memory, at = self._place(buffer, index)
        store(memory, value, at, 1)

    # --- indices

    def index(self, index: Index) -> Term:
        """Renders an index."""
        terms = [self.lane(lane) * factor if factor != 1 else self.lane(lane) for lane, factor in index.terms]
        if index.constant or not terms:
            terms.append(integer(index.constant))  # last, so that it is part of an address
        return sum(terms[1:], terms[0])

    def lane(self, lane: Lane) -> Term:
        match lane.made:
            case Combined(function, index, other):
                return COMBINED[function](self.index(index), self.index(other))
            case Computed(expr):
                return self.render(expr)
            case NamedSize():
                return self.frame.sizes[lane.name]
            case None:
                return self.bound[lane]

    # --- expressions

    def render(self, expr: Expr) -> Term:
        """Renders an expression, computed here unless it is already known."""
        for scope in reversed(self._known):
            if expr in scope:
                return scope[expr]
        count_uses(expr, self._uses)
        match expr:
            case Const():
                return _constant(expr)
            case Count(index):
                return self.index(index)
            case Load():
                found = self._loaded(expr)
            case Apply(function, args):
                found = self._applied(function, args, expr)
            case Reduce():
                found = self._reduce(expr)
            case _:
                raise AssertionError(f"{expr} is not known here")
        self.know(expr, found)
        return found

    def _loaded(self, expr: Load) -> Term:
        buffer = expr.buffer
        held = None if expr.guard is None else self.render(expr.guard)
        found = self.load(buffer, expr.index)
        if held is not None:
            found = tirx.if_then_else(held, found, number(0.0) if buffer.kind == "number" else integer(0))
        found = let(found)
        return tirx.NE(found, integer(0)) if buffer.kind == "truth" else found

    def _applied(self, function: str, args: Sequence[Expr], expr: Apply) -> Term:
        operands = alike([self.render(each) for each in args])
        leaf = BY_KIND[expr.kind].get(function)
        if leaf is not None:
            found = leaf(*operands)
            # Naming every part would cost LLVM time; TVM cannot name vectors of booleans.
            return found if expr.kind == "truth" or self._uses[expr] < 2 else let(found)
        if function not in FORMULAS:
            raise UnsupportedOperationError(f"the cpu target has no function {function} of {expr.kind}s.")
        return self.call(function, *operands, kind=args[-1].kind)

    def hoist(self, expr: Expr, lanes: Collection[Lane]) -> None:
        """Computes the parts that do not depend on the loops to be opened."""
        for each in invariants(expr, lanes):
            self.render(each)

    def _reduce(self, expr: Reduce) -> Term:
        self.hoist(expr.step, {expr.lane})
        if expr.order == "lanes":
            return self._in_lanes(expr)
        with self.chain(expr) as total:
            pass
        return let(total)

    @contextmanager
    def chain(self, expr: Reduce) -> Generator[Term]:
        """Opens the loop of a serial reduction; yields the partial result after each step."""
        memory = local(1, "float32" if expr.kind == "number" else "int32")
        total = memory[integer(0)]
        store(memory, self.render(expr.init), integer(0), 1)
        with self.serial(expr.lane, 0, self.index(expr.extent)):
            self.know(Partial(expr.lane, expr.kind), total)
            store(memory, self.render(expr.step), integer(0), 1)
            yield total

    def _in_lanes(self, expr: Reduce) -> Term:
        """16 partial results, element i into partial i mod 16, then a tree: the order depends only on the size."""
        partial, init = local(LANES), self.render(expr.init)
        store(partial, splat(init), 0)
        size, variable = expr.extent.known, Partial(expr.lane, expr.kind)
        merge = MERGE[expr.combine]
        if size is None:
            with self.serial(expr.lane, 0, self.index(expr.extent)) as at:
                lane = let(tirx.truncmod(at, integer(LANES)))
                self.know(variable, partial[lane])
                store(partial, self.render(expr.step), lane, 1)
            return let(across(partial, merge))
        chunk, vector = Lane(f"{expr.lane.name}_chunk", size // LANES), Lane(f"{expr.lane.name}_lane", LANES)
        if size // LANES:
            here = Index.of(chunk).times(LANES).plus(Index.of(vector))
            with self.serial(chunk, 0, size // LANES), self.vectorized(vector) as lane:
                self.know(variable, partial[lane])
                store(partial, self.render(expr.step.substitute({expr.lane: here}.get)), lane, 1)
        for rest in range(size % LANES):
            with self.scope():
                self.know(variable, partial[integer(rest)])
                here = Index(constant=size // LANES * LANES + rest)
                store(partial, self.render(expr.step.substitute({expr.lane: here}.get)), integer(rest), 1)
        return let(across(partial, merge))


def _constant(expr: Const) -> Term:
    if expr.kind == "number":
        return number(float(expr.text))
    return integer(int(expr.text)) if expr.kind == "integer" else tirx.IntImm("bool", int(expr.text))
