"""What do trees gain on a hybrid of recurrent and attention layers, and what do recurrent layers cost?

python -m benchmarks.hybrid

The first call trains a hybrid (Mamba-2 layers, arXiv 2405.21060, with attention in every fourth) on Python's own
sources, as `benchmarks.small_model` trains its decoders, and keeps it in forerun's cache directory. The other models
have random weights: how long their steps take does not depend on them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    BambaConfig,
    BambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    PreTrainedModel,
)

import forerun
from benchmarks.common import print_table, progress
from benchmarks.machine import pin_threads
from benchmarks.text import encode, prompts, python_sources, split, train_tokenizer
from benchmarks.training import Phase, Recipe, batches_of, learning_rate, optimizers_of
from forerun.frontends.quiet import quiet_libraries
from forerun.progress import SilentProgress
from forerun.runtime.calibration import trial_steps
from forerun.runtime.engine import Engine
from forerun.storage import cache_directory, write_atomically

VERSION = 1  # raised when training changes in a way that the settings do not show
PROMPTS = "prompts.json"
SPEEDUP, TREE_STEP, PREFILL, CONTEXT = 1.3, 1.5, 0.3, 0.95
"""Targets: `tree_spec` to plain decoding, a step of 8 rows to one of 1 (at most), a recurrent layer's prefill to an
attention layer's, and the speed at 4,000 positions to that at 100."""
WIDTH, TEXT = 512, 512
RECIPE = Recipe((Phase(8, 260),), learning_rate=4e-3)


@dataclass(frozen=True)
class Settings:
    """Everything that the hybrid depends on besides the text."""

    layers: int = 8
    hidden: int = 512
    inner: int = 1408
    attention: tuple[int, ...] = (3, 7)
    vocabulary: int = 2048
    prompts: int = 12
    recipe: Recipe = RECIPE

    def build(self, tokenizer: Any) -> BambaForCausalLM:
        torch.manual_seed(self.recipe.seed)
        config = BambaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            attn_layer_indices=list(self.attention),
            num_attention_heads=8,
            num_key_value_heads=4,
            mamba_n_heads=16,
            mamba_d_head=64,
            mamba_d_state=64,
            mamba_chunk_size=64,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=None,
        )
        return BambaForCausalLM(config).float()


