"""What does a step of n rows cost if the rows choose among experts, and which trees does that make worth evaluating?

python -m benchmarks.experts

The model has 32 experts, 4 of them for each token, and random weights. t(n) is measured three times: on rows of one
token, which choose nearly the same experts and read the weights of few; on rows of other tokens, as forerun calibrates;
and on many more trees, which is taken as the truth. A drafter is assumed whose next token is accepted with probability
p; `CostAware` chooses a tree by the first two, and the third says what each choice is worth.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from benchmarks.common import report
from forerun.compiler import compile as compile_model
from forerun.runtime.calibration import SIZES, CostModel, calibrate, trial_steps
from forerun.runtime.engine import Engine
from forerun.runtime.executable import Rows
from forerun.runtime.policy import CostAware
from forerun.runtime.tree import Tree

EXPERTS, CHOSEN = 32, 4
TRUTH = 12
"""Trees of each size that the truth is measured on."""


def mixture(layers: int, hidden: int, inner: int) -> Qwen3MoeForCausalLM:
    """A decoder with 32 experts in each layer."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=inner,
        moe_intermediate_size=inner,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=hidden // 8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return Qwen3MoeForCausalLM(config).eval()


def same(rows: Rows) -> Rows:
    """The rows of a step, all with the token of the first."""
    return replace(rows, tokens=np.full_like(rows.tokens, rows.tokens[0]))


def measured(engine: Engine, trees: int, changed: Callable[[Rows], Rows] = lambda rows: rows) -> CostModel:
    """t(n) over some trees of each size, interleaved: the mean over trees of the median of three."""
    count = len(SIZES)
    with trial_steps(engine, SIZES * trees, seed=7) as steps:
        given = [changed(each) for each in steps]
        times: list[list[float]] = [[] for _ in given]
        for _ in range(4):
            for own, rows in zip(times, given, strict=True):
                start = time.perf_counter()
                engine.run(rows)
                own.append(time.perf_counter() - start)
    middle = [median(each[1:]) for each in times]
    return CostModel(SIZES, tuple(float(np.mean(middle[size::count])) for size in range(count)))


def proposal(probability: float, rows: int = 64) -> Tree:
    """A chain with a second candidate beside each token, which takes half of what the first leaves."""
    tokens, parents, depths, chances = [0], [-1], [0], [1.0]
    tip = 0
    while len(tokens) + 1 < rows:
        for chance in (probability, (1 - probability) / 2):
            tokens.append(len(tokens))
            parents.append(tip)
            depths.append(depths[tip] + 1)
            chances.append(chances[tip] * chance)
        tip = len(tokens) - 2
    numbers = (np.array(each, np.int32) for each in (tokens, parents, depths))
    return Tree(*numbers, np.array(chances))


def settled(cost: CostModel, truth: CostModel, probability: float) -> tuple[int, float]:
    """The rows that the policy chooses when its rate has settled, and tokens per plain step by the true times."""
    policy, tree, tokens, rows = CostAware(cost), proposal(probability), 1.0, 1
    for _ in range(200):
        (chosen,) = policy.choose([tree])
        rows, tokens = len(chosen), float(chosen.probability.sum())
        policy.observe(rows, 1, cost.seconds(rows) / tokens)  # as many tokens in as much time
    return rows, tokens * truth.seconds(1) / truth.seconds(rows)


def distinct(rows: int) -> float:
    """The experts of a layer that rows with independent choices read."""
    return EXPERTS * (1 - (1 - CHOSEN / EXPERTS) ** rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    given = parser.parse_args(arguments)
    model = compile_model(mixture(given.layers, given.hidden, given.inner), "autoregressive", max_length=512)
    engine: Any = model.engine
    truth = measured(engine, TRUTH)
    alike, now = measured(engine, 1, same), calibrate(engine, seconds=3.0)
    rows = [
        [count, distinct(count), *(each.seconds(count) / each.seconds(1) for each in (alike, now, truth))]
        for count in SIZES
    ]
    found: dict[str, Any] = {"seconds": {"alike": alike.measured, "now": now.measured, "truth": truth.measured}}
    report("experts_cost", given.out, ["n", "experts", "t(n)/t(1), one token", "calibrated", "truth"], rows, found)
    choices: list[list[Any]] = []
    for chance in (0.6, 0.8, 0.9, 0.95):
        pairs = [settled(cost, truth, chance) for cost in (alike, now, truth)]
        choices.append([chance, *(each for pair in pairs for each in pair)])
    columns = ["p", "rows, one token", "gain", "rows, calibrated", "gain", "rows, truth", "gain"]
    report("experts_trees", given.out, columns, choices, {"columns": columns, "rows": choices})


if __name__ == "__main__":
    main()
