"""Expressions as C11: named intermediate results, loops for reductions, formulas as functions.

Every operation rounds separately (contraction is disabled), so that bits do not depend on the compiler's choice of
instructions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from forerun.codegen.loops.buffer import Buffer, Kind
from forerun.codegen.loops.decompose import ARITHMETIC, BITS, COMPARED, FORMULAS
from forerun.codegen.loops.expr import Apply, Const, Count, Expr, Load, Partial, Reduce
from forerun.codegen.loops.index import Combined, Computed, Index, Lane, NamedSize, flat
from forerun.codegen.loops.nest import invariants
from forerun.errors import UnsupportedOperationError

TYPES: dict[Kind, str] = {"number": "float", "integer": "int32_t", "truth": "int"}
COMBINED = {"quotient": "(({}) / ({}))", "remainder": "(({}) % ({}))", "product": "({}) * ({})"}
POINTERS = {"f32": "float", "i32": "int32_t", "bf16": "uint16_t"}


def _infix(sign: str) -> Callable[..., str]:
    return lambda x, y: f"{x} {sign} {y}"


def _call(name: str) -> Callable[..., str]:
    return lambda *args: f"{name}({', '.join(args)})"


LEAVES: dict[str, Callable[..., str]] = {
    **{name: _infix(sign) for name, sign in (COMPARED | ARITHMETIC | BITS).items()},
    **{name: _call(f"{name}f") for name in ("floor", "ceil", "sqrt", "sin", "cos", "log", "pow")},
    "fma": _call("fmaf"),
    "round": _call("nearbyintf"),
    "max": lambda x, y: f"{x} > {y} ? {x} : {y}",
    "min": lambda x, y: f"{x} < {y} ? {x} : {y}",
    "abs": lambda x: f"{x} < 0 ? -{x} : {x}",
    "where": lambda c, x, y: f"{c} ? {x} : {y}",
    "not": lambda x: f"!{x}",
    "power_of_two": _call("power_of_two"),
    "floor_div": _call("floor_divide"),
    "remainder": _call("floor_modulo"),
    "to_number": lambda x: f"(float){x}",
    "to_integer": lambda x: f"(int32_t){x}",
    "to_truth": lambda x: f"{x} != 0",
}
"""The functions that C has; `abs`, `max` and `min` repeat their operands, which are names or numbers."""

PRELUDE = """\
#include <math.h>
#include <stdint.h>
#include <string.h>

