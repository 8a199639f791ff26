"""What does each draft gain: accepted length, cost of drafting, speed compared with plain decoding?

python -m benchmarks.drafts                                            on a small decoder trained with early exits
python -m benchmarks.drafts --sampled 1.0                              the same, with texts that do not repeat
python -m benchmarks.drafts --on smollm2 --prompts specbench.jsonl     on SmolLM2, trained without early exits

Every method decodes every prompt, in an order that rotates, batch 1; all must give the tokens of `autoregressive`.
Times are summed over the prompts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import forerun
from benchmarks.common import print_table, progress, read_prompts, report
from benchmarks.machine import pin_threads
from forerun.frontends.demo import demo_model
from forerun.runtime.calibration import trial_steps
from forerun.runtime.drafters.base import Budget, Context, Drafter, Observation, Proposal
from forerun.runtime.drafters.self_draft import Shares
from forerun.runtime.executable import Float32, Int32, Part
from forerun.runtime.model import CompiledModel

PLAIN = "autoregressive"


def methods(exit_layer: int, draft: Any, other: Any) -> dict[str, tuple[Any, ...]]:
    """The drafters of each method, by name; those with a draft model only if there is one."""
    margin = forerun.MarginAbove(0.3)
    found: dict[str, tuple[Any, ...]] = {
        PLAIN: (),
        "prompt lookup + token recycling": (forerun.PromptLookup(), forerun.TokenRecycling()),
        "uniform skipping": (forerun.SkipLayers(forerun.Uniform(2.0)),),
        "SWIFT": (forerun.SkipLayers(forerun.Swift()),),
        "CLaSp": (forerun.SkipLayers(forerun.Clasp()),),
        "feed-forward skipping": (forerun.SkipLayers(forerun.FeedForwardOnly()),),
        "D3": (forerun.SkipLayers(forerun.DecayedDepth()),),
        "SkipDecode": (forerun.SkipLayers(forerun.SkipDecode()),),
        f"early exit at {exit_layer}": (forerun.EarlyExit(exit_layer),),
        f"early exit at {exit_layer}, Kangaroo's stop": (forerun.EarlyExit(exit_layer, confidence=KANGAROO),),
        f"early exit at {exit_layer}, CALM's stop": (forerun.EarlyExit(exit_layer, confidence=margin),),
        "DEL": (forerun.EarlyExit(),),
    }
    if draft is not None:
        found["draft model"] = (forerun.DraftModel(draft),)
        found["draft model, parallel layers"] = (forerun.DraftModel(draft, parallel_layers=2),)
        found["draft model, staged"] = (forerun.DraftModel(draft, drafter=forerun.TokenRecycling()),)
    if other is not None:
        found["draft model, other vocabulary"] = (forerun.DraftModel(other),)
    best = forerun.EarlyExit(exit_layer)
    found["early exit + lookup + recycling"] = (best, forerun.PromptLookup(), forerun.TokenRecycling())
    return found


KANGAROO = forerun.LikeliestAbove(0.6)


class Timed(Drafter):
    """A drafter that measures the time of its proposals."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        self.wants_prompt_rows = drafter.wants_prompt_rows
        self.seconds = 0.0
        self.turns = self.drafted = 0

    def begin(self, context: Context) -> None:
        self._drafter.begin(context)

    def propose(self, context: Context, budget: Budget) -> Proposal:
        began = time.perf_counter()
        proposal = self._drafter.propose(context, budget)
        self.seconds += time.perf_counter() - began
        self.turns += 1
        self.drafted += len(proposal.tree) > 1
        return proposal

    def observe(self, context: Context, observation: Observation) -> None:
        began = time.perf_counter()
        self._drafter.observe(context, observation)
        self.seconds += time.perf_counter() - began

    def observe_prompt(self, tokens: Int32, candidates: Int32, candidate_logits: Float32) -> None:
        self._drafter.observe_prompt(tokens, candidates, candidate_logits)

    def end(self, context: Context) -> None:
        self._drafter.end(context)


@dataclass
class Method:
    """The results of one method on one model."""

    name: str
    model: CompiledModel
    drafter: Timed
    seconds: list[float] = field(default_factory=list[float])  # by prompt, decoding only
    tokens: int = 0
    steps: int = 0

    def decode(self, prompt: Sequence[int], new: int, sampling: dict[str, Any]) -> list[int]:
        found = self.model.generate(prompt, max_new_tokens=new, eos_token_id=[], **sampling)
        self.seconds.append(found.stats.decode_seconds)
        self.tokens += found.stats.tokens
        self.steps += found.stats.steps
        return found.token_ids

    @property
    def accepted_length(self) -> float:
        return self.tokens / self.steps

    @property
    def drafting(self) -> float:
        """The share of the decoding time that drafting takes."""
        return self.drafter.seconds / sum(self.seconds)

    @property
    def drafted(self) -> float:
        """The share of the iterations in which a draft was worth verifying."""
        return self.drafter.drafted / max(1, self.drafter.turns)

    def speedup(self, plain: Method) -> float:
        return sum(plain.seconds) / sum(self.seconds)

    def middle_speedup(self, plain: Method) -> float:
        """The median over the prompts."""
        return median(theirs / own for theirs, own in zip(plain.seconds, self.seconds, strict=True))


