"""How fast does `forerun serve` answer streaming clients, and does it stand any of them?

python -m benchmarks.serve --llama-python PYTHON [--gguf FILE] [--prompts specbench.jsonl]
python -m benchmarks.serve --soak 600

The first compares it with llama-cpp-python's server on the same GGUF file and threads, both on loopback: each number of
clients streams the same greedy answers from both, one server after the other in an order that rotates, and no prompt
twice. Rates count the tokens of all texts, by one tokenizer, over the whole time, prompts included. A ratio is taken in
each round, and the median is given. Without --llama-python, forerun's rates alone are printed.

The second sends random requests, good and bad, whose clients leave, hang up and are killed. It counts answers that are
not as expected, what is left afterwards, and compares the server's memory with that after a warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Iterator, Sequence
from itertools import count as numbers
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.common import model_path, progress, read_prompts, report
from benchmarks.served import Answer, Server, forerun_server, llama_server, streamed_by
from benchmarks.soak import soaked
from forerun.frontends.gguf import open_gguf

SHOWN = {"rate": 1, "first": 1e3, "mean_first": 1e3}
"""What is printed of a round, and in which unit."""
BODY = 1 << 20  # bytes of a request, at most, in a soak
GROWTH = 0.02  # of the server's memory in a soak, at most
QUESTIONS = (
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "Explain to a child why the sky is blue.",
    "List the steps to change a bicycle tyre, then repeat the list in other words.",
    "Translate into French, then back into English: The cat sat on the mat, and the dog watched.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it take? Show each step.",
    "Summarize in two sentences: The river rose for three days. On the fourth, the bridge was closed.",
    "Write a Python function that returns the median of a list, and explain each line.",
    "Name ten animals that live in the sea, each with one fact.",
)


def questions(file: Path | None) -> Iterator[str]:
    """Yields prompts, no two alike: when all were used, they begin with a number."""
    found = [each.text for each in read_prompts(file, None)] if file else list(QUESTIONS)
    for turn in numbers():
        yield from (each if turn == 0 else f"({turn}) {each}" for each in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="the file that both serve (default: SmolLM2)")
    parser.add_argument("--dtype", default="native", help="forerun's weight dtype; native is the file's own")
    parser.add_argument("--llama-python", metavar="PYTHON", help="a Python that has llama_cpp.server")
    parser.add_argument("--prompts", type=Path, help="JSON lines with question_id, category, turns (default: a few)")
    parser.add_argument("--clients", default="1,4,16", help="how many stream at a time")
    parser.add_argument("--requests", type=int, default=2, help="of each client in a round")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="soak instead")
    parser.add_argument("--warm-up", type=float, default=120.0, metavar="SECONDS", help="of a soak")
    parser.add_argument("--seed", type=int, default=0, help="of a soak")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    given = parser.parse_args()
    return soak(given) if given.soak else compare(given)


def compare(given: argparse.Namespace) -> int:
    file, sizes = model_path(given.gguf), [int(each) for each in given.clients.split(",")]
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(forerun_server(str(file), given.dtype, given.threads))]
        if given.llama_python:
            servers.append(stack.enter_context(llama_server(given.llama_python, file, given.threads, 2048)))
        prompts, found = questions(given.prompts), dict[tuple[str, int], list[dict[str, float]]]()
        for server in servers:  # what is made at the first request
            asyncio.run(streamed_by(1, server, [next(prompts)], 8))
        tokenizer = open_gguf(file, torch.float32).tokenizer
        turns = [(size, turn) for size in sizes for turn in range(given.rounds)]
        for size, turn in progress(turns, "rounds"):
            chosen = [next(prompts) for _ in range(size * given.requests)]
            for server in servers if turn % 2 == 0 else reversed(servers):
                answers, seconds = asyncio.run(streamed_by(size, server, chosen, given.max_new_tokens))
                found.setdefault((server.name, size), []).append(measured(answers, seconds, tokenizer))
    rows = [row for size in sizes for row in rows_of(size, servers, found)]
    columns = ("clients", "server", "tokens per second", "first token, ms (median)", "first token, ms (mean)")
    columns += ("rate ratio", "first token ratio")
    options = {name: str(value) for name, value in vars(given).items()}
    result = {"options": options, "rounds": {f"{name} {size}": each for (name, size), each in found.items()}}
    report("serve", given.out, columns, rows, result)
    return 0


def measured(answers: Sequence[Answer], seconds: float, tokenizer: Any) -> dict[str, float]:
    tokens = sum(len(tokenizer.encode(each.text, add_special_tokens=False)) for each in answers)
    firsts = [each.first for each in answers]
    return {"rate": tokens / seconds, "tokens": tokens, "first": median(firsts), "mean_first": mean(firsts)}


def rows_of(
    size: int, servers: Sequence[Server], found: dict[tuple[str, int], list[dict[str, float]]]
) -> Iterator[tuple[Any, ...]]:
    """Yields a row for each server, with the medians of the first one's ratios to it."""
    own = found[servers[0].name, size]
    for server in servers:
        rounds = found[server.name, size]
        shown = [median(each[name] * scale for each in rounds) for name, scale in SHOWN.items()]
        ratios = [median(a[name] / b[name] for a, b in zip(own, rounds, strict=True)) for name in ("rate", "first")]
        yield size, server.name, *shown, *(ratios if server is not servers[0] else ("", ""))


def soak(given: argparse.Namespace) -> int:
    """Returns 1 if an answer was not as expected, something is left, or memory has grown."""
    with forerun_server(
        str(model_path(given.gguf)), given.dtype, given.threads, "--max-body", str(BODY), "--queue", "24"
    ) as server:
        found = soaked(server, BODY, 12, given.warm_up, given.soak, given.seed)
    rows = [(name, number) for name, number in sorted(found["answers"].items())]
    rows += [("unexpected", len(found["unexpected"])), *found["left"].items()]
    rows += [
        ("resident before, MB", found["resident_before"] / 1e6),
        ("resident after, MB", found["resident_after"] / 1e6),
    ]
    rows += [("growth, %", found["growth"] * 100)]
    report("soak", given.out, ("what", "number"), rows, found)
    for each in found["unexpected"][:10]:
        print(each)
    return 1 if found["unexpected"] or any(found["left"].values()) or found["growth"] > GROWTH else 0


if __name__ == "__main__":
    sys.exit(main())
