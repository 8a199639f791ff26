"""Where the values of a region lie while its nests are planned, and which are still to be computed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from forerun import ir
from forerun.codegen.loops.buffer import Buffer, element_of
from forerun.codegen.loops.element import is_product
from forerun.codegen.loops.elements import Elements, NeedsMemoryError
from forerun.codegen.loops.expr import Expr
from forerun.codegen.loops.fitting import Output
from forerun.codegen.loops.index import Lane
from forerun.codegen.loops.nest import Nest, depends_across
from forerun.codegen.loops.states import StateLayout
from forerun.codegen.regions import Region

Separate = ir.TreeAttention | ir.TreeRecurrence | ir.TopK
"""The operations that have their own nests."""


@dataclass(frozen=True)
class Traits:
    """The capabilities of a back end that a schedule depends on.

    tiles         a product's tile includes rotary pairs, parts of its columns, writes to states and choices; else
                  only what is computed at its own column
    prologues     the rows of a product's input are computed in its kernel; else they are written to memory first
    deferred      element types of matrices whose products an RMS norm's factor may multiply instead of the features
    fused_rows    a row nest may read, at its own row, what its earlier stores have written
    inline        reductions are computed where they are used; else values with one are written to memory first
    arithmetics   arithmetics of products besides that of float32
    heavy         number of elementwise operations from which a value used twice is written to memory; None for never
    """

    target: str
    tiles: bool = False
    prologues: bool = False
    deferred: frozenset[str] = frozenset()
    arithmetics: frozenset[str] = frozenset()
    fused_rows: bool = False
    inline: bool = True
    heavy: int | None = None


@dataclass(frozen=True)
class Facts:
    """What a schedule needs to know about the module."""

    states: dict[str, StateLayout]
    block: int  # positions
    storage: dict[str, str]  # each weight's element type in memory
    widths: dict[str, int]  # dimensions of inputs whose size is that of the largest step
    candidates: ir.SSAValue | None = None  # the returned ids; tokens are sampled from the same numbers


@dataclass
class Plan:
    """A region's nests, and those that write its logits, which run on demand."""

    region: Region
    nests: list[Nest] = field(default_factory=list[Nest])
    on_demand: list[Nest] = field(default_factory=list[Nest])


WRITTEN = (ir.Concat, ir.RMSNorm, ir.LayerNorm, ir.Softmax, ir.Scan, ir.Reduce, ir.MatMul, ir.Linear, ir.ExpertLinear)
"""The operations whose results are written to memory if reductions are not inline."""


def require_narrow(value: Expr, lanes: Sequence[Lane]) -> None:
    """Checks that no reduction with partial results side by side depends on lanes that lie side by side as well."""
    if (wide := depends_across(value, lanes)) is not None:
        raise NeedsMemoryError(wide.origin)