def hybrid(settings: Settings) -> tuple[Path, list[list[int]]]:
    """Returns the directory of the trained hybrid, and held-out prompts in its tokens."""
    sources = python_sources()
    described = [VERSION, asdict(settings), [source.digest for source in sources]]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_directory() / f"hybrid-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".incomplete-"))
        try:
            learned, held_out = split(sources)
            tokenizer = train_tokenizer(learned, settings.vocabulary)
            model = settings.build(tokenizer)
            train(model, encode(tokenizer, learned), settings.recipe)
            with quiet_libraries():
                model.save_pretrained(unfinished)
                tokenizer.save_pretrained(unfinished)
            chosen = [each.tokens for each in prompts(tokenizer, held_out, settings.prompts, 0)]
            (unfinished / PROMPTS).write_text(json.dumps(chosen), encoding="utf-8")
            unfinished.chmod(0o755)
            os.replace(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder, json.loads((folder / PROMPTS).read_text(encoding="utf-8"))


def train(model: PreTrainedModel, tokens: Any, recipe: Recipe) -> None:
    """Trains in place, with forward and backward in bfloat16 and weights and updates in float32."""
    optimizers, batches = optimizers_of(model, recipe), batches_of(tokens, recipe)
    model.train()
    for step in progress(range(recipe.steps), "training the hybrid"):
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def speedup(path: Path, texts: Sequence[Sequence[int]], new_tokens: int) -> dict[str, Any]:
    """Decodes every prompt in both ways, one after the other; the ratio is the median over the prompts."""
    plain = forerun.compile(path, strategy="autoregressive", max_length=512, progress=SilentProgress())
    trees = forerun.with_strategy(plain, "tree_spec")
    for each in (plain, trees):
        each.generate(list(texts[0]), max_new_tokens=new_tokens)
    ratios: list[float] = []
    lengths: list[float] = []
    for number, text in enumerate(texts):
        runs: dict[str, Any] = {}
        for name, model in ((("plain", plain), ("trees", trees)), (("trees", trees), ("plain", plain)))[number % 2]:
            runs[name] = model.generate(list(text), max_new_tokens=new_tokens, eos_token_id=[], do_sample=False)
        assert runs["plain"].token_ids == runs["trees"].token_ids
        ratios.append(runs["plain"].stats.decode_seconds / runs["trees"].stats.decode_seconds)
        lengths.append(runs["trees"].stats.accepted_length)
    steps = step_seconds(plain.engine, (1, 8))
    return {
        "parameters": sum(each.numel() for each in BambaForCausalLM.from_pretrained(path).parameters()),
        "tree_spec to autoregressive": median(ratios),
        "accepted length": sum(lengths) / len(lengths),
        "milliseconds of a step of 1 row": steps[1] * 1e3,
        "8 rows to 1": steps[8] / steps[1],
    }


def step_seconds(engine: Engine, sizes: Sequence[int], rounds: int = 15) -> dict[int, float]:
    """Times steps of several sizes in turn; returns the median of each."""
    found: dict[int, list[float]] = {size: [] for size in sizes}
    with trial_steps(engine, sizes) as steps:
        for _ in range(rounds):
            for size, rows in zip(sizes, steps, strict=True):
                start = time.perf_counter()
                engine.run(rows)
                found[size].append(time.perf_counter() - start)
    return {size: median(each) for size, each in found.items()}


def layers_of_width() -> dict[str, PreTrainedModel]:
    """Models of two layers of one kind, with small feed-forward parts."""
    torch.manual_seed(0)
    shared = {"vocab_size": 256, "hidden_size": WIDTH, "num_hidden_layers": 2}
    heads = {
        "max_position_embeddings": 4096,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "intermediate_size": 64,
    }
    return {
        "attention": LlamaForCausalLM(LlamaConfig(**shared, **heads)),
        "Mamba-2": Mamba2ForCausalLM(
            Mamba2Config(**shared, num_heads=16, head_dim=64, state_size=64, n_groups=1, expand=2, chunk_size=64)
        ),
    }


def prefill_seconds(models: dict[str, forerun.CompiledModel], rounds: int = 7) -> dict[str, float]:
    """Reads a prompt of 512 tokens with each model in turn; returns the medians."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds + 1):
        for name, model in models.items():
            with model.engine.sequence(TEXT) as sequence:
                start = time.perf_counter()
                model.engine.prefill(sequence, torch.randint(0, 256, (TEXT,)).int().numpy())
                found[name].append(time.perf_counter() - start)
    return {name: median(each[1:]) for name, each in found.items()}


def at_context(model: forerun.CompiledModel, lengths: Sequence[int], rows: int = 40) -> dict[int, float]:
    """Seconds of a plain step behind texts of several lengths, in turn."""
    found: dict[int, list[float]] = {length: [] for length in lengths}
    engine = model.engine
    with ExitStack() as stack:
        sequences = {length: stack.enter_context(engine.sequence(length + rows)) for length in lengths}
        for length, sequence in sequences.items():
            engine.prefill(sequence, torch.randint(0, 256, (length,)).int().numpy())
        for _ in range(rows):
            for length, sequence in sequences.items():
                start = time.perf_counter()
                engine.prefill(sequence, torch.randint(0, 256, (1,)).int().numpy())
                found[length].append(time.perf_counter() - start)
    return {length: median(each) for length, each in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    given = parser.parse_args()
    pin_threads(given.threads)
    path, texts = hybrid(Settings())
    result = speedup(path, texts, given.max_new_tokens)
    kinds = {
        name: forerun.compile(model.eval(), strategy="autoregressive", max_length=4096, progress=SilentProgress())
        for name, model in layers_of_width().items()
    }
    prefill = prefill_seconds(kinds)
    context = at_context(kinds["Mamba-2"], (100, 4000))
    result |= {f"prefill, {name} to attention": prefill["attention"] / prefill[name] for name in prefill}
    result["speed at 4,000 positions to 100"] = context[100] / context[4000]
    result["milliseconds of a step at 100"] = context[100] * 1e3
    result["bytes of a position, hybrid; Mamba-2"] = [
        forerun.compile(path, strategy="autoregressive", progress=SilentProgress()).executable.slot_bytes,
        kinds["Mamba-2"].executable.slot_bytes,
    ]
    targets = {
        "tree_spec to autoregressive": f">= {SPEEDUP}",
        "8 rows to 1": f"<= {TREE_STEP}",
        "speed at 4,000 positions to 100": f">= {CONTEXT}",
        **{f"prefill, {name} to attention": f">= {PREFILL}" for name in prefill if name != "attention"},
    }
    print_table("hybrid", ("measure", "value", "target"), [(k, v, targets.get(k, "")) for k, v in result.items()])
    write_atomically(given.out / "hybrid.json", json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
