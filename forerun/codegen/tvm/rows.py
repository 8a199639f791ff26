"""Kernels that write values row by row; rows are divided among threads.

The last axis is vectorized in 16 lanes, unless a reduction depends on it: then another axis is, or none.
"""

from collections.abc import Callable, Mapping, Sequence

from forerun.codegen.loops.expr import Expr, Reduce, reductions
from forerun.codegen.loops.index import Index, Lane, size_of
from forerun.codegen.loops.nest import Axis, RecurrenceNest, RowNest, Store
from forerun.codegen.tvm.builder import integer, when
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import tirx

UNROLLED = 8
"""Vectors of a row that are unrolled, so that their indices are constants."""


def emit_rows(code: Code, nest: RowNest, machine: Machine) -> None:
    """Writes the stores of each row, one after another."""
    if nest.rows == 1:
        with code.frame.undivided():
            for each in nest.stores:
                with code.scope():
                    _loops(code, each, list(each.axes))
        return
    with code.frame.divided(code.index(size_of(nest.rows))) as row:
        for each in nest.stores:
            with code.scope():
                axis = each.row
                assert axis is not None
                code.bound[axis.lane] = row
                _loops(code, each, [other for other in each.axes if other is not axis])


def emit_recurrence(code: Code, nest: RecurrenceNest, machine: Machine) -> None:
    """Writes the rows of a state, parents first. Threads divide an axis along which elements are independent."""
    axes, value = nest.stores[0].axes, nest.stores[0].value
    axis = max((each for each in nest.free if isinstance(each.dim, int)), key=lambda each: int(each.dim), default=None)
    others = [each for each in axes if each is not axis]

    def steps(axes: Sequence[Axis], begin: int = 0) -> None:
        with code.serial(nest.step, 0, code.index(size_of(nest.rows))):
            _nested(code, value, axes, [], lambda: _write(code, nest.stores), begin)

    if axis is None:
        with code.frame.undivided():
            steps(axes)
        return
    if axis is not axes[-1]:
        with code.frame.divided(int(axis.dim)) as at:
            code.bound[axis.lane] = at
            steps(others)
        return
    chunks, rest = divmod(int(axis.dim), LANES)
    with code.frame.divided(chunks + (rest > 0)) as chunk:
        lane, vector = Lane("chunk", chunks), Lane("lane", LANES)
        code.bound[lane] = chunk
        whole = Index.of(lane).times(LANES).plus(Index.of(vector))

        def write() -> None:
            with code.vectorized(vector):
                _write(code, nest.stores, {axis.lane: whole})

        with when(chunk < integer(chunks)), code.serial(nest.step, 0, code.index(size_of(nest.rows))):
            _nested(code, value, others, [axis.lane], write)
        if rest:
            with when(tirx.EQ(chunk, integer(chunks))):
                steps([*others, axis], chunks * LANES)


def _nested(
    code: Code, value: Expr, axes: Sequence[Axis], inner: Sequence[Lane], write: Callable[[], None], begin: int = 0
) -> None:
    """Opens serial loops over axes, the last from `begin` on, around what writes a value in loops over `inner`."""
    code.hoist(value, [*(each.lane for each in axes), *inner])
    if not axes:
        write()
        return
    with code.serial(axes[0].lane, begin if len(axes) == 1 else 0, code.index(size_of(axes[0].dim))):
        _nested(code, value, axes[1:], inner, write, begin)


def _write(code: Code, stores: Sequence[Store], places: Mapping[Lane, Index] | None = None) -> None:
    """Writes one element of each store, or a vector of them, at given places of some lanes."""
    for each in stores:
        moved = each.at(places) if places else each
        code.write(moved.buffer, moved.index, code.render(moved.value))


def _loops(code: Code, stored: Store, axes: list[Axis]) -> None:
    """The loops of one store, except the row loop."""
    value = stored.value
    if isinstance(value, Reduce) and value.order == "prefix":
        _prefix(code, stored, value, [each for each in axes if each.lane != value.lane])
        return
    reduced = {lane for each in reductions(value) for lane in each.lanes}
    wide = next((axis for axis in reversed(axes) if axis.lane not in reduced), None)
    if wide is None:
        _nested(code, value, axes, [], lambda: _write(code, [stored]))
    else:
        others = [each for each in axes if each is not wide]
        _nested(code, value, others, [wide.lane], lambda: _vectors(code, stored, wide))


def _vectors(code: Code, stored: Store, axis: Axis) -> None:
    """Writes all indices of an axis, 16 lanes at a time and the rest one by one."""
    if not isinstance(axis.dim, int):
        with code.serial(axis.lane, 0, code.index(size_of(axis.dim))):
            _write(code, [stored])
        return
    chunks, rest = divmod(axis.dim, LANES)
    vector, chunk, single = Lane("lane", LANES), Lane("chunk", chunks), Lane("rest", rest)
    if chunks <= UNROLLED:
        for number in range(chunks):
            with code.vectorized(vector):
                _write(code, [stored], {axis.lane: Index.of(vector).plus(number * LANES)})
    else:
        with code.serial(chunk, 0, chunks), code.vectorized(vector):
            _write(code, [stored], {axis.lane: Index.of(chunk).times(LANES).plus(Index.of(vector))})
    if rest:
        with code.serial(single, 0, rest):
            _write(code, [stored], {axis.lane: Index.of(single).plus(chunks * LANES)})


def _prefix(code: Code, stored: Store, value: Reduce, axes: list[Axis]) -> None:
    """A serial reduction along an axis, each partial result of which is an element."""
    if axes:
        with code.serial(axes[0].lane, 0, code.index(size_of(axes[0].dim))):
            _prefix(code, stored, value, axes[1:])
        return
    with code.chain(value) as total:
        code.write(stored.buffer, stored.index, total)
