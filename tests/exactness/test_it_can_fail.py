"""The certificate means something: a reduction whose order depends on the number of rows is found and named."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest

from forerun.build import lower
from forerun.codegen.kernel_places import identifier
from forerun.codegen.tvm import linear
from forerun.codegen.tvm.builder import fma, integer, let, load, local, splat, store
from forerun.codegen.tvm.lowering import TEMPLATES, Lowering
from forerun.codegen.tvm.untyped import T
from forerun.execute.tvm.executable import bind
from forerun.runtime.certify import certify
from tests.compiled import planned_step
from tests.models import FAMILIES


def split_sums(self: Any, form: Any, weight: Any, rows: Sequence[Any]) -> list[list[Any]]:
    """x w^T as fast libraries do it: one chain over the features for one row, two chains (even, odd) for several."""
    x, chains = self.products.x, 1 if len(rows) == 1 else 2
    sums = [[[local(linear.LANES) for _ in range(chains)] for _ in range(linear.VECTORS)] for _ in rows]
    for chain in (chain for row in sums for vector in row for chain in vector):
        store(chain, splat(0.0), 0)
    with T.serial(0, self.features // chains) as step:
        for part in range(chains):
            feature = step * integer(chains) + integer(part)
            for vector in range(linear.VECTORS):
                place = feature * integer(linear.OUTPUTS) + integer(vector * linear.LANES)
                column = let(load(weight, place))
                for row, chain in zip(rows, sums, strict=True):
                    held = chain[vector][part]
                    store(held, fma(splat(x[row * integer(self.features) + feature]), column, load(held, 0)), 0)
    for vector in (vector for row in sums for vector in row if chains == 2):
        store(vector[0], load(vector[0], 0) + load(vector[1], 0), 0)
    return [[vector[0] for vector in row] for row in sums]


class Planted:
    """Templates that emit one product phase, the `product`-th of those compiled, with split sums."""

    def __init__(self, product: int) -> None:
        self.product = product
        self.phases = self.products = 0
        self.place = -1  # the index of the faulty phase among all
        self.templates = {name: partial(self.emit, name) for name in TEMPLATES}

    def emit(self, name: str, context: Any, phase: Any, machine: Any, schedule: Any) -> None:
        faulty = name == "products" and self.products == self.product
        if faulty:
            self.place = self.phases
        with patch.object(linear._Tile, "_sums", split_sums) if faulty else nullcontext():
            TEMPLATES[name](context, phase, machine, schedule)
        self.phases += 1
        self.products += name == "products"


@pytest.fixture(scope="module")
def lowered() -> Any:
    return lower(FAMILIES["llama"](), max_length=128)


# The products of one layer and of the head: each has its own code, which both layers share.
@pytest.mark.parametrize("product", [0, 1, 3, 4])
def test_a_planted_row_dependent_reduction_is_found_and_named(lowered: Any, product: int) -> None:
    planted = Planted(product)
    limits = {"max_rows": 64, "max_outputs": 64, "max_path": 64, "max_length": 128}
    lowering = Lowering(planned_step(lowered.module, lowered.weights, **limits), planted.templates)
    executable = bind(lowering.program())
    phases, place = planted.phases, planted.place
    names = [name.split("_products")[0] for name in lowering.kernel_functions()]
    assert len(names) == phases
    report = certify(executable, cases=3, seed=product)
    assert not report.exact
    assert report.first is not None
    assert report.first.kernel is not None
    assert identifier(report.first.kernel) == names[place]
    assert f"kernel {report.first.kernel} " in str(report)
    assert f"row {report.first.row} of" in str(report)
