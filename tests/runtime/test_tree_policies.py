"""Policies cut trees where rows stop paying off; calibration measures what rows cost."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle

from forerun.errors import InvalidOptionError
from forerun.progress import SilentProgress
from forerun.runtime.calibration import SIZES, TREES, CostModel, calibrate, isotonic, scaled
from forerun.runtime.current_cost import CurrentCost
from forerun.runtime.engine import Engine
from forerun.runtime.policy import CostAware, Fixed
from forerun.runtime.tree import Tree, TreeBuilder, check
from forerun.schedules import measure_cost, read_cost


def fan(edges: list[float]) -> Tree:
    builder = TreeBuilder(0)
    for token, edge in enumerate(edges):
        builder.add(0, token, edge)
    return builder.build()


FLAT = CostModel((1, 64), (1.0, 1.0))
STEEP = CostModel((1, 64), (1.0, 64.0))


def test_rows_that_cost_nothing_are_all_taken():
    assert len(CostAware(FLAT).choose([fan([0.5, 0.2, 0.01])])[0]) == 4


def test_rows_that_cost_a_whole_step_are_not_taken():
    assert len(CostAware(STEEP).choose([fan([0.9, 0.05])])[0]) == 1


def test_rows_are_taken_while_they_pay():
    cost = CostModel((1, 11), (1.0, 2.0))  # a tenth of a step each
    [tree] = CostAware(cost).choose([fan([0.3, 0.15, 0.09, 0.02])])
    assert tree.probability.tolist() == [1.0, 0.3, 0.15]


def test_a_plateau_is_crossed_if_what_lies_behind_pays():
    cost = CostModel((1, 2, 3, 4), (1.0, 1.5, 1.5, 1.5))
    assert len(CostAware(cost).choose([fan([0.3, 0.3, 0.3])])[0]) == 4
    assert len(CostAware(cost).choose([fan([0.3])])[0]) == 1


def test_time_is_dearer_when_steps_have_been_good():
    cost = CostModel((1, 11), (1.0, 2.0))
    policy = CostAware(cost)
    tree = fan([0.15])
    assert len(policy.choose([tree])[0]) == 2
    for _ in range(200):
        policy.observe(rows=2, tokens=4, seconds=1.1)
    assert policy.rate == pytest.approx(4 / 1.1, rel=0.1)
    assert len(policy.choose([tree])[0]) == 1


def test_sequences_share_a_step_by_what_their_rows_are_worth():
    cost = CostModel((1, 11), (1.0, 2.0))
    good, bad = CostAware(cost, most=5).choose([fan([0.5, 0.4, 0.3]), fan([0.12, 0.05])])
    assert (len(good), len(bad)) == (4, 1)


@given(
    edges=st.lists(st.floats(0, 1), max_size=20),
    times=st.lists(st.floats(0.001, 1), min_size=21, max_size=21),
    rows=st.integers(1, 24),
)
def test_no_other_number_of_rows_is_worth_more(edges: list[float], times: list[float], rows: int):
    cost = CostModel(tuple(range(1, 22)), tuple(times))
    policy = CostAware(cost, most=rows)
    [tree] = policy.choose([fan(edges)])
    check(tree, 100)
    best = sorted(edges, reverse=True)
    worth = [1 + sum(best[:n]) - policy.rate * cost.seconds(n + 1) for n in range(min(len(edges), rows - 1) + 1)]
    assert worth[len(tree) - 1] == pytest.approx(max(worth))


def after(cost: CostModel, steps: dict[int, float]) -> CurrentCost:
    """The estimate after 60 steps of each size, which took so many seconds each."""
    current = CurrentCost(cost)
    for rows, seconds in [*steps.items()] * 60:
        current.observe(rows, seconds)
    return current


def test_the_cost_is_learnt_from_the_steps():
    cost = CostModel((1, 11), (1.0, 2.0))  # a tenth of a step for a further row
    dearer = after(cost, {1: 1.5, 6: 3.0})
    assert dearer.seconds(1) == pytest.approx(1.5, rel=0.05)
    assert dearer.seconds(6) == pytest.approx(3.0, rel=0.05)
    assert dearer.table(6).tolist() == pytest.approx([dearer.seconds(rows) for rows in range(1, 7)])
    assert after(cost, {1: 1.5, 6: 1.75}).seconds(6) < 1.9


def test_sizes_that_do_not_run_follow_those_that_do():
    cost = CostModel((1, 11), (1.0, 2.0))
    assert after(cost, {6: 4.5}).seconds(1) == pytest.approx(3.0, rel=0.05)
    assert after(cost, {1: 0.5}).table(80)[-1] == pytest.approx(cost.seconds(80) / 2, rel=0.1)


def test_when_step_times_change_the_estimate_follows():
    """A neighbour comes: all steps take eight times as long; then it goes."""
    current = CurrentCost(CostModel((1, 8), (1.0, 1.5)))
    for factor in (8.0, 1.0):
        for _ in range(40):
            current.observe(1, factor)
        assert current.seconds(1) == pytest.approx(factor, rel=0.15)
        assert current.seconds(8) == pytest.approx(1.5 * factor, rel=0.15)


def test_one_row_is_timed_again_when_large_steps_have_changed():
    policy = CostAware(FLAT)
    for rows, seconds, stale in [(8, 1.0, False)] * 40 + [(8, 4.0, None)] * 10:
        policy.begin()
        assert policy.rows > 1 or stale is None
        policy.observe(rows, 8, seconds)
    policy.begin()
    assert policy.rows == 1  # it may be that all steps are slower, or only those of 8 rows
    for _ in range(20):
        policy.begin()
        policy.observe(1, 1, 1.0)
    policy.begin()
    assert policy.rows > 1
    assert policy.cost.seconds(1) == pytest.approx(1.0, rel=0.35)
    assert policy.cost.seconds(8) > 2


def test_a_pause_says_little_of_the_cost():
    current = after(FLAT, {1: 1.0})
    current.observe(1, 1000.0)
    assert current.seconds(1) < 1.5
    for _ in range(20):
        current.observe(1, 1.0)
    assert current.seconds(1) == pytest.approx(1.0, rel=0.05)


def test_room_to_propose_follows_what_was_taken():
    policy = CostAware(FLAT, most=64)
    assert policy.rows == 64
    policy.choose([fan([0.5] * 9)])
    assert policy.rows == 20
    policy.choose([fan([])])
    assert policy.rows == 8


def test_fixed_takes_the_best_rows():
    [tree] = Fixed(3).choose([fan([0.1, 0.5, 0.3])])
    assert tree.probability.tolist() == [1.0, 0.5, 0.3]


def test_options():
    for make in (lambda: Fixed(0), lambda: CostAware(FLAT, most=0), lambda: CostModel((), ())):
        with pytest.raises(InvalidOptionError):
            make()
    for rows, seconds in (((2, 1), (1.0, 1.0)), ((1,), (0.0,)), ((1,), (1.0, 2.0))):
        with pytest.raises(InvalidOptionError):
            CostModel(rows, seconds)


@given(values=st.lists(st.floats(0.01, 10), min_size=1, max_size=15))
def test_isotonic_fit(values: list[float]):
    fit = isotonic(values)
    assert all(a <= b + 1e-12 for a, b in pairwise(fit))
    assert sum(fit) == pytest.approx(sum(values))
    assert isotonic(sorted(values)) == sorted(values)


def test_cost_model_interpolates_extends_and_survives_json():
    cost = CostModel((1, 3, 4), (1.0, 2.0, 1.8))
    assert cost.table(3).tolist() == pytest.approx([1.0, 1.45, 1.9])
    assert cost.seconds(4) == pytest.approx(1.9)
    assert cost.seconds(8) == pytest.approx(3.8)
    assert CostModel.from_dict(cost.to_dict()) == cost


class Slow(Oracle):
    """Each row takes half a millisecond beyond the first's two."""

    def run(self, entry, state, rows, *more):
        if len(rows.outputs) == len(rows.tokens):
            time.sleep(0.0015 + 0.0005 * len(rows.tokens))
        return super().run(entry, state, rows, *more)


