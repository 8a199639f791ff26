"""Do requests gain from sharing steps, and from speculation while they do?

python -m benchmarks.batches --prompts specbench.jsonl

Each batch of prompts is decoded by every contestant, in an order that rotates, greedily and to the same number of
tokens: forerun's strategies on all prompts at once, `tree_spec` on one after another, and llama.cpp's batches. The
first rate counts all new tokens over the whole time, prompts included. Reading prompts is bound by arithmetic, however
many share a step, so a second rate leaves out the time of a run that ends with the first token of each. A ratio is
taken in each round, and the median is given.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import forerun
from benchmarks.batch_peers import LlamaBatches
from benchmarks.common import arguments, model_path, print_table, progress, read_prompts, report
from benchmarks.machine import pin_threads
from benchmarks.memory import resident_bytes
from benchmarks.peers import PeerAbsentError
from forerun.runtime.scheduler import Scheduler

PREFIX = 512  # shared tokens
TOGETHER = 16  # the size at which sharing is compared with turns
Decode = Callable[[Sequence[list[int]], int], list[list[int]]]
"""Decodes prompts to a number of new tokens each."""


def together(model: forerun.CompiledModel, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    model.engine.cache.forget_ended()
    found = model.generate(list(prompts), max_new_tokens=count, eos_token_id=[], do_sample=False)
    return [text.token_ids for text in found]


def in_turn(model: forerun.CompiledModel, prompts: Sequence[list[int]], count: int) -> list[list[int]]:
    model.engine.cache.forget_ended()
    return [
        model.generate(prompt, max_new_tokens=count, eos_token_id=[], do_sample=False).token_ids for prompt in prompts
    ]


def main() -> int:
    parser = arguments(__doc__, max_new_tokens=64)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "native"))
    parser.add_argument("--sizes", default="1,4,16,64", help="how many prompts share steps")
    parser.add_argument("--longest", type=int, default=128, help="tokens of the longest prompts that take part")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--requests", type=int, default=2000, help="requests after which memory is compared; 0: none")
    given = parser.parse_args()
    pin_threads(given.threads)
    path = model_path(given.model)
    plain = forerun.compile(path, strategy="autoregressive", dtype=given.dtype)
    spec = forerun.with_strategy(plain, "tree_spec")
    contestants: dict[str, Decode] = {
        "tree_spec": partial(together, spec),
        "autoregressive": partial(together, plain),
    }
    try:
        contestants["llama.cpp"] = LlamaBatches.open(path, given.dtype, given.threads).generate
    except PeerAbsentError as error:
        print(error, file=sys.stderr)
    rows: list[tuple[Any, ...]] = []
    rates: dict[str, Any] = {}
    sizes = [int(size) for size in given.sizes.split(",")]
    encoded = [question.encode(plain.tokenizer) for question in read_prompts(given.prompts, None)]
    encoded = [ids for ids in encoded if len(ids) <= given.longest]
    same = True
    for size in sizes:
        taken = [encoded[index * len(encoded) // size] for index in range(size)]
        entered = contestants | ({"tree_spec in turn": partial(in_turn, spec)} if size == TOGETHER else {})
        found, equal = compare(entered, taken, given.max_new_tokens, given.rounds)
        same, rates[str(size)] = same and equal, found
        targets = {"autoregressive": ">= 0.97", "tree_spec in turn": ">= 2.0", "llama.cpp": ">= 1.2"}
        rows += [
            (f"{size} requests, tree_spec : {name}", target, *ratios(found, name))
            for name, target in targets.items()
            if name in found
        ]
    rows.append(("first token after a shared prefix : without", "<= 0.10", shared_prefix(spec, encoded), ""))
    rows.append((f"scheduler's share of a step, {TOGETHER} sessions", "<= 0.03", scheduling(plain, encoded), ""))
    if given.requests:
        grown = memory(spec, encoded, given.requests)
        rows.append((f"resident memory after {given.requests} requests", "<= 1.02", grown, ""))
    lines = [
        (size, name, *(median(each) for each in zip(*own, strict=True)))
        for size, found in rates.items()
        for name, own in found.items()
    ]
    print_table("tokens per second", ("requests", "who", "prompts included", "decoding"), lines)
    suffix = "" if given.dtype == "float32" else f"_{given.dtype}"
    result = {"dtype": given.dtype, "rates": rates, "targets": rows, "max_new_tokens": given.max_new_tokens}
    report(f"batches{suffix}", given.out, ("what", "target", "prompts included", "decoding"), rows, result)
    if not same:
        print("BROKEN: strategies gave different tokens.", file=sys.stderr)
    return 0 if same else 1


def compare(
    contestants: dict[str, Decode], prompts: Sequence[list[int]], count: int, rounds: int
) -> tuple[dict[str, list[tuple[float, float]]], bool]:
    """Returns each contestant's two rates in every round, and whether all of forerun's texts are equal."""
    names = list(contestants)
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    same = True
    for turn in progress(range(rounds + 1), f"{len(prompts)} requests"):
        texts: dict[str, list[list[int]]] = {}
        for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
            began = time.perf_counter()
            contestants[name](prompts, 1)
            read = time.perf_counter()
            texts[name] = contestants[name](prompts, count)
            ended = time.perf_counter()
            tokens = sum(map(len, texts[name]))
            if turn:  # the first round warms up
                rates[name].append((tokens / (ended - read), (tokens - len(prompts)) / (ended - read - (read - began))))
        same = same and all(texts[name] == texts[names[0]] for name in names if name != "llama.cpp")
    return rates, same


def ratios(rates: dict[str, list[tuple[float, float]]], other: str) -> list[float]:
    """The medians over the rounds of `tree_spec`'s rates divided by another contestant's."""
    pairs = list(zip(rates["tree_spec"], rates[other], strict=True))
    return [median(own[kind] / theirs[kind] for own, theirs in pairs) for kind in (0, 1)]


def shared_prefix(model: forerun.CompiledModel, encoded: Sequence[list[int]]) -> float:
    """The time to the first token of a request whose first `PREFIX` tokens another one had, to that one's."""
    tokens = [token for ids in encoded for token in ids]
    tokens = tokens * (1 + (PREFIX + 16) // len(tokens))
    found: list[float] = []
    for start in range(5):
        prefix = [*tokens[start : start + PREFIX]]
        model.engine.cache.forget_ended()
        times: list[float] = []
        for end in (tokens[-8:], tokens[-16:-8]):
            began = time.perf_counter()
            with model.stream([*prefix, *end], max_new_tokens=4) as stream:
                next(stream)
                times.append(time.perf_counter() - began)
        found.append(times[1] / times[0])
    return median(found)


def scheduling(model: forerun.CompiledModel, encoded: Sequence[list[int]]) -> float:
    """The share of the time of `TOGETHER` sessions that the scheduler takes: deciding, giving and taking room."""
    spent = 0.0

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal spent
            began = time.perf_counter()
            try:
                return work(*arguments)
            finally:
                spent += time.perf_counter() - began

        return run

    scheduler: Scheduler = model.serving.scheduler
    for name in ("schedule", "enter", "committed"):
        setattr(scheduler, name, timed(getattr(scheduler, name)))
    began = time.perf_counter()
    together(model, [encoded[index % len(encoded)] for index in range(TOGETHER)], 64)
    share = spent / (time.perf_counter() - began)
    for name in ("schedule", "enter", "committed"):
        delattr(scheduler, name)
    return share


def memory(model: forerun.CompiledModel, encoded: Sequence[list[int]], requests: int) -> float:
    """Resident memory after `requests` short requests, to that after a tenth of them, which fill the cache."""
    first = 0
    for number in progress(range(requests), "requests"):
        if number == requests // 10:
            first = resident_bytes()
        ids = encoded[number % len(encoded)]
        model.generate([number % 1000, *ids[:48]], max_new_tokens=2)
    return resident_bytes() / first


if __name__ == "__main__":
    sys.exit(main())
