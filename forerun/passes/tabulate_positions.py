"""tabulate_positions: values that depend on positions alone are evaluated once, and looked up by position.

Three things move into `@constants`, whose results are derived weights: values that are constant; values that are a
function of the position, as tables over positions 0 .. max_length - 1; and masks, which become the first visible
position of each row (`first`) and a bias by distance or by key position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.available import require_memory
from forerun.ir import (
    Attention,
    Builder,
    Context,
    Function,
    Gather,
    InsertPoint,
    Iota,
    ModuleOp,
    Parameter,
    Return,
    Rewriter,
    SSAValue,
    Symbol,
    Weight,
    backward_slice,
    tensor_type,
)
from forerun.passes.attention_masks import Mask, Steps, classify
from forerun.passes.base import Needs, Pass, PassContext, function_named, option, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.lengths import require_same_at_every_length
from forerun.passes.matching import HIDDEN, SEQUENCE, number
from forerun.passes.pair_rules import Span
from forerun.passes.pairwise import Pairs
from forerun.passes.sequence_axis import look_ahead, require_incremental
from forerun.passes.substitute import clone_with
from forerun.passes.transfer import Along, Kind


@dataclass(frozen=True)
class TabulatePositions(Pass):
    """`max_length` 0 takes the context's."""

    name: ClassVar[str] = "tabulate-positions"
    needs: ClassVar[Needs | None] = Needs("forward", inputs=1, dimension="T", results=1)

    max_length: int = option(0, least=0, most=2**24)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        context = pass_context(ctx)
        forward = function_named(op, "forward")
        length = self.max_length or context.max_length
        if context.cache_in_memory:  # otherwise the work over far too many positions would precede the refusal
            require_memory({f"a cache of {length} positions": length * _cached_bytes(forward)})
        tables = _Tables(op, forward, length, context)
        body = forward.body
        for operation in body:
            if isinstance(operation, Attention):
                tables.understand_mask(operation)
        tables.look_up()
        tables.finish()
        clean(forward)
        clean(tables.constants)


def _cached_bytes(forward: Function) -> int:
    """The bytes of one position in the cache: the keys and values of every attention, in float32."""
    total = 0
    for operation in forward.body:
        if isinstance(operation, Attention):
            keys, values = (tensor_type(each).dims for each in (operation.key, operation.value))
            total += 4 * int(keys[-3]) * (int(keys[-1]) + int(values[-1]))
    return total


