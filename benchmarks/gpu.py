"""Does the GPU back end reach its targets? One command measures them all, in under nine minutes on an H200.

python -m benchmarks.gpu --model SmolLM2.gguf --prompts specbench.jsonl

It needs torch with CUDA, Triton, transformers and forerun's own pure-Python dependencies; TVM is not imported. Without
--model and --prompts, the comparison with transformers is left out and verification runs on random weights. If a part
fails, its name and error are printed, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_measures as measures
from benchmarks.common import print_table, read_prompts
from benchmarks.gpu_measures import Line
from forerun.errors import ForerunError
from forerun.execute.triton.gpu import require_gpu
from forerun.storage import write_atomically

BUDGET = 8.5 * 60
"""Seconds, after which no further part is begun."""

Part = Callable[[], tuple[list[Line], dict[str, Any]]]


def parts(given: argparse.Namespace, bandwidth: float) -> dict[str, Part]:
    """The measurements, the quickest first."""
    prompts = [] if given.prompts is None else read_prompts(given.prompts, given.count)
    found: dict[str, Part] = {
        "llama_8b": lambda: measures.steps("Llama-3.1-8B", measures.LLAMA_8B, 32, bandwidth),
        "smollm2": lambda: measures.steps("SmolLM2-135M", measures.SMOLLM2, 30, bandwidth),
        "attention_32k": lambda: measures.tree_attention(32 * 1024, bandwidth),
        "attention_128k": lambda: measures.tree_attention(128 * 1024, bandwidth),
        "verify_bfloat16": lambda: measures.verification(given.model, "bfloat16", given.cases),
        "verify_float32": lambda: measures.verification(given.model, "float32", given.cases),
    }
    if given.model is not None and prompts:
        found["generation"] = lambda: measures.generation(given.model, prompts, given.max_new_tokens)
    return {name: part for name, part in found.items() if not given.only or name in given.only}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="SmolLM2 as a GGUF file or a directory")
    parser.add_argument("--prompts", type=Path, help="JSON lines with question_id, category, turns")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--only", nargs="*", help="parts to run, by name")
    parser.add_argument("--out", type=Path, default=Path("results"))
    given = parser.parse_args()
    try:
        require_gpu()
    except ForerunError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    bandwidth = measures.copy_bandwidth()
    lines = [Line("copy bandwidth", f"{bandwidth / 1e12:.2f} TB/s", "", None)]
    result: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "bandwidth": bandwidth, "failed": {}}
    for name, part in parts(given, bandwidth).items():
        if time.perf_counter() - begin > BUDGET:
            lines.append(Line(name, "not run: out of time", "", False))
            continue
        started = time.perf_counter()
        try:
            found, told = part()
        except Exception as error:
            traceback.print_exc()
            result["failed"][name] = repr(error)
            found, told = [Line(name, f"failed: {type(error).__name__}", "", False)], {}
        torch.cuda.empty_cache()
        result[name] = {**told, "took_seconds": time.perf_counter() - started}
        lines.extend(found)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    write_atomically(given.out / "gpu.json", json.dumps(result | {"table": [vars(each) for each in lines]}, indent=1))
    rows = [
        (each.what, each.measured, each.target, {None: "", True: "yes", False: "no"}[each.reached]) for each in lines
    ]
    print(f"written to {given.out / 'gpu.json'}")
    print_table(f"gpu: {torch.cuda.get_device_name()}", ("what", "measured", "target", "reached"), rows)
    return 0 if all(each.reached is not False for each in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
