"""Is forerun ahead of its peers at equal precision, and does it reach its targets?

python -m benchmarks.decode --prompts specbench.jsonl

Every contestant decodes every prompt, in an order that rotates, with the same number of threads, greedily, batch 1, and
produces the same number of tokens. A ratio is taken at each prompt; the result is the median over the prompts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import forerun
from benchmarks.common import Prompt, arguments, model_path, print_table, progress, read_prompts, report
from benchmarks.machine import pin_threads
from benchmarks.peers import PEERS, Contestant, Forerun, PeerAbsentError, Run
from benchmarks.plot import plot_decoding
from benchmarks.startup import Startup, measure_startup
from forerun.runtime.calibration import SIZES, CostModel, trial_steps
from forerun.runtime.engine import Engine
from forerun.tuning.cpu import MemoryRead

WARM_UP = "Describe a harbour at dawn in three sentences."
PREFILL = 512  # prompt tokens
TO_PEERS = {
    ("tree_spec", "transformers", "float32"): 4.0,
    ("tree_spec", "llama.cpp", "float32"): 1.4,
    ("autoregressive", "llama.cpp", "float32"): 0.95,
    ("tree_spec", "llama.cpp", "bfloat16"): 1.3,
    ("tree_spec", "llama.cpp", "native"): 1.1,
}
"""Targets of decoding speed: strategy, peer, dtype -> at least."""


@dataclass(frozen=True)
class Results:
    """The runs of each contestant, prompt by prompt, and the other measurements."""

    prompts: list[Prompt]
    runs: dict[str, list[Run]]
    strategies: list[str]
    peers: list[str]

    def select(self, category: str) -> Results:
        kept = [index for index, prompt in enumerate(self.prompts) if prompt.category == category]
        runs = {name: [own[index] for index in kept] for name, own in self.runs.items()}
        return Results([self.prompts[index] for index in kept], runs, self.strategies, self.peers)

    @property
    def categories(self) -> dict[str, Results]:
        return {name: self.select(name) for name in dict.fromkeys(prompt.category for prompt in self.prompts)}

    def rate(self, name: str, of: Callable[[Run], float]) -> float:
        """Tokens per second, the median over the prompts."""
        return median(map(of, self.runs[name]))

    def ratio(self, name: str, other: str, of: Callable[[Run], float]) -> float:
        """The median over the prompts of the ratio of one contestant's rate to another's."""
        pairs = zip(self.runs[name], self.runs[other], strict=True)
        return median(of(run) / of(reference) for run, reference in pairs)

    def accepted_length(self, name: str) -> float:
        return mean(run.accepted_length for run in self.runs[name])


def decoding(run: Run) -> float:
    return run.decode_rate


def end_to_end(run: Run) -> float:
    return run.rate


def main() -> int:
    parser = arguments(__doc__, max_new_tokens=128)
    parser.add_argument("--strategies", default="autoregressive,tree_spec")
    parser.add_argument("--draft", type=Path, help="a model that drafts, as one more strategy")
    parser.add_argument("--peers", default="transformers,llama.cpp", help='"" for none')
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "native"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-startup", action="store_true", help="leave out the processes that time a start")
    given = parser.parse_args()
    pin_threads(given.threads)
    path, names = model_path(given.model), given.strategies.split(",")
    # This comes first, while the process is small and its threads are idle.
    startup = None if given.no_startup else measure_startup(path, given.dtype, names[-1], given.threads)
    if given.draft is not None:
        names.append(f"draft_model:{given.draft}")
    model = forerun.compile(path, strategy=names[0], dtype=given.dtype)
    contestants: list[Contestant] = [Forerun(name, forerun.with_strategy(model, name)) for name in names]
    for name in filter(None, given.peers.split(",")):
        if name not in PEERS:
            parser.error(f"there is no peer {name!r}; use some of {', '.join(PEERS)}")
        try:
            contestants.append(PEERS[name](path, given.dtype, given.threads))
        except PeerAbsentError as error:
            print(error, file=sys.stderr)
    prompts = read_prompts(given.prompts, given.count)
    encoded = [prompt.encode(model.tokenizer) for prompt in prompts]
    warm_up = Prompt("warm-up", "", WARM_UP).encode(model.tokenizer)
    for contestant in contestants:
        contestant.generate(warm_up, given.max_new_tokens)
    runs: dict[str, list[Run]] = {contestant.name: [] for contestant in contestants}
    for turn, ids in enumerate(progress(encoded, "decode")):
        for contestant in _rotated(contestants, turn):
            runs[contestant.name].append(contestant.generate(ids, given.max_new_tokens))
    peers = [contestant.name for contestant in contestants[len(names) :]]
    results = Results(prompts, runs, names, peers)
    prefill = measure_prefill(contestants, encoded)
    memory = MemoryRead(given.threads)
    cost = measure_steps(model.engine, memory)
    weights = bytes_of_weights(model.engine)
    differences = compare_texts(results)
    _print_rates(results)
    _print_texts(differences, len(prompts), results)
    rows = target_rows(results, given.dtype, prefill, cost, weights / memory.bandwidth, startup)
    suffix = "" if given.dtype == "float32" else f"_{given.dtype}"
    found = {
        "dtype": given.dtype,
        "threads": given.threads,
        "max_new_tokens": given.max_new_tokens,
        "targets": rows,
        "rates": rates(results),
        "texts": differences,
        "prefill_tokens_per_second": prefill,
        "cost": cost.to_dict(),
        "read_bandwidth": memory.bandwidth,
        "weight_bytes": weights,
        "startup": None if startup is None else asdict(startup),
        "runs": [
            {
                "question": prompt.identifier,
                "category": prompt.category,
                "prompt_tokens": len(ids),
                **{name: _numbers(own[index]) for name, own in runs.items()},
            }
            for index, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True))
        ],
    }
    report(f"decode{suffix}", given.out, ("what", "target", "measured", "end to end"), rows, found)
    bars = {
        name: {category: part.rate(name, decoding) for category, part in results.categories.items()} for name in runs
    }
    plot_decoding(given.out / f"decode{suffix}.png", bars, cost, given.dtype)
    same = all(not differences[name] for name in names[1:])
    if not same:
        print("BROKEN: strategies gave different tokens.", file=sys.stderr)
    return 0 if same else 1


def _rotated(contestants: Sequence[Contestant], turn: int) -> list[Contestant]:
    first = turn % len(contestants)
    return [*contestants[first:], *contestants[:first]]


def measure_prefill(
    contestants: Sequence[Contestant], encoded: Sequence[list[int]], rounds: int = 5
) -> dict[str, float]:
    """Tokens per second of a prompt of `PREFILL` tokens, up to the first new token: medians of interleaved runs."""
    tokens = [token for ids in encoded for token in ids]
    tokens = (tokens * (1 + PREFILL // len(tokens)))[:PREFILL]
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for turn in range(rounds):
        for contestant in _rotated(contestants, turn):
            seconds[contestant.name].append(contestant.generate(tokens, 1).first_seconds)
    return {name: PREFILL / median(times) for name, times in seconds.items()}


def bytes_of_weights(engine: Engine) -> int:
    """The bytes of the weights that a step reads: of a table of embeddings it reads a row."""
    executable: Any = engine.executable
    with trial_steps(engine, [1]) as [rows]:
        kernels = executable.time_kernels(engine.state, rows, rounds=1)
    return sum(each.weight_bytes for each in kernels)


def measure_steps(engine: Engine, memory: MemoryRead, rounds: int = 25) -> CostModel:
    """t(n) as in the calibration, interleaved with reads of memory, so that both see the machine in the same state."""
    seconds: list[list[float]] = [[] for _ in SIZES]
    memory.seconds.clear()
    with trial_steps(engine, SIZES) as steps:
        for _ in range(rounds):
            memory.measure()
            engine.run(steps[0])  # the threads that read still wait for more for a moment
            for times, rows in zip(seconds, steps, strict=True):
                start = time.perf_counter()
                engine.run(rows)
                times.append(time.perf_counter() - start)
    return CostModel(SIZES, tuple(median(times) for times in seconds))


def compare_texts(results: Results) -> dict[str, list[dict[str, Any]]]:
    """By contestant and prompt: the first position at which its tokens differ from the first strategy's."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, own in results.runs.items():
        found[name] = []
        for prompt, run, reference in zip(results.prompts, own, results.runs[results.strategies[0]], strict=True):
            pairs = zip(run.token_ids, reference.token_ids, strict=True)
            first = next((at for at, (left, right) in enumerate(pairs) if left != right), None)
            if first is not None:
                found[name].append({"question": prompt.identifier, "first_difference": first})
    return found


