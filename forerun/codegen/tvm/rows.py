"""Kernels that write values row by row; rows are divided among threads.

The last axis is vectorized in 16 lanes, unless a reduction depends on it: then another axis is, or none.
"""

from collections.abc import Sequence

from forerun.codegen.loops.expr import Reduce
from forerun.codegen.loops.index import Index, Lane, size_of
from forerun.codegen.loops.nest import Axis, RecurrenceNest, RowNest, Store
from forerun.codegen.tvm.builder import integer, store, when
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import tirx

UNROLLED = 8
"""Vectors of a row that are unrolled, so that their indices are constants."""


def emit_rows(code: Code, nest: RowNest, machine: Machine) -> None:
    """Writes the stores of each row, one after another."""
    if nest.rows == 1:
        with when(tirx.EQ(code.frame.part, integer(0))):
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
    axis = max((each for each in nest.free if isinstance(each.dim, int)), key=lambda each: int(each.dim), default=None)
    if axis is None:
        with when(tirx.EQ(code.frame.part, integer(0))):
            _steps(code, nest, list(nest.stores[0].axes))
        return
    others = [each for each in nest.stores[0].axes if each is not axis]
    if axis is not nest.stores[0].axes[-1]:
        with code.frame.divided(int(axis.dim)) as at:
            code.bound[axis.lane] = at
            _steps(code, nest, others)
        return
    chunks, rest = divmod(int(axis.dim), LANES)
    with code.frame.divided(chunks + (rest > 0)) as chunk:
        lane, vector = Lane("chunk", chunks), Lane("lane", LANES)
        code.bound[lane] = chunk
        whole = Index.of(lane).times(LANES).plus(Index.of(vector))
        with when(chunk < integer(chunks)):
            _steps(code, nest, others, (axis, whole, vector))
        if rest:
            with when(tirx.EQ(chunk, integer(chunks))):
                _steps(code, nest, [*others, axis], begin=chunks * LANES)


def _steps(
    code: Code,
    nest: RecurrenceNest,
    axes: list[Axis],
    vector: tuple[Axis, Index, Lane] | None = None,
    begin: int = 0,
) -> None:
    """Writes all rows in order; `vector` is how one axis is vectorized, `begin` where the last axis starts."""
    with code.serial(nest.step, 0, code.index(size_of(nest.rows))):
        _nested(code, list(nest.stores), axes, vector, begin)


def _nested(
    code: Code,
    stores: list[Store],
    axes: list[Axis],
    vector: tuple[Axis, Index, Lane] | None,
    begin: int = 0,
) -> None:
    """Serial loops over axes around stores of one value; one axis may be vectorized."""
    if axes:
        lanes = [each.lane for each in axes] + ([vector[0].lane] if vector else [])
        code.hoist(stores[0].value, lanes)
        start = begin if len(axes) == 1 else 0
        with code.serial(axes[0].lane, start, code.index(size_of(axes[0].dim))):
            _nested(code, stores, axes[1:], vector, begin)
        return
    if vector is None:
        for each in stores:
            code.write(each.buffer, each.index, code.render(each.value))
        return
    axis, at, lane = vector
    code.hoist(stores[0].value, [axis.lane])
    with code.vectorized(lane):
        _write_at(code, stores, axis, at)


def _write_at(code: Code, stores: Sequence[Store], axis: Axis, at: Index) -> None:
    """Writes stores with one axis at a given index."""
    for each in stores:
        value = each.value.substitute(lambda lane: at if lane == axis.lane else None)
        index = [one.substitute(lambda lane: at if lane == axis.lane else None) for one in each.index]
        code.write(each.buffer, index, code.render(value))


def _loops(code: Code, stored: Store, axes: list[Axis]) -> None:
    """The loops of one store, except the row loop."""
    value = stored.value
    if isinstance(value, Reduce) and value.order == "prefix":
        _prefix(code, stored, value, [each for each in axes if each.lane != value.lane])
        return
    wide = _wide(stored, axes)
    _outer(code, stored, [each for each in axes if each is not wide], wide)


def _wide(stored: Store, axes: list[Axis]) -> Axis | None:
    """The vectorized axis: the last one that no reduction depends on."""
    reduced = {lane for each in _reductions(stored) for lane in each.lanes}
    return next((axis for axis in reversed(axes) if axis.lane not in reduced), None)


def _reductions(stored: Store) -> list[Reduce]:
    from forerun.codegen.loops.expr import reductions

    return reductions(stored.value)


def _outer(code: Code, stored: Store, axes: list[Axis], wide: Axis | None) -> None:
    lanes = [each.lane for each in axes] + ([wide.lane] if wide else [])
    code.hoist(stored.value, lanes)
    if axes:
        with code.serial(axes[0].lane, 0, code.index(size_of(axes[0].dim))):
            _outer(code, stored, axes[1:], wide)
    elif wide is None:
        code.write(stored.buffer, stored.index, code.render(stored.value))
    else:
        _vectors(code, stored, wide)


def _vectors(code: Code, stored: Store, axis: Axis) -> None:
    """Writes all indices of an axis, 16 lanes at a time and the rest one by one."""
    if not isinstance(axis.dim, int):
        with code.serial(axis.lane, 0, code.index(size_of(axis.dim))):
            code.write(stored.buffer, stored.index, code.render(stored.value))
        return
    chunks, rest = divmod(axis.dim, LANES)
    vector, chunk, single = Lane("lane", LANES), Lane("chunk", chunks), Lane("rest", rest)
    if chunks <= UNROLLED:
        for number in range(chunks):
            with code.vectorized(vector):
                _write_at(code, [stored], axis, Index.of(vector).plus(number * LANES))
    else:
        with code.serial(chunk, 0, chunks), code.vectorized(vector):
            _write_at(code, [stored], axis, Index.of(chunk).times(LANES).plus(Index.of(vector)))
    if rest:
        with code.serial(single, 0, rest):
            _write_at(code, [stored], axis, Index.of(single).plus(chunks * LANES))


def _prefix(code: Code, stored: Store, value: Reduce, axes: list[Axis]) -> None:
    """A serial reduction along an axis, each partial result of which is an element."""
    if axes:
        with code.serial(axes[0].lane, 0, code.index(size_of(axes[0].dim))):
            _prefix(code, stored, value, axes[1:])
        return
    from forerun.codegen.loops.expr import Partial

    total = code.accumulator(value)
    with code.serial(value.lane, 0, code.index(value.extent)):
        code.know(Partial(value.lane, value.kind), total[integer(0)])
        store(total, code.render(value.step), integer(0), 1)
        code.write(stored.buffer, stored.index, total[integer(0)])
