"""Does `autoregressive` give transformers' greedy tokens? Where they differ, how close were the top two logits?

python -m benchmarks.agreement --prompts specbench.jsonl
"""

from __future__ import annotations

import sys

import torch

import forerun
from benchmarks.common import arguments, model_path, progress, read_prompts, report, transformers_model


def main() -> int:
    given = arguments(__doc__, count=40, max_new_tokens=64).parse_args()
    path = model_path(given.model)
    compiled = forerun.compile(path, strategy="autoregressive")
    reference = transformers_model(path)
    rows, equal, close = list[tuple[object, ...]](), 0, True
    prompts = read_prompts(given.prompts, given.count)
    for prompt in progress(prompts, "agreement"):
        ids = prompt.encode(compiled.tokenizer)
        ours = compiled.generate(ids, max_new_tokens=given.max_new_tokens, eos_token_id=[], do_sample=False).token_ids
        with torch.inference_mode():
            inputs = torch.tensor([ids])
            theirs = reference.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),  # otherwise padding tokens inside the prompt would be masked
                max_new_tokens=given.max_new_tokens,
                do_sample=False,
                eos_token_id=None,
            )[0, len(ids) :].tolist()
        if ours == theirs:
            equal += 1
            continue
        first = next(at for at, (left, right) in enumerate(zip(ours, theirs, strict=True)) if left != right)
        with torch.inference_mode():
            logits = reference(torch.tensor([ids + theirs[:first]]), use_cache=False).logits[0, -1]
        top = logits.topk(2)
        gap = float(top.values[0] - top.values[1])
        close &= gap < 1e-3
        rows.append((prompt.identifier, prompt.category, first, ours[first], theirs[first], f"{gap:.2e}"))
    columns = ("question", "category", "first difference", "forerun's token", "transformers' token", "top-two gap")
    result = {"prompts": len(prompts), "equal": equal, "differences": rows, "all_gaps_below_1e-3": close}
    report("agreement", given.out, columns, rows, result)
    print(f"{equal} of {len(prompts)} texts equal transformers'; every other one starts at a gap below 1e-3: {close}")
    return 0 if close else 1


if __name__ == "__main__":
    sys.exit(main())
