"""The rows of experts: which of a step's rows chose each expert, so that its weights are read once for all of them.

One call sorts the rows by expert before the products, and keeps their order within each:

    order   [rows]       the rows of expert 0, then those of expert 1, ...
    groups  [E + 1]      where the rows of each expert begin in `order`, and after them the number of rows
            [1]          the number of experts that some row chose
            [E]          those experts
"""

from __future__ import annotations

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.index import volume
from forerun.codegen.loops.nest import Experts, ProductNest
from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import Expr, integer, let, local, store, when
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.untyped import T


def order_of(nest: ProductNest) -> Buffer:
    return Buffer("scratch", "order", nest.rows, "i32", "i32")


def groups_of(experts: Experts) -> Buffer:
    return Buffer("scratch", "groups", (2 * experts.count + 2,), "i32", "i32")


def emit_grouped(code: Code, nest: ProductNest, machine: Machine, schedule: None) -> None:
    """Sorts the rows by expert: counts, begins, then places, each row at the next place of its expert."""
    experts = nest.experts
    assert experts is not None
    order, groups = code.window(order_of(nest)), code.window(groups_of(experts))
    count = integer(experts.count)

    def put(at: Expr, value: Expr, memory: Memory = groups) -> None:
        store(memory, value, at, 1)

    def expert(row: Expr) -> Expr:
        """The place in `groups` that counts the rows of a row's expert."""
        return let(code.at(experts.chosen, {nest.row: row}) + integer(1))

    with code.frame.undivided():
        rows = let(code.index(volume(nest.rows)))
        totals = local(2, "int32")
        put(integer(0), integer(0), totals)  # rows of the experts so far
        put(integer(1), integer(0), totals)  # experts so far that some row chose
        with T.serial(0, experts.count + 1) as each:
            put(each, integer(0))
        with T.serial(0, rows) as row, code.scope():
            at = expert(row)
            put(at, groups[at] + integer(1))
        with T.serial(0, experts.count) as each:
            size = let(groups[each + integer(1)])
            put(each + integer(1), totals[integer(0)])
            with when(size > integer(0)):
                put(count + integer(2) + totals[integer(1)], each)
                put(integer(1), totals[integer(1)] + integer(1), totals)
            put(integer(0), totals[integer(0)] + size, totals)
        put(count + integer(1), totals[integer(1)])
        with T.serial(0, rows) as row, code.scope():
            at = expert(row)
            place = let(groups[at])
            put(place, row, order)
            put(at, place + integer(1))


class Grouped:
    """The rows of a nest as `emit_grouped` has sorted them."""

    def __init__(self, code: Code, nest: ProductNest) -> None:
        assert nest.experts is not None
        self.count = integer(nest.experts.count)
        self.order, self.groups = code.window(order_of(nest)), code.window(groups_of(nest.experts))

    def used(self) -> Expr:
        """The number of experts that some row chose."""
        return let(self.groups[self.count + integer(1)])

    def expert(self, number: Expr) -> Expr:
        """One of those experts."""
        return let(self.groups[self.count + integer(2) + number])

    def rows(self, expert: Expr) -> tuple[Expr, Expr]:
        """Where the rows of an expert begin in the order, and how many they are."""
        first = let(self.groups[expert])
        return first, let(self.groups[expert + integer(1)] - first)

    def row(self, place: Expr) -> Expr:
        return let(self.order[place])
