"""A schedule is what its times say: checked against recurrences written down by hand, and against bounds."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forerun.distributed.layout import ATTENTION, FFN
from forerun.distributed.schedule import (
    Costs,
    Link,
    PartTimes,
    Payload,
    Schedule,
    best,
    divided,
    known_sizes,
    predicted,
)
from forerun.distributed.timeline import svg

BYTES = 8.0
TIMES = st.floats(1e-6, 1e-2)


def part(ffn: bool, rounds: int, seconds: float, last: float = 0.0, slope: float = 0.1) -> PartTimes:
    """Each round sends one payload and receives one; a row more takes `slope` of the first row's time."""
    rows = (1, 8)
    messages = tuple(Payload(received, False, BYTES) for _ in range(rounds) for received in (ffn, not ffn))
    works = [0.0, seconds] * rounds if ffn else [seconds, 0.0] * rounds
    return PartTimes(
        messages, rows, tuple(tuple(each * (1 + (n - 1) * slope) for each in [*works, last]) for n in rows)
    )


def costs(rounds: int, attention: float, ffn: float, latency: float, last: float = 0.0, slope: float = 0.1) -> Costs:
    parts = part(False, rounds, attention, last, slope), part(True, rounds, ffn, 0.0, slope)
    return Costs(*parts, Link(latency, 1e9))


def by_hand(given: Costs, rows: list[int], rounds: int) -> float:
    """When the last group of one attention rank ends: each part takes the groups in turn, round by round."""
    attention = [given.attention.of(each) for each in rows]
    ffn = [given.ffn.of(each) for each in rows]
    free = {ATTENTION: 0.0, FFN: 0.0}
    answered = [0.0] * len(rows)
    for step in range(rounds + 1):
        for group, count in enumerate(rows):
            moving = given.link.seconds(BYTES * count)
            there = max(free[ATTENTION], answered[group]) + attention[group][2 * step]
            free[ATTENTION] = there
            if step < rounds:
                free[FFN] = max(free[FFN], there + moving) + ffn[group][2 * step + 1]
                answered[group] = free[FFN] + moving
    return free[ATTENTION]


@given(st.integers(1, 6), st.integers(1, 8), st.integers(1, 5), TIMES, TIMES, TIMES, TIMES)
def test_a_prediction_is_that_of_the_recurrence(
    rounds: int, rows: int, groups: int, attention: float, ffn: float, latency: float, last: float
) -> None:
    given = costs(rounds, attention, ffn, latency, last)
    found = predicted(given, divided([rows], groups))
    assert found.seconds == pytest.approx(by_hand(given, [each.rows for each in found.groups], rounds))


@given(st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 4), TIMES, TIMES, TIMES)
def test_a_step_takes_as_long_as_its_busiest_rank_and_no_rank_works_twice_at_once(
    rounds: int, rows: list[int], count: int, attention: float, ffn: float, latency: float
) -> None:
    given = costs(rounds, attention, ffn, latency)
    schedule = predicted(given, divided(rows, count))
    assert sum(each.rows for each in schedule.groups) == sum(rows)
    for worker in {(each.part, each.rank) for each in schedule.spans}:
        spans = sorted((each.begin, each.end) for each in schedule.spans if (each.part, each.rank) == worker)
        assert sum(end - begin for begin, end in spans) <= schedule.seconds * (1 + 1e-9)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
    works = {ATTENTION: given.attention, FFN: given.ffn}
    for name, times in works.items():
        total = sum(each.end - each.begin for each in schedule.spans if each.part == name)
        assert total == pytest.approx(sum(times.total(each.rows) for each in schedule.groups))
    assert 0 <= schedule.overlap <= 1
    chosen = predicted(given, divided(rows, best(given, tuple(rows))))
    assert chosen.seconds <= schedule.seconds * (1 + 1e-9)


def test_two_groups_hide_one_part_behind_the_other() -> None:
    """Where a part's time is proportional to its rows, two groups of four rows end before one of eight."""
    given = costs(4, 1.0, 1.0, 0.0, slope=1.0)
    assert predicted(given, divided([8], 1)).seconds == pytest.approx(64)
    assert predicted(given, divided([8], 2)).seconds == pytest.approx(36)
    assert best(given, (8,)) > 1
    assert best(given, (1,)) == 1


def test_more_groups_pay_only_where_they_hide_something() -> None:
    """Where a part's time does not depend on its rows, another group hides nothing but the time of payloads."""
    assert best(costs(6, 1e-4, 1e-4, latency=0.0, slope=0.0), (8,)) == 1
    assert best(costs(6, 1e-4, 1e-4, latency=1e-2, slope=0.0), (8,)) == 1
    assert best(costs(6, 1e-4, 1e-4, latency=1e-2, slope=1.0), (8,)) > 1


def test_ranks_that_share_the_feed_forward_part_wait_for_each_other() -> None:
    alone = costs(1, 1.0, 1.0, 0.25)
    messages = (
        Payload(True, False, BYTES),
        Payload(False, True, BYTES),
        Payload(True, True, 0.0),
        alone.ffn.messages[1],
    )
    shared = PartTimes(messages, (1,), ((0.0, 0.5, 0.0, 0.5, 0.0),))
    both = [predicted(Costs(alone.attention, each, alone.link), divided([1], 1)) for each in (alone.ffn, shared)]
    assert both[1].seconds - both[0].seconds == pytest.approx(0.25)


def test_rows_are_rounded_to_what_was_measured() -> None:
    given = costs(1, 1e-3, 1e-3, 1e-4)
    assert known_sizes(given, [1, 2, 8, 9, 17]) == (1, 8, 8, 16, 24)


def test_groups_are_divided_evenly_and_taken_in_turn() -> None:
    assert [(each.rank, each.rows) for each in divided([5, 1], 2)] == [(0, 3), (1, 1), (0, 2)]


def test_times_between_and_beyond_measured_rows() -> None:
    times = part(False, 1, 1.0)
    assert times.of(1)[0] == pytest.approx(1.0)
    assert times.of(4)[0] == pytest.approx(1.3)
    assert times.of(16)[0] == pytest.approx(2 * 1.7)


def test_a_timeline_shows_each_span() -> None:
    schedule = predicted(costs(3, 1e-3, 2e-3, 1e-4), divided([4, 4], 2))
    root = ElementTree.fromstring(svg(schedule))
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == len(schedule.spans)
    assert len({each.get("fill") for each in bars}) == len(schedule.groups)
    texts = [each.text for each in root.findall("{http://www.w3.org/2000/svg}text")]
    assert {"attention 0", "attention 1", "feed-forward"} <= set(texts)
    assert f"{schedule.seconds * 1e3:.1f} ms" in str(texts[0])


def test_an_empty_step_has_no_overlap() -> None:
    assert Schedule((), (predicted(costs(1, 0.0, 0.0, 0.0), divided([1], 1)).spans)).overlap == 0.0
