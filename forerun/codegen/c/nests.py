"""Loop nests as C: plain loops, in their natural order."""

from __future__ import annotations

from dataclasses import replace

from forerun.codegen.c.text import Text
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.expr import Expr, Load, Reduce, apply, loads
from forerun.codegen.loops.index import Index, Lane, size_of, volume
from forerun.codegen.loops.nest import (
    AttentionNest,
    Axis,
    Choice,
    Nest,
    ProductNest,
    RecurrenceNest,
    RowNest,
    Store,
    TopKNest,
)
from forerun.codegen.loops.states import StateLayout


def emit(text: Text, nest: Nest) -> None:
    """Writes a nest."""
    match nest:
        case RowNest():
            for store in nest.stores:
                _loops(text, store)
        case ProductNest():
            _products(text, nest)
        case AttentionNest():
            _attention(text, nest)
        case RecurrenceNest():
            with text.loop(nest.step, text.index(size_of(nest.rows))):
                for store in nest.stores:
                    with text.block(""):
                        _loops(text, store)
        case TopKNest():
            _choose(text, nest.choice, nest.logits)


def _loops(text: Text, store: Store) -> None:
    """Writes a store in loops over its axes."""
    value = store.value
    prefix = value if isinstance(value, Reduce) and value.order == "prefix" else None
    axes = list(store.axes)
    if prefix is not None:
        axes.sort(key=lambda axis: axis.lane == prefix.lane)
    _nested(text, axes, store, prefix)


def _nested(text: Text, axes: list[Axis], store: Store, prefix: Reduce | None) -> None:
    if prefix is not None and len(axes) == 1:
        total = text.open(prefix)
        with text.loop(axes[0].lane, text.index(size_of(axes[0].dim))):
            text.line(f"{total} = {text.render(prefix.step)};")
            text.line(f"{text.element(store.buffer, store.index)} = {total};")
        return
    if not axes:
        text.store(store.buffer, store.index, store.value)
        return
    if prefix is None:
        text.hoist(store.value, {axis.lane for axis in axes})
    with text.loop(axes[0].lane, text.index(size_of(axes[0].dim))):
        _nested(text, axes[1:], store, prefix)


def _products(text: Text, nest: ProductNest) -> None:
    """Writes products: each output is one chain over the features."""
    assert isinstance(nest.x, Load)
    assert nest.norm is None
    with text.loop(nest.row, text.index(volume(nest.rows))):
        expert = () if nest.experts is None else (Index.computed(nest.experts.chosen, nest.experts.count),)
        for segment in nest.segments:
            with text.loop(segment.column, str(segment.columns)):
                sums = [text.fresh("sum") for _ in segment.matrices]
                for name in sums:
                    text.line(f"float {name} = 0.0f;")
                with text.loop(nest.feature, str(nest.features)):
                    x = text.render(nest.x)
                    for name, matrix in zip(sums, segment.matrices, strict=True):
                        place = (*expert, Index.of(segment.column), Index.of(nest.feature))
                        weight = text.render(Load(replace(matrix.weight, dtype="f32"), place))
                        text.line(f"{name} = fmaf({x}, {weight}, {name});")
                for name, matrix in zip(sums, segment.matrices, strict=True):
                    result = f"{name} + {text.render(matrix.bias)}" if matrix.bias is not None else name
                    for taken in segment.outputs:
                        for load in _products_read(taken.value, matrix.product):
                            text.know(load, name if matrix.bias is None else text.declare(load, result))
                for taken in segment.outputs:
                    assert isinstance(taken.to, Buffer)
                    text.store(taken.to, taken.index, taken.value)


def _products_read(value: Expr, product: Buffer) -> list[Load]:
    return [each for each in loads(value) if each.buffer == product]