def rates(results: Results) -> dict[str, dict[str, dict[str, float]]]:
    """Rates, ratios and accepted length, by category ("all" comes last) and contestant."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for category, part in {**results.categories, "all": results}.items():
        found[category] = {}
        for name in results.runs:
            numbers = {"decode": part.rate(name, decoding), "end_to_end": part.rate(name, end_to_end)}
            if name in results.strategies:
                numbers["accepted_length"] = part.accepted_length(name)
                for other in [*results.strategies[:1], *results.peers]:
                    numbers[f"to {other}"] = part.ratio(name, other, decoding)
            found[category][name] = numbers
    return found


def target_rows(
    results: Results, dtype: str, prefill: dict[str, float], cost: CostModel, floor: float, startup: Startup | None
) -> list[tuple[Any, ...]]:
    """The targets and the measured values; `floor` is the time to read the weights once, in seconds."""
    rows: list[tuple[Any, ...]] = []
    for (name, peer, of_dtype), target in TO_PEERS.items():
        if of_dtype == dtype and name in results.strategies and peer in results.peers:
            ratios = (results.ratio(name, peer, of) for of in (decoding, end_to_end))
            rows.append((f"{name} : {peer}, {dtype}", f">= {target}", *ratios))
    if {"autoregressive", "tree_spec"} <= set(results.strategies):
        parts = results.categories.values()
        decode, whole = (
            [part.ratio("tree_spec", "autoregressive", of) for part in parts] for of in (decoding, end_to_end)
        )
        rows.append(("tree_spec : autoregressive, the lowest category", ">= 0.98", min(decode), min(whole)))
        rows.append(("tree_spec : autoregressive, mean of the categories", ">= 1.5", mean(decode), mean(whole)))
    first = results.strategies[0]
    times = dict(zip(cost.rows, cost.measured, strict=True))
    rows += [
        ("weights over t(1) : read bandwidth", ">= 0.80" if dtype == "float32" else "", floor / times[1], ""),
        ("t(8) : t(1)", "<= 1.20" if dtype == "float32" else "", times[8] / times[1], ""),
        ("t(16) : t(1)", "<= 1.45" if dtype == "float32" else "", times[16] / times[1], ""),
    ]
    for peer in results.peers:
        target = ">= 0.8" if peer == "llama.cpp" and dtype == "float32" else ""
        rows.append((f"prompt tokens per second at {PREFILL} : {peer}", target, prefill[first] / prefill[peer], ""))
    if startup is not None:
        rows += [
            ("seconds to the first token, kernels cached", "<= 6", startup.cached_seconds, ""),
            ("seconds to the first token, nothing cached", "<= 45", startup.uncached_seconds, ""),
            ("peak memory : weights + cache + imports", "<= 1.35", startup.memory_ratio, ""),
        ]
    return rows


def _numbers(run: Run) -> dict[str, float]:
    return {
        "decode": run.decode_rate,
        "end_to_end": run.rate,
        "first_seconds": run.first_seconds,
        "accepted_length": run.accepted_length,
    }


def _print_rates(results: Results) -> None:
    references = [*results.strategies[:1], *results.peers]
    columns = ["category", "prompts", "who", "decode tok/s", "end to end tok/s", "accepted"]
    columns += [f": {name}" for name in references]
    lines: list[list[Any]] = []
    counts = {category: len(part.prompts) for category, part in results.categories.items()}
    for category, contestants in rates(results).items():
        for name, numbers in contestants.items():
            line: list[Any] = [category, counts.get(category, len(results.prompts)), name]
            line += [numbers["decode"], numbers["end_to_end"], numbers.get("accepted_length", "")]
            lines.append([*line, *(numbers.get(f"to {other}", "") for other in references)])
    print_table("tokens per second, medians over prompts", columns, lines)


def _print_texts(differences: dict[str, list[dict[str, Any]]], prompts: int, results: Results) -> None:
    first = results.strategies[0]
    for name, found in differences.items():
        if name == first:
            continue
        places = ", ".join(str(each["first_difference"]) for each in found)
        print(
            f"{name}: {prompts - len(found)} of {prompts} texts are {first}'s"
            + (f"; others from token {places}" if found else "")
        )


if __name__ == "__main__":
    sys.exit(main())
