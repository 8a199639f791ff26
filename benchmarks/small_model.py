"""A small Llama-type decoder with early exits, and two drafts for it, trained here on Python's own sources in minutes.

python -m benchmarks.small_model

The recipe is LayerSkip's (arXiv 2404.16710): see `benchmarks.training`. The first call trains and stores the models in
forerun's cache directory under a digest of the settings and the text; later calls read them. If the machine is busy,
OMP_WAIT_POLICY=PASSIVE before the command keeps torch's threads from spinning while they wait for one another.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks import common
from benchmarks.text import Source, encode, prompts, python_sources, split, train_tokenizer
from benchmarks.training import Phase, Progress, Recipe, exit_table, largest_tokens, start_as_identity, train
from forerun.frontends.quiet import quiet_libraries
from forerun.storage import cache_directory

VERSION = 1  # raised when training changes in a way that the settings do not show
PROMPTS = "prompts.json"
REPORT = "report.json"


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder with a tied head, and its training recipe."""

    layers: int
    hidden: int
    inner: int
    heads: int
    key_value_heads: int
    recipe: Recipe

    def build(self, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
        """A float32 model with random weights that depend only on the recipe's seed."""
        torch.manual_seed(self.recipe.seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )
        model = LlamaForCausalLM(config).float()
        start_as_identity(model)
        return model


@dataclass(frozen=True)
class Settings:
    """Everything that the models depend on besides the text."""

    target: Decoder
    draft: Decoder
    other: Decoder
    vocabulary: int = 2048  # of target and draft
    other_vocabulary: int = 1024
    prompts: int = 40
    windows: int = 64  # of held-out text, for the report
    seed: int = 0


SETTINGS = Settings(
    target=Decoder(
        layers=16,
        hidden=384,
        inner=1024,
        heads=6,
        key_value_heads=3,
        recipe=Recipe((Phase(4, 120), Phase(8, 130), Phase(16, 350)), dropout=0.3, exit_scale=1.0, rotation=5),
    ),
    draft=Decoder(layers=2, hidden=128, inner=384, heads=2, key_value_heads=1, recipe=Recipe((Phase(2, 500),))),
    other=Decoder(layers=2, hidden=128, inner=384, heads=2, key_value_heads=1, recipe=Recipe((Phase(2, 350),))),
)


@dataclass(frozen=True)
class SmallModels:
    """Directories that `forerun.compile` takes; held-out prompts as tokens of target and draft, and as text."""

    target: Path
    draft: Path
    other: Path  # a draft with another vocabulary
    prompts: list[list[int]]
    texts: list[str]
    report: dict[str, Any]


def small_models(progress: Progress, settings: Settings = SETTINGS, root: Path | None = None) -> SmallModels:
    """The trained models, from the cache directory or trained now on the Python files under `root` (default: the
    standard library). Raises ValueError if the text is too short for the requested prompts."""
    sources = python_sources(root)
    folder = cache_directory() / f"small-model-{_digest(settings, sources)}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".incomplete-"))
        try:
            _make(unfinished, settings, sources, progress)
            unfinished.chmod(0o755)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return _read(folder)


def _digest(settings: Settings, sources: Sequence[Source]) -> str:
    described = [VERSION, asdict(settings), [source.digest for source in sources]]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def _read(folder: Path) -> SmallModels:
    found = json.loads((folder / PROMPTS).read_text(encoding="utf-8"))
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    tokens, texts = [each["tokens"] for each in found], [each["text"] for each in found]
    return SmallModels(folder / "target", folder / "draft", folder / "other", tokens, texts, report)


def _make(folder: Path, settings: Settings, sources: Sequence[Source], progress: Progress) -> None:
    learned, held_out = split(sources)
    tokenizer = train_tokenizer(learned, settings.vocabulary)
    other_tokenizer = train_tokenizer(learned, settings.other_vocabulary)
    chosen = prompts(tokenizer, held_out, settings.prompts, settings.seed)
    (folder / PROMPTS).write_text(json.dumps([asdict(each) for each in chosen], indent=1), encoding="utf-8")

    rows: dict[str, dict[str, Any]] = {}
    largest: dict[str, torch.Tensor] = {}
    for name, decoder, vocabulary in (
        ("target", settings.target, tokenizer),
        ("draft", settings.draft, tokenizer),
        ("other", settings.other, other_tokenizer),
    ):
        model = decoder.build(vocabulary)
        began = time.perf_counter()
        train(model, encode(vocabulary, learned), decoder.recipe, progress, f"training the {name}")
        seconds = time.perf_counter() - began
        with quiet_libraries():
            model.save_pretrained(folder / name)
            vocabulary.save_pretrained(folder / name)

        unseen = encode(vocabulary, held_out)
        span = decoder.recipe.length + 1
        count = min(settings.windows, len(unseen) // span)
        windows = torch.from_numpy(unseen[: count * span].reshape(count, span))
        exits = exit_table(model, windows)
        largest[name] = largest_tokens(model, windows)
        text_bytes = sum(len(source.text.encode()) for source in held_out)
        rows[name] = {
            "parameters": model.num_parameters(),
            "tokens_seen": decoder.recipe.tokens,
            "seconds": seconds,
            "loss": exits[-1][0],
            "bits_per_byte": exits[-1][0] / math.log(2) * len(unseen) / text_bytes,
            "exits": exits,
        }
    rows["draft"]["agreement"] = float((largest["draft"] == largest["target"]).float().mean())
    report = {"models": rows, "training_files": len(learned), "held_out_files": len(held_out)}
    (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")


def _print(found: SmallModels) -> None:
    models = found.report["models"]
    columns = ("model", "parameters, M", "tokens seen, M", "seconds", "loss", "bits per byte", "agreement")
    common.print_table(
        "small models, held-out text",
        columns,
        [
            (
                name,
                row["parameters"] / 1e6,
                row["tokens_seen"] / 1e6,
                row["seconds"],
                f"{row['loss']:.3f}",
                f"{row['bits_per_byte']:.3f}",
                f"{row['agreement']:.3f}" if "agreement" in row else "",
            )
            for name, row in models.items()
        ],
    )
    common.print_table(
        "the target's exits, held-out text",
        ("layers", "loss", "agreement with the full model"),
        [(index + 1, f"{loss:.3f}", f"{agreed:.3f}") for index, (loss, agreed) in enumerate(models["target"]["exits"])],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    found = small_models(common.progress)
    _print(found)
    print(f"{len(found.prompts)} prompts; kept in {found.target.parent}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