def _attention(text: Text, nest: AttentionNest) -> None:
    """Writes, for each row and head, all scores, their maximum, the weights and their sum, and the weighted values."""
    history, (at, key) = nest.history, (Lane("at"), Lane("d", nest.key_dim))
    with text.loop(history.row, text.index(size_of(nest.rows))):
        position, base = text.render(history.position), text.render(history.base)
        first = "0" if nest.first is None else text.render(apply("max", nest.first, 0))
        slots = text.fresh("slots")
        text.line(f"int32_t {slots}[{position} + 1];")
        with text.loop(at, f"{position} + 1", first) as here:
            sequence = Index.computed(history.sequence)
            block, lane = Index.of(at).divided(history.block)
            home = text.element(history.tables, (sequence, block))
            step = Index.of(at).minus(Index.computed(history.base))
            path = text.element(history.paths, (Index.of(history.row), step))
            text.line(f"{slots}[{here}] = {here} < {base} ? {home} * {history.block} + {text.index(lane)} : {path};")
        with text.loop(nest.head, str(nest.heads)):
            group = Index.of(nest.head).divided(nest.heads // nest.groups)[0]
            query, scores, largest, total = (text.fresh(each) for each in ("query", "scores", "largest", "total"))
            text.line(f"float {query}[{nest.key_dim}], {scores}[{position} + 1];")
            with text.loop(nest.dim, str(nest.key_dim)) as dim:
                text.line(f"{query}[{dim}] = {text.render(nest.query)};")
            text.line(f"float {largest} = {'-INFINITY' if nest.sinks is None else text.render(nest.sinks)};")
            with text.loop(at, f"{position} + 1", first) as here:
                slot = f"{slots}[{here}]"
                sum_ = text.fresh("sum")
                text.line(f"float {sum_} = 0.0f;")
                with text.loop(key, str(nest.key_dim)) as dim:
                    number_ = _record(text, nest.keys, slot, group, Index.of(key))
                    text.line(f"{sum_} = fmaf({query}[{dim}], {number_}, {sum_});")
                score = _score(text, nest, sum_, here, position)
                text.line(f"{scores}[{here}] = {score};")
                text.line(f"{largest} = {score} > {largest} ? {score} : {largest};")
            start = "0.0f" if nest.sinks is None else _weight(text, text.render(nest.sinks), largest)
            text.line(f"float {total} = {start};")
            with text.loop(at, f"{position} + 1", first) as here:
                weight = _weight(text, f"{scores}[{here}]", largest)
                text.line(f"{scores}[{here}] = {weight};")
                text.line(f"{total} += {weight};")
            value = Lane("d", nest.value_dim)
            with text.loop(value, str(nest.value_dim)):
                sum_ = text.fresh("sum")
                text.line(f"float {sum_} = 0.0f;")
                with text.loop(at, f"{position} + 1", first) as here:
                    number_ = _record(text, nest.values, f"{slots}[{here}]", group, Index.of(value))
                    text.line(f"{sum_} = fmaf({scores}[{here}], {number_}, {sum_});")
                place = text.element(nest.result, (Index.of(history.row), Index.of(nest.head), Index.of(value)))
                text.line(f"{place} = {sum_} / {total};")


def _record(text: Text, layout: StateLayout, slot: str, group: Index, dim: Index) -> str:
    """Returns a number of a head's record at a slot."""
    lane = Lane("slot")
    text.bound[lane] = slot
    return text.element(layout.buffer, layout.index(Index.of(lane), [group, dim]))


def _score(text: Text, nest: AttentionNest, total: str, here: str, position: str) -> str:
    """Returns the score of a query-key product: scaled, capped, with its bias."""
    plain = text.variable(total)
    score = plain * nest.scale
    if nest.softcap is not None:
        score = apply("tanh", score / nest.softcap) * nest.softcap
    if nest.bias is not None:
        text.bound[nest.place] = here if nest.bias_by_key else f"({position} - {here})"
        score = score + nest.bias
    return text.render(score)


def _weight(text: Text, score: str, largest: str) -> str:
    return text.render(apply("exp", text.variable(score) - text.variable(largest)))


def _choose(text: Text, choice: Choice, logits: Buffer) -> None:
    """Writes a choice: ids ascend and each candidate displaces smaller ones; NaN counts as -inf."""
    row, rank, place = Lane("row"), Lane("rank"), Lane("id", choice.size)
    values, ids, source = (text.pointer(each) for each in (choice.values, choice.ids, logits))
    with text.loop(row, text.index(volume(choice.rows))) as here:
        value, chosen = text.fresh("best"), text.fresh("chosen")
        text.line(f"float *{value} = {values} + {here} * {choice.k};")
        text.line(f"int32_t *{chosen} = {ids} + {here} * {choice.k};")
        with text.loop(rank, str(choice.k)) as at:
            text.line(f"{value}[{at}] = -INFINITY;")
            text.line(f"{chosen}[{at}] = -1;")
        with text.loop(place, str(choice.size)) as id_:
            score = text.fresh("score")
            given = f"{source}[{here} * {choice.size} + {id_}]"
            text.line(f"const float {score} = {given} == {given} ? {given} : -INFINITY;")
            rank_ = text.fresh("rank")
            text.line(f"int {rank_} = {choice.k};")
            better = f"{score} > {value}[{rank_} - 1] || {chosen}[{rank_} - 1] < 0"
            shift = f"if ({rank_} < {choice.k})"
            with text.block(f"for (; {rank_} > 0 && ({better}); {rank_}--)"), text.block(shift):
                text.line(f"{value}[{rank_}] = {value}[{rank_} - 1];")
                text.line(f"{chosen}[{rank_}] = {chosen}[{rank_} - 1];")
            with text.block(shift):
                text.line(f"{value}[{rank_}] = {score};")
                text.line(f"{chosen}[{rank_}] = (int32_t){id_};")
