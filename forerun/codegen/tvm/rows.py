"""Kernels that write values row by row; rows are divided among threads.

The last axis is vectorized in 16 lanes, unless a reduction depends on it: then another axis is, or none.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeGuard

from forerun.codegen.loops.expr import Expr, Partial, Reduce, reductions
from forerun.codegen.loops.index import Index, Lane, size_of
from forerun.codegen.loops.nest import Axis, RecurrenceNest, RowNest, Store
from forerun.codegen.tvm.builder import integer, when
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.schedules import RowSchedule
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import tirx

Write = Callable[[Index], None]
"""Writes an element, or a vector of them, at a place of a lane."""
Spread = Callable[[Write], None]
"""Opens the loops or vectors that cover a lane."""


def emit_rows(code: Code, nest: RowNest, machine: Machine, schedule: RowSchedule) -> None:
    """Writes the stores of each row, one after another."""
    if nest.rows == 1:
        with code.frame.undivided():
            for each in nest.stores:
                with code.scope():
                    _loops(code, each, list(each.axes), schedule)
        return
    with code.frame.divided(code.index(size_of(nest.rows))) as row:
        for each in nest.stores:
            with code.scope():
                axis = each.row
                assert axis is not None
                code.bound[axis.lane] = row
                _loops(code, each, [other for other in each.axes if other is not axis], schedule)


def emit_recurrence(code: Code, nest: RecurrenceNest, machine: Machine, schedule: RowSchedule) -> None:
    """Writes the rows of a state, parents first. Threads divide a dimension along which elements are independent.

    Where that is the last one of the record, they divide it in vectors.
    """
    divided = nest.divided
    own = {} if divided is None else dict(zip(map(id, nest.stores), divided, strict=True))

    def steps(write: Callable[[Store, list[Axis]], None]) -> None:
        """Writes the stores of each row, each in loops over the axes that are not divided."""
        with code.serial(nest.step, 0, code.index(size_of(nest.rows))):
            for each in nest.stores:
                with code.scope():
                    write(each, [axis for axis in each.axes if axis is not own.get(id(each))])

    if divided is None:
        with code.frame.undivided():
            steps(lambda store, axes: _loops(code, store, axes, schedule))
        return
    record = next(each for each in nest.stores if each.buffer.of_state)
    if own[id(record)] is not record.axes[-1]:
        with code.frame.divided(int(divided[0].dim)) as at:
            code.bound.update((axis.lane, at) for axis in divided)
            steps(lambda store, axes: _loops(code, store, axes, schedule))
        return
    chunks, rest = divmod(int(divided[0].dim), LANES)
    chunk, vector = Lane("chunk", chunks), Lane("lane", LANES)
    here = Index.of(chunk).times(LANES).plus(Index.of(vector))

    def in_vector(write: Write) -> None:
        with code.vectorized(vector):
            write(here)

    def one_by_one(store: Store, axes: list[Axis]) -> None:
        lane = own[id(store)].lane
        with code.serial(lane, chunks * LANES, chunks * LANES + rest):
            _loops(code, store, axes, schedule)

    with code.frame.divided(chunks + (rest > 0)) as at:
        code.bound[chunk] = at
        with when(at < integer(chunks)):
            steps(lambda store, axes: _side_by_side(code, store, axes, own[id(store)].lane, in_vector))
        if rest:
            with when(tirx.EQ(at, integer(chunks))):
                steps(one_by_one)


def _loops(code: Code, store: Store, axes: list[Axis], schedule: RowSchedule) -> None:
    """The loops of one store over some of its axes."""
    value = store.value
    if isinstance(value, Reduce) and value.order == "prefix":
        _prefix(code, store, value, [each for each in axes if each.lane != value.lane])
        return
    inner = [value.init, value.step] if _adds_up(value) else [value]
    reduced = {lane for part in inner for each in reductions(part) for lane in each.lanes}
    wide = next((axis for axis in reversed(axes) if axis.lane not in reduced), None)
    if wide is None:
        _nested(code, value, axes, [], lambda: code.write(store.buffer, store.index, code.render(value)))
    else:
        others = [each for each in axes if each is not wide]
        _side_by_side(code, store, others, wide.lane, lambda write: _vectors(code, wide, write, schedule.unroll))


def _adds_up(value: Expr) -> TypeGuard[Reduce]:
    """Whether a value is a chain of numbers, which may be added up where it is stored."""
    return isinstance(value, Reduce) and value.order == "serial" and value.kind == "number"


def _side_by_side(code: Code, store: Store, axes: Sequence[Axis], lane: Lane, spread: Spread) -> None:
    """The loops of a store over axes, and side by side along a lane; a chain is added up where it is stored."""
    value = store.value

    def write(expr: Expr, place: Index) -> None:
        moved = replace(store, value=expr).at({lane: place})
        code.write(moved.buffer, moved.index, code.render(moved.value))

    if not _adds_up(value) or lane not in value.lanes:
        _nested(code, value, axes, [lane], lambda: spread(lambda place: write(value, place)))
        return

    def add(place: Index) -> None:
        total = store.at({lane: place})
        code.know(Partial(value.lane, value.kind), code.load(total.buffer, total.index))
        write(value.step, place)

    def chain() -> None:
        spread(lambda place: write(value.init, place))
        with code.serial(value.lane, 0, code.index(value.extent)):
            code.hoist(value.step, [lane, value.lane])
            spread(add)

    _nested(code, value, axes, [lane, value.lane], chain)


def _vectors(code: Code, axis: Axis, write: Write, unroll: int) -> None:
    """Writes all indices of an axis, 16 lanes at a time and the rest one by one.

    Up to `unroll` vectors are written without a loop, so that their indices are constants.
    """
    if not isinstance(axis.dim, int):
        with code.serial(axis.lane, 0, code.index(size_of(axis.dim))):
            write(Index.of(axis.lane))
        return
    chunks, rest = divmod(axis.dim, LANES)
    vector, chunk, single = Lane("lane", LANES), Lane("chunk", chunks), Lane("rest", rest)
    if chunks <= unroll:
        for number in range(chunks):
            with code.vectorized(vector):
                write(Index.of(vector).plus(number * LANES))
    else:
        with code.serial(chunk, 0, chunks), code.vectorized(vector):
            write(Index.of(chunk).times(LANES).plus(Index.of(vector)))
    if rest:
        with code.serial(single, 0, rest):
            write(Index.of(single).plus(chunks * LANES))


def _nested(code: Code, value: Expr, axes: Sequence[Axis], inner: Sequence[Lane], write: Callable[[], None]) -> None:
    """Opens serial loops over axes around what writes a value in loops over `inner`."""
    code.hoist(value, [*(each.lane for each in axes), *inner])
    if not axes:
        write()
        return
    with code.serial(axes[0].lane, 0, code.index(size_of(axes[0].dim))):
        _nested(code, value, axes[1:], inner, write)


def _prefix(code: Code, stored: Store, value: Reduce, axes: list[Axis]) -> None:
    """A serial reduction along an axis, each partial result of which is an element."""
    if axes:
        with code.serial(axes[0].lane, 0, code.index(size_of(axes[0].dim))):
            _prefix(code, stored, value, axes[1:])
        return
    with code.chain(value) as total:
        code.write(stored.buffer, stored.index, total)
