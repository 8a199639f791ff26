"""Which causal language models of transformers does forerun decode, with transformers' tokens and the same bits?

python -m benchmarks.coverage --all
python -m benchmarks.coverage llama mamba
python -m benchmarks.coverage --all --target reference --out quick    # no kernels: minutes, tokens only
python -m benchmarks.coverage --all --write docs/models.md

Each type is tried in a process of its own, with a tiny configuration and random weights (`tiny_models.py`): 32 greedy
tokens of two prompts are compared with transformers' generate, and random cases certify the contract. The table has
what earlier runs with the same `--out` found of other types.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forerun.storage import write_atomically

OUT, RESULT = Path("results"), "coverage.json"
PRELOADED = [
    "benchmarks.one_model",
    "forerun.frontends.source",
    "forerun.passes.pipeline",
    "forerun.codegen.tvm.lowering",
]
"""Modules that are imported before processes are forked, to save each the seconds that it takes."""
FAULTS = {"wrong token", "contract break", "crash"}
BEGIN, END = "<!-- coverage -->", "<!-- /coverage -->"
PAGE = f"""# Models

forerun knows no model families: a model is compiled from its graph. This table says what comes of every causal language
model type of transformers, each with a tiny configuration and random weights in float32. *exact*: 32 greedy tokens of
two prompts are those of transformers' `generate`, and the exactness contract was certified on random trees, orders and
chunks. *same tokens*: the tokens alone were compared, without kernels (`--target reference`). *refused*: compiling ends
in the error shown. The table is made by `python -m benchmarks.coverage --all --write docs/models.md`.

{BEGIN}
{END}
"""


def try_in_process(model_type: str, target: str, limit: float) -> dict[str, Any]:
    """Tries a type in a process that is forked from one with all libraries loaded, and killed after `limit` seconds."""
    start = time.perf_counter()
    context = get_context("forkserver")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(writer, model_type, target), daemon=True)
    process.start()
    writer.close()
    outcome, reason = "crash", ""
    try:
        if reader.poll(limit):
            return reader.recv()
        reason = f"no result within {limit:.0f} seconds"
    except EOFError:
        process.join()
        reason = f"the process died with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
        reader.close()
    seconds = time.perf_counter() - start
    return {"model_type": model_type, "outcome": outcome, "reason": reason, "parameters": 0, "seconds": seconds}


def _report(writer: Connection, model_type: str, target: str) -> None:
    from benchmarks.one_model import try_type

    writer.send(try_type(model_type, target).as_dict())


def earlier(out: Path) -> dict[str, dict[str, Any]]:
    """The results of earlier runs by type, so that a few types can be tried again."""
    path = out / RESULT
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {each["model_type"]: each for each in found}


def row(tried: dict[str, Any]) -> tuple[str, str, str]:
    return tried["model_type"], tried["outcome"], tried["reason"]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Returns the summary and the table in Markdown."""
    lines = [summary(found), "", "| type | outcome | |", "| --- | --- | --- |"]
    for each in found:
        name, outcome, reason = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in row(each))
        lines.append(f"| {name} | {outcome} | {reason} |")
    return "\n".join(lines)


def summary(found: Sequence[dict[str, Any]]) -> str:
    counts = Counter(each["outcome"] for each in found)
    run = len(found) - counts["not run by transformers"]
    others = ", ".join(f"{name}: {count}" for name, count in counts.most_common() if name != "exact")
    return f"{counts['exact']} of the {run} types that transformers runs tiny are exact ({others or 'no other'})."


def write_page(path: Path, found: Sequence[dict[str, Any]]) -> None:
    """Puts the table between the marks of the page, which is made if it is not there."""
    page = path.read_text(encoding="utf-8") if path.exists() else PAGE
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    write_atomically(path, f"{before}{BEGIN}\n{table(found)}\n{END}{after}")


def main() -> int:
    from benchmarks.common import print_table
    from benchmarks.tiny_models import TYPES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("types", nargs="*", help="names of types")
    parser.add_argument("--all", action="store_true", help="every causal type of transformers")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--seconds", type=float, default=180.0, help="the time limit of a type")
    parser.add_argument("--write", type=Path, help="the page that gets the table")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder for the JSON result")
    given = parser.parse_args()
    if unknown := {*given.types} - {*TYPES}:
        parser.error(f"transformers has no causal type {', '.join(sorted(unknown))}")
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    found = earlier(given.out)
    for model_type in TYPES if given.all else given.types:
        latest = try_in_process(model_type, given.target, given.seconds)
        found[model_type] = latest
        print(f"{latest['seconds']:6.1f} s  {model_type:28} {latest['outcome']:24} {latest['reason']}", flush=True)
        write_atomically(given.out / RESULT, json.dumps(list(found.values()), indent=1))
    ordered = [found[each] for each in TYPES if each in found]
    print_table("coverage", ("type", "outcome", ""), [(*row(each)[:2], row(each)[2][:90]) for each in ordered])
    print(summary(ordered))
    if given.write:
        write_page(given.write, ordered)
    found = {each: found[each] for each in found if given.all or each in given.types}
    return 1 if any(each["outcome"] in FAULTS for each in found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