class _Tables:
    """Collects `@constants`: clones the values to look up, with the sequence at its full length."""

    def __init__(self, module: ModuleOp, forward: Function, length: int, context: PassContext) -> None:
        self.forward = forward
        self.length = length
        self.context = context
        self.known = require_incremental(forward)
        first = forward.block.first_op
        assert first is not None
        self.top = Builder(InsertPoint.before(first))
        self.rows = self.top.add(Iota, size=SEQUENCE)
        self.declarations = Builder(InsertPoint.before(forward))
        self.constants = Function.of("constants", [])
        self.build = Builder(self.constants.block)
        self.clones: dict[SSAValue, SSAValue] = {}
        self.replaced: dict[SSAValue, SSAValue] = {}
        self.returned: list[SSAValue] = []
        self.masks: dict[SSAValue, tuple[Mask, Pairs]] = {}

    def look_up(self) -> None:
        """Replace constant and positional values, where tokens meet them, by parameters and table lookups."""
        for operation in self.forward.body:
            kinds = {self.known[each].kind for each in operation.results if each in self.known}
            if not operation.ends_body and not kinds & {Kind.ROW_LOCAL, Kind.CAUSAL}:
                continue
            for place, value in enumerate(operation.operands):
                along = self.known.get(value)
                if along is None or along.kind > Kind.POSITIONAL or isinstance(value.owner, Parameter):
                    continue
                if number(value) is not None:  # a number needs no table, however it is spread
                    continue
                if value not in self.replaced:
                    self.replaced[value] = self.constant(value) if along.axis is None else self.table(value, along)
                operation.operands[place] = self.replaced[value]

    def constant(self, value: SSAValue) -> SSAValue:
        require_same_at_every_length(value, None, self.length, self.context)
        return self.parameter(self.clone(value), value.name_hint)

    def table(self, value: SSAValue, along: Along) -> SSAValue:
        """Returns table[rows], with the sequence dimension in the same place as in the value."""
        assert along.axis is not None
        if isinstance(value.owner, Iota):
            return self.rows
        rank = tensor_type(value).rank
        axis = rank + along.axis
        require_same_at_every_length(value, axis, self.length, self.context)
        front = [axis, *(each for each in range(rank) if each != axis)]
        table = self.parameter(self.build.transpose(self.clone(value), front), value.name_hint)
        return self.top.transpose(self.top.add(Gather, table, self.rows), [front.index(each) for each in range(rank)])

    def parameter(self, value: SSAValue, hint: str | None) -> SSAValue:
        """A derived weight for a value of `@constants`, read at the top of `@forward`."""
        kind = tensor_type(value)
        weight = {"symbol": Symbol(f"derived.{len(self.returned)}"), "shape": kind.dims, "dtype": kind.dtype}
        self.declarations.emit(Weight.make(**weight, derived=len(self.returned)))
        self.returned.append(value)
        parameter = self.top.add(Parameter, **weight)
        parameter.name_hint = hint
        return parameter

    def clone(self, value: SSAValue) -> SSAValue:
        """The value in `@constants`, with T = max_length."""
        for operation in backward_slice(value):
            if operation.results[0] not in self.clones:
                clone_with(operation, self.clones, {SEQUENCE: self.length}, self.build)
        return self.clones[value]

    def understand_mask(self, attention: Attention) -> None:
        """Replace the `mask` of an attention by `causal`, `first` and `bias`."""
        mask = attention.mask
        if mask is None:
            return
        along = self.known[mask]
        if along.kind in (Kind.GLOBAL, Kind.ROW_LOCAL, Kind.CAUSAL):
            raise look_ahead(along.cause or attention, along.reason or "masks attention by tokens")
        if mask not in self.masks:
            pairs = Pairs(mask, self.length, self.context)
            self.masks[mask] = classify(mask, attention, pairs, self.context), pairs
            self.context.note(f"tabulate-positions: a mask is {self.masks[mask][0].summary}")
        found, pairs = self.masks[mask]
        replacement = Attention.make(
            attention.query,
            attention.key,
            attention.value,
            scale=attention.scale,
            softcap=attention.softcap,
            first=attention.first if found.first is None else self.first_visible(found.first),
            bias=attention.bias if found.bias_by is None else self.bias(pairs, found.bias_by),
            sinks=attention.sinks,
            causal=True,
            bias_by=found.bias_by or attention.bias_by,
        )
        replacement.location = attention.location
        self.known[replacement.result] = self.known[attention.result]
        Rewriter.replace_op(attention, replacement)

    def first_visible(self, steps: Steps) -> SSAValue:
        """[T]: the first visible position of each row, by a table."""
        build = self.build

        def number(value: int) -> SSAValue:
            return build.constant(value, "i64")

        rows = build.map("sub", build.add(Iota, size=self.length), number(steps.start))
        moved = build.map("mul", build.map("floor_div", rows, number(steps.every)), number(steps.rise))
        first = build.map("max", build.map("add", moved, number(steps.first)), number(0))
        return self.top.add(Gather, self.parameter(first, "first"), self.rows)

    def bias(self, pairs: Pairs, by: str) -> SSAValue:
        """[heads, max_length]: the last row of a mask has every key position, and every distance."""
        build, last = self.build, self.length - 1
        row = build.reshape(pairs.emit(build, self.clone, Span(last, self.length), pairs.whole), (-1, self.length))
        if by == "distance":
            own = build.slice(row, 1, last, self.length)
            row = build.map("sub", row, own)
            backwards = build.map("sub", build.constant(last, "i64"), build.add(Iota, size=self.length))
            row = build.transpose(build.add(Gather, build.transpose(row, (1, 0)), backwards), (1, 0))
        row = build.map("max", row, build.constant(HIDDEN, tensor_type(row).dtype))
        return self.parameter(build.cast(row, "f32"), "bias")

    def finish(self) -> None:
        if self.returned:
            self.build.emit(Return.make(*self.returned))
            Rewriter.insert_op(self.constants, InsertPoint.before(self.forward))