def test_calibration_measures():
    oracle = Slow(max_rows=16, max_path=6, max_length=100)
    engine = Engine(oracle)
    done: list[float] = []
    cost = calibrate(engine, context=20, seconds=0.3, progress=done.append)
    assert cost.rows == tuple(size for size in SIZES if size <= 16)
    assert 0.002 < cost.seconds(1) < cost.seconds(16) < 0.05
    assert cost.seconds(16) - cost.seconds(1) > 0.006
    assert done[-1] == 1.0
    assert engine.cache.free_positions >= oracle.max_length


class Remembering(Oracle):
    """Remembers the tokens of each step whose rows all have logits, as rows of a trial have."""

    def run(self, entry, state, rows, *more):
        if len(rows.outputs) == len(rows.tokens):
            self.seen.append(rows.tokens.tolist())
        return super().run(entry, state, rows, *more)


def test_a_size_is_timed_on_several_trees_of_different_tokens():
    """With experts, a step reads the weights that its tokens choose: rows of one token would read too few."""
    oracle = Remembering(max_rows=16, max_path=6, max_length=100)
    oracle.seen = []
    calibrate(Engine(oracle), context=20, seconds=10.0)
    for size in (1, 8, 16):
        trees = {tuple(each) for each in oracle.seen if len(each) == size}
        assert len(trees) == TREES
        assert size == 1 or all(len(set(each)) > size // 2 for each in trees)


def test_a_known_cost_is_scaled_unless_sizes_have_changed_differently():
    known = CostModel((1, 4, 8, 16), (1.0, 1.5, 2.0, 3.0))
    alike, unlike = CostModel((1, 8), (2.0, 4.2)), CostModel((1, 8), (1.0, 4.0))
    found = scaled(known, alike)
    assert found is not None
    assert np.allclose(np.array(found.measured) / known.measured, 2.05)
    assert scaled(known, unlike) is None


def test_step_times_are_kept_and_scaled_until_they_change_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    engine, kept = Engine(Oracle(max_rows=16, max_path=6, max_length=100)), tmp_path / "models" / "one-2.json"
    first, few = CostModel((1, 4, 16), (1.0, 1.5, 3.0)), CostModel((1, 16), (2.0, 6.2))
    monkeypatch.setattr("forerun.schedules.calibrate", lambda engine: first)
    monkeypatch.setattr("forerun.schedules.estimated", lambda engine: few)
    assert measure_cost(engine, SilentProgress(), kept) == first
    again = measure_cost(engine, SilentProgress(), kept)
    assert np.allclose(np.array(again.measured) / first.measured, 2.0, rtol=0.05)
    few = CostModel((1, 16), (1.0, 9.0))
    assert measure_cost(engine, SilentProgress(), kept) == first
    kept.write_text("{damaged")
    assert measure_cost(engine, SilentProgress(), kept) == first
    assert read_cost(kept) == first


@pytest.mark.parametrize(("max_path", "max_length"), [(1, 8), (3, 16), (64, 100)])
def test_calibration_of_small_executables(max_path: int, max_length: int):
    engine = Engine(Oracle(max_path=max_path, max_length=max_length))
    assert np.all(np.diff(calibrate(engine, seconds=0.01).table(16)) >= 0)
