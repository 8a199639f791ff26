"""A kernel's operations as phases: what is written to memory, in which order, and where all threads must meet.

A phase is one function: rows of values (`RowPhase`), products with what is computed from them (`ProductPhase`),
attention, or a part of the choice of the k largest. Values that no phase writes are computed where they are used.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from forerun import ir
from forerun.codegen.regions import Region
from forerun.codegen.tvm.attention import Attention
from forerun.codegen.tvm.axes import right_aligned, source_axis
from forerun.codegen.tvm.expressions import INLINE, Stored, kind_of, region_of
from forerun.codegen.tvm.integers import Ranges
from forerun.codegen.tvm.linear import Bundle, Product
from forerun.codegen.tvm.loops import row_axis
from forerun.codegen.tvm.phases import (
    AttentionPhase,
    Plan,
    ProductPhase,
    RecurrencePhase,
    RowPhase,
    Slot,
    Surroundings,
    TopKPhase,
)
from forerun.codegen.tvm.records import Layer, Records
from forerun.codegen.tvm.rowwise import ROWWISE
from forerun.codegen.tvm.topk import chunks_of
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused

HEAVY = 6
"""Elementwise operations from which on a value that is used twice is kept instead of computed twice."""


class Planner:
    """Plans one region."""

    def __init__(self, region: Region, surroundings: Surroundings) -> None:
        self.plan = Plan(region)
        self.region, self.surroundings = region, surroundings
        self.done: set[Any] = set()
        self.destinations: dict[ir.SSAValue, Stored] = {}
        self.copies: list[tuple[ir.SSAValue, Stored]] = []
        self.needed: set[ir.SSAValue] = set()
        self.roots: list[tuple[int, ir.SSAValue, bool]] = []  # phase, value, whether an epilogue of that phase

    def run(self) -> Plan:
        ranges = Ranges()
        for operation in self.region.operations:
            ranges.check(operation)
            for each in operation.body if isinstance(operation, ir.Recurrence) else ():
                ranges.check(each)
        for inner, outer in self.region.arguments.items():
            self._argument(inner, outer)
        for inner, outer in self.region.results:
            slot = self._slot("value", outer)
            kind = ir.tensor_type(inner)
            place = Stored(region_of(kind.dtype), slot, kind.dims, kind.dtype)
            self._destination(inner, place)
        self._find_needed()
        for operation in self._schedule():
            OPERATIONS.of(operation)(self, operation)
            self.done.add(operation)
        for value, place in self.copies:
            self._row_item(value, place, ir.tensor_type(value).dims)
        self._finish_products()
        return self.plan

    def _slot(self, kind: str, key: Any = None) -> int:
        slot = Slot(kind, key)
        if slot in self.plan.slots:
            return self.plan.slots.index(slot)
        self.plan.slots.append(slot)
        return len(self.plan.slots) - 1

    def _scratch(self, dims: Sequence[ir.Dim], dtype: str) -> Stored:
        slot = self._slot("scratch", (len(self.plan.slots), tuple(dims)))
        return Stored(region_of(dtype), slot, tuple(dims), dtype)

    def _argument(self, inner: ir.SSAValue, outer: ir.SSAValue) -> None:
        kind = ir.tensor_type(inner)
        owner = outer.owner
        if isinstance(owner, ir.Parameter):
            self.weight(inner, owner)
        elif isinstance(owner, ir.Constant):
            return
        else:
            given = isinstance(owner, ir.Block) and kind_of(kind.dtype) != "number"
            region = "inputs" if given else region_of(kind.dtype)
            self.plan.stored[inner] = Stored(region, self._slot("value", outer), kind.dims, kind.dtype)

    def weight(self, value: ir.SSAValue, operation: ir.Parameter) -> None:
        symbol, kind = operation.symbol, ir.tensor_type(value)
        region = "weights" if kind_of(kind.dtype) == "number" else "tables"
        form = self.surroundings.formats.get(symbol)
        region = region if form is None else form.region
        self.plan.stored[value] = Stored(region, self._slot("weight", symbol), kind.dims, kind.dtype, form)

    def _destination(self, value: ir.SSAValue, place: Stored) -> None:
        """Sets where a yielded value is written; a reshape of a value that is written here anyway shares its memory."""
        if value in self.destinations or value in self.plan.stored:
            self.copies.append((value, place))
            return
        self.destinations[value] = place
        source = value
        while isinstance(source.owner, ir.Reshape):
            source = source.owner.x
        writes = isinstance(source.owner, ir.Linear | ir.TreeAttention | ir.Recurrence) or type(source.owner) in ROWWISE
        if (
            source is not value
            and writes
            and source.owner in self.region.operations
            and source not in self.destinations
        ):
            self.destinations[source] = Stored(place.region, place.slot, ir.tensor_type(source).dims, place.dtype)

    def _find_needed(self) -> None:
        self.needed.update(self.destinations)
        own = set(self.region.operations)
        cost: dict[ir.SSAValue, int] = {}
        for operation in self.region.operations:
            if self._is_product(operation) or isinstance(operation, ir.TopK):
                self.needed.add(operation.operands[0])
            for value in operation.results:
                inline = type(operation) in (ir.Map, ir.Rotary)
                cost[value] = inline + sum(cost.get(each, 0) for each in operation.operands)
                uses = sum(use.operation in own for use in value.uses)
                if type(operation) not in INLINE:
                    cost[value] = 0
                elif inline and uses > 1 and cost[value] >= HEAVY:
                    self.needed.add(value)
                    cost[value] = 0

    def _schedule(self) -> Iterator[ir.SpecOperation]:
        """The order of the region, but a product follows the products before it as soon as its operands are ready."""
        pending = list(self.region.operations)
        while pending:
            chosen = pending[0]
            if self.plan.phases and isinstance(self.plan.phases[-1], ProductPhase):
                ready = (each for each in pending if self._is_product(each) and self._ready(each))
                chosen = next(ready, chosen)
            pending.remove(chosen)
            yield chosen

    def _ready(self, operation: ir.SpecOperation) -> bool:
        own = set(self.region.operations)
        return all(each.owner not in own or each.owner in self.done for each in operation.operands)

    def _is_product(self, operation: ir.SpecOperation) -> bool:
        if not isinstance(operation, ir.Linear):
            return False
        owner = self.region.arguments.get(operation.weight, operation.weight).owner
        return isinstance(owner, ir.Parameter) and owner.symbol in self.surroundings.formats

    def row_wise(self, operation: ir.ValueOperation) -> None:
        self._write(operation.result)

    def inline(self, operation: ir.ValueOperation) -> None:
        """In memory only where that is needed."""
        if operation.result in self.needed:
            self._write(operation.result)

    def linear(self, operation: ir.Linear) -> None:
        if self._is_product(operation):
            self._product(operation)
        else:
            self._write(operation.result)

    def _write(self, value: ir.SSAValue) -> None:
        """Have a value in memory."""
        kind = ir.tensor_type(value)
        owner: Any = value.owner
        if isinstance(owner, ir.Reshape):
            source = self.plan.stored.get(owner.x)
            place = self.destinations.get(value)
            plain = source is not None and source.format is None and source.region in ("numbers", "indices")
            if source is not None and plain and (place is None or place.slot == source.slot):
                self.plan.stored[value] = Stored(source.region, source.slot, kind.dims, source.dtype)
                return
        place = self.destinations.get(value) or self._scratch(kind.dims, kind.dtype)
        phase = self.plan.phases[-1] if self.plan.phases else None
        if isinstance(phase, ProductPhase) and self._joins(value, phase):
            phase.bundles.append(Bundle(place, [], [(value, place)]))
            self.roots.append((len(self.plan.phases) - 1, value, True))
            self.plan.stored[value] = place
            return
        self._row_item(value, place, place.dims)
        self.plan.stored[value] = place

    def _row_item(self, value: ir.SSAValue, place: Stored, dims: Sequence[ir.Dim]) -> None:
        axis = row_axis(dims)
        rows = 1 if axis is None else dims[axis]
        phase = self._row_phase(rows, [(value, axis)])
        phase.items.append((value, place))
        self.roots.append((len(self.plan.phases) - 1, value, False))

    def _row_phase(self, rows: ir.Dim, reads: Sequence[tuple[ir.SSAValue, int | None]]) -> RowPhase:
        """The open phase where it has these rows and what is read of it is read at its own row; else a new one."""
        phase = self.plan.phases[-1] if self.plan.phases else None
        if isinstance(phase, RowPhase) and phase.rows == rows:
            written = {item[0] for item in phase.items}
            if not any(self._crosses(value, axis, written, top=True) for value, axis in reads):
                return phase
        phase = RowPhase(rows, [])
        self.plan.phases.append(phase)
        return phase

    def _crosses(self, value: ir.SSAValue, axis: int | None, written: set[Any], top: bool = False) -> bool:
        """Whether the row of `value` (its index along `axis`) reads other rows of what the phase has written."""
        kind = ir.tensor_type(value)
        if not top and value in written:
            return axis != row_axis(kind.dims)
        operation: Any = value.owner
        if (value in self.plan.stored and not top) or operation not in self.region.operations:
            return False
        if isinstance(operation, ir.Gather):
            table, indices = operation.table, operation.indices
            lead = len(ir.broadcast_dims([ir.tensor_type(each).dims for each in indices]))
            inside = axis if axis is not None and axis < lead else None
            return self._crosses(table, None, written) or any(
                self._crosses(each, right_aligned(inside, lead, each), written) for each in indices
            )
        return any(self._crosses(each, source_axis(operation, axis, each), written) for each in operation.operands)

    def _joins(self, value: ir.SSAValue, phase: ProductPhase) -> bool:
        """Whether a value is an elementwise function of the phase's products at its own index."""
        products = {product.value for bundle in phase.bundles for product in bundle.products}
        later = {value for bundle in phase.bundles for value, _ in bundle.epilogues}
        dims = ir.tensor_type(value).dims
        found: list[bool] = []

        def visit(each: ir.SSAValue) -> bool:
            if each in products:
                found.append(True)
                return ir.tensor_type(each).dims == dims
            if each in later:
                return False
            if each in self.plan.stored or each.owner not in self.region.operations:
                return True
            operation: Any = each.owner
            if isinstance(operation, ir.Map | ir.Cast):
                return all(visit(operand) for operand in operation.operands)
            return type(operation) in INLINE and not (self._leaves(each) & (products | later))

        return type(value.owner) in (ir.Map, ir.Cast) and visit(value) and bool(found)

    def _leaves(self, value: ir.SSAValue, top: bool = True) -> set[ir.SSAValue]:
        """The values in memory, and products, that a value is computed from."""
        operation: Any = value.owner
        if (
            operation not in self.region.operations
            or (value in self.plan.stored and not top)
            or self._is_product(operation)
        ):
            return {value}
        return {leaf for each in operation.operands for leaf in self._leaves(each, False)}

    def _product(self, operation: ir.Linear) -> None:
        x, weight, bias = operation.x, operation.weight, operation.bias
        if x not in self.plan.stored or self.plan.stored[x].format or self.plan.stored[x].region != "numbers":
            if x in self.plan.stored or x.owner not in self.region.operations:
                place = self._scratch(ir.tensor_type(x).dims, ir.tensor_type(x).dtype)
                self._row_item(x, place, place.dims)
                self.plan.stored[x] = place
            else:
                self._write(x)
        phase = self.plan.phases[-1] if self.plan.phases else None
        written = isinstance(phase, ProductPhase) and {value for b in phase.bundles for value, _ in b.epilogues}
        if not isinstance(phase, ProductPhase) or (written and x in written):
            phase = ProductPhase([])
            self.plan.phases.append(phase)
        value = operation.result
        kind = ir.tensor_type(value)
        raw = self.destinations.get(value) or self._scratch(kind.dims, kind.dtype)
        bias_place = None if bias is None else self.plan.stored[bias]
        phase.bundles.append(Bundle(self.plan.stored[x], [Product(value, self.plan.stored[weight], bias_place, raw)]))
        self.plan.stored[value] = raw

    def _finish_products(self) -> None:
        """Merge the bundles that one value joins, and drop results that nothing reads from memory."""
        for number, phase in enumerate(self.plan.phases):
            if not isinstance(phase, ProductPhase):
                continue
            phase.bundles = self._merged(phase.bundles)
            kept = {leaf for at, root, own in self.roots if not (own and at == number) for leaf in self._leaves(root)}
            for bundle in phase.bundles:
                last = bundle.products[-1]
                if bundle.epilogues and last.value not in self.destinations and last.value not in kept:
                    last.raw = None

    def _merged(self, bundles: list[Bundle]) -> list[Bundle]:
        merged = [bundle for bundle in bundles if bundle.products]
        for bundle in bundles:
            if bundle.products:
                continue
            ((root, _),) = bundle.epilogues
            leaves = self._leaves(root)
            joined = [each for each in merged if any(product.value in leaves for product in each.products)]
            first = joined[0]
            for each in joined[1:]:
                if each.x != first.x:
                    raise UnsupportedOperationError(
                        "spec.kernel joins linears with different inputs; put each into a kernel of its own."
                    )
                first.products.extend(each.products)
                first.epilogues.extend(each.epilogues)
                merged.remove(each)
            first.epilogues.extend(bundle.epilogues)
        return merged

    def _records(self, symbol: str) -> Records:
        if symbol not in self.plan.records:
            form = self.surroundings.states[symbol]
            slots = self._slot("state", symbol), self._slot("record", form.region)
            self.plan.records[symbol] = Records(form, *slots)
        return self.plan.records[symbol]

    def state_write(self, operation: ir.StateWrite) -> None:
        rows = ir.tensor_type(operation.value).dims[0]
        phase = self._row_phase(rows, [(each, 0) for each in operation.operands])
        phase.items.append((operation, self._records(operation.symbol)))
        self.roots.extend((len(self.plan.phases) - 1, each, False) for each in operation.operands)

    def state_read(self, operation: ir.StateRead) -> None:
        self._records(operation.symbol)
        self.inline(operation)

    def recurrence(self, operation: ir.Recurrence) -> None:
        """A phase of its own; the body's values that are no elements of others are kept in memory."""
        kind = ir.tensor_type(operation.result)
        result = self.destinations.get(operation.result) or self._scratch(kind.dims, kind.dtype)
        kept: list[tuple[ir.SSAValue, Stored]] = []
        for inner in operation.body:
            if isinstance(inner, ir.Parameter):
                self.weight(inner.result, inner)
            elif type(inner) in ROWWISE:
                own = ir.tensor_type(inner.results[0])
                kept.append((inner.results[0], self._scratch(own.dims, own.dtype)))
            elif type(inner) not in INLINE:
                raise UnsupportedOperationError(
                    f"the cpu target has no kernel for {inner.name} in the body of a recurrence; compute it outside."
                )
        self.plan.phases.append(RecurrencePhase(operation, self._records(operation.symbol), result, kept))
        self.roots.extend((len(self.plan.phases) - 1, each, False) for each in operation.operands)
        self.plan.stored[operation.result] = result

    def attention(self, operation: ir.TreeAttention) -> None:
        layer = Layer(self._records(operation.symbol), self._records(operation.values))
        kind = ir.tensor_type(operation.result)
        heads = kind.dims[1]
        assert isinstance(heads, int)
        attention = Attention(layer, operation, heads, operation.scale)
        result = self.destinations.get(operation.result) or self._scratch(kind.dims, kind.dtype)
        self.plan.phases.append(AttentionPhase(attention, result))
        self.roots.extend((len(self.plan.phases) - 1, each, False) for each in operation.operands)
        self.plan.stored[operation.result] = result

    def topk(self, operation: ir.TopK) -> None:
        x = operation.x
        if x not in self.plan.stored or self.plan.stored[x].region != "numbers":
            self._write(x)
        logits = self.plan.stored[x]
        size = logits.dims[-1]
        assert isinstance(size, int)
        places: list[Stored] = []
        for value in (operation.values, operation.indices):
            kind = ir.tensor_type(value)
            places.append(self.destinations.get(value) or self._scratch(kind.dims, kind.dtype))
            self.plan.stored[value] = places[-1]
        maxima = self._scratch((*logits.dims[:-1], chunks_of(size)), "f32")
        self.plan.phases.extend(TopKPhase(stage, logits, maxima, places[0], places[1]) for stage in (0, 1))
        self.roots.append((len(self.plan.phases) - 1, x, False))


OPERATIONS: ir.OperationTable[Callable[[Planner, Any], None]] = ir.OperationTable(
    "operations that the cpu target plans",
    {
        ir.Parameter: lambda planner, operation: planner.weight(operation.result, operation),
        ir.Linear: Planner.linear,
        ir.TreeAttention: Planner.attention,
        ir.StateWrite: Planner.state_write,
        ir.StateRead: Planner.state_read,
        ir.Recurrence: Planner.recurrence,
        ir.TopK: Planner.topk,
        **each_of(Planner.row_wise, ir.AlongAxes, ir.MatMul),
        **each_of(Planner.inline, ir.Elementwise, ir.Constant, ir.Iota, ir.Reshape, ir.Transpose, ir.Slice),
        **each_of(Planner.inline, ir.Broadcast, ir.Gather, ir.TakeAlong, ir.Rotary),
        ir.Attention: refused("attends over a whole sequence; the cpu target only compiles steps"),
        **each_of(
            refused("cannot be part of a kernel"), ir.Kernel, ir.Return, ir.Yield, ir.Function, ir.Weight, ir.State
        ),
    },
)