def build(model: CompiledModel, drafters: dict[str, tuple[Any, ...]], policy: Any) -> list[Method]:
    found: list[Method] = []
    for name, own in drafters.items():
        strategy = forerun.TreeSpec(drafters=own, policy=policy) if own else PLAIN
        made = forerun.with_strategy(model, strategy)
        made.drafter = timed = Timed(made.drafter)
        found.append(Method(name, made, timed))
    return found


def verification(model: CompiledModel, layers: Sequence[int], rows: int = 4) -> list[tuple[Any, ...]]:
    """The bytes and time of a verifying step that starts after an exit, as fractions of a whole step's."""
    executable, read = model.executable, Shares.of(model.executable)
    table: list[tuple[Any, ...]] = []
    with trial_steps(model.engine, [rows]) as [step]:
        for layer in layers:
            enter = sum(branch.layer < layer for branch in executable.branches)
            hidden = model.engine.run(step, Part(leave=enter)).hidden.copy()
            whole: list[float] = []
            rest: list[float] = []
            for _ in range(25):
                for times, part, given in ((whole, Part(), None), (rest, Part(enter=enter), hidden)):
                    began = time.perf_counter()
                    model.engine.run(step, part, given)
                    times.append(time.perf_counter() - began)
            table.append((layer, read.share(Part(enter=enter)), median(rest) / median(whole)))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=("small", "smollm2"), default="small")
    parser.add_argument("--prompts", type=Path, help="JSON lines with question_id, category, turns (for smollm2)")
    parser.add_argument("--count", type=int, default=40, help="prompts")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--methods", default="", help="parts of the names of those to run, comma-separated; all without"
    )
    parser.add_argument("--exit", type=int, help="the layer of the fixed early exit")
    parser.add_argument(
        "--rows", type=int, help="trees of so many rows, whatever they cost, in place of the cost model"
    )
    parser.add_argument("--sampled", type=float, help="sample at this temperature, in place of greedy decoding")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    given = parser.parse_args()
    if given.on == "smollm2" and given.prompts is None:
        parser.error("give --prompts for SmolLM2")
    pin_threads(given.threads)
    from benchmarks.small_model import small_models

    small = small_models(progress)
    if given.on == "small":
        model = forerun.compile(small.target, strategy="tree_spec", max_length=512)
        prompts = small.prompts[: given.count]
        drafters = methods(given.exit or 4, small.draft, small.other)
    else:
        model = forerun.compile(demo_model(), strategy="tree_spec")
        prompts = [each.encode(model.tokenizer) for each in read_prompts(given.prompts, given.count)]
        drafters = methods(given.exit or 24, None, small.draft)
    wanted = [part.strip() for part in given.methods.split(",") if part.strip()]
    drafters = {name: own for name, own in drafters.items() if name == PLAIN or not wanted or _named(name, wanted)}
    running = build(model, drafters, forerun.CostAware() if given.rows is None else forerun.Fixed(given.rows))
    sampling = {"do_sample": False} if given.sampled is None else {"do_sample": True, "temperature": given.sampled}
    plain, broken = running[0], list[str]()
    for method in running:
        method.decode(prompts[0], 8, sampling)  # the first run may compile or allocate
        method.seconds.clear()
        method.tokens = method.steps = 0
        method.drafter.seconds = method.drafter.turns = method.drafter.drafted = 0
    for turn, prompt in enumerate(progress(prompts, "drafts")):
        texts: dict[str, list[int]] = {}
        for at in range(len(running)):
            method = running[(turn + at) % len(running)]
            texts[method.name] = method.decode(prompt, given.max_new_tokens, sampling)
        broken += [name for name, text in texts.items() if text != texts[PLAIN]]
    layers = 1 + model.executable.branches[-1].layer
    exits = sorted({max(1, layers * part // 8) for part in range(1, 8)})
    reuse = verification(model, exits)
    print_table("a verifying step behind an exit", ("exit layer", "share of bytes", "share of time"), reuse)
    rows = [
        (
            each.name,
            each.accepted_length,
            each.drafted,
            each.drafting,
            each.speedup(plain),
            each.middle_speedup(plain),
            each.tokens / sum(each.seconds),
        )
        for each in running
    ]
    columns = ("method", "accepted length", "turns drafted", "time drafting", "speed-up", "median", "tokens per second")
    result = {
        "model": given.on,
        "prompts": len(prompts),
        "max_new_tokens": given.max_new_tokens,
        "temperature": given.sampled,
        "methods": [dict(zip(columns, row, strict=True)) for row in rows],
        "verification": reuse,
        "seconds": {each.name: each.seconds for each in running},
    }
    suffix = "" if given.sampled is None else "_sampled"
    report(f"drafts_{given.on}{suffix}", given.out, columns, rows, result)
    if broken:
        print(f"BROKEN: other tokens than {PLAIN}: {', '.join(sorted(set(broken)))}", file=sys.stderr)
    return 1 if broken else 0


def _named(name: str, wanted: Sequence[str]) -> bool:
    return any(part in name for part in wanted)


if __name__ == "__main__":
    sys.exit(main())
