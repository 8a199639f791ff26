"""What does a draft gain and lose if the attentions of several consecutive layers read one input?

python -m benchmarks.parallel_layers

SmolLM2 as its own draft: how often the part's next token is the whole model's, the accepted length of trees of one path
of four rows, and the calls and the time of a launch of one row; then the time of a launch of many small layers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import forerun
from benchmarks.common import print_table
from benchmarks.machine import pin_threads
from forerun.chat import encode_chat
from forerun.execute.tvm.executable import TvmExecutable
from forerun.frontends.demo import demo_model
from forerun.runtime.calibration import trial_steps
from forerun.runtime.executable import Part
from forerun.runtime.model import CompiledModel
from forerun.runtime.rows import prompt_rows

LAYERS = (1, 2, 3, 4, 8)
QUESTIONS = (
    "Explain in a few sentences why the sky is blue.",
    "Write a Python function that merges two sorted lists.",
    "List three causes of the French revolution.",
    "What is the capital of Australia, and why is it not Sydney?",
)
TOKENS = 64
ONE_PATH = forerun.Shape(deepest=4, beam=1, children=1)
SMALL: dict[str, Any] = {"num_hidden_layers": 16, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=120, help="how often a launch of SmolLM2 is timed")
    parser.add_argument("--small-rounds", type=int, default=1500, help="how often one of the small layers is")
    given = parser.parse_args()
    pin_threads(2)
    model = forerun.compile(demo_model(), "autoregressive", max_length=512)
    torch.manual_seed(0)
    random = LlamaForCausalLM(LlamaConfig(**SMALL, num_attention_heads=2, num_key_value_heads=2)).eval()
    small = forerun.compile(random, "autoregressive", max_length=512)
    texts = [(prompt, model.generate(prompt, TOKENS, eos_token_id=[]).token_ids) for prompt in prompts(model)]
    large_times, small_times = launch_times(model, given.rounds), launch_times(small, given.small_rounds)
    lines = [
        (
            layers,
            agreement(model, texts, Part(parallel=layers)),
            accepted_length(model, texts, layers),
            calls(model, Part(parallel=layers)),
            f"{large_times[layers] * 1e3:.1f}",
            f"{small_times[layers] * 1e3:.2f}",
        )
        for layers in LAYERS
    ]
    columns = ("layers of a group", "next token", "accepted length", "calls", "ms a launch", "ms, small layers")
    print_table("layers that share an input", columns, lines)


def prompts(model: CompiledModel) -> list[list[int]]:
    return [encode_chat(model.tokenizer, text) for text in QUESTIONS]


def agreement(model: CompiledModel, texts: Sequence[tuple[list[int], list[int]]], part: Part) -> float:
    """How often a part's likeliest token after a text's token is the text's next."""
    engine, right, total = model.engine, 0, 0
    for prompt, tokens in texts:
        with engine.serving, engine.sequence(len(prompt) + TOKENS) as sequence:
            engine.prefill(sequence, np.array(prompt, np.int32))
            for token, expected in pairwise(tokens):
                rows = prompt_rows(sequence, np.array([token], np.int32), np.zeros(1, np.int32))
                right += int(engine.run(rows, part).candidates[0, 0]) == expected
                engine.run(rows)  # the whole step leaves what the next token reads
                sequence.length += 1
                total += 1
    return right / total


def accepted_length(model: CompiledModel, texts: Sequence[tuple[list[int], list[int]]], layers: int) -> float:
    """The accepted length with the model as its own draft. Raises RuntimeError if a text is another one."""
    draft = forerun.DraftModel(model, parallel_layers=layers, shape=ONE_PATH)
    drafting = forerun.with_strategy(model, forerun.TreeSpec((draft,), forerun.Fixed(16)))
    found = [drafting.generate(prompt, TOKENS, eos_token_id=[]) for prompt, _ in texts]
    if any(each.token_ids != tokens for each, (_, tokens) in zip(found, texts, strict=True)):
        raise RuntimeError(f"a draft of {layers} parallel layers has changed a text")
    return sum(each.stats.tokens for each in found) / sum(each.stats.steps for each in found)


def calls(model: CompiledModel, part: Part) -> int:
    return len(cast(TvmExecutable, model.executable).part(part)[0].calls)


def launch_times(model: CompiledModel, rounds: int) -> dict[int, float]:
    """The median seconds of a launch of one row by the layers of a group, measured in turns."""
    times: dict[int, list[float]] = {layers: [] for layers in LAYERS}
    with model.engine.serving, trial_steps(model.engine, [1]) as [rows]:
        for layers in LAYERS:
            model.engine.run(rows, Part(parallel=layers))
        for _ in range(rounds):
            for layers, taken in times.items():
                start = time.perf_counter()
                model.engine.run(rows, Part(parallel=layers))
                taken.append(time.perf_counter() - start)
    return {layers: median(taken) for layers, taken in times.items()}


if __name__ == "__main__":
    main()
