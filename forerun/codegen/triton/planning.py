"""A region as launches: products with what follows them in one tile, rows, attention, recurrences, and choices.

A linear takes along whatever is computed from it at its own column, or, for a rotary embedding, at the two columns of a
pair, if a tile holds both. What does not fit becomes a launch over rows behind it, which reads the product from memory.
A choice is taken along as well, and then the logits are written on demand, by launches of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from forerun import ir
from forerun.codegen.regions import Region
from forerun.codegen.triton.expressions import Expressions, NeedsMemoryError, Slot, Stored, kind_of
from forerun.codegen.triton.plan import (
    AttentionLaunch,
    LaunchPlan,
    Output,
    Plan,
    RecurrenceLaunch,
    Surroundings,
    TopKLaunch,
)
from forerun.codegen.triton.products import Products, Segment, fitting_segment, leading
from forerun.codegen.triton.recurrence import emit_recurrence
from forerun.codegen.triton.rowwise import Item, RowsLaunch, row_item
from forerun.codegen.triton.rules import NO_TEMPLATE
from forerun.codegen.triton.step import LEAST_BLOCK
from forerun.codegen.triton.topk import CHUNK, Choice
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused

Separate = ir.TreeAttention | ir.Recurrence | ir.TopK
"""What has a launch of its own."""


class Planner:
    """Plans one region. Behind the `last` one of a function, what it has read lies where it was until the next step."""

    def __init__(self, region: Region, known: Surroundings, last: bool = False) -> None:
        self.plan, self.region, self.known, self.last = Plan(region), region, known, last
        self.launches = self.plan.launches
        self.asked: list[Output] = []
        self.own = set(region.operations)
        self.scratches = 0
        self.destinations: dict[ir.SSAValue, Stored] = {}
        self.waiting: list[Output] = []
        self.special: list[Separate] = []
        self.linears = [each for each in region.operations if isinstance(each, ir.Linear)]

    def run(self) -> Plan:
        for inner, outer in self.region.arguments.items():
            self._argument(inner, outer)
        for operation in self.region.operations:
            OPERATIONS.of(operation)(self, operation)
        for inner, outer in self.region.results:
            kind = ir.tensor_type(inner)
            place = Stored(Slot("value", outer), kind.dims, kind.dtype, _element(kind.dtype))
            if isinstance(inner.owner, Separate) and inner not in self.destinations:
                self.destinations[inner] = place
            else:
                self.destinations.setdefault(inner, place)
                self.waiting.append(Output(inner, place))
        self._settle()
        self.launches, self.waiting = self.plan.asked, self.asked
        self._settle()
        return self.plan

    def _settle(self) -> None:
        """Launches until nothing waits."""
        while self.waiting or self.special or self._wanted_linears():
            if not (self._head() or self._products() or self._special()):
                self._rows()

    # --- where values lie

    def _argument(self, inner: ir.SSAValue, outer: ir.SSAValue) -> None:
        kind, owner = ir.tensor_type(inner), outer.owner
        if isinstance(owner, ir.Constant):
            self.plan.constants[inner] = owner
        elif isinstance(owner, ir.Parameter):
            self._weight(inner, owner)
        elif isinstance(owner, ir.Block):
            slot = Slot("input", str(outer.name_hint))
            self.plan.stored[inner] = Stored(slot, kind.dims, kind.dtype, _element(kind.dtype))
        else:
            self.plan.stored[inner] = Stored(Slot("value", outer), kind.dims, kind.dtype, _element(kind.dtype))

    def _weight(self, value: ir.SSAValue, operation: ir.Parameter) -> None:
        symbol, kind = str(operation.symbol), ir.tensor_type(value)
        self.plan.stored[value] = Stored(Slot("weight", symbol), kind.dims, kind.dtype, self.known.storage[symbol])

    def _scratch(self, dims: Sequence[ir.Dim], dtype: str) -> Stored:
        self.scratches += 1
        return Stored(Slot("scratch", (self.scratches - 1, tuple(dims))), tuple(dims), dtype, _element(dtype))

    def parameter(self, operation: ir.Parameter) -> None:
        self._weight(operation.result, operation)

    def state_write(self, operation: ir.StateWrite) -> None:
        self.waiting.append(Output(operation.value, operation))

    def separate(self, operation: Separate) -> None:
        """A launch of its own, when its operands are ready."""
        self.special.append(operation)

    def where_used(self, operation: ir.SpecOperation) -> None:
        """Nothing yet: what reads its result decides."""

    # --- what depends on what

    def leaves(self, value: ir.SSAValue) -> set[Any]:
        """The linears, attentions, recurrences and choices not yet in memory that a value is computed from."""
        if value in self.plan.stored or value.owner not in self.own:
            return set()
        operation: Any = value.owner
        if isinstance(operation, ir.Linear | Separate):
            return {operation}
        return {leaf for each in operation.operands for leaf in self.leaves(each)}

    def _needs(self, output: Output) -> set[Any]:
        extra = {*self.leaves(output.place.slots)} if isinstance(output.place, ir.StateWrite) else set[Any]()
        return self.leaves(output.value) | extra

    def _wanted_linears(self) -> set[ir.Linear]:
        """Linears that something which is still to come reads."""
        pending: list[Any] = [leaf for each in self.waiting for leaf in self._needs(each)]
        pending += [leaf for each in self.special for operand in each.operands for leaf in self.leaves(operand)]
        found: set[ir.Linear] = set()
        while pending:
            leaf = pending.pop()
            if isinstance(leaf, ir.Linear) and leaf not in found:
                found.add(leaf)
            if leaf not in self.special or isinstance(leaf, ir.Linear):
                pending.extend(each for operand in leaf.operands for each in self.leaves(operand))
        return found

    # --- launches

    def _append(self, launch: LaunchPlan) -> None:
        self.launches.append((launch, dict(self.plan.stored)))

    def _head(self) -> bool:
        """A launch whose tiles choose among products that nothing else in the step reads."""
        for operation in self.special:
            if not isinstance(operation, ir.TopK):
                continue
            logits = operation.x
            needed = self.leaves(logits)
            linears = [each for each in self.linears if each in needed]
            if not linears or len(linears) < len(needed) or not self._alike(linears):
                continue
            asked = [each for each in self.waiting if self._needs(each) & needed]
            if self._read_in_step(asked, operation, needed):
                continue
            choice = self._choice(operation, int(ir.tensor_type(linears[0].result).dims[-1]), LEAST_BLOCK)
            stored, constants = self.plan.stored, self.plan.constants
            segment = fitting_segment(stored, constants, linears, [Output(logits, choice)], self.known)
            if not segment.outputs:
                continue
            self._require_weights(linears)
            x = linears[0].x
            launch = Products(x, leading(x), self._element(linears[0]), [segment])
            self._settle_input(launch)
            self._append(launch)
            self.asked.extend(asked)
            self.waiting = [each for each in self.waiting if each not in asked]
            self._chosen(operation, [choice.values, choice.ids])
            return True
        return False

    def _alike(self, linears: list[ir.Linear]) -> bool:
        """Whether linears are ready and can share tiles: one input, one element type, one number of columns."""
        kinds = {(each.x, self._element(each), ir.tensor_type(each.result).dims[-1]) for each in linears}
        return len(kinds) == 1 and not self.leaves(linears[0].x)

    def _read_in_step(self, outputs: list[Output], choice: ir.TopK, linears: set[Any]) -> bool:
        """Whether the linears are read by more than a choice and outputs that the function's caller may ask for."""
        for output in outputs:
            place = output.place
            if not self.last or not isinstance(place, Stored) or place.slot.kind != "value":
                return True
            if not all(isinstance(use.operation, ir.Return) for use in place.slot.key.uses):
                return True
        others = [each for each in (*self.special, *self.linears) if each is not choice and each not in linears]
        return any(self.leaves(operand) & linears for each in others for operand in each.operands)

    def _choice(self, operation: ir.TopK, columns: int, block: int) -> Choice:
        values, ids = (self._place(each) for each in operation.results)
        *rows, size = ir.tensor_type(operation.x).dims
        draws = ids.slot == Slot("value", self.known.candidates) and [dim for dim in rows if dim != 1] == ["M"]
        drawn = Stored(Slot("drawn", "drawn"), tuple(rows), "i32", "i32") if draws else None
        return Choice(tuple(rows), int(size), operation.k, values, ids, drawn, columns, block)

    def _products(self) -> bool:
        """A launch for the linears on one input that are ready."""
        wanted = self._wanted_linears()
        ready = [each for each in self.linears if each in wanted and not self.leaves(each.x)]
        if not ready:
            return False
        x = ready[0].x
        group = [each for each in ready if each.x is x and self._element(each) == self._element(ready[0])]
        self._require_weights(group)
        segments: list[Segment] = []
        for component in self._components(group):
            segments.append(self._segment(component))
        launch = Products(x, leading(x), self._element(group[0]), segments)
        self._settle_input(launch)
        self._append(launch)
        for segment in segments:
            for item in segment.outputs:
                if isinstance(item.place, Stored):
                    self.plan.stored.setdefault(item.value, item.place)
                self.waiting = [each for each in self.waiting if (each.value, each.place) != (item.value, item.place)]
        return True

    def _element(self, linear: ir.Linear) -> str:
        stored = self.plan.stored.get(linear.weight)
        return "none" if stored is None else stored.element

    def _require_weights(self, group: Iterable[ir.Linear]) -> None:
        for linear in group:
            stored = self.plan.stored.get(linear.weight)
            if stored is None or stored.slot.kind != "weight" or stored.element == "i32":
                raise UnsupportedOperationError(
                    "the cuda target has no Triton template for spec.linear with a computed matrix; compile for the "
                    "cpu or the reference target."
                )

    def _components(self, group: list[ir.Linear]) -> list[list[ir.Linear]]:
        """Linears that one output joins, together."""
        owner = {each: number for number, each in enumerate(group)}
        for output in self.waiting:
            needs = self._needs(output)
            if needs and needs <= set(group) and len({ir.tensor_type(each.result).dims[-1] for each in needs}) == 1:
                numbers = {owner[each] for each in needs}
                owner = {each: min(numbers) if number in numbers else number for each, number in owner.items()}
        return [[each for each in group if owner[each] == number] for number in sorted(set(owner.values()))]

    def _segment(self, component: list[ir.Linear]) -> Segment:
        """The tile that takes most outputs along; the products that others read are written as they are."""
        mine = set(component)
        outputs = [each for each in self.waiting if self._needs(each) and self._needs(each) <= mine]
        best = fitting_segment(self.plan.stored, self.plan.constants, component, outputs, self.known)
        taken = {(each.value, each.place) for each in best.outputs}
        left = [each for each in self.waiting if (each.value, each.place) not in taken]
        read = {leaf for each in left for leaf in self._needs(each)}
        read |= {leaf for each in self.special for operand in each.operands for leaf in self.leaves(operand)}
        others = [each for each in self.linears if each not in mine]
        read |= {leaf for each in others for leaf in self.leaves(each.x)}
        for linear in component:
            value = linear.result
            raw = linear in read and not any(each.value is value for each in best.outputs)
            if raw:
                kind = ir.tensor_type(value)
                place = self.destinations.get(value) or self._scratch(kind.dims, kind.dtype)
                best.outputs.extend(best.raw(value, place))
        return best

    def _settle_input(self, launch: Products) -> None:
        """Rows of the input are computed in the launch itself, unless a value on the way must be in memory."""
        while True:
            try:
                launch.emit(Expressions(dict(self.plan.stored), self.plan.constants), self.known)
            except NeedsMemoryError as needed:
                if self.leaves(needed.value):
                    raise AssertionError(f"a tile has lost the value {needed.value}") from needed
                self._write_rows(needed.value)
            else:
                return

    def _special(self) -> bool:
        """An attention, a recurrence, or a choice of candidates, whose operands are ready."""
        for operation in self.special:
            if any(self.leaves(each) for each in operation.operands):
                continue
            if isinstance(operation, ir.TreeAttention):
                places = [self._place(operation.result)]
                self._append(AttentionLaunch(operation, places[0]))
            elif isinstance(operation, ir.Recurrence):
                places = [self._place(operation.result)]
                self._recurrence(RecurrenceLaunch(operation, places[0]))
            else:
                x = operation.x
                if x not in self.plan.stored:
                    self._write_rows(x)
                choice = self._choice(operation, int(ir.tensor_type(x).dims[-1]), CHUNK)
                places = [choice.values, choice.ids]
                self._append(TopKLaunch(self.plan.stored[x], choice))
            self._chosen(operation, places)
            return True
        return False

    def _recurrence(self, launch: RecurrenceLaunch) -> None:
        """What the rows' inputs are computed from lies in memory, where it must."""
        inside = {each for inner in launch.operation.body for each in inner.results}
        while True:
            try:
                emit_recurrence(Expressions(dict(self.plan.stored), self.plan.constants), launch, self.known)
            except NeedsMemoryError as needed:
                if needed.value in inside:
                    owner = needed.value.owner
                    assert isinstance(owner, ir.SpecOperation)
                    raise UnsupportedOperationError(
                        f"the cuda target has no Triton template for {owner.name} in the body of a recurrence; compile "
                        "for the cpu or the reference target."
                    ) from needed
                self._write_rows(needed.value)
            else:
                self._append(launch)
                return

    def _chosen(self, operation: Separate, places: list[Stored]) -> None:
        """An attention's or a choice's results are in memory."""
        self.special.remove(operation)
        self.plan.stored.update(zip(operation.results, places, strict=True))
        self.waiting = [each for each in self.waiting if self.plan.stored.get(each.value) != each.place]

    def _place(self, value: ir.SSAValue) -> Stored:
        kind = ir.tensor_type(value)
        return self.destinations.get(value) or self._scratch(kind.dims, kind.dtype)

    def _write_rows(self, value: ir.SSAValue) -> None:
        """Have a value in memory, by a launch of its own."""
        place = self._place(value)
        self._row_launch([Output(value, place)])
        self.waiting = [each for each in self.waiting if (each.value, each.place) != (value, place)]

    def _rows(self) -> None:
        """A launch for all that is left and ready."""
        ready = [each for each in self.waiting if not self._needs(each)]
        assert ready, "the values of a region wait for each other"
        self.waiting = [each for each in self.waiting if each not in ready]
        self._row_launch(ready)

    def _row_launch(self, outputs: Sequence[Output]) -> None:
        items: list[Item] = []
        for output in outputs:
            while True:
                try:
                    items.append(row_item(self.plan.stored, self.plan.constants, output, self.known))
                    break
                except NeedsMemoryError as needed:
                    if needed.value is output.value:
                        raise UnsupportedOperationError(
                            f"the cuda target has no Triton template for rows of {output.value.type}."
                        ) from needed
                    self._write_rows(needed.value)
        for rows in dict.fromkeys(each.rows for each in items):
            self._append(RowsLaunch([each for each in items if each.rows == rows]))
        for output in outputs:
            if isinstance(output.place, Stored):
                self.plan.stored.setdefault(output.value, output.place)


OPERATIONS: ir.OperationTable[Callable[[Planner, Any], None]] = ir.OperationTable(
    "operations that the cuda target plans",
    {
        ir.Parameter: Planner.parameter,
        ir.StateWrite: Planner.state_write,
        **each_of(Planner.separate, ir.TreeAttention, ir.Recurrence, ir.TopK),
        **each_of(Planner.where_used, ir.Computation, ir.StateRead),
        **each_of(NO_TEMPLATE, ir.Scan, ir.MatMul, ir.Attention),
        **each_of(
            refused("cannot be part of a kernel"), ir.Kernel, ir.Return, ir.Yield, ir.Function, ir.Weight, ir.State
        ),
    },
)


def _element(dtype: str) -> str:
    return "f32" if kind_of(dtype) == "number" else "i32"
