"""Products of float32 numbers: weights are widened where they are read."""

from collections.abc import Sequence

from forerun.codegen.tvm.builder import Buffer as Memory
from forerun.codegen.tvm.builder import Expr, fma, integer, let, load, prefetch, splat, store
from forerun.codegen.tvm.formats import STEP, VECTORS, Column, WeightFormat
from forerun.codegen.tvm.products import Products
from forerun.codegen.tvm.untyped import T


class FloatProducts(Products):
    """One chain of fma for each output.

    If a tile has many rows for the bytes it reads, hardware prefetching falls behind the arithmetic, and software
    prefetches.
    """

    def add(self, form: WeightFormat, weight: Memory, rows: Sequence[Expr], sums: Sequence[Sequence[Memory]]) -> None:
        starts = [let(row * integer(self.features)) for row in rows]

        def turn(column: Column, span: Expr, step: Expr, part: int) -> None:
            if self.schedule.fetches(len(rows), form.prefetched):
                for place in form.touched(span, step, part):
                    prefetch(weight, place, self.schedule.prefetch)
            columns = column(step, part)
            feature = span * integer(form.span) + step * integer(STEP) + integer(part)
            for row, start in enumerate(starts):
                x = splat(self.x[start + feature])
                for vector in range(VECTORS):
                    store(sums[row][vector], fma(x, columns[vector], load(sums[row][vector], 0)), 0)

        def features(count: int, span: Expr) -> None:
            column = form.opened(weight, self.features, span)

            def whole(step: Expr) -> None:
                for part in range(STEP):
                    turn(column, span, step, part)

            self.turns(count // STEP, whole)
            for part in range(count % STEP):
                turn(column, span, integer(count // STEP), part)

        if form.span:
            with T.serial(0, self.features // form.span) as span:
                features(form.span, span)
        else:
            features(self.features, integer(0))
