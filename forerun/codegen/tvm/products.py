"""The products of a tile's rows with a block of a matrix: what the arithmetics of products have in common.

Each output is one chain over the input features in order, in every tile, so a row's bits do not depend on how many rows
there are. Rows that an arithmetic rounds are rounded once, before all products, by a function of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.expr import Load
from forerun.codegen.loops.nest import ProductNest
from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import Expr, integer, let
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.dots import Dot
from forerun.codegen.tvm.schedules import ProductSchedule
from forerun.codegen.tvm.untyped import T


def input_of(nest: ProductNest) -> Buffer:
    """The memory of the rows that a nest multiplies."""
    assert isinstance(nest.x, Load)
    return nest.x.buffer


class Products:
    """An arithmetic of the products of a nest."""

    dot: ClassVar[Dot | None] = None
    """The function that it calls."""

    def __init__(self, code: Code, nest: ProductNest, schedule: ProductSchedule) -> None:
        self.features, self.schedule = nest.features, schedule
        self.x = code.window(self.rounded(nest) or input_of(nest))

    @classmethod
    def rounded(cls, nest: ProductNest) -> Buffer | None:
        """The memory of the rounded rows, if rows are rounded."""
        return None

    @classmethod
    def emit_rounded(cls, code: Code, nest: ProductNest) -> None:
        """Rounds this call's share of the rows."""
        raise NotImplementedError

    def turns(self, count: int, emit: Callable[[Expr], None]) -> None:
        """Emits turns 0 to count - 1 of the loop over features in order, as many in an iteration as are unrolled."""
        unroll = self.schedule.unroll
        with T.serial(0, count // unroll) as step:
            if unroll == 1:
                emit(step)
                return
            for part in range(unroll):
                emit(let(step * integer(unroll) + integer(part)))
        for rest in range(count // unroll * unroll, count):
            emit(integer(rest))

    def add(self, form: Any, weight: Memory, rows: Sequence[Expr], sums: Sequence[Sequence[Memory]]) -> None:
        """Adds x w^T of some rows to their sums, one for each vector of a block of outputs; `form` is the weight's."""
        raise NotImplementedError
