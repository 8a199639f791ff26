"""Does a bundle on ONNX Runtime give forerun's texts, and do trees pay there?

python -m benchmarks.onnx --prompts prompts.jsonl

Compares greedy tokens of the bundle with forerun's own on each prompt (a difference must be at a near-tie: two logits
closer than 1e-3), and the speed of `tree_spec` with that of `autoregressive` on the same bundle.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import forerun
from benchmarks.common import arguments, model_path, progress, read_prompts, report
from benchmarks.machine import pin_threads

STRATEGIES = ("tree_spec", "autoregressive")
NEAR = 1e-3
"""Logits that are closer than this may change places."""


def main() -> int:
    parser = arguments(__doc__, count=40, max_new_tokens=64)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    pin_threads(given.threads)
    own = forerun.compile(model_path(given.model), "autoregressive")
    with tempfile.TemporaryDirectory() as folder:
        bundle = forerun.load(own.export(Path(folder) / "bundle"), "tree_spec", given.threads)
        plain = forerun.with_strategy(bundle, "autoregressive")
        lines, ratios = list[tuple[Any, ...]](), list[float]()
        for each in progress(read_prompts(given.prompts, given.count), "prompts"):
            prompt = each.encode(own.tokenizer)
            options: dict[str, Any] = {
                "max_new_tokens": given.max_new_tokens,
                "return_logits": True,
                "do_sample": False,
            }
            expected, tree, single = (each.generate(prompt, **options) for each in (own, bundle, plain))
            ratios.append(tree.stats.tokens_per_second / single.stats.tokens_per_second)
            for name, found in zip(STRATEGIES, (tree, single), strict=True):
                place, gap = parting(expected, found)
                lines.append(
                    (each.identifier, name, place, gap, found.stats.tokens_per_second, found.stats.accepted_length)
                )
    columns = ("prompt", "strategy", "parts at", "gap there", "tokens/s", "accepted length")
    parted = [each for each in lines if each[2] is not None]
    result = {"lines": lines, "ratio": median(ratios), "parted": len(parted)}
    report("onnx", given.out, columns, lines, result)
    equal = {name: sum(line[1] == name and line[2] is None for line in lines) for name in STRATEGIES}
    print(f"texts equal to forerun's: {equal} of {len(ratios)}")
    print(f"tree_spec is {median(ratios):.2f} times as fast as autoregressive (median of the prompts' ratios)")
    return 0 if all(each[3] < NEAR for each in parted) else 1


def parting(expected: Any, found: Any) -> tuple[int | None, float]:
    """Returns where two texts part, None if they do not, and how far apart the two tokens' logits are there."""
    for place, (one, other) in enumerate(zip(expected.token_ids, found.token_ids, strict=False)):
        if one != other:
            logits = expected.logits[place]
            return place, float(abs(logits[one] - logits[other]))
    same = len(expected.token_ids) == len(found.token_ids)
    return (None, 0.0) if same else (min(len(expected.token_ids), len(found.token_ids)), float("inf"))


if __name__ == "__main__":
    sys.exit(main())
