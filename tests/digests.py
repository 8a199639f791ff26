"""Digests of tokens and logits, to show that a change of structure left every bit where it was.

    python -m tests.digests --prompts QUESTIONS --out before.json     # on the tree before
    python -m tests.digests --prompts QUESTIONS --against before.json  # on the tree after, on the same machine

QUESTIONS is a JSON-lines file with `question_id`, `category` and `turns`. The second call exits with 1 and names what
differs. Bits differ between machines, so digests are not kept with the sources.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import forerun
from benchmarks.common import read_prompts
from forerun.frontends.demo import demo_model
from tests.exactness import test_triton
from tests.exactness.test_families import COMPILED, PROMPT
from tests.models import FAMILIES

SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 0.8, "top_p": 0.95, "seed": 3}
NEW_TOKENS = 48
PROMPTS = 12


def digest(*parts: Any) -> str:
    found = hashlib.sha256()
    for each in parts:
        found.update(np.ascontiguousarray(each).tobytes())
    return found.hexdigest()[:24]


def texts(name: str, model: forerun.CompiledModel, prompts: list[list[int]]) -> Iterator[tuple[str, str]]:
    for index, prompt in enumerate(prompts):
        for kind, options in (("greedy", {}), ("sampled", SAMPLED)):
            out = model.generate(prompt, max_new_tokens=NEW_TOKENS, return_logits=True, **options)
            yield f"{name}/{index}/{kind}", digest(np.array(out.token_ids, np.int64), out.logits)


def real_model(questions: Path) -> Iterator[tuple[str, str]]:
    for dtype in ("float32", "bfloat16", "native"):
        model = forerun.compile(
            demo_model(), strategy="tree_spec", dtype=dtype, target="cpu", max_length=1024, arithmetic="float32"
        )
        prompts = [each.encode(model.tokenizer)[:512] for each in read_prompts(questions, PROMPTS)]
        yield from texts(f"smollm2/{dtype}", model, prompts)


def families() -> Iterator[tuple[str, str]]:
    for family in COMPILED:
        strategy = forerun.TreeSpec(policy=forerun.Fixed(12))
        model = forerun.compile(FAMILIES[family](), strategy=strategy, target="cpu", max_length=256)
        yield from texts(f"family/{family}", model, [PROMPT])


def triton() -> Iterator[tuple[str, str]]:
    """The logits of a text in Triton's interpreter."""
    for family in test_triton.MODELS:
        for dtype in ("float32", "bfloat16"):
            yield f"triton/{family}/{dtype}", digest(test_triton.plain(family, dtype))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    arguments = parser.parse_args()
    found: dict[str, str] = {}
    for part in (families(), triton(), real_model(arguments.prompts)):
        for name, value in part:
            found[name] = value
            print(name, value, flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if arguments.against is None:
        return 0
    expected = json.loads(arguments.against.read_text(encoding="utf-8"))
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    print(f"{len(found) - len(different)} of {len(found)} digests are equal")
    for name in different:
        print(f"differs: {name}", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
