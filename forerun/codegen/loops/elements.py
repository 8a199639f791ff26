"""The elements of a region's values: from memory, from a tile's registers, or by an operation's rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.expr import Expr, Load, Partial, Reduce, apply, count
from forerun.codegen.loops.index import Index, Lane, size_of
from forerun.codegen.loops.states import StateLayout

Element = Callable[[Sequence[Index]], Expr]
Rule = Callable[["Elements", Any, list[Index]], Expr]


class NeedsMemoryError(Exception):
    """A value must be in memory before it can be used in this way; the schedule writes it, and tries again."""

    def __init__(self, value: ir.SSAValue) -> None:
        super().__init__(value)
        self.value = value


class Elements:
    """The elements of a region's values.

    buffers    the values in memory
    constants  the arguments of the region that are constants
    states     the layouts of states' records
    is_written whether a value must be in memory before it is used
    inline_products  whether products with weights are computed in place, as in the body of a recurrence
    """

    RULES: ClassVar[ir.OperationTable[Rule]]
    """The element of each operation's result, defined in `element`."""

    def __init__(
        self,
        buffers: Mapping[ir.SSAValue, Buffer],
        constants: Mapping[ir.SSAValue, ir.Constant],
        states: Mapping[str, StateLayout],
        is_written: Callable[[ir.SSAValue], bool] = lambda value: False,
        inline_products: bool = False,
    ) -> None:
        self.buffers = buffers
        self.constants = constants
        self.states = states
        self.is_written, self.inline_products = is_written, inline_products
        self.computed: dict[ir.SSAValue, Element] = {}
        self._names: dict[tuple[ir.SSAValue, str], str] = {}

    def element(self, value: ir.SSAValue, index: Sequence[Index]) -> Expr:
        """Returns the value's element, from whichever source."""
        if value in self.computed:
            return self.computed[value](index)
        if value in self.buffers:
            return Load(self.buffers[value], tuple(index))
        if self.is_written(value):
            raise NeedsMemoryError(value)
        return self.definition(value, index)

    def definition(self, value: ir.SSAValue, index: Sequence[Index]) -> Expr:
        """Returns the value's element as its operation computes it, even if the value is in memory."""
        operation = self.constants.get(value, value.owner)
        if not isinstance(operation, ir.SpecOperation):
            raise NeedsMemoryError(value)
        return self.RULES.of(operation)(self, operation, list(index))

    def operand(self, value: ir.SSAValue, index: Sequence[Index]) -> Expr:
        """Returns the element of an operand under numpy's broadcasting, at an index of the result."""
        dims = ir.tensor_type(value).dims
        own = list(index)[len(index) - len(dims) :]
        return self.element(value, [Index() if dim == 1 else at for dim, at in zip(dims, own, strict=True)])

    def place(self, value: ir.SSAValue, index: Sequence[Index], size: ir.Dim) -> Index:
        """Returns an integer value as an index of an axis; a step's inputs are in range, others need not be."""
        at = self.operand(value, index)
        if not (value in self.buffers and self.buffers[value].space == "input"):
            at = apply("within", at, count(size_of(size)))
        return Index.computed(at, size)

    def record(self, symbol: str, slot: Expr, index: Sequence[Index]) -> tuple[Buffer, tuple[Index, ...]]:
        """Returns where a number of a state's record at a slot lies."""
        layout = self.states[symbol]
        return layout.buffer, tuple(layout.index(Index.computed(slot), index))

    def lane(self, value: ir.SSAValue, label: str, size: ir.Dim) -> Lane:
        """Returns a lane of a reduction that is part of a value; the same one on every call."""
        name = self._names.setdefault((value, label), f"{label}{len(self._names)}")
        return Lane(name, size if isinstance(size, int) else None)

    def reduce(
        self,
        value: ir.SSAValue,
        label: str,
        size: ir.Dim,
        init: Expr,
        step: Callable[[Expr, Index], Expr],
        combine: str = "add",
        serial: bool = False,
    ) -> Expr:
        """Returns a reduction over an axis; `step(partial, index)` is the next partial result."""
        lane = self.lane(value, label, size)
        following = step(Partial(lane, init.kind), Index.of(lane))
        return Reduce(lane, size_of(size), init, following, combine, "serial" if serial else "lanes", value)
