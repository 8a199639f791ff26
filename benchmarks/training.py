"""Training of small decoders by LayerSkip's recipe: layer dropout and a loss at every exit, both growing with depth.

Elhoushi et al., LayerSkip: Enabling Early Exit Inference and Self-Speculative Decoding, arXiv 2404.16710, section 4.1.
Depth itself grows in phases (Gong et al., Efficient Training of BERT by Progressively Stacking, ICML 2019): a phase
trains the first layers only, and the formulas take its depth for the number of layers. A layer starts as the identity
(its output projections are zero, as in ReZero and Fixup), so a phase starts with the loss at which the last one ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
ATTENTION = "causal_matmul"


@dataclass(frozen=True)
class Phase:
    """`steps` training steps of the first `depth` layers."""

    depth: int
    steps: int


@dataclass(frozen=True)
class Recipe:
    """The settings of a training run besides the model and the text."""

    phases: tuple[Phase, ...]
    batch: int = 8  # sequences per step
    length: int = 256  # tokens per sequence
    learning_rate: float = 6e-3
    warmup: int = 30  # steps
    final_rate: float = 0.05  # of the learning rate, at the last step
    weight_decay: float = 0.1
    dropout: float = 0.0  # p_max
    exit_scale: float = 0.0  # e_scale; 0 leaves only the loss at the last layer
    rotation: int = 1  # R: a step takes the loss at every R-th exit
    seed: int = 0

    @property
    def steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def tokens(self) -> int:
        return self.steps * self.batch * self.length


def dropout_rates(depth: int, highest: float) -> list[float]:
    """p(l) = D(l) p_max with D(l) = exp(l ln 2 / (L - 1)) - 1: none at the first layer, `highest` at the last."""
    return [highest * (math.exp(layer * math.log(2) / max(depth - 1, 1)) - 1) for layer in range(depth)]


def exit_weights(depth: int, scale: float) -> list[float]:
    """e(l), not normalised: scale (0 + ... + l), and for the last layer L - 1 + scale (0 + ... + L - 2)."""
    weights = [scale * layer * (layer + 1) / 2 for layer in range(depth)]
    weights[-1] = depth - 1 + scale * (depth - 1) * (depth - 2) / 2 if depth > 1 else 1.0
    return weights


def exits_of_step(step: int, depth: int, rotation: int) -> list[int]:
    """The rotational curriculum C_rot,R: every R-th exit, moving up by one per step, and always the last."""
    return [layer for layer in range(depth) if layer % rotation == step % rotation or layer == depth - 1]


def step_weights(step: int, depth: int, scale: float, rotation: int) -> dict[int, float]:
    """The exits with a loss in this step and their weights, which sum to one."""
    weights = exit_weights(depth, scale)
    chosen = {layer: weights[layer] for layer in exits_of_step(step, depth, rotation) if weights[layer] > 0}
    total = sum(chosen.values())
    return {layer: weight / total for layer, weight in chosen.items()}


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    share = recipe.final_rate + (1 - recipe.final_rate) * (1 + math.cos(math.pi * done)) / 2
    return recipe.learning_rate * share


def start_as_identity(model: LlamaForCausalLM) -> None:
    """Zero the output projections, so that each layer adds nothing to the stream."""
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()


def train(model: LlamaForCausalLM, tokens: np.ndarray, recipe: Recipe, progress: Progress, what: str) -> None:
    """Train in place, with forward and backward in bfloat16 and weights and updates in float32."""
    random = torch.Generator().manual_seed(recipe.seed)
    optimizers = optimizers_of(model, recipe)
    depths = [phase.depth for phase in recipe.phases for _ in range(phase.steps)]
    batches = batches_of(tokens, recipe)
    model.set_attn_implementation(ATTENTION)
    model.train()
    for step in progress(range(recipe.steps), what):
        weights = step_weights(step, depths[step], recipe.exit_scale, recipe.rotation)
        batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            rates = dropout_rates(depths[step], recipe.dropout)
            hidden = exit_states(model, batch[:, :-1], rates, weights, random)
            loss = sum(weight * _loss(model, hidden[layer], batch[:, 1:]) for layer, weight in weights.items())
        assert isinstance(loss, Tensor)
        loss.backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, recipe)
            optimizer.step()
            optimizer.zero_grad()
    model.set_attn_implementation("sdpa")
    model.eval()


def exit_states(
    model: LlamaForCausalLM, ids: Tensor, rates: Sequence[float], exits: Iterable[int], random: torch.Generator
) -> dict[int, Tensor]:
    """The stream after each of `exits`, [batch, length, hidden], through len(rates) layers.

    Dropout is per sample: a layer runs on the samples that keep it, and those that drop it cost nothing.
    """
    stream = model.model.embed_tokens(ids)
    positions = torch.arange(ids.shape[1])[None]
    settings = {
        "attention_mask": None,
        "position_ids": positions,
        "position_embeddings": model.model.rotary_emb(stream, positions),
    }
    states: dict[int, Tensor] = {}
    for index, rate in enumerate(rates):
        layer = model.model.layers[index]
        kept = (torch.rand(len(ids), generator=random) >= rate).nonzero()[:, 0]
        if len(kept) == len(ids):
            stream = layer(stream, **settings)
        elif len(kept) > 0:
            stream = stream.index_copy(0, kept, layer(stream[kept], **settings))
        if index in exits:
            states[index] = stream
    return states


@torch.no_grad()
def exit_table(model: LlamaForCausalLM, windows: Tensor) -> list[tuple[float, float]]:
    """Per exit, over windows [count, length + 1]: mean loss, and agreement with the full model's largest token."""
    depth = model.config.num_hidden_layers
    losses = np.zeros(depth)
    agreed = np.zeros(depth)
    for window in windows.split(8):
        labels = window[:, 1:]
        states = exit_states(model, window[:, :-1], [0.0] * depth, range(depth), torch.Generator())
        full = _logits(model, states[depth - 1]).argmax(-1)
        for layer, hidden in states.items():
            logits = _logits(model, hidden)
            losses[layer] += float(functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
            agreed[layer] += int((logits.argmax(-1) == full).sum())
    count = windows[:, 1:].numel()
    return [(float(loss) / count, float(share) / count) for loss, share in zip(losses, agreed, strict=True)]


@torch.no_grad()
def largest_tokens(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """The model's largest token at each position, [count, length], of windows [count, length + 1]."""
    return torch.cat([model(window[:, :-1]).logits.argmax(-1) for window in windows.split(8)])


def _logits(model: LlamaForCausalLM, hidden: Tensor) -> Tensor:
    """The logits from the model's own final norm and head, whatever the exit."""
    return model.lm_head(model.model.norm(hidden))


def _loss(model: LlamaForCausalLM, hidden: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(_logits(model, hidden).float().flatten(0, 1), labels.flatten())


def optimizers_of(model: PreTrainedModel, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the layers' matrices; AdamW, without decay, for the embedding and the norms."""
    matrices = [value for name, value in model.named_parameters() if "proj" in name]
    others = [value for name, value in model.named_parameters() if "proj" not in name]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def batches_of(tokens: np.ndarray, recipe: Recipe) -> Iterator[Tensor]:
    """Endless batches [batch, length + 1]: each pass takes every window of the text once, in a new order and offset."""
    random = np.random.default_rng(recipe.seed)
    span = recipe.length + 1
    while True:
        offset = int(random.integers(span))
        windows = tokens[offset : offset + (len(tokens) - offset) // span * span].reshape(-1, span)
        order = random.permutation(len(windows))
        for start in range(0, len(order) - recipe.batch + 1, recipe.batch):
            yield torch.from_numpy(windows[order[start : start + recipe.batch]])


def _causal_matmul(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention by plain products, [batch, heads, length, head size]. On a CPU in bfloat16, torch's fused kernel
    multiplies at a fifth of the speed of its matmul; forward and backward here take two thirds of the fused time."""
    groups = query.shape[1] // key.shape[1]
    length = query.shape[2]
    mask = torch.full((length, length), -torch.inf, dtype=torch.bfloat16).triu(1)
    scores = (query * options["scaling"]) @ key.repeat_interleave(groups, 1).transpose(-1, -2)
    mixed = torch.softmax(scores + mask, -1, dtype=scores.dtype).to(value.dtype) @ value.repeat_interleave(groups, 1)
    return mixed.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _causal_matmul)
