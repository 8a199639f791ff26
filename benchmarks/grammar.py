"""JSON extraction with and without a grammar: accepted length, speed, bits, and what masks cost.

python -m benchmarks.grammar

Every text is decoded by `autoregressive` and by `tree_spec`. Times of masks are those of llguidance on the texts that
were generated: along the accepted path, as the runtime computes them, and for all rows of the trees. xgrammar is
measured beside it if it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from llguidance import LLExecutor
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

import forerun
from benchmarks import common
from forerun.chat import encode_chat
from forerun.hooks import JsonSchema
from forerun.runtime.hooks.grammar import State
from forerun.runtime.hooks.grammars import Grammars
from forerun.runtime.recording import Iteration, Outcome

SENTENCES = (
    "Maria Lopez, 34, is a nurse who lives in Madrid with her two sons.",
    "The mayor of Springfield, John Quimby, turned 58 last week.",
    "After 12 years as a pilot, Aiko Tanaka (41) opened a bakery in Osaka.",
    "Dr. Samuel Okafor, a 63 year old surgeon from Lagos, will retire in May.",
    "Born in Prague, the violinist Jana Novak is only 19 years old.",
    "Liam O'Connor works as a carpenter in Dublin; he is 27.",
    "At 72, the painter Giulia Rossi still walks through Florence every morning.",
    "Our new teacher is Peter Schmidt. He is 30 and comes from Hamburg.",
    "Priya Sharma, 25, studies law and lives in Mumbai.",
    "The baker of the village near Lyon, Paul Martin, is 47 years old.",
    "Fatima Hassan is an engineer from Cairo. She will be 38 in June.",
    "Carlos Silva, a 52 year old fisherman, has lived in Porto all his life.",
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "occupation": {"type": "string", "maxLength": 60},
        "city": {"type": "string", "maxLength": 60},
    },
    "required": ["name", "age", "occupation", "city"],
    "additionalProperties": False,
}
PROMPT = "Extract the person's name, age, occupation and city from this text as JSON: {}"
GRAMMARS = {"none": None, "schema": JsonSchema(SCHEMA), "compact schema": JsonSchema(SCHEMA, compact=True)}
PLAIN, TREES = "autoregressive", "tree_spec"
EXECUTOR = LLExecutor(2)


def is_valid(text: str) -> bool:
    """Whether a text is JSON of the schema."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    if not isinstance(found, dict) or list(found) != SCHEMA["required"]:
        return False
    return all(isinstance(value, int if name == "age" else str) for name, value in found.items())


def compare(models: dict[str, Any], grammar: JsonSchema | None, new: int, repeats: int) -> list[dict[str, Any]]:
    """Returns what all texts together come to, by strategy."""
    sums = {name: {"tokens": 0, "steps": 0, "seconds": 0.0, "valid": 0, "forced": 0, "same": True} for name in models}
    for sentence in common.progress(SENTENCES, "texts"):
        prompt = encode_chat(models[PLAIN].tokenizer, PROMPT.format(sentence))
        runs = {name: [] for name in models}
        for _ in range(repeats):  # in turn, so that a busy machine concerns both
            for name, model in models.items():
                runs[name].append(model.generate(prompt, new, grammar=grammar, return_logits=True))
        for name, results in runs.items():
            each, total = results[0], sums[name]
            total["tokens"] += each.stats.tokens
            total["steps"] += each.stats.steps
            total["seconds"] += min(result.stats.decode_seconds for result in results)
            total["valid"] += is_valid(each.text)
            total["forced"] += sum(count for by, count in each.stats.tokens_by.items() if "grammar" in by)
            total["same"] &= all(result.has_bits_of(runs[PLAIN][0]) for result in results)
    return [{"strategy": name, **each} for name, each in sums.items()]


def mask_times(model: Any, new: int) -> dict[str, list[float]]:
    """Returns the microseconds that the masks of one step take, by the way in which they are computed."""
    iterations: list[Iteration] = []
    with model.serving.listening(iterations.append):
        for sentence in SENTENCES:
            model.generate(encode_chat(model.tokenizer, PROMPT.format(sentence)), new, grammar=GRAMMARS["schema"])
    texts: dict[Any, list[Outcome]] = {}
    for outcome in (outcome for iteration in iterations for outcome in iteration.outcomes):
        texts.setdefault(outcome.session, []).append(outcome)
    grammars = Grammars(model.tokenizer, model.executable.vocabulary, model.eos_token_ids)
    ways: dict[str, Callable[[list[State], list[int]], Any]] = {
        "rows of the accepted path, when reached": lambda states, path: _in_order([states[row] for row in path]),
        "all rows, one after another": lambda states, _: _in_order(states),
        "all rows, on two threads": lambda states, _: _in_threads(states, grammars.tokens().vocab_size),
    }
    return {
        name: [time for outcomes in texts.values() for time in _times(grammars, model.eos_token_ids, outcomes, way)]
        for name, way in ways.items()
    }


