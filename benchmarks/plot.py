"""A run of `benchmarks.decode` as a picture: tokens per second by category, and t(n)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.runtime.calibration import CostModel

COLOURS = ("#1f6f8b", "#e07a2f", "#8a8f98", "#4c4f56", "#b8a04a")


def plot_decoding(path: Path, rates: Mapping[str, Mapping[str, float]], cost: CostModel, dtype: str) -> None:
    """`rates`: contestant -> category -> tokens per second. Prints a message if matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib").use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        print('no plot: matplotlib is not installed (`pip install -c constraints.txt ".[bench]"`)', file=sys.stderr)
        return
    figure, (bars, line) = pyplot.subplots(1, 2, figsize=(13, 4.5), width_ratios=(5, 2), layout="constrained")
    categories = list(next(iter(rates.values())))
    width = 0.8 / len(rates)
    for index, (name, values) in enumerate(rates.items()):
        places = [place + (index + 0.5) * width - 0.4 for place in range(len(categories))]
        colour = COLOURS[index % len(COLOURS)]
        bars.bar(places, [values[category] for category in categories], width * 0.92, label=name, color=colour)
    bars.set_xticks(range(len(categories)), categories, rotation=30, ha="right")
    bars.set_ylabel("tokens per second")
    bars.set_title(f"greedy decoding, batch 1, {dtype}: medians over prompts")
    bars.legend(ncols=2, frameon=False)
    line.plot(cost.rows, [seconds * 1e3 for seconds in cost.measured], "o-", color=COLOURS[0])
    line.set_ylim(bottom=0)
    line.set_xlabel("rows of a step, n")
    line.set_ylabel("t(n), ms")
    line.set_title("a step by its rows")
    for axes in (bars, line):
        axes.spines[["top", "right"]].set_visible(False)
    partial = path.with_name(f".incomplete-{path.name}")
    figure.savefig(partial, dpi=150)
    partial.replace(path)
    pyplot.close(figure)
    print(f"written to {path}")
