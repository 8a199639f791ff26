"""Rows of values as nests: which stores share a nest, and which values must be written first."""

from __future__ import annotations

from collections.abc import Sequence

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.elements import NeedsMemoryError
from forerun.codegen.loops.expr import Load, computed, loads
from forerun.codegen.loops.fitting import Output
from forerun.codegen.loops.index import Computed, Index, Lane
from forerun.codegen.loops.nest import Axis, Nest, RowNest, Store, depends_across
from forerun.codegen.loops.placing import Placing
from forerun.errors import UnsupportedOperationError

LETTERS = "ijklmn"
"""Names of the axes of a store."""


class RowSchedule(Placing):
    """Plans the nests that write rows."""

    def _axes(self, dims: Sequence[ir.Dim]) -> list[Axis | None]:
        """A loop for each axis, except those of size 1."""
        self._count += 1
        found: list[Axis | None] = []
        for at, dim in enumerate(dims):
            size = dim if isinstance(dim, int) else None
            name = f"{LETTERS[at] if at < len(LETTERS) else 'x' + str(at)}{self._count}"
            found.append(None if dim == 1 else Axis(Lane(name, size), dim))
        return found

    def _store(self, output: Output) -> Store:
        """The loops that write an output."""
        value, place = output.value, output.place
        axes = self._axes(ir.tensor_type(value).dims)
        index = [Index.of(each.lane) if each else Index() for each in axes]
        elsewhere = value in self.buffers or value in self.context.computed
        element = self.context.element(value, index) if elsewhere else self.context.definition(value, index)
        present = tuple(each for each in axes if each)
        if isinstance(place, ir.StateWrite):
            layout = self.facts.states[place.symbol]
            slot = Lane("slot", None, Computed(self.context.element(place.slots, index[:1])))
            return Store(present, element, layout.buffer, tuple(layout.index(Index.of(slot), index[1:])), value)
        assert isinstance(place, Buffer)
        return Store(present, element, place, tuple(index), value)

    def _rows(self) -> None:
        """Plans nests for all remaining values that are ready."""
        ready = [each for each in self.waiting if not self._needs(each)]
        assert ready, "a region whose values wait for each other"
        self.waiting = [each for each in self.waiting if each not in ready]
        self._row_nest(ready)

    def _write_rows(self, value: ir.SSAValue) -> None:
        """Writes a value to memory."""
        place = self._place(value)
        self.waiting = [each for each in self.waiting if (each.value, each.place) != (value, place)]
        self._row_nest([Output(value, place)])

    def _row_nest(self, outputs: Sequence[Output]) -> None:
        stores: list[Store] = []
        for output in outputs:
            if isinstance(output.place, Buffer) and self.buffers.get(output.value) == output.place:
                continue  # already written, for another value
            while True:
                try:
                    store = self._store(output)
                    if self.traits.inline:
                        _require_narrow(store)
                    break
                except NeedsMemoryError as needed:
                    if needed.value is output.value:
                        raise UnsupportedOperationError(
                            f"the {self.traits.target} target has no kernel for rows of {output.value.type}."
                        ) from needed
                    self._write_rows(needed.value)
            if self.traits.fused_rows:
                self._join(store)
                self._settled(output)
            else:
                stores.append(store)
        for key in dict.fromkeys(map(_division, stores)):
            mine = [each for each in stores if _division(each) == key]
            self._append(RowNest(key[0] or 1, mine))
        for output in outputs:
            self._settled(output)

    def _settled(self, output: Output) -> None:
        if isinstance(output.place, Buffer):
            self.buffers.setdefault(output.value, output.place)

    def _join(self, store: Store) -> None:
        """Adds a store to the open nest of its rows, if it reads that nest's values only at its own row."""
        rows: ir.Dim = store.row.dim if store.row else 1
        last = self.nests[-1] if self.nests else None
        if isinstance(last, RowNest) and last.rows == rows and not _crosses(store, last.stores):
            last.stores.append(store)
        else:
            self._append(RowNest(rows, [store]))

    def _append(self, nest: Nest) -> None:
        self.nests.append(nest)


def _division(store: Store) -> tuple[str, bool]:
    """What stores of one nest have in common: the name of the rows, and whether the whole row lies side by side."""
    row = store.row
    others = [each.lane for each in store.axes if each is not row]
    return (row.named if row else "", depends_across(store.value, others) is None)


def _require_narrow(store: Store) -> None:
    """Checks that reductions with partial results side by side do not depend on axes that lie side by side as well: the
    whole row, or else the last axis."""
    others = [each.lane for each in store.axes if each is not store.row]
    if depends_across(store.value, others) is None:
        return
    wide = depends_across(store.value, [store.axes[-1].lane])
    if wide is not None:
        raise NeedsMemoryError(wide.origin)


def _crosses(store: Store, written: Sequence[Store]) -> bool:
    """Whether a store reads rows other than its own of what earlier stores have written."""
    if store.row is None:
        return False
    own = Index.of(store.row.lane)
    places = {(each.buffer.space, each.buffer.key): each for each in written}
    for load in _all_loads(store):
        other = places.get((load.buffer.space, load.buffer.key))
        if other is None:
            continue
        axis = next((axis for axis, dim in enumerate(load.buffer.dims) if dimensions.symbol(dim)), None)
        if axis is None or load.index[axis] != own:
            return True
    return False


def _all_loads(store: Store) -> list[Load]:
    behind = [each for index in store.index for lane in index.lanes for each in computed(lane)]
    return [each for expr in (store.value, *behind) for each in loads(expr)]
