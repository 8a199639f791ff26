"""Loop nests as text: computations, axes, sources and destinations. Equal texts mean equal code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.decompose import ARITHMETIC, COMPARED
from forerun.codegen.loops.expr import Apply, Const, Count, Expr, Load, Partial, Reduce, count_uses
from forerun.codegen.loops.index import Combined, Computed, Index, Lane, NamedSize
from forerun.codegen.loops.nest import (
    AttentionNest,
    Axis,
    Choice,
    Nest,
    ProductNest,
    RecurrenceNest,
    RowNest,
    Store,
    TopKNest,
)

INFIX = COMPARED | ARITHMETIC
COMBINED = {"quotient": "({} // {})", "remainder": "({} % {})", "product": "{}*{}"}

Name = Callable[[Buffer], str]


class NestText:
    """Writes nests; `name` gives the name of a buffer."""

    def __init__(self, name: Name = str) -> None:
        self.name = name
        self.lines: list[str] = []
        self._known: dict[Expr, str] = {}
        self._depth = 0

    def line(self, text: str) -> None:
        self.lines.append("  " * self._depth + text)

    def nest(self, nest: Nest) -> str:
        match nest:
            case RowNest():
                self._stores(f"rows of {nest.rows}", nest.stores)
            case ProductNest():
                self._products(nest)
            case AttentionNest():
                self._attention(nest)
            case RecurrenceNest():
                free = ", ".join("=".join(dict.fromkeys(each.lane.name for each in axes)) for axes in nest.free)
                title = f"recurrence: {nest.step.name} < {nest.rows}, in order; parallel over {free or 'nothing'}"
                self._stores(title, nest.stores)
            case TopKNest():
                self.line(f"{self._choice(nest.choice)} of {self.name(nest.logits)}")
        return "\n".join(self.lines)

    # --- nests

    def _stores(self, title: str, stores: Sequence[Store]) -> None:
        self.line(title)
        self._depth += 1
        for store in stores:
            self.line(f"for {self._axes(store.axes)}:")
            self._depth += 1
            value = self._value(store.value)
            self.line(f"{self.name(store.buffer)}[{self._indices(store.index)}] = {value}")
            self._depth -= 1
        self._depth -= 1

    def _axes(self, axes: Sequence[Axis]) -> str:
        return ", ".join(f"{each.lane.name} < {each.dim}" for each in axes) or "one element"

    def _products(self, nest: ProductNest) -> None:
        rows = " x ".join(map(str, nest.rows)) or "1"
        self.line(f"products: row < {rows}, feature < {nest.features}")
        self._depth += 1
        if nest.experts is not None:
            self.line(f"expert = {self._value(nest.experts.chosen)} of {nest.experts.count}")
        self.line(f"x = {self._value(nest.x)}")
        if nest.norm is not None:
            unscaled = self._value(nest.norm.unscaled)
            self.line(f"the norm of {unscaled} (epsilon {nest.norm.epsilon}) scales the products")
        for segment in nest.segments:
            pairs = f", in pairs of heads of {segment.pair}" if segment.pair else ""
            self.line(f"column < {segment.columns}{pairs}:")
            self._depth += 1
            for matrix in segment.matrices:
                bias = "" if matrix.bias is None else f" + {self._value(matrix.bias)}"
                kind = "" if matrix.arithmetic is None else f" in {matrix.arithmetic}"
                place = "column" if nest.experts is None else "expert, column"
                self.line(f"product {matrix.product.key} = x . {self.name(matrix.weight)}[{place}]{kind}{bias}")
            for taken in segment.outputs:
                value = self._value(taken.value)
                part = f" at columns {taken.shift} to {taken.shift + taken.count}"
                where = part if taken.count != segment.columns else ""
                if isinstance(taken.to, Choice):
                    self.line(f"{self._choice(taken.to)} of {value}{where}")
                else:
                    self.line(f"{self.name(taken.to)}[{self._indices(taken.index)}] = {value}{where}")
            self._depth -= 1
        self._depth -= 1

    def _choice(self, choice: Choice) -> str:
        sampled = f", and a sampled token to {self.name(choice.sampled)}" if choice.sampled else ""
        places = f"{self.name(choice.values)}, {self.name(choice.ids)}"
        return f"the {choice.k} largest of {choice.size} to {places}{sampled}"

    def _attention(self, nest: AttentionNest) -> None:
        history = nest.history
        heads = f"{nest.heads} heads over {nest.groups}"
        self.line(f"tree attention: row < {nest.rows}, {heads}, keys of {nest.key_dim}, values of {nest.value_dim}")
        self._depth += 1
        self.line(f"keys {self._layout(nest.keys.buffer)}, values {self._layout(nest.values.buffer)}")
        parts = {
            "query": nest.query,
            "position": history.position,
            "sequence": history.sequence,
            "base": history.base,
            "first": nest.first,
            "bias": nest.bias,
            "sinks": nest.sinks,
        }
        for label, value in parts.items():
            if value is not None:
                self.line(f"{label} = {self._value(value)}")
        options = [f"scale {nest.scale}", f"softcap {nest.softcap}", f"blocks of {history.block}"]
        if nest.bias is not None:
            options.append(f"a bias of {nest.bias_length} by {'key' if nest.bias_by_key else 'distance'}")
        self.line(", ".join(options))
        self.line(f"paths {self.name(history.paths)}, tables {self.name(history.tables)}")
        self.line(f"-> {self.name(nest.result)}")
        self._depth -= 1

    def _layout(self, buffer: Buffer) -> str:
        return f"{self.name(buffer)} of {list(buffer.dims[1:])} {buffer.element}"

    # --- expressions

    def _value(self, expr: Expr) -> str:
        """Renders an expression; parts that it uses twice get their own lines."""
        self._known = {}
        uses: dict[Expr, int] = {}
        count_uses(expr, uses)
        shared: set[Expr] = {each for each, count in uses.items() if count > 1 and isinstance(each, Apply | Reduce)}
        return self._expr(expr, shared)

    def _expr(self, expr: Expr, shared: set[Expr]) -> str:
        if expr in self._known:
            return self._known[expr]
        text = self._plain(expr, shared)
        if expr in shared:
            name = f"t{len(self._known)}"
            self.line(f"{name} = {text}")
            self._known[expr] = name
            return name
        return text

    def _plain(self, expr: Expr, shared: set[Expr]) -> str:
        match expr:
            case Const():
                return expr.text
            case Count(index):
                return self.index(index)
            case Load(buffer, index, guard):
                held = "" if guard is None else f" if {self._expr(guard, shared)} else 0"
                return f"{self.name(buffer)}[{self._indices(index)}]{held}"
            case Apply(function, args):
                given = [self._expr(each, shared) for each in args]
                if function in INFIX and len(given) == 2:
                    return f"({given[0]} {INFIX[function]} {given[1]})"
                return f"{function}({', '.join(given)})"
            case Partial(lane):
                return f"so_far({lane.name})"
            case Reduce():
                start, step = self._expr(expr.init, shared), self._expr(expr.step, shared)
                extent = self.index(expr.extent)
                return f"{expr.order}({expr.lane.name} < {extent}, {expr.combine} from {start}: {step})"
            case _:
                raise TypeError(expr)

    def _indices(self, index: Sequence[Index]) -> str:
        return ", ".join(self.index(each) for each in index)

    def index(self, index: Index) -> str:
        parts = [self._lane(lane) if factor == 1 else f"{self._lane(lane)}*{factor}" for lane, factor in index.terms]
        if index.constant or not parts:
            parts.append(str(index.constant))
        return "+".join(parts).replace("+-", "-")

    def _part(self, index: Index) -> str:
        """Renders an index within another."""
        text = self.index(index)
        return text if len(index.terms) + (index.constant != 0) < 2 and "*" not in text else f"({text})"

    def _lane(self, lane: Lane) -> str:
        match lane.made:
            case Combined(function, index, other):
                return COMBINED[function].format(self._part(index), self._part(other))
            case Computed(expr):
                return self._plain(expr, set())
            case NamedSize() | None:
                return lane.name


def numbered(buffers: dict[Buffer, str]) -> Name:
    """Names buffers by order of appearance, so that nests that differ only in their buffers have the same text."""

    def name(buffer: Buffer) -> str:
        if buffer.space == "product":
            return f"product {buffer.key}"
        if buffer not in buffers:
            place = sum(each.space == buffer.space for each in buffers)
            buffers[buffer] = f"{buffer.space}{place}"
        dims = ", ".join(map(str, buffer.dims))
        return f"{buffers[buffer]}<{dims}; {buffer.dtype} {buffer.element}>"

    return name


def plain(labels: Mapping[ir.SSAValue, str]) -> Name:
    """Readable names: those of weights, inputs and states, and the labels of values."""

    def name(buffer: Buffer) -> str:
        if isinstance(buffer.key, ir.SSAValue):
            return labels[buffer.key]
        if buffer.space in ("scratch", "product"):
            return f"{buffer.space}{buffer.key}"
        return str(buffer.key)

    return name
