"""The certificate means something: a reduction whose order depends on the number of rows is found and named."""

from collections.abc import Sequence
from typing import Any

import pytest

from forerun.codegen.tvm import TEMPLATES, TvmExecutable, linear
from forerun.codegen.tvm.builder import fma, integer, let, load, local, splat, store
from forerun.compiler import lower
from forerun.runtime.certify import certify
from tests.models import FAMILIES


def split_sums(self: Any, weight: Any, rows: Sequence[Any]) -> list[list[Any]]:
    """x w^T as fast libraries do it: one chain over the features for one row, two chains (even, odd) for several."""
    chains = 1 if len(rows) == 1 else 2
    sums = [[[local(linear.LANES) for _ in range(chains)] for _ in range(linear.VECTORS)] for _ in rows]
    for chain in (chain for row in sums for vector in row for chain in vector):
        store(chain, splat(0.0), 0)
    with self.context.frame.serial(0, self.features // chains) as step:
        for part in range(chains):
            feature = step * integer(chains) + integer(part)
            for vector in range(linear.VECTORS):
                place = feature * integer(linear.OUTPUTS) + integer(vector * linear.LANES)
                column = let(load(weight, place))
                for row, chain in zip(rows, sums, strict=True):
                    held = chain[vector][part]
                    store(held, fma(splat(self.x[row * integer(self.features) + feature]), column, load(held, 0)), 0)
    for vector in (vector for row in sums for vector in row if chains == 2):
        store(vector[0], load(vector[0], 0) + load(vector[1], 0), 0)
    return [[vector[0] for vector in row] for row in sums]


def test_a_planted_row_dependent_reduction_is_found_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear._Tile, "_sums", split_sums)
    lowered = lower(FAMILIES["llama"](), max_length=128)
    limits = {"max_rows": 64, "max_outputs": 64, "max_path": 64, "max_length": 128}
    # Given templates keep the faulty kernels out of the cache.
    executable = TvmExecutable(lowered.module, lowered.weights, templates=TEMPLATES, **limits)
    report = certify(executable, cases=5, seed=0)
    assert not report.exact
    assert report.first is not None
    assert "linear" in str(report.first)
    assert "row" in str(report)
