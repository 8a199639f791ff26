"""The search against trying everything, its limits, and what it says."""

import itertools
from dataclasses import replace

import pytest

from forerun.planning.hardware import Device, Network
from forerun.planning.pipeline import Batching, Placement, Prediction, predict
from forerun.planning.planner import PlanOptions, plan
from forerun.planning.report import Plan
from forerun.planning.search import Limits, best_colocated, best_split
from forerun.planning.shape import Attention, Bytes, FeedForward, Shape
from forerun.planning.times import Roofline
from tests.planning.example_files import HARDWARE, model_file

SMALL = Shape(
    "small", 4, 64, 1000, "bf16", Bytes(2, 2, 2, 2), Attention(40_000, 128, 512, "bf16"),
    (FeedForward(4, 50_000, count=8, chosen=2),),
)  # fmt: skip
QUICK = Device("quick", {"bf16": 1e9}, 1e9, 5e6, Network(1e9, 1e-6), 2.0, 1)
BIG = Device("big", {"bf16": 1e8}, 2e9, 2e7, Network(1e9, 1e-6), 1.0, 1)
LIMITS = Limits(100, 0.05, 4, 3, 40, {1: 1.0, 2: 1.6})


def every(limits: Limits, colocated: bool) -> list[Prediction]:
    """All plans that keep the limits, one batch after the other."""
    found: list[Prediction] = []
    counts = range(1, limits.devices + 1)
    for first, second, ranks, others in itertools.product((QUICK, BIG), (QUICK, BIG), counts, counts):
        together = first is second and ranks == others
        if not (together if colocated else ranks + others <= limits.devices):
            continue
        placement = Placement(first, second, ranks, others, colocated)
        room = min(placement.most_sequences(SMALL, limits.context), limits.sequences or 0)
        for tree, micro_batches in itertools.product(limits.accepted, range(1, limits.micro_batches + 1)):
            for sequences in range(ranks, room // micro_batches + 1, ranks):
                batching = Batching(micro_batches, sequences, tree, limits.accepted[tree])
                each = predict(SMALL, placement, batching, Roofline(SMALL, limits.context))
                if each.seconds_per_token <= limits.seconds_per_token:
                    found.append(each)
    return found


@pytest.mark.parametrize("seconds", [0.003, 0.01, 0.05])
def test_the_search_finds_the_cheapest(seconds: float) -> None:
    limits, times = replace(LIMITS, seconds_per_token=seconds), Roofline(SMALL, LIMITS.context)
    split = best_split(SMALL, (QUICK, BIG), (QUICK, BIG), times, limits)
    together = best_colocated(SMALL, (QUICK, BIG), times, limits)
    for found, colocated in ((split, False), (together, True)):
        best = min((each.cost for each in every(limits, colocated)), default=None)
        assert (None if found is None else found.cost) == pytest.approx(best)


def test_no_plan_is_better_than_a_slow_one() -> None:
    times = Roofline(SMALL, LIMITS.context)
    limits = replace(LIMITS, seconds_per_token=1e-6)
    assert best_split(SMALL, (QUICK,), (BIG,), times, limits) is None
    assert best_colocated(SMALL, (QUICK,), times, limits) is None


def test_looser_limits_are_never_dearer() -> None:
    times = Roofline(SMALL, LIMITS.context)
    base = best_split(SMALL, (QUICK, BIG), (QUICK, BIG), times, LIMITS)
    assert base is not None
    for looser in (
        replace(LIMITS, seconds_per_token=0.1),
        replace(LIMITS, devices=6),
        replace(LIMITS, micro_batches=4),
        replace(LIMITS, sequences=None),
        replace(LIMITS, accepted={**LIMITS.accepted, 4: 2.5}),
    ):
        found = best_split(SMALL, (QUICK, BIG), (QUICK, BIG), times, looser)
        assert found is not None
        assert found.cost <= base.cost


def planned(name: str, **options: object) -> Plan:
    return plan(model_file(name), HARDWARE, PlanOptions(**options))  # type: ignore[arg-type]


def test_limits_are_kept() -> None:
    found = planned("step3", context=8192, devices=48, latency=30, batch=5000, micro_batches=3)
    for each in (found.disaggregated, found.colocated):
        assert each is not None
        assert each.seconds_per_token <= 0.030
        assert each.placement.devices <= 48
        assert each.batching.micro_batches <= 3
        assert each.batching.micro_batches * each.batching.sequences <= 5000


def test_no_plan_is_cheaper_than_the_floor() -> None:
    for name, context in itertools.product(("step3", "qwen3_235b", "deepseek_v3"), (2048, 32768)):
        found = planned(name, context=context)
        for kind, each in (("disaggregated", found.disaggregated), ("colocated", found.colocated)):
            assert each is None or each.cost >= found.floors[kind].cost


def test_cheap_memory_beside_cheap_products_makes_disaggregation_win() -> None:
    """The Step-3 paper's case: caches on devices of much bandwidth, experts on devices of many FLOP/s."""
    found = planned("step3", context=8192)
    assert found.disaggregated is not None
    assert found.disaggregated.placement.attention.name != "h800"
    assert found.disaggregated.placement.feed_forward.name == "h800"
    assert found.verdict().startswith("Disaggregation wins: a token costs 1.")


def test_the_documented_plans() -> None:
    """docs/planning.md has a table of these costs."""
    documented = {
        ("step3", 8192): (0.057, 0.073),
        ("step3", 32768): (0.156, 0.156),
        ("deepseek_v3", 8192): (0.114, 0.087),
        ("deepseek_v3", 32768): (0.327, 0.344),
        ("qwen3_235b", 8192): (0.074, 0.076),
        ("qwen3_235b", 32768): (0.236, 0.228),
    }
    for (name, context), costs in documented.items():
        found = planned(name, context=context)
        assert found.disaggregated is not None
        assert found.colocated is not None
        assert (found.disaggregated.cost, found.colocated.cost) == pytest.approx(costs, abs=0.0006)


def test_attention_that_computes_much_loses_on_devices_of_few_flops() -> None:
    found = planned("deepseek_v3", attention_device="h20", ffn_device="h800", devices=32)
    assert found.verdict().startswith("Disaggregation loses: a token costs 4.")
    assert "it waits for attention, and FFN is busy" in found.verdict()


def test_a_short_latency_leaves_only_one_kind_of_serving() -> None:
    found = planned("qwen3_32b", latency=2.65, devices=32)
    assert found.disaggregated is None
    assert found.verdict() == "Disaggregation loses: no split keeps the limits, colocated serving does."


def test_the_latency_of_a_network_is_named() -> None:
    found = planned("qwen3_32b", latency=3.0, devices=32)
    assert found.disaggregated is not None
    assert "one micro-batch's way through all layers, " in found.verdict()
    assert "of it the network's latency" in found.verdict()


def test_drafts_pay_where_attention_waits_for_memory() -> None:
    """Step-3's section 5.2: grouped attention has products to spare for a tree, latent attention does not."""
    gains = {}
    for name in ("qwen3_235b", "deepseek_v3"):
        options = {"attention_device": "h800", "ffn_device": "h800", "context": 8192}
        plain, drafted = planned(name, **options), planned(name, acceptance=0.8, **options)
        assert plain.disaggregated is not None
        assert drafted.disaggregated is not None
        gains[name] = plain.disaggregated.cost / drafted.disaggregated.cost
    assert gains["qwen3_235b"] > 1.5 > gains["deepseek_v3"] >= 1
