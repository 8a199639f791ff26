"""Does a strategy give the token ids and the logits of `autoregressive`, bit for bit?

python -m benchmarks.contract --prompts specbench.jsonl
"""

from __future__ import annotations

import sys
from typing import Any

import forerun
from benchmarks.common import arguments, model_path, progress, read_prompts, report

SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}


def main() -> int:
    parser = arguments(__doc__, count=40, max_new_tokens=64)
    parser.add_argument("--strategy", default="tree_spec")
    parser.add_argument("--sampled", type=int, default=20, help="prompts that are sampled too")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    model = forerun.compile(model_path(given.model), strategy=given.strategy)
    plain = forerun.with_strategy(model, "autoregressive")
    prompts = read_prompts(given.prompts, given.count)
    settings: list[tuple[Any, dict[str, Any]]] = [(each, {}) for each in prompts]
    for prompt in read_prompts(given.prompts, given.sampled):
        settings += [(prompt, {**SAMPLED, "seed": seed}) for seed in range(given.seeds)]
    counts = {"greedy": [0, 0], "sampled": [0, 0]}
    for prompt, options in progress(settings, "contract"):
        ids = prompt.encode(model.tokenizer)
        options = {**options, "max_new_tokens": given.max_new_tokens, "return_logits": True}
        fast, slow = model.generate(ids, **options), plain.generate(ids, **options)
        same = fast.has_bits_of(slow)
        count = counts["sampled" if "seed" in options else "greedy"]
        count[0] += same
        count[1] += 1
    rows = [(name, equal, total) for name, (equal, total) in counts.items()]
    report("contract", given.out, ("decoding", "texts with identical bits", "texts"), rows, {"counts": counts})
    return 0 if all(equal == total for equal, total in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
