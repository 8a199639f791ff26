"""A region as loop nests: products with their epilogues in one tile, rows, attentions, recurrences and choices.

Scheduling is demand-driven: it starts from the region's results, and a nest is planned when its inputs are in memory. A
product includes what is computed from it, as far as the traits of a back end allow; the rest becomes rows after it,
which read the product from memory. A choice among products may be included as well; the logits are then written on
demand, by their own nests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from forerun import ir
from forerun.codegen.loops.buffer import Buffer, element_of
from forerun.codegen.loops.expr import Expr, Load, apply
from forerun.codegen.loops.fitting import Fitting, Output, Tile
from forerun.codegen.loops.histories import HistorySchedule
from forerun.codegen.loops.index import Index, Lane, unflat
from forerun.codegen.loops.integers import Ranges
from forerun.codegen.loops.nest import (
    Choice,
    Experts,
    Norm,
    ProductNest,
    Segment,
    Taken,
    TopKNest,
)
from forerun.codegen.loops.placing import Plan, Separate, require_narrow
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused


class Scheduler(HistorySchedule):
    """Plans one region. After the `last` one of a function, the values it has read stay until the next step."""

    def run(self) -> Plan:
        ranges = Ranges()
        for operation in self.region.operations:
            ranges.check(operation)
            for each in operation.body if isinstance(operation, ir.WithBody) else ():
                ranges.check(each)
        for inner, outer in self.region.arguments.items():
            self._argument(inner, outer)
        for operation in self.region.operations:
            PLANNED.of(operation)(self, operation)
        self.linears = [
            each for each in self.region.operations if isinstance(each, ir.WeightProduct) and self._is_product(each)
        ]
        for inner, outer in self.region.results:
            kind = ir.tensor_type(inner)
            self._result(inner, Buffer("value", outer, kind.dims, kind.dtype, element_of(kind.dtype)))
        self._keep_heavy()
        self._settle()
        self.nests, self.waiting = self.plan.on_demand, self.on_demand
        self._settle()
        return self.plan

    def _settle(self) -> None:
        """Plans nests until no value is waiting."""
        while self.waiting or self.special or self._wanted_linears():
            if not (self._head() or self._products() or self._special()):
                self._rows()

    def parameter(self, operation: ir.Parameter) -> None:
        self._weight(operation.result, operation)

    def state_write(self, operation: ir.StateWrite) -> None:
        self.waiting.append(Output(operation.value, operation))

    def separate(self, operation: Separate) -> None:
        """Requests a nest of its own, when its operands are ready."""
        self.special.append(operation)

    def where_used(self, operation: ir.SpecOperation) -> None:
        """Does nothing yet: the readers of its result decide."""

    # --- products

    def _head(self) -> bool:
        """Plans a nest whose tiles choose among products that nothing else in the step reads."""
        for operation in self.special if self.traits.tiles else ():
            if not isinstance(operation, ir.TopK):
                continue
            logits = operation.x
            needed = self.leaves(logits)
            linears = [each for each in self.linears if each in needed]
            if not linears or len(linears) < len(needed) or not self._alike(linears):
                continue
            on_demand = [each for each in self.waiting if self._needs(each) & needed]
            if self._read_in_step(on_demand, operation, needed):
                continue
            choice = self._choice(operation, int(ir.tensor_type(linears[0].result).dims[-1]))
            segment = self._fitting(linears, [Output(logits, choice)])
            if not segment.outputs:
                continue
            self.nests.append(self._product_nest(linears[0], [segment]))
            self.on_demand.extend(on_demand)
            self.waiting = [each for each in self.waiting if each not in on_demand]
            self._done(operation, [choice.values, choice.ids])
            return True
        return False

    def _alike(self, linears: list[ir.WeightProduct]) -> bool:
        """Whether linears are ready and can share tiles: one input, one element type, one number of columns."""
        kinds = {(each.x, self._kind(each), ir.tensor_type(each.result).dims[-1]) for each in linears}
        return len(kinds) == 1 and self._is_ready(linears[0])

    def _read_in_step(self, outputs: list[Output], choice: ir.TopK, linears: set[Any]) -> bool:
        """Whether products are read by more than a choice and outputs that the caller gets on demand."""
        for output in outputs:
            place = output.place
            if not self.last or not isinstance(place, Buffer) or place.space != "value":
                return True
            if not all(isinstance(use.operation, ir.Return) for use in place.key.uses):
                return True
        others = [each for each in (*self.special, *self.linears) if each is not choice and each not in linears]
        return bool(self.leaves_of(others) & linears)

    def _choice(self, operation: ir.TopK, columns: int) -> Choice:
        values, ids = (self._place(each) for each in operation.results)
        *rows, size = ir.tensor_type(operation.x).dims
        is_last = ids.space == "value" and ids.key is self.facts.candidates
        samples = self.traits.tiles and is_last and [dim for dim in rows if dim != 1] == ["M"]
        sampled = Buffer("sampled", "sampled", tuple(rows), "i32", "i32") if samples else None
        return Choice(tuple(rows), int(size), operation.k, values, ids, sampled, columns)

    def _products(self) -> bool:
        """Plans a nest for the products on one input that are ready."""
        wanted = self._wanted_linears()
        ready = [each for each in self.linears if each in wanted and self._is_ready(each)]
        if not ready:
            return False
        first = ready[0]
        x, kind = first.x, self._kind(first)
        group = [each for each in ready if each.x is x and self._kind(each) == kind]
        segments = [self._segment(component) for component in self._components(group)]
        self.nests.append(self._product_nest(first, segments))
        for segment in segments:
            for taken in segment.outputs:
                if isinstance(taken.to, Buffer) and taken.to.space != "state":
                    self.buffers.setdefault(taken.of, taken.to)
            self.waiting = [each for each in self.waiting if not each.is_taken(segment)]
        return True

    def _is_ready(self, linear: ir.WeightProduct) -> bool:
        ids = self.leaves(linear.ids) if isinstance(linear, ir.ExpertLinear) else None
        return not self.leaves(linear.x) and not ids

    def _kind(self, linear: ir.WeightProduct) -> tuple[Any, ...]:
        """What products that share a nest have in common: the arithmetic, the experts and, in tiles, the matrices'
        element type."""
        element = self.buffers[linear.weight].element
        if linear.arithmetic not in (None, *self.traits.arithmetics):
            raise UnsupportedOperationError(f"the {self.traits.target} target has no {linear.arithmetic} arithmetic.")
        experts = None
        if isinstance(linear, ir.ExpertLinear):
            experts = linear.ids, ir.tensor_type(linear.weight).dims[0]
        return linear.arithmetic, experts, element if self.traits.tiles else None

    def _components(self, group: list[ir.WeightProduct]) -> list[list[ir.WeightProduct]]:
        """Groups the products that one output combines."""
        owner = {each: number for number, each in enumerate(group)}
        for output in self.waiting:
            needs = self._needs(output)
            if needs and needs <= set(group) and len({ir.tensor_type(each.result).dims[-1] for each in needs}) == 1:
                numbers = {owner[each] for each in needs}
                owner = {each: min(numbers) if number in numbers else number for each, number in owner.items()}
        return [[each for each in group if owner[each] == number] for number in sorted(set(owner.values()))]

    def _fitting(self, linears: list[ir.WeightProduct], outputs: Sequence[Output]) -> Segment:
        return Fitting(self.context, self._tile(linears[0]), linears, self.traits.tiles).segment(outputs)

    def _tile(self, linear: ir.WeightProduct) -> Tile:
        *rows, columns = ir.tensor_type(linear.result).dims
        return Tile(tuple(rows), int(columns))

    def _segment(self, component: list[ir.WeightProduct]) -> Segment:
        """The tile that includes most outputs; products that others read are written as they are."""
        mine = set(component)
        outputs = [each for each in self.waiting if self._needs(each) and self._needs(each) <= mine]
        best = self._fitting(component, outputs)
        left = [each for each in self.waiting if not each.is_taken(best)]
        read = {leaf for each in left for leaf in self._needs(each)}
        read |= self.leaves_of([*self.special, *(each for each in self.linears if each not in mine)])
        for linear, matrix in zip(component, best.matrices, strict=True):
            value = linear.result
            if linear in read and not any(each.of is value for each in best.outputs):
                tile = self._tile(linear)
                at = tile.index(value, Index.of(tile.column))
                place = self._place(value)
                own = Load(matrix.product, tuple(at))
                best.outputs.append(Taken(own, place, tuple(at), 0, best.columns, value))
        return best

    def _product_nest(self, linear: ir.WeightProduct, segments: list[Segment]) -> ProductNest:
        """The nest of some segments. Rows of the input are computed in it, or, if they cannot be, written first."""
        x, rows = linear.x, ir.tensor_type(linear.result).dims[:-1]
        features = ir.tensor_type(x).dims[-1]
        row, feature = Lane("row"), Lane("feature", int(features))
        experts = self._written(partial(self._experts, linear, row)) if isinstance(linear, ir.ExpertLinear) else None
        shared = 1 if experts is None else experts.shared
        element = segments[0].matrices[0].weight.element
        if not self.traits.prologues:
            self._written(partial(self._table, x))
        source = Index.of(row).divided(shared)[0]
        given, norm = self._written(partial(self._input, x, source, feature, element))
        return ProductNest(rows, int(features), given, norm, segments, row, feature, experts)

    def _experts(self, linear: ir.ExpertLinear, row: Lane) -> Experts:
        """The experts of a product's rows."""
        ids, count = ir.tensor_type(linear.ids).dims, int(ir.tensor_type(linear.weight).dims[0])
        chosen = apply("within", self.context.element(linear.ids, unflat(ids, Index.of(row))), count)
        return Experts(count, chosen, 1 if linear.by_choice else int(ids[-1]))

    def _input(self, x: ir.SSAValue, row: Index, feature: Lane, element: str) -> tuple[Expr, Norm | None]:
        """The input of a product at a row and a feature, and the norm whose factor is left for the products."""
        place, norm = self.in_memory(x), self._trailing_norm(x, element)
        source = x if norm is None else norm.x
        at = (*unflat(ir.tensor_type(source).dims[:-1], row), Index.of(feature))
        if place is not None:
            return Load(place, at), None
        value = self.context.element(source, at)
        require_narrow(value, [feature])
        if norm is None:
            return value, None
        gain = None if norm.weight is None else self.context.element(norm.weight, [Index.of(feature)])
        return value if gain is None else value * gain, Norm(norm.eps, value, gain)

    def _trailing_norm(self, x: ir.SSAValue, element: str) -> ir.RMSNorm | None:
        """The preceding RMS norm whose factor, one per row, can multiply the products instead of the features."""
        value = x
        while isinstance(value.owner, ir.Reshape) and value not in self.buffers:
            value = value.owner.x
        owner: Any = value.owner
        fits = isinstance(owner, ir.RMSNorm) and value not in self.buffers and element in self.traits.deferred
        return owner if fits and ir.tensor_type(value).dims[-1] == ir.tensor_type(x).dims[-1] else None

    # --- nests of their own

    def _special(self) -> bool:
        """Plans an attention, a recurrence, or a choice of candidates, whose operands are ready."""
        pending = {str(each.place.symbol) for each in self.waiting if isinstance(each.place, ir.StateWrite)}
        for operation in self.special:
            if any(self.leaves(each) for each in operation.operands) or pending & {*operation.reads}:
                continue
            if isinstance(operation, ir.TopK):
                logits = self._written(partial(self._table, operation.x))
                choice = self._choice(operation, int(ir.tensor_type(operation.x).dims[-1]))
                self.nests.append(TopKNest(logits, choice))
                self._done(operation, [choice.values, choice.ids])
            else:
                results = [self._place(each) for each in operation.results]
                self.nests.append(self._written(partial(self._history_nest, operation, results)))
                self._done(operation, results)
            return True
        return False

    def _done(self, operation: Separate, places: list[Buffer]) -> None:
        """Records that the results of an operation are in memory."""
        self.special.remove(operation)
        self.buffers.update(zip(operation.results, places, strict=True))


PLANNED: ir.OperationTable[Callable[[Scheduler, Any], None]] = ir.OperationTable(
    "operations that are scheduled",
    {
        ir.Parameter: Scheduler.parameter,
        ir.StateWrite: Scheduler.state_write,
        **each_of(Scheduler.separate, ir.TreeAttention, ir.TreeRecurrence, ir.TopK),
        ir.Slice: Scheduler.first_rows,
        **each_of(Scheduler.where_used, ir.Computation, ir.StateRead, ir.Ancestors),
        ir.Exchange: refused("passes between two parts; kernels are made of one"),
        **each_of(
            refused("runs over a whole sequence; kernels are made of steps"), ir.Attention, ir.Recurrence, ir.Window
        ),
        **each_of(refused("is no part of a kernel"), ir.Kernel, ir.Return, ir.Yield, ir.Function, ir.Weight, ir.State),
    },
)
