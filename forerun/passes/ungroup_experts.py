"""ungroup_experts: rows that are sorted by expert for a grouped product, and put back behind it, stay where they are.

A row's results do not depend on its place, so everything between the sort and its inverse is the same computation on
unsorted rows. Which integers sort the rows, and which put them back, is not known by the spelling of a sort, of a
histogram or of an inverse permutation: what depends on the experts' numbers alone is evaluated for choices of all
experts, up to the longest text, and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from math import prod
from typing import ClassVar

import torch

from forerun import dims as dimensions
from forerun.ir import (
    Broadcast,
    Builder,
    Cast,
    Concat,
    Constant,
    Context,
    Environment,
    Function,
    Gather,
    InsertPoint,
    Iota,
    LayerNorm,
    Linear,
    Map,
    MatMul,
    ModuleOp,
    Reduce,
    Reshape,
    RMSNorm,
    Slice,
    Softmax,
    SpecOperation,
    SSAValue,
    TopK,
    Transpose,
    is_pure,
    run_body,
    tensor_type,
    torch_dtype,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.matching import SEQUENCE, mapped, number

LENGTHS = (5, 8, 13)
"""The numbers of tokens for which integers are compared, besides the most that there may be."""

MOST_ROWS = 2048
"""The most rows for which integers are compared."""

INTEGERS = ("i64", "i32")


class Order(Enum):
    """What a vector of integers is, for the rows in the order of their experts."""

    PLACES = auto()  # where each row was
    INVERSE = auto()  # where each row went
    TOKENS = auto()  # the token of each row, of k rows a token
    EXPERTS = auto()  # the experts, in order


@dataclass(frozen=True)
class UngroupExperts(Pass):
    """Grouped products of sorted rows become products of each row with the matrix that it chose."""

    name: ClassVar[str] = "ungroup-experts"
    needs: ClassVar[Needs | None] = Needs("forward")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        forward = function_named(op, "forward")
        longest = pass_context(ctx).max_length
        count = sum(_Ungrouping(forward, ids, longest).run() for ids in list(_choices(forward)))
        if count:
            pass_context(ctx).note(f"{self.name}: {count} values of sorted rows are computed in their own order")
            clean(forward)


def _choices(function: Function) -> Iterator[SSAValue]:
    """The vectors of integers that are sorted: those compared with themselves."""
    for operation in function.body:
        if not isinstance(operation, Map) or operation.function not in ("lt", "gt"):
            continue
        left, right = (each.owner for each in operation.inputs)
        if not isinstance(left, Reshape) or not isinstance(right, Reshape) or left.x is not right.x:
            continue
        kind = tensor_type(left.x)
        along = kind.rank == 1 and dimensions.symbol(kind.dims[0]) == SEQUENCE
        if along and kind.dtype in INTEGERS and not isinstance(left.x.owner, Iota):
            yield left.x


class _Ungrouping:
    """The values of a function in the order of sorted rows, each with the same value in the rows' own order."""

    def __init__(self, function: Function, ids: SSAValue, max_length: int) -> None:
        self.function, self.ids, self.max_length = function, ids, max_length
        (self.rows,) = tensor_type(ids).dims
        self.choices = dimensions.affine(self.rows).scale
        self.orders = self._orders()
        self.own: dict[SSAValue, SSAValue] = {}
        self.build = Builder(function.block)

    def run(self) -> int:
        """Returns the number of values that were put back, and are now computed in their own order."""
        count = 0
        for operation in self.function.body:
            self.build = Builder(InsertPoint.before(operation), operation.location)
            for value in operation.results:
                if (own := self._known(self.orders.get(value))) is not None:
                    self.own[value] = self.build.cast(own, tensor_type(value).dtype)
            if isinstance(operation, Gather) and len(operation.indices) == 1:
                count += self._gather(operation)
            elif isinstance(operation, Reduce) and (total := self._added(operation)) is not None:
                operation.result.replace_all_uses_with(total)
                count += 1
            elif self._by_rows(operation):
                operands = [self.own.get(each, each) for each in operation.operands]
                made = self.build.emit(operation.remade(operands))
                self.own.update(zip(operation.results, made.results, strict=True))
        return count

    def _known(self, order: Order | None) -> SSAValue | None:
        """Integers of that order, for rows in their own order."""
        places = self.build.add(Iota, size=self.rows) if order in (Order.PLACES, Order.TOKENS) else None
        if places is not None and order is Order.TOKENS:
            return self.build.map("floor_div", places, self.build.constant(self.choices, "i64"))
        return self.ids if order is Order.EXPERTS else places

    def _added(self, operation: Reduce) -> SSAValue | None:
        """Sorted rows, each added at its place or at its token's, are the rows, or the sums of each token's."""
        guarded = mapped(operation.x, "where")
        hits = None if guarded is None else mapped(_unviewed(guarded.inputs[0]), "eq")
        if guarded is None or hits is None or (operation.function, operation.dims) != ("sum", (1,)) or operation.keep:
            return None
        index, rows = self._unreshaped(hits.inputs[0]), self._unreshaped(guarded.inputs[1])
        size, count, *rest = tensor_type(guarded.result).dims
        numbers, places = (tensor_type(each).dims for each in hits.inputs)
        if index is None or rows is None or number(guarded.inputs[2]) != 0 or count != self.rows:
            return None
        if (numbers, places) != ((1, count), (size, 1)) or not isinstance(_unviewed(hits.inputs[1]).owner, Iota):
            return None
        if tensor_type(rows).dims != (count, *rest) or tensor_type(guarded.inputs[1]).dims != (1, count, *rest):
            return None
        if isinstance(index.owner, Iota) and size == count:
            return rows
        if self._repeats(index, self.choices) and dimensions.multiply(size, self.choices) == count:
            return self.build.reduce("sum", self.build.reshape(rows, (size, self.choices, *rest)), (1,))
        return None

    def _unreshaped(self, value: SSAValue) -> SSAValue | None:
        """In their own order, the rows that a value is a view of."""
        while value not in self.own and isinstance(value.owner, Reshape):
            value = value.owner.x
        return self.own.get(value)

    def _gather(self, operation: Gather) -> int:
        """Rows that are put back are the rows in their own order; others are looked up for each row."""
        table, (index,) = operation.table, operation.indices
        if self.orders.get(index) is Order.INVERSE and table in self.own:
            operation.result.replace_all_uses_with(self.own[table])
            return 1
        if index in self.own and table not in self.own and operation.result not in self.own:
            self.own[operation.result] = self._looked_up(table, self.own[index])
        return 0

    def _looked_up(self, table: SSAValue, index: SSAValue) -> SSAValue:
        """A table at the numbers of the rows is the table; at those divided by k, each of its rows k times."""
        (size, *rest), rows = tensor_type(table).dims, dimensions.affine(self.rows)
        if isinstance(index.owner, Iota) and size == self.rows:
            return table
        if rows.offset == 0 and size == rows.symbol and self._repeats(index, rows.scale):
            wide = self.build.reshape(table, (size, 1, *rest))
            return self.build.reshape(self.build.broadcast(wide, (size, rows.scale, *rest)), (self.rows, *rest))
        return self.build.add(Gather, table, index)

    def _repeats(self, index: SSAValue, count: int) -> bool:
        """Whether a vector is 0, 0, ..., 1, 1, ..., each number `count` times."""
        divided = mapped(index, "floor_div")
        return divided is not None and isinstance(divided.inputs[0].owner, Iota) and number(divided.inputs[1]) == count

    def _by_rows(self, operation: SpecOperation) -> bool:
        """Whether an operation computes each row from the same row of sorted values, and from what is no row."""
        if any(each in self.own for each in operation.results) or not any(
            each in self.own for each in operation.operands
        ):
            return False
        rank = max(tensor_type(each).rank for each in operation.results)
        for value in operation.operands:
            dims = tensor_type(value).dims
            if value in self.own:
                changes = isinstance(operation, Reshape | Reduce)
                if dims[:1] != (self.rows,) or (len(dims) != rank and not changes):
                    return False
            elif self.rows in dims:
                return False
        if any(tensor_type(each).dims[:1] != (self.rows,) for each in operation.results):
            return False
        match operation:
            case Map() | Cast() | Reshape() | MatMul() | Linear():
                return True
            case Slice() | Concat() | Softmax():
                return operation.dim > 0
            case Reduce():
                return 0 not in operation.dims
            case Transpose():
                return operation.permutation[0] == 0
            case Broadcast() | RMSNorm() | LayerNorm() | TopK():
                return rank > 1
            case _:
                return False

    def _orders(self) -> dict[SSAValue, Order]:
        """The vectors that depend on the choices of experts alone and sort the rows, or put them back.

        They do for all choices that are tried, up to as many tokens as there may be: no number in the computation lies
        between the largest place that is tried and the largest that there is.
        """
        source = _unviewed(self.ids)
        experts, body = _experts(source), self._closed(source)
        longest = max(1, min(self.max_length, MOST_ROWS // self.choices))
        numbers = [each.value for each in body if isinstance(each, Constant)]
        if experts is None or (longest < self.max_length and any(each > MOST_ROWS // 2 for each in numbers)):
            return {}
        kept = {each for operation in body for each in operation.results if tensor_type(each).dims == (self.rows,)}
        found: dict[SSAValue, set[Order]] = {}
        for length, chosen in _samples(source, experts, sorted({*LENGTHS, longest})):
            values = {source: chosen, self.ids: chosen.reshape(-1)}
            run_body(body, values, Environment(_no_weight, bindings={SEQUENCE: length}), keep=kept)
            experts, places = torch.sort(values[self.ids], stable=True)
            known = {Order.PLACES: places, Order.INVERSE: places.argsort(), Order.EXPERTS: experts}
            if self.choices > 1:
                known[Order.TOKENS] = places // self.choices
            for value in kept:
                same = {order for order, each in known.items() if torch.equal(values[value].to(each.dtype), each)}
                found[value] = found.get(value, same) & same
        return {value: next(iter(orders)) for value, orders in found.items() if len(orders) == 1}

    def _closed(self, source: SSAValue) -> list[SpecOperation]:
        """The operations that depend on the choices alone."""
        known, after = {source, self.ids}, list[SpecOperation]()
        for operation in self.function.body:
            free = isinstance(operation, Constant | Iota)
            if (
                is_pure(operation)
                and (free or operation.operands)
                and all(each in known for each in operation.operands)
            ):
                known.update(operation.results)
                after.append(operation)
        needed: set[SSAValue] = set()
        for operation in reversed(after):
            if any(each in needed or self._is_vector(each) for each in operation.results):
                needed.update(operation.operands)
        return [each for each in after if any(v in needed or self._is_vector(v) for v in each.results)]

    def _is_vector(self, value: SSAValue) -> bool:
        kind = tensor_type(value)
        return kind.dims == (self.rows,) and kind.dtype in INTEGERS


def _chosen_by(ids: SSAValue) -> TopK | Reduce | None:
    """The operation that gives places in a row of scores, if the ids are its results, or some of them."""
    while isinstance(ids.owner, Slice):
        ids = ids.owner.x
    match ids.owner:
        case TopK() as best if ids is best.indices:
            return best
        case Reduce(function="argmax", dims=(_,)) as best:
            return best
        case _:
            return None


def _experts(ids: SSAValue) -> int | None:
    """From how many experts ids are chosen, if that is known."""
    owner = _chosen_by(ids)
    axis = owner.dims[0] if isinstance(owner, Reduce) else -1
    size = None if owner is None else tensor_type(owner.x).dims[axis]
    return size if isinstance(size, int) else None


def _samples(ids: SSAValue, experts: int, lengths: Sequence[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Choices for numbers of tokens: random ones, and those in which every expert has its turn."""
    kind = tensor_type(ids)
    for length in lengths:
        dims = [dimensions.evaluate(each, {SEQUENCE: length}) for each in kind.dims]
        count, together = prod(dims), dims[-1] if isinstance(_chosen_by(ids), TopK) else 1
        scores = torch.rand(count // together, experts, generator=torch.Generator().manual_seed(length))
        starts = range(0, experts, count) if length == max(lengths) else ()
        turns = [(torch.arange(count) + start) % experts for start in starts]
        for chosen in (scores.topk(together).indices, *turns):
            yield length, chosen.reshape(dims).to(torch_dtype(kind.dtype))


def _unviewed(value: SSAValue) -> SSAValue:
    """What a value has the elements of, up to the dtype of whole numbers."""
    while isinstance(value.owner, Reshape) or (isinstance(value.owner, Cast) and _is_whole(value.owner.x)):
        value = value.owner.x
    return value


def _is_whole(value: SSAValue) -> bool:
    return tensor_type(value).dtype in INTEGERS


def _no_weight(name: str) -> torch.Tensor:
    raise AssertionError(f"weight {name} does not depend on the choices of experts alone")
