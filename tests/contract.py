"""What every compiled family must hold: transformers' greedy tokens, and the bits of plain decoding."""

from typing import Any

import torch

import forerun

PROMPT = [7, 200, 31, 5, 99, 31, 5, 99, 140]
SAMPLINGS: list[dict[str, Any]] = [{}, {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "seed": 3}]


def check_tokens_of_transformers(model: Any, compiled: forerun.CompiledModel, count: int) -> None:
    expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=count, do_sample=False)[0, len(PROMPT) :]
    assert compiled.generate(PROMPT, max_new_tokens=count).token_ids == expected.tolist()


def check_bits_of_plain_decoding(compiled: forerun.CompiledModel, options: dict[str, Any], count: int) -> None:
    plain = forerun.with_strategy(compiled, "autoregressive")
    fast, slow = (each.generate(PROMPT, count, return_logits=True, **options) for each in (compiled, plain))
    assert fast.token_ids == slow.token_ids
    assert fast.logits is not None
    assert slow.logits is not None
    assert fast.has_bits_of(slow)
    assert fast.stats.rows > slow.stats.rows, "the speculative run proposed nothing"
