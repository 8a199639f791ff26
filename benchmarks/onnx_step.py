"""How long does a plain step of a bundle take beside a step of another ONNX export with a cache?

python -m benchmarks.onnx_step --bundle FOLDER --other FOLDER/model.onnx

`--other` is a decoder with inputs `past_key_values.*`, as `optimum-cli export onnx --task text-generation-with-past`
writes it. Both run on the same ONNX Runtime, one step after the other, over a cache of random numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.common import progress, report

CONTEXTS = (128, 512, 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    given = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = given.threads
    content = json.loads((given.bundle / "bundle.json").read_text(encoding="utf-8"))["content"]
    paths = (given.bundle / content["graphs"]["step"], given.other)
    sessions = [onnxruntime.InferenceSession(path, options) for path in paths]
    lines: list[tuple[Any, ...]] = []
    for context in progress(CONTEXTS, "contexts"):
        feeds = [inputs(each, context) for each in sessions]
        times: list[list[float]] = [[], []]
        for _ in range(given.rounds):
            for session, feed, found in zip(sessions, feeds, times, strict=True):
                began = time.perf_counter()
                session.run(None, feed)
                found.append((time.perf_counter() - began) * 1e3)
        own, other = (median(each) for each in times)
        lines.append((context, own, other, own / other, min(times[0]) / min(times[1])))
    columns = ("cached", "bundle: ms", "other: ms", "ratio of medians", "ratio of minima")
    report("onnx_step", given.out, columns, lines, {"columns": columns, "lines": lines})
    return 0


def inputs(session: Any, context: int) -> dict[str, Any]:
    """One row, or one token of a batch of one, after `context` cached positions."""
    random = np.random.default_rng(context)
    sizes = {"C": context, "L": context + 1, "N": 1, "M": 1}
    sizes |= {"batch_size": 1, "sequence_length": 1, "past_sequence_length": context}
    known = {"positions": [context], "cached_positions": list(range(context)), "position_ids": [[context]]}
    found: dict[str, Any] = {}
    for each in session.get_inputs():
        shape = [size if isinstance(size, int) else sizes.get(size, context + 1) for size in each.shape]
        if "float" in each.type:
            found[each.name] = random.standard_normal(shape, np.float32)
            continue
        kind = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}[each.type]
        one = 0 if each.name == "outputs" else 1
        found[each.name] = np.array(known.get(each.name, np.full(shape, one)), kind)
    return found


if __name__ == "__main__":
    sys.exit(main())
