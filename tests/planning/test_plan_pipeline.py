"""The cost model against counting, simulation and common sense."""

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forerun.planning.measured import Curve
from forerun.planning.pipeline import LATENCY, Batching, Placement, Prediction, Stage, predict
from forerun.planning.search import chain
from forerun.planning.shape import FeedForward, Shape, distinct
from forerun.planning.times import Roofline
from tests.planning.example_files import MODELS, devices, shape_of

SHAPES = {name: shape_of(name) for name in MODELS}
DEVICES = devices()

placements = st.builds(
    Placement,
    st.sampled_from(list(DEVICES.values())),
    st.sampled_from(list(DEVICES.values())),
    st.integers(1, 40),
    st.integers(1, 40),
) | st.builds(
    lambda device, ranks: Placement(device, device, ranks, ranks, colocated=True),
    st.sampled_from(list(DEVICES.values())),
    st.integers(1, 40),
)
batchings = st.builds(
    lambda micro_batches, sequences, tree: Batching(micro_batches, sequences, tree, 1 + (tree - 1) / 2),
    st.integers(1, 4),
    st.integers(1, 5000),
    st.integers(1, 8),
)
shapes = st.sampled_from(list(SHAPES.values()))


def step(shape: Shape, placement: Placement, batching: Batching, context: float = 4096, efficiency: float = 1) -> float:
    return predict(shape, placement, batching, Roofline(shape, context, efficiency)).step_seconds


def test_distinct_experts_are_those_of_all_choices() -> None:
    choices = list(itertools.combinations(range(5), 2))
    met = [len({*first, *second, *third}) for first in choices for second in choices for third in choices]
    assert distinct(5, 2, 3) == pytest.approx(sum(met) / len(met))


def test_a_dense_layer_is_read_whole_by_one_row() -> None:
    layer = FeedForward(1, 100)
    assert (layer.read(1), layer.read(1000), layer.active) == (100, 100, 100)


def test_experts_are_read_as_they_are_met() -> None:
    layer = FeedForward(1, 10, count=4, chosen=1, shared=7)
    assert layer.read(1) == pytest.approx(17)
    assert layer.read(10_000) == pytest.approx(47)
    assert layer.read(1) < layer.read(2) < layer.read(3)


def simulated(stages: tuple[float, ...], micro_batches: int, layers: int, steps: int) -> float:
    """Seconds of a step of micro-batches that pass stages in turn, first come, first served, again and again."""
    free = [0.0] * len(stages)
    arrived = [0.0] * micro_batches
    ended: list[float] = []
    for _ in range(steps):
        for _ in range(layers):
            for each in range(micro_batches):
                for stage, seconds in enumerate(stages):
                    free[stage] = arrived[each] = max(free[stage], arrived[each]) + seconds
        ended.append(arrived[-1])
    return (ended[-1] - ended[len(ended) // 2]) / (len(ended) - 1 - len(ended) // 2)


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=4), st.integers(1, 6), st.integers(1, 3))
@settings(deadline=None, max_examples=60)
def test_a_step_takes_as_long_as_in_a_simulation(seconds: list[float], micro_batches: int, layers: int) -> None:
    device = DEVICES["h20"]
    stages = tuple(Stage(str(number), layers * each) for number, each in enumerate(seconds))
    plan = Prediction(Placement(device, device, 1, 1), Batching(micro_batches, 1), stages)
    assert plan.step_seconds == pytest.approx(simulated(tuple(seconds), micro_batches, layers, 40))
    assert (plan.bottleneck == LATENCY) == (micro_batches * max(seconds) < sum(seconds) * (1 - 1e-12))


def test_a_step_by_hand() -> None:
    """Step-3 with two nodes for each part (section 7.3 of the paper), each stage counted on its own."""
    shape, device = SHAPES["step3"], DEVICES["h800"]
    plan = predict(shape, Placement(device, device, 16, 16), Batching(3, 2048), Roofline(shape, 4096))
    seconds = {stage.name: stage.seconds for stage in plan.stages}
    projections = 61 * (7168 * 2048 + 2048 * 64 * 256 + 7168 * 512 + 64 * 256 * 7168)
    cache = 128 * 61 * 512 * 4096
    assert seconds["attention"] == pytest.approx((projections + cache + 128815 * 7168) / 3.35e12)
    experts = 56 * 49 * 3 * 7168 * 5120 / 3.35e12  # 2048 rows meet all of them, and read them longer than they compute
    dense = 2048 * 2 * 5 * 3 * 7168 * 18432 / 1.98e15  # and the other way round
    assert seconds["FFN"] == pytest.approx((experts + dense) / 16)
    copies = 5 * 2 + 56 * 2 * (1 - 0.5**3)
    assert seconds["the network to the FFN"] == pytest.approx(2048 * 7168 * copies / (16 * 50e9))
    assert seconds["the network back from the FFN"] == pytest.approx(2 * seconds["the network to the FFN"])
    assert plan.step_seconds == pytest.approx(3 * seconds["attention"])