class Placing:
    """A region being planned: `buffers` are the values in memory, `waiting` those still to be written."""

    def __init__(self, region: Region, facts: Facts, traits: Traits, last: bool = False) -> None:
        self.plan, self.region, self.facts, self.traits, self.last = Plan(region), region, facts, traits, last
        self.nests = self.plan.nests
        self.buffers: dict[ir.SSAValue, Buffer] = {}
        self.constants: dict[ir.SSAValue, ir.Constant] = {}
        self.context = Elements(self.buffers, self.constants, facts.states, self._is_written)
        self.own = set(region.operations)
        self.kept: set[ir.SSAValue] = set()
        self.destinations: dict[ir.SSAValue, Buffer] = {}
        self.waiting: list[Output] = []
        self.on_demand: list[Output] = []
        self.special: list[Separate] = []
        self.linears: list[ir.WeightProduct] = []
        self._count = 0

    # --- where values lie

    def _argument(self, inner: ir.SSAValue, outer: ir.SSAValue) -> None:
        kind, owner = ir.tensor_type(inner), outer.owner
        if isinstance(owner, ir.Constant):
            self.constants[inner] = owner
        elif isinstance(owner, ir.Parameter):
            self._weight(inner, owner)
        elif isinstance(owner, ir.Block):
            dims = tuple(self.facts.widths.get(str(dim), dim) for dim in kind.dims)
            self.buffers[inner] = Buffer("input", str(outer.name_hint), dims, kind.dtype, element_of(kind.dtype))
        else:
            self.buffers[inner] = Buffer("value", outer, kind.dims, kind.dtype, element_of(kind.dtype))

    def _weight(self, value: ir.SSAValue, operation: ir.Parameter) -> None:
        symbol, kind = str(operation.symbol), ir.tensor_type(value)
        self.buffers[value] = Buffer("weight", symbol, kind.dims, kind.dtype, self.facts.storage[symbol])

    def first_rows(self, operation: ir.Slice) -> None:
        """The first rows of a weight lie where it begins."""
        whole = self.buffers.get(ir.first_of(operation.result))
        if whole is not None and whole.space == "weight":
            self.buffers[operation.result] = replace(whole, dims=ir.tensor_type(operation.result).dims)

    def _place(self, value: ir.SSAValue) -> Buffer:
        """Returns where a value goes: to memory of the region's own, if it is no result."""
        if value in self.destinations:
            return self.destinations[value]
        kind = ir.tensor_type(value)
        self._count += 1
        return Buffer("scratch", self._count - 1, tuple(kind.dims), kind.dtype, element_of(kind.dtype))

    def _result(self, value: ir.SSAValue, place: Buffer) -> None:
        """Has a result written where it is computed, if its own nest computes it or the value that it is a view of."""
        source: ir.SSAValue = value
        while source.owner in self.own and isinstance(source.owner, ir.Reshape):
            source = source.owner.x
        kind = ir.tensor_type(source)
        if isinstance(source.owner, Separate) and source.owner in self.own and source not in self.destinations:
            self.destinations[source] = Buffer(place.space, place.key, kind.dims, kind.dtype, place.element)
            if source is not value:
                self.destinations[value] = place
        else:
            self.destinations.setdefault(value, place)
            self.waiting.append(Output(value, place))

    def _keep_heavy(self) -> None:
        """Has values that are costly and used twice written to memory."""
        if self.traits.heavy is None:
            return
        cost: dict[ir.SSAValue, int] = {}
        for operation in self.region.operations:
            counted = isinstance(operation, ir.Map | ir.Rotary)
            for value in operation.results:
                cost[value] = counted + sum(cost.get(each, 0) for each in operation.operands)
                uses = sum(use.operation in self.own for use in value.uses)
                if isinstance(operation, (Separate, *WRITTEN)):
                    cost[value] = 0
                elif counted and uses > 1 and cost[value] >= self.traits.heavy:
                    cost[value] = 0
                    self.kept.add(value)
                    if value not in self.destinations:
                        self.destinations[value] = self._place(value)
                        self.waiting.append(Output(value, self.destinations[value]))
        order: dict[ir.SSAValue, int] = {}
        for operation in self.region.operations:
            order.update((value, len(order)) for value in operation.results)
        self.waiting.sort(key=lambda output: order[output.value] if output.value in self.kept else len(order))

    def _is_written(self, value: ir.SSAValue) -> bool:
        """Whether a value is in memory before it is used."""
        return value in self.kept or (not self.traits.inline and isinstance(value.owner, WRITTEN))

    # --- what depends on what

    def _is_product(self, operation: ir.SpecOperation) -> bool:
        return is_product(self.buffers, operation)

    def leaves(self, value: ir.SSAValue) -> set[Any]:
        """Returns the products, attentions, recurrences and choices not yet in memory that a value is computed from."""
        if value in self.buffers or value.owner not in self.own:
            return set()
        operation: Any = value.owner
        if isinstance(operation, Separate) or self._is_product(operation):
            return {operation}
        return {leaf for each in operation.operands for leaf in self.leaves(each)}

    def leaves_of(self, operations: Iterable[ir.SpecOperation]) -> set[Any]:
        """Returns the leaves of the operands of some operations."""
        return {leaf for each in operations for operand in each.operands for leaf in self.leaves(operand)}

    def _needs(self, output: Output) -> set[Any]:
        extra = self.leaves(output.place.slots) if isinstance(output.place, ir.StateWrite) else set[Any]()
        return self.leaves(output.value) | extra

    def _wanted_linears(self) -> set[ir.WeightProduct]:
        """Returns the products read by operations that are not yet planned."""
        pending: list[Any] = [leaf for each in self.waiting for leaf in self._needs(each)]
        pending.extend(self.leaves_of(self.special))
        found: set[ir.WeightProduct] = set()
        seen: set[Any] = set()
        while pending:
            leaf = pending.pop()
            if leaf in seen:
                continue
            seen.add(leaf)
            if isinstance(leaf, ir.WeightProduct):
                found.add(leaf)
            pending.extend(self.leaves_of([leaf]))
        return found

    def in_memory(self, value: ir.SSAValue) -> Buffer | None:
        """Returns where a value lies unchanged, row-major: a reshape lies where its operand does."""
        if value in self.buffers:
            return self.buffers[value]
        if not isinstance(value.owner, ir.Reshape) or value.owner not in self.own:
            return None
        source, kind = self.in_memory(value.owner.x), ir.tensor_type(value)
        if source is None or source.space == "weight":
            return None
        return Buffer(source.space, source.key, kind.dims, kind.dtype, source.element)
