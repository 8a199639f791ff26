"""What fraction of the memory's read bandwidth does each kernel of a step reach, by the number of rows?

python -m benchmarks.kernels
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import forerun
from benchmarks.common import model_path, progress, report
from benchmarks.machine import MemoryRead, pin_threads
from forerun.execute.tvm.timing import KernelTime
from forerun.runtime.calibration import trial_steps

ROWS = (1, 2, 4, 8, 12, 16, 32, 64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="a directory or a GGUF file (default: SmolLM2)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--context", type=int, default=128, help="tokens in the cache")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    given = parser.parse_args()
    pin_threads(given.threads)
    model = forerun.compile(model_path(given.model), strategy="autoregressive", dtype=given.dtype)
    executable, engine = model.executable, model.engine
    memory = MemoryRead(given.threads)
    found: dict[int, list[list[KernelTime]]] = {rows: [] for rows in given.rows}
    with trial_steps(engine, given.rows, given.context) as steps:
        for _ in progress(range(given.rounds), "kernels"):
            for size, rows in zip(given.rows, steps, strict=True):
                found[size].append(executable.time_kernels(engine.state, rows, rounds=1))
            memory.measure()
    lines = [line for size, rounds in found.items() for line in table(size, rounds, memory.bandwidth)]
    columns = ("rows", "kernel", "launches", "us each", "us a step", "MB a step", "GB/s", "of bandwidth")
    result = {
        "dtype": given.dtype,
        "context": given.context,
        "read_bandwidth": memory.bandwidth,
        "kernels": lines,
        "times": {size: [asdict(each) for each in medians(rounds)] for size, rounds in found.items()},
    }
    report("kernels", given.out, columns, lines, result)
    print(f"measured read bandwidth: {memory.bandwidth / 1e9:.1f} GB/s")
    return 0


def table(size: int, rounds: Sequence[Sequence[KernelTime]], bandwidth: float) -> list[tuple[Any, ...]]:
    """One line per kind of kernel, the slowest first, and one for the whole step."""
    groups: dict[str, list[KernelTime]] = defaultdict(list)
    for each in medians(rounds):
        groups[label(each)].append(each)
    ordered = sorted(groups.items(), key=lambda item: -sum(each.seconds for each in item[1]))
    lines = [_line(size, name, group, bandwidth) for name, group in ordered]
    return [*lines, _line(size, "step", [each for group in groups.values() for each in group], bandwidth)]


def medians(rounds: Sequence[Sequence[KernelTime]]) -> list[KernelTime]:
    """Each kernel of the step, with its median time."""
    return [
        KernelTime(**{**asdict(times[0]), "seconds": median(each.seconds for each in times)})
        for times in zip(*rounds, strict=True)
    ]


def _line(size: int, name: str, group: Sequence[KernelTime], bandwidth: float) -> tuple[Any, ...]:
    seconds = sum(each.seconds for each in group)
    moved = sum(each.weight_bytes + each.value_bytes for each in group)
    rate = moved / max(seconds, 1e-9)
    each = median(each.seconds for each in group) * 1e6
    return size, name, len(group), each, seconds * 1e6, moved / 1e6, rate / 1e9, rate / bandwidth


def label(kernel: KernelTime) -> str:
    """The modules whose weights the kernel reads, or its kind."""
    names = [name.removesuffix(".weight").rsplit(".", 1)[-1] for name in kernel.weights]
    return " + ".join(names) or kernel.kernel.rsplit("_", 1)[0]


if __name__ == "__main__":
    sys.exit(main())
