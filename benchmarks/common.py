"""Code shared by the benchmarks: prompts from a file, the model, tables and JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from forerun.chat import encode_chat
from forerun.frontends.demo import demo_model
from forerun.frontends.gguf import load_gguf
from forerun.frontends.huggingface import load_directory
from forerun.storage import write_atomically


@dataclass(frozen=True)
class Prompt:
    """A question: its category and its first turn."""

    identifier: str
    category: str
    text: str

    def encode(self, tokenizer: Any) -> list[int]:
        return encode_chat(tokenizer, self.text)


def arguments(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the arguments of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with question_id, category, turns")
    parser.add_argument("--model", type=Path, default=None, help="a directory or a GGUF file (default: SmolLM2)")
    parser.add_argument("--count", type=int, default=defaults.get("count"), help="prompts, spread over the file")
    parser.add_argument("--max-new-tokens", type=int, default=defaults.get("max_new_tokens", 128))
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    return parser


def model_path(given: Path | None) -> Path:
    return given or demo_model()


def transformers_model(path: Path) -> Any:
    """The model as transformers has it, in float32."""
    return load_gguf(path, torch.float32)[0] if path.is_file() else load_directory(path, torch.float32)


def read_prompts(path: Path, count: int | None) -> list[Prompt]:
    """The prompts of a file, or `count` of them at even distances, so that all categories are included."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = [Prompt(str(each["question_id"]), each["category"], each["turns"][0]) for each in lines]
    if count is None or count >= len(prompts):
        return prompts
    return [prompts[index * len(prompts) // count] for index in range(count)]


def progress(items: Sequence[Any], description: str) -> Iterable[Any]:
    return track(items, description, console=Console(stderr=True), transient=True)


def print_table(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    table = Table(*columns, title=name)
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    Console(width=None if console.is_terminal else 160).print(table)  # a file has room for all columns


def report(name: str, out: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], result: dict[str, Any]) -> None:
    """Print a table, then write the result as JSON under a temporary name and rename it."""
    print_table(name, columns, rows)
    path = out / f"{name}.json"
    write_atomically(path, json.dumps(result, indent=1))
    print(f"written to {path}")
