"""What does a step over two processes move and take, compared with what the pass and the schedule predict?

python -m benchmarks.disaggregation --json disaggregation.json

An attention rank and a feed-forward rank, each with one thread. The file's attention, ffn and link are what
`forerun plan --measured` reads. On a machine of two cores it cannot be faster than one process with two threads: both
have the same cores, and one process sends no messages.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from benchmarks.common import print_table
from forerun.build import lower
from forerun.compiler import compile as compile_model
from forerun.distributed import Layout, join
from forerun.distributed.driver import Driver
from forerun.distributed.schedule import Costs, best, divided, known_sizes, predicted
from forerun.ir import Receive, Send, functions, walk
from forerun.passes.disaggregate import ATTENTION_PART, Disaggregate, row_bytes
from forerun.progress import SilentProgress
from forerun.runtime.calibration import trial_steps
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Rows
from forerun.storage import write_atomically

LAYOUT = Layout(1, 1)
ROWS = (1, 4, 16, 64)
GROUPS = (1, 2, 3, 4)
CONTEXT, LENGTH = 128, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="what forerun.compile takes")
    parser.add_argument("--rounds", type=int, default=15, help="how often each step is timed")
    parser.add_argument("--json", type=Path, help="where to write the results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found"
        processes.spawn(_rank, (folder, given.model, given.rounds, str(found)), nprocs=LAYOUT.world)
        result = json.loads(found.read_text())
    result["bytes per row"]["predicted"] = predicted_bytes(given.model)
    result["one process"] = {str(threads): one_process(given.model, threads, given.rounds) for threads in (1, 2)}
    show(result)
    if given.json is not None:
        write_atomically(given.json, json.dumps(result, indent=1))


def _rank(rank: int, folder: str, model: str, rounds: int, found: str) -> None:
    warnings.filterwarnings("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=LAYOUT.world)
    with join(model, LAYOUT, "autoregressive", max_length=LENGTH, progress=SilentProgress(), threads=1) as joined:
        if joined is not None:
            Path(found).write_text(json.dumps(measured(joined.executable, joined.engine, rounds)))
    dist.destroy_process_group()


def measured(driver: Driver, engine: Engine, rounds: int) -> dict[str, Any]:
    """What the first rank finds: bytes, times of the parts, and steps in groups beside their predictions."""
    costs = driver.costs
    steps: list[dict[str, Any]] = []
    with trial_steps(engine, ROWS, CONTEXT) as given:
        moved = {rows: bytes_of(driver, engine, step) / rows for rows, step in zip(ROWS, given, strict=True)}
        cases = [(rows, groups, step) for rows, step in zip(ROWS, given, strict=True) for groups in GROUPS]
        cases = [(rows, groups, step) for rows, groups, step in cases if groups <= rows]
        taken: list[list[tuple[float, float]]] = [[] for _ in cases]
        for _ in range(rounds):
            for times, (_, groups, step) in zip(taken, cases, strict=True):
                with driver.grouped(groups):
                    times.append(timed(driver, engine, step, groups))
    for times, (rows, groups, _) in zip(taken, cases, strict=True):
        schedule = predicted(costs, divided([rows], groups))
        steps.append(
            {
                "rows": rows,
                "groups": groups,
                "chosen": best(costs, known_sizes(costs, (rows,))) == groups,
                "seconds": median(seconds for seconds, _ in times),
                "predicted seconds": schedule.seconds,
                "overlap": median(overlap for _, overlap in times),
                "predicted overlap": schedule.overlap,
            }
        )
    return {**parts(costs), "bytes per row": {"measured": moved}, "steps": steps}


def parts(costs: Costs) -> dict[str, Any]:
    """The times of the parts and of the link, as `forerun plan --measured` reads them."""
    return {
        "attention": {rows: costs.attention.total(rows) for rows in costs.attention.rows},
        "ffn": {rows: costs.ffn.total(rows) for rows in costs.ffn.rows},
        "link": {"bandwidth": costs.link.bandwidth, "latency": costs.link.latency + 2 * costs.link.overhead},
        "context": CONTEXT,
    }


def bytes_of(driver: Driver, engine: Engine, step: Rows) -> int:
    """The bytes of payloads that a step sends in both directions."""
    before = sum(driver.wire.bytes.values())
    engine.run(step)
    return sum(driver.wire.bytes.values()) - before


def timed(driver: Driver, engine: Engine, step: Rows, groups: int) -> tuple[float, float]:
    """The seconds of a step, and the share of it in which both ranks worked; on one machine they have one clock."""
    start = engine.clock()
    engine.run(step)
    took = engine.clock() - start
    spans = [[span for group in range(groups) for span in driver.marks(rank, group)] for rank in (0, 1)]
    times = np.unique(np.array(spans[0] + spans[1]))
    busy = [np.any([(begin <= times[:-1]) & (times[1:] <= end) for begin, end in each], axis=0) for each in spans]
    return took, float(np.diff(times)[busy[0] & busy[1]].sum()) / took


def predicted_bytes(model: str) -> int:
    """The bytes per row of the payloads that `disaggregate` cuts a step at."""
    lowered = lower(model, max_length=LENGTH, progress=SilentProgress(), draft=[Disaggregate(ATTENTION_PART)])
    body = functions(lowered.module)["step"].body
    sent = [each.value for each in walk(body) if isinstance(each, Send)]
    received = [each.result for each in walk(body) if isinstance(each, Receive)]
    return sum(map(row_bytes, [*sent, *received]))


def one_process(model: str, threads: int, rounds: int) -> dict[int, float]:
    """The seconds of the same steps in one process."""
    engine = compile_model(
        model, "autoregressive", max_length=LENGTH, progress=SilentProgress(), threads=threads
    ).engine
    times: dict[int, list[float]] = {rows: [] for rows in ROWS}
    with engine.serving, trial_steps(engine, ROWS, CONTEXT) as steps:
        for _ in range(rounds + 1):
            for rows, step in zip(ROWS, steps, strict=True):
                start = engine.clock()
                engine.run(step)
                times[rows].append(engine.clock() - start)
    return {rows: median(each[1:]) for rows, each in times.items()}


def show(result: dict[str, Any]) -> None:
    moved = result["bytes per row"]
    print_table(
        "bytes of payloads for each row",
        ("rows", "measured", "predicted"),
        [(rows, f"{each:.0f}", moved["predicted"]) for rows, each in moved["measured"].items()],
    )
    link = result["link"]
    print(f"link: {link['latency'] * 1e6:.0f} us a payload, {link['bandwidth'] / 1e9:.1f} GB/s")
    print_table(
        "milliseconds of a step's parts",
        ("rows", "attention", "feed-forward", "one process, 1 thread", "2 threads"),
        [
            (rows, *(1e3 * result[part][rows] for part in ("attention", "ffn")), *_alone(result, int(rows)))
            for rows in result["attention"]
        ],
    )
    print_table(
        "milliseconds of a step over two processes",
        ("rows", "groups", "measured", "predicted", "ratio", "overlap", "predicted overlap"),
        [
            (
                each["rows"],
                f"{each['groups']}{' (chosen)' if each['chosen'] else ''}",
                1e3 * each["seconds"],
                1e3 * each["predicted seconds"],
                each["predicted seconds"] / each["seconds"],
                each["overlap"],
                each["predicted overlap"],
            )
            for each in result["steps"]
        ],
    )


def _alone(result: dict[str, Any], rows: int) -> list[Any]:
    return [1e3 * each[rows] if rows in each else "-" for each in result["one process"].values()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