def test_devices_of_one_node_send_nothing() -> None:
    shape, device = SHAPES["qwen3_32b"], DEVICES["h20"]
    plan = predict(shape, Placement(device, device, 8, 8, colocated=True), Batching(1, 8), Roofline(shape, 4096))
    assert len(plan.stages) == 1


@given(shapes, placements, batchings, st.floats(1, 10))
def test_a_better_device_is_never_slower(shape: Shape, placement: Placement, batching: Batching, times: float) -> None:
    base = step(shape, placement, batching)
    for name in ("memory_bandwidth", "flops", "network"):
        value = getattr(placement.attention, name)
        if name == "flops":
            better = {dtype: times * each for dtype, each in value.items()}
        elif name == "network":
            better = replace(value, bandwidth=times * value.bandwidth, latency=value.latency / times)
        else:
            better = times * value
        device = replace(placement.attention, **{name: better})
        improved = replace(placement, attention=device)
        if placement.colocated:
            improved = replace(improved, feed_forward=device)
        assert step(shape, improved, batching) <= base * (1 + 1e-12)


@given(shapes, placements, batchings)
def test_more_work_is_never_faster(shape: Shape, placement: Placement, batching: Batching) -> None:
    base = step(shape, placement, batching)
    slack = 1 - 1e-12
    assert step(shape, placement, replace(batching, sequences=batching.sequences + 1)) >= base * slack
    assert step(shape, placement, replace(batching, tree=batching.tree + 1)) >= base * slack
    assert step(shape, placement, replace(batching, micro_batches=batching.micro_batches + 1)) >= base * slack
    assert step(shape, placement, batching, context=8192) >= base * slack
    assert step(shape, placement, batching, efficiency=0.5) >= base * slack


@given(shapes, placements, batchings)
def test_a_larger_batch_is_never_dearer(shape: Shape, placement: Placement, batching: Batching) -> None:
    """The search takes the largest batch for this reason."""
    times = Roofline(shape, 4096)
    small = predict(shape, placement, batching, times)
    large = predict(shape, placement, replace(batching, sequences=batching.sequences + 1), times)
    assert large.cost <= small.cost * (1 + 1e-9)


@given(shapes, placements, batchings)
def test_cost_is_price_by_throughput(shape: Shape, placement: Placement, batching: Batching) -> None:
    plan = predict(shape, placement, batching, Roofline(shape, 4096))
    hours = 1e6 / plan.tokens_per_second / 3600
    assert plan.cost == pytest.approx(hours * placement.price)
    assert plan.tokens_per_second == pytest.approx(batching.micro_batches * batching.sequences / plan.seconds_per_token)


def test_a_chain_commits_what_a_geometric_series_says() -> None:
    lengths = chain(0.7)
    assert lengths[1] == 1
    assert lengths[4] == pytest.approx((1 - 0.7**4) / 0.3)
    assert chain(0)[8] == 1


def test_a_curve_joins_what_was_measured() -> None:
    curve = Curve((1, 4, 8), (1.0, 2.5, 2.9))
    assert [curve.at(rows) for rows in (0.5, 1, 2, 4, 6, 8, 12)] == pytest.approx([1, 1, 1.5, 2.5, 2.7, 2.9, 3.3])
    assert Curve((4,), (1.0,)).at(8) == 2
    assert Curve((1, 2), (2.0, 1.0)).at(4) == 1


def test_memory_limits_sequences() -> None:
    shape, device = SHAPES["step3"], DEVICES["h20"]
    held = shape.attention_bytes / 1e9
    assert held == pytest.approx(12.18, abs=0.01)
    placement = Placement(device, device, 2, 8)
    assert placement.most_sequences(shape, 8192) == 2 * math.floor((96 - held) / (shape.cache_bytes(8192) / 1e9))
    assert Placement(device, device, 2, 2).most_sequences(shape, 8192) == 0  # the weights of the FFN do not fit
    assert Placement(device, device, 2, 2, colocated=True).most_sequences(shape, 8192) == 0