def _times(
    grammars: Grammars, stop: frozenset[int], outcomes: list[Outcome], way: Callable[[list[State], list[int]], Any]
) -> list[float]:
    """Times the steps of one text with a matcher of its own, which learns as it goes."""
    hook, times = grammars.hook(GRAMMARS["schema"], stop), list[float]()
    root = hook.begin(outcomes[0].session.request.prompt)
    for outcome in outcomes:
        states, tree = [root], outcome.tree
        for token, parent in zip(tree.token[1:].tolist(), tree.parent[1:].tolist(), strict=True):
            states.append(hook.advance(states[parent], token))
        began = perf_counter()
        way([each for each in states if not each.closed], outcome.path)
        times.append((perf_counter() - began) * 1e6)
        for token in outcome.tokens:
            root = hook.advance(root, token)
        hook.prepare(root, tree)
    return times


def _in_order(states: list[State]) -> None:
    for state in states:
        state.text.at(state).compute_bitmask()


def _in_threads(states: list[State], tokens: int) -> None:
    copies = [(each.text.at(each).deep_copy(), row) for row, each in enumerate(states)]
    fill_next_token_bitmask_par(EXECUTOR, copies, allocate_token_bitmask(len(copies), tokens))


def peers(model: Any, new: int) -> list[tuple[str, float, float, float]]:
    """Returns for llguidance, and for xgrammar where it is installed, what a new schema and its masks take.

    (name, ms until a schema has its first mask, median and largest us of a mask) on the texts that the schema gives.
    """
    grammars = Grammars(model.tokenizer, model.executable.vocabulary, model.eos_token_ids)
    grammars.tokens()
    prompts = [encode_chat(model.tokenizer, PROMPT.format(sentence)) for sentence in SENTENCES]
    texts = [model.generate(prompt, new, grammar=GRAMMARS["schema"]).token_ids for prompt in prompts]

    def llguidance() -> tuple[Callable[[], object], Callable[[int], object]]:
        matcher = grammars.hook(GRAMMARS["schema"], model.eos_token_ids).begin([]).text.matcher
        return matcher.compute_bitmask, matcher.consume_token

    found = {"llguidance": _library_times(llguidance, texts)}
    if importlib.util.find_spec("xgrammar") is not None:
        import xgrammar

        info = xgrammar.TokenizerInfo.from_huggingface(model.tokenizer, vocab_size=model.executable.vocabulary)
        mask = xgrammar.allocate_token_bitmask(1, model.executable.vocabulary)

        def other() -> tuple[Callable[[], object], Callable[[int], object]]:
            compiled = xgrammar.GrammarCompiler(info, max_threads=2).compile_json_schema(json.dumps(SCHEMA))
            matcher = xgrammar.GrammarMatcher(compiled)
            return lambda: matcher.fill_next_token_bitmask(mask), matcher.accept_token

        found["xgrammar"] = _library_times(other, texts)
    return [(name, *figures) for name, figures in found.items()]


def _library_times(
    begin: Callable[[], tuple[Callable[[], object], Callable[[int], object]]], texts: list[list[int]]
) -> tuple[float, float, float]:
    ready, masks = list[float](), list[float]()
    for text in texts:
        began = perf_counter()
        mask, accept = begin()
        for number, token in enumerate(text):
            if number:
                began = perf_counter()
            mask()
            (masks if number else ready).append((perf_counter() - began) * 1e6)
            accept(token)
    return float(np.median(ready)) / 1e3, float(np.median(masks)), max(masks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="a directory or a GGUF file (default: SmolLM2)")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of so many runs of each text counts")
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    options = parser.parse_args()
    model = forerun.compile(common.model_path(options.model), strategy=TREES)
    models = {PLAIN: forerun.with_strategy(model, PLAIN), TREES: model}
    rows = [
        {"grammar": name, **row}
        for name, grammar in GRAMMARS.items()
        for row in compare(models, grammar, options.max_new_tokens, options.repeats)
    ]
    times = mask_times(model, options.max_new_tokens)
    masks = {
        name: {"median": float(np.median(each)), "mean": float(np.mean(each)), "max": max(each)}
        for name, each in times.items()
    }
    common.print_table(
        "masks of a step, us",
        ("what", "median", "mean", "max"),
        [(name, *each.values()) for name, each in masks.items()],
    )
    table = [
        (
            row["grammar"], row["strategy"], f"{row['valid']} of {len(SENTENCES)}", row["tokens"], row["steps"],
            row["tokens"] / row["steps"], row["forced"], row["tokens"] / row["seconds"], "yes" if row["same"] else "no",
        )
        for row in rows
    ]  # fmt: skip
    libraries = peers(model, options.max_new_tokens)
    common.print_table("a new schema", ("library", "ready, ms", "mask, median us", "mask, max us"), libraries)
    columns = (
        "grammar", "strategy", "valid", "tokens", "steps", "accepted length", "of the grammar", "tokens per second",
        "bits equal",
    )  # fmt: skip
    common.report(
        "grammar", options.out, columns, table, {"texts": rows, "mask_microseconds": masks, "libraries": libraries}
    )


if __name__ == "__main__":
    main()
