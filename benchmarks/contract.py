"""Do strategies give the same token ids and logits as `autoregressive`, bit for bit?

python -m benchmarks.contract --prompts specbench.jsonl
python -m benchmarks.contract --prompts specbench.jsonl --rows 12 --strategies layer_skip,swift,clasp,early_exit
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import forerun
from benchmarks.common import arguments, model_path, progress, read_prompts, report
from forerun.strategies import resolve_strategy

SAMPLED = {"do_sample": True, "temperature": 0.8, "top_p": 0.9}


def main() -> int:
    parser = arguments(__doc__, count=40, max_new_tokens=64)
    parser.add_argument("--strategies", default="tree_spec", help="names, comma-separated")
    parser.add_argument("--rows", type=int, help="trees of so many rows, whether or not they pay")
    parser.add_argument("--sampled", type=int, default=20, help="prompts that are sampled too")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    strategies = {name: resolve_strategy(name) for name in given.strategies.split(",")}
    if given.rows is not None:
        strategies = {name: replace(each, policy=forerun.Fixed(given.rows)) for name, each in strategies.items()}
    plain = forerun.compile(model_path(given.model), strategy="autoregressive")
    models = {name: forerun.with_strategy(plain, each) for name, each in strategies.items()}
    prompts = read_prompts(given.prompts, given.count)
    settings: list[tuple[Any, dict[str, Any]]] = [(each, {"do_sample": False}) for each in prompts]
    for prompt in read_prompts(given.prompts, given.sampled):
        settings += [(prompt, {**SAMPLED, "seed": seed}) for seed in range(given.seeds)]
    counts = {name: {"greedy": [0, 0], "sampled": [0, 0]} for name in models}
    for prompt, options in progress(settings, "contract"):
        ids = prompt.encode(plain.tokenizer)
        options = {**options, "max_new_tokens": given.max_new_tokens, "return_logits": True}
        slow = plain.generate(ids, **options)
        for name, model in models.items():
            count = counts[name]["sampled" if "seed" in options else "greedy"]
            count[0] += model.generate(ids, **options).has_bits_of(slow)
            count[1] += 1
    rows = [(name, kind, *count) for name, kinds in counts.items() for kind, count in kinds.items()]
    columns = ("strategy", "decoding", "texts with identical bits", "texts")
    report("contract", given.out, columns, rows, {"rows": given.rows, "counts": counts})
    return 0 if all(equal == total for *_, equal, total in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