/* 2^n for a whole n in [-126, 127]. */
static inline float power_of_two(float n) {
  const int32_t bits = ((int32_t)n + 127) * (1 << 23);
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

static inline float widened(uint16_t half) { /* a bfloat16 */
  const uint32_t bits = (uint32_t)half << 16;
  float result;
  memcpy(&result, &bits, sizeof result);
  return result;
}

static inline int32_t floor_divide(int32_t x, int32_t y) {
  const int32_t rest = x % y;
  return x / y - (rest != 0 && (rest < 0) != (y < 0));
}

static inline int32_t floor_modulo(int32_t x, int32_t y) {
  const int32_t rest = x % y;
  return rest != 0 && (rest < 0) != (y < 0) ? rest + y : rest;
}
"""


class Text:
    """The body of a C function under construction."""

    def __init__(self, sizes: Sequence[str] = ()) -> None:
        self.sizes = sizes
        self.lines: list[str] = []
        self.buffers: dict[Buffer, str] = {}
        self.formulas: dict[str, None] = {}
        self.bound: dict[Lane, str] = {}
        self._known: list[dict[Expr, str]] = [{}]
        self._count = 0

    def line(self, text: str) -> None:
        self.lines.append("  " * len(self._known) + text)

    def fresh(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    @contextmanager
    def block(self, header: str) -> Generator[None]:
        """Opens a block; names made inside it are not known after it."""
        self.line(header + " {")
        self._known.append({})
        yield
        self._known.pop()
        self.line("}")

    @contextmanager
    def loop(self, lane: Lane, stop: str, start: str = "0") -> Generator[str]:
        """Opens a loop over a lane."""
        name = self.fresh(lane.name.rstrip("0123456789"))
        self.bound[lane] = name
        with self.block(f"for (int64_t {name} = {start}; {name} < {stop}; {name}++)"):
            yield name

    def declare(self, variable: Expr, text: str) -> str:
        """Declares a name for the text of an expression."""
        name = self.fresh({"number": "v", "integer": "n", "truth": "is"}[variable.kind])
        self.line(f"const {TYPES[variable.kind]} {name} = {text};")
        self.know(variable, name)
        return name

    def know(self, expr: Expr, name: str) -> Expr:
        self._known[-1][expr] = name
        return expr

    def variable(self, text: str) -> Expr:
        """Returns an expression for a number that a text computes."""
        return self.know(Partial(Lane(self.fresh("variable")), "number"), text)

    # --- memory

    def pointer(self, buffer: Buffer) -> str:
        if buffer not in self.buffers:
            label = buffer.key if buffer.space == "input" else buffer.space
            number = sum(each.space == buffer.space for each in self.buffers)
            self.buffers[buffer] = str(label) if buffer.space == "input" else f"{label}{number}"
        return self.buffers[buffer]

    def element(self, buffer: Buffer, index: Sequence[Index]) -> str:
        return f"{self.pointer(buffer)}[{self.index(flat(buffer.dims, index))}]"

    def store(self, buffer: Buffer, index: Sequence[Index], value: Expr) -> None:
        text = self.render(value)
        self.line(f"{self.element(buffer, index)} = {text};")

    # --- indices

    def index(self, index: Index) -> str:
        parts = [self.lane(lane) if factor == 1 else f"{self.lane(lane)} * {factor}" for lane, factor in index.terms]
        if index.constant or not parts:
            parts.append(str(index.constant))
        return " + ".join(parts).replace("+ -", "- ")

    def lane(self, lane: Lane) -> str:
        match lane.made:
            case Combined(function, index, other):
                return COMBINED[function].format(self.index(index), self.index(other))
            case Computed(expr):
                return f"(int64_t){self.render(expr)}"
            case NamedSize():
                return f"(int64_t)sizes[{list(self.sizes).index(lane.name)}]"
            case None:
                return self.bound[lane]

    # --- expressions

    def render(self, expr: Expr) -> str:
        """Renders an expression as a name or a number."""
        for scope in reversed(self._known):
            if expr in scope:
                return scope[expr]
        match expr:
            case Const():
                return literal(expr)
            case Count(index):
                return self.declare(expr, f"(int32_t)({self.index(index)})")
            case Load(buffer, index, guard):
                held = "" if guard is None else f"{self.render(guard)} ? "
                text = self.element(buffer, index)
                text = f"widened({text})" if buffer.element == "bf16" else text
                text = f"{text} != 0" if buffer.kind == "truth" else text
                return self.declare(expr, f"{held}{text}{' : 0' if held else ''}")
            case Apply(function, args):
                return self.declare(expr, self._applied(function, [self.render(each) for each in args], expr.kind))
            case Reduce():
                return self._reduce(expr)
            case _:
                raise AssertionError(f"{expr} is not known here")

    def _applied(self, function: str, args: list[str], kind: Kind) -> str:
        if function in LEAVES:
            return LEAVES[function](*args)
        if function not in FORMULAS:
            raise UnsupportedOperationError(f"the c target has no function {function} of {kind}s.")
        name = f"{function}_{'of_integers' if kind == 'integer' else 'of'}"
        self.formulas[function] = None
        return f"{name}({', '.join(args)})"

    def _reduce(self, expr: Reduce) -> str:
        total = self.open(expr)
        self.hoist(expr.step, {expr.lane})
        with self.loop(expr.lane, self.index(expr.extent)):
            self.line(f"{total} = {self.render(expr.step)};")
        self.know(expr, total)
        return total

    def open(self, expr: Reduce) -> str:
        """Declares and initializes the variable of a reduction."""
        total = self.fresh("total")
        self.line(f"{TYPES[expr.kind]} {total} = {self.render(expr.init)};")
        self.know(Partial(expr.lane, expr.kind), total)
        return total

    def hoist(self, expr: Expr, lanes: set[Lane]) -> None:
        """Computes the parts that do not depend on the loops to be opened."""
        for each in invariants(expr, lanes):
            self.render(each)


def literal(value: Const) -> str:
    if value.kind != "number":
        return value.text
    number = float(value.text)
    if math.isnan(number):
        return "NAN"
    return ("-" if number < 0 else "") + "INFINITY" if math.isinf(number) else f"{value.text}f"


def formula_sources(names: Sequence[str]) -> list[str]:
    """Returns the functions of some formulas, and of those that they use, callees first."""
    made: dict[str, str] = {}

    def make(name: str) -> None:
        if name in made:
            return
        kind: Kind = "integer" if name == "within" else "number"
        labels = ("x",) if kind == "number" else ("x", "size")
        variables = [Partial(Lane(label), kind) for label in labels]
        body = Text()
        for label, variable in zip(labels, variables, strict=True):
            body.know(variable, label)
        result = body.render(FORMULAS[name](*variables))
        for other in body.formulas:
            make(other)
        suffix = "of_integers" if kind == "integer" else "of"
        given = ", ".join(f"{TYPES[kind]} {label}" for label in labels)
        lines = "\n".join([*body.lines, f"  return {result};"])
        doc = (FORMULAS[name].__doc__ or "").strip().split("\n")[0]
        made[name] = f"/* {doc} */\nstatic inline {TYPES[kind]} {name}_{suffix}({given}) {{\n{lines}\n}}\n"

    for each in names:
        make(each)
    return list(made.values())
