"""How a dtype differs from float32: how often the likeliest token differs, and by how much the logits do.

Every dtype is evaluated on the tokens of the same texts, float32's greedy continuations of the prompts. "native" may be
followed by the arithmetic of its products; "llama.cpp" is llama.cpp on the same GGUF file.

python -m benchmarks.accuracy --prompts specbench.jsonl --dtypes bfloat16,native:float32,native:int8
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import forerun
from benchmarks.common import Prompt, arguments, model_path, progress, read_prompts, report
from benchmarks.peers import LlamaCpp
from forerun.frontends.gguf_place import is_gguf
from forerun.runtime.tree import chain

MEASURES = ("top_1_agreement", "largest_logit_difference", "mean_logit_difference", "mean_divergence")


@dataclass(frozen=True)
class Text:
    """A prompt's tokens and its greedy continuation."""

    prompt: list[int]
    continuation: list[int]


def main() -> int:
    parser = arguments(__doc__, count=10, max_new_tokens=64)
    parser.add_argument("--dtypes", default="bfloat16", help="dtypes to compare with float32, by comma")
    given = parser.parse_args()
    path = model_path(given.model)
    prompts = read_prompts(given.prompts, given.count)
    full = opened(path, "native:float32" if is_gguf(path) else "float32")  # the same bits, in fewer bytes
    texts = [continued(full, each, given.max_new_tokens) for each in progress(prompts, "texts")]
    reference = [logits(full, text) for text in progress(texts, "float32")]
    del full
    rows, result = list[tuple[object, ...]](), dict[str, Any]()
    for dtype in given.dtypes.split(","):
        found = compared(path, dtype, texts, reference)
        result[dtype] = found
        rows.append((dtype, found["tokens"], *(f"{found[name]:.4f}" for name in MEASURES)))
    columns = ("dtype", "tokens", *(name.replace("_", " ") for name in MEASURES))
    report("accuracy", given.out, columns, rows, {"model": path.name, "prompts": len(prompts), "dtypes": result})
    return 0


def opened(path: Path, dtype: str) -> forerun.CompiledModel:
    kept, _, arithmetic = dtype.partition(":")
    return forerun.compile(path, strategy="autoregressive", dtype=kept, arithmetic=arithmetic or "auto")


def continued(model: forerun.CompiledModel, prompt: Prompt, count: int) -> Text:
    ids = prompt.encode(model.tokenizer)
    return Text(ids, model.generate(ids, max_new_tokens=count, do_sample=False).token_ids)


def logits(model: forerun.CompiledModel, text: Text) -> NDArray[np.float32]:
    """The logits that choose each token of the continuation, [n, V], from one step."""
    tree = chain(text.prompt[-1], text.continuation[:-1])
    return model.evaluate_trees([text.prompt], [tree])[0]


def compared(path: Path, dtype: str, texts: list[Text], reference: list[NDArray[np.float32]]) -> dict[str, float | int]:
    """The measures of a dtype, over all tokens of all texts. The divergence is Kullback-Leibler's, in nats."""
    evaluate = partial(logits, opened(path, dtype)) if dtype != LlamaCpp.name else LlamaCpp.logits_of(path)
    agreed, tokens, largest, total, divergence = 0, 0, 0.0, 0.0, 0.0
    for text, expected in zip(progress(texts, dtype), reference, strict=True):
        found = evaluate(text)
        difference = np.abs(found - expected)
        agreed += int((found.argmax(1) == expected.argmax(1)).sum())
        tokens += len(found)
        largest = max(largest, float(difference.max()))
        total += float(difference.mean(1, dtype=np.float64).sum())
        ours, theirs = (log_softmax(each) for each in (found, expected))
        divergence += float((np.exp(theirs) * (theirs - ours)).sum())
    return {
        "tokens": tokens,
        "top_1_agreement": agreed / tokens,
        "largest_logit_difference": largest,
        "mean_logit_difference": total / tokens,
        "mean_divergence": divergence / tokens,
    }


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


if __name__ == "__main__":
    sys.exit(main())
