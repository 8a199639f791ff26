"""How many tokens does a strategy commit per step, and how fast is it compared with plain decoding?

python -m benchmarks.accepted_length --prompts specbench.jsonl
"""

from __future__ import annotations

import sys
from collections import defaultdict
from statistics import mean

import forerun
from benchmarks.common import arguments, model_path, progress, read_prompts, report


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--strategy", default="tree_spec")
    parser.add_argument("--plain", action="store_true", help="decode plainly as well, interleaved")
    given = parser.parse_args()
    model = forerun.compile(model_path(given.model), strategy=given.strategy)
    plain = forerun.with_strategy(model, "autoregressive")
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for prompt in progress(read_prompts(given.prompts, given.count), "accepted length"):
        ids = prompt.encode(model.tokenizer)
        stats = model.generate(ids, max_new_tokens=given.max_new_tokens, do_sample=False).stats
        slow = plain.generate(ids, max_new_tokens=given.max_new_tokens, do_sample=False).stats if given.plain else stats
        found[prompt.category].append((stats.accepted_length, stats.tokens_per_second, slow.tokens_per_second))
    found["all"] = [each for values in list(found.values()) for each in values]
    rows = []
    for category, values in found.items():
        length, fast, slow = (mean(column) for column in zip(*values, strict=True))
        rows.append((category, len(values), length, fast, *((slow, fast / slow) if given.plain else ())))
    columns = ["category", "prompts", "accepted length", "tokens per second"]
    columns += ["autoregressive", "ratio"] if given.plain else []
    cost = None if model.cost is None else model.cost.to_dict()
    report("accepted_length", given.out, columns, rows, {"rows": rows, "cost": cost})
    return 0


if __name__ == "__main__":
    sys.exit(main())
