"""Rows of values as nests: which stores share a nest, and which values must be written first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from forerun import dims as dimensions
from forerun import ir
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.elements import NeedsMemoryError
from forerun.codegen.loops.expr import Load, computed, loads
from forerun.codegen.loops.fitting import Output
from forerun.codegen.loops.index import Index, Lane
from forerun.codegen.loops.nest import Axis, RowNest, Store
from forerun.codegen.loops.placing import Placing, require_narrow
from forerun.errors import UnsupportedOperationError

T = TypeVar("T")

LETTERS = "ijklmn"
"""Names of the axes of a store."""


class RowSchedule(Placing):
    """Plans the nests that write rows."""

    def axes_of(self, value: ir.SSAValue) -> tuple[tuple[Axis, ...], list[Index]]:
        """Returns a loop for each axis of a value, except those of size 1, and the index of an element in them."""
        self._count += 1
        axes: list[Axis] = []
        index: list[Index] = []
        for at, dim in enumerate(ir.tensor_type(value).dims):
            if dim == 1:
                index.append(Index())
                continue
            name = f"{LETTERS[at] if at < len(LETTERS) else 'x' + str(at)}{self._count}"
            axes.append(Axis(Lane(name, dim if isinstance(dim, int) else None), dim))
            index.append(Index.of(axes[-1].lane))
        return tuple(axes), index

    def _store(self, output: Output) -> Store:
        """The loops that write an output."""
        value = output.value
        axes, index = self.axes_of(value)
        elsewhere = value in self.buffers or value in self.context.computed
        element = self.context.element(value, index) if elsewhere else self.context.definition(value, index)
        buffer, at = output.destination(self.context, index)
        assert isinstance(buffer, Buffer)
        store = Store(axes, element, buffer, at)
        if self.traits.inline and not store.is_flat:
            require_narrow(element, [axes[-1].lane])  # what lies side by side is the whole row, or else the last axis
        return store

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
            store = self._written(partial(self._store, output), output.value)
            if self.traits.fused_rows:
                self._join(store)
                self._settled(output)
            else:
                stores.append(store)
        for key in dict.fromkeys(map(_division, stores)):
            mine = [each for each in stores if _division(each) == key]
            self.nests.append(RowNest(key[0] or 1, mine))
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
            self.nests.append(RowNest(rows, [store]))

    def _written(self, made: Callable[[], T], value: ir.SSAValue | None = None) -> T:
        """Returns a nest or a store, of `value`, after the values that must be in memory for it have been written."""
        while True:
            try:
                return made()
            except NeedsMemoryError as needed:
                if needed.value is value:
                    raise UnsupportedOperationError(
                        f"the {self.traits.target} target has no kernel for rows of {needed.value.type}."
                    ) from needed
                self._write_rows(needed.value)


def _division(store: Store) -> tuple[str, bool]:
    """What stores of one nest have in common: the name of the rows, and whether the whole row lies side by side."""
    return (store.row.named if store.row else "", store.is_flat)


def _crosses(store: Store, written: Sequence[Store]) -> bool:
    """Whether a store reads rows other than its own of what earlier stores have written."""
    if store.row is None:
        return False
    own, buffers = Index.of(store.row.lane), {(each.buffer.space, each.buffer.key) for each in written}
    for load in _all_loads(store):
        if (load.buffer.space, load.buffer.key) in buffers:
            axis = next((axis for axis, dim in enumerate(load.buffer.dims) if dimensions.symbol(dim)), None)
            if axis is None or load.index[axis] != own:
                return True
    return False


def _all_loads(store: Store) -> list[Load]:
    behind = [each for index in store.index for lane in index.lanes for each in computed(lane)]
    return [each for expr in (store.value, *behind) for each in loads(expr)]
