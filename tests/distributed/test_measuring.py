"""Times of parts and of the link are found again in steps that were made of them."""

import numpy as np
import pytest

from forerun.distributed.measuring import Run, costs_of
from forerun.distributed.schedule import Payload, divided, predicted

ROUNDS, BYTES, BANDWIDTH = 3, 100.0, 1e6
LATENCY, OVERHEAD, AROUND = 2e-3, 5e-4, 7e-3
ATTENTION = tuple(Payload(received, False, BYTES) for _ in range(ROUNDS) for received in (False, True))
FFN = tuple(Payload(not each.received, False, BYTES) for each in ATTENTION)


def run(rows: int, offset: float) -> Run:
    """A step of one group: attention works a second a row and round, the feed-forward part two; their clocks differ."""
    way = LATENCY + rows * BYTES / BANDWIDTH
    time, attention, ffn = 0.0, list[tuple[float, float]](), [(offset, offset)]
    for _ in range(ROUNDS):
        attention.append((time, time + rows))
        time += rows + OVERHEAD + way + OVERHEAD
        attention.append((time - OVERHEAD - way, time - OVERHEAD - way))  # after sending, nothing before waiting
        ffn.append((offset + time, offset + time + 2 * rows))
        time += 2 * rows + OVERHEAD
        ffn.append((offset + time, offset + time))
        time += way + OVERHEAD
    attention.append((time, time + rows))
    return Run(time + rows + AROUND, np.array(attention), np.array(ffn))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_what_a_step_is_made_of_is_found(offset: float) -> None:
    costs = costs_of({rows: [run(rows, offset)] * 3 for rows in (1, 2, 4)}, ATTENTION, FFN, BANDWIDTH)
    assert costs.attention.of(3) == pytest.approx([3, 0] * ROUNDS + [3])
    assert costs.ffn.of(3) == pytest.approx([0, 6] * ROUNDS + [0])
    assert costs.link.overhead == pytest.approx(OVERHEAD)
    assert costs.link.latency == pytest.approx(LATENCY)
    assert costs.around == pytest.approx(AROUND)
    for rows in (1, 4):
        assert predicted(costs, divided([rows], 1)).seconds == pytest.approx(run(rows, offset).seconds)
