"""The k largest of a row: after the maximum of each chunk, only chunks that contain a candidate are read.

Ids are visited in ascending order and an entry displaces another only if strictly larger, so ties go to the lower id.
NaN counts as -inf.
"""

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.index import volume
from forerun.codegen.loops.nest import TopKNest
from forerun.codegen.tvm.builder import across, each, integer, let, load, local, number, store, when
from forerun.codegen.tvm.code import Code, Term
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import T, tirx

CHUNK = 512


def chunks_of(size: int) -> int:
    return -(-size // CHUNK)


def maxima_of(nest: TopKNest) -> Buffer:
    """The maxima of the chunks of each row [rows, chunks]."""
    dims = (*nest.choice.rows, chunks_of(nest.choice.size))
    return Buffer("scratch", "maxima", dims, "f32", "f32")


def emit_maxima(code: Code, nest: TopKNest, machine: Machine, schedule: None) -> None:
    """Writes maxima[row, chunk] of logits[row, :]."""
    size, rows = nest.choice.size, code.index(volume(nest.choice.rows))
    source, target, count = code.window(nest.logits), code.window(maxima_of(nest)), chunks_of(size)
    vectors = 4
    with code.frame.divided(rows * integer(count)) as unit:
        row, chunk = let(tirx.truncdiv(unit, integer(count))), let(tirx.truncmod(unit, integer(count)))
        start = let(row * integer(size) + chunk * integer(CHUNK))
        length = let(tirx.min(integer(CHUNK), integer(size) - chunk * integer(CHUNK)))
        best = [local(LANES) for _ in range(vectors)]
        for buffer in best:
            store(buffer, tirx.Broadcast(number(-float("inf")), LANES), 0)
        whole = let(tirx.truncdiv(length, integer(vectors * LANES)))
        with T.serial(0, whole) as step:
            for vector, buffer in enumerate(best):
                place = start + step * integer(vectors * LANES) + integer(vector * LANES)
                store(buffer, tirx.max(load(source, place), load(buffer, 0)), 0)
        peak = local(LANES)
        store(peak, each([load(buffer, 0) for buffer in best], lambda x, y: let(tirx.max(x, y))), 0)
        with T.serial(whole * integer(vectors * LANES), length) as at:
            store(peak, tirx.max(source[start + at], peak[integer(0)]), integer(0), 1)
        store(target, across(peak, tirx.max), unit, 1)


def emit_topk(code: Code, nest: TopKNest, machine: Machine, schedule: None) -> None:
    """Writes the k largest of each row, from the chunks' maxima."""
    size, k, rows = nest.choice.size, nest.choice.k, code.index(volume(nest.choice.rows))
    frame, count = code.frame, chunks_of(size)
    source, peaks = code.window(nest.logits), code.window(maxima_of(nest))
    kept, named = code.window(nest.choice.values), code.window(nest.choice.ids)
    with frame.divided(rows) as row:
        out = let(row * integer(k))
        for place in range(k):
            store(kept, number(-float("inf")), out + integer(place), 1)
            store(named, integer(-1), out + integer(place), 1)
        last = out + integer(k - 1)
        with T.serial(0, count) as chunk:
            candidate = tirx.Or(peaks[row * integer(count) + chunk] > kept[last], named[last] < integer(0))
            with when(candidate):
                start = let(chunk * integer(CHUNK))
                stop = let(tirx.min(start + integer(CHUNK), integer(size)))
                with T.serial(start, stop) as at:
                    value = let(tirx.max(source[row * integer(size) + at], number(-float("inf"))))  # NaN becomes -inf
                    with when(tirx.Or(value > kept[last], named[last] < integer(0))):
                        _insert(kept, named, out, k, value, at)


def _insert(kept: Term, named: Term, out: Term, k: int, value: Term, at: Term) -> None:
    """Bubbles the entry up from the last place."""
    store(kept, value, out + integer(k - 1), 1)
    store(named, at, out + integer(k - 1), 1)
    for place in range(k - 1, 0, -1):
        upper, lower = out + integer(place - 1), out + integer(place)
        with when(tirx.Or(kept[lower] > kept[upper], named[upper] < integer(0))):
            value_above, id_above = let(kept[upper]), let(named[upper])
            value_below, id_below = let(kept[lower]), let(named[lower])
            store(kept, value_below, upper, 1)
            store(named, id_below, upper, 1)
            store(kept, value_above, lower, 1)
            store(named, id_above, lower, 1)
