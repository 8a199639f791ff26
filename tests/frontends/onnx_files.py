"""ONNX files of tiny models, written by torch's two exporters, with and without a cache."""

import contextlib
import io
import logging
import warnings
from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

TOKENS = torch.arange(1, 12)[None]  # [1, 11]: no size of a tiny model is 11


class TokenLogits(nn.Module):
    """Token ids, and a mask if it is given, to logits."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits


class CachedLogits(nn.Module):
    """The layout that optimum exports: logits and presents of tokens behind a past."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> list[Tensor]:
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        placed = {} if self.model.config.model_type in UNPLACED else {"position_ids": position_ids}
        output = self.model(input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **placed)
        found = [output.logits]
        for layer in output.past_key_values.layers:
            found += [layer.keys, layer.values]
        return found


UNPLACED = ("bloom", "mpt", "opt")
"""Families whose forward takes no position_ids."""


@contextlib.contextmanager
def silence() -> Generator[None]:
    """Exporters print their graphs when they fail, and much else."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def export(model: PreTrainedModel, path: Path) -> Path:
    """Written by the exporter that traces with torch.export."""
    with silence(), torch.no_grad():
        torch.onnx.export(
            TokenLogits(model).eval(),
            (TOKENS,),
            path,
            dynamo=True,
            dynamic_shapes=({1: torch.export.Dim.DYNAMIC(max=512)},),
            input_names=["input_ids"],
            output_names=["logits"],
            external_data=False,
            verbose=False,
        )
    return path


def export_script(model: PreTrainedModel, path: Path) -> Path:
    """Written by the TorchScript exporter, with a mask and a batch of any size."""
    both = {0: "batch", 1: "sequence"}
    with silence(), torch.no_grad():
        torch.onnx.export(
            TokenLogits(model).eval(),
            (TOKENS, torch.ones_like(TOKENS)),
            path,
            dynamo=False,
            opset_version=17,
            dynamic_axes={"input_ids": both, "attention_mask": both, "logits": both},
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
        )
    return path


def export_cached(model: PreTrainedModel, path: Path) -> Path:
    """Written by the TorchScript exporter in the layout of optimum, `past_key_values.N.key` and so on."""
    layers = [*range(model.config.num_hidden_layers)]
    names = [f"past_key_values.{layer}.{part}" for layer in layers for part in ("key", "value")]
    with torch.no_grad():
        past = [each for layer in model(TOKENS[:, :5]).past_key_values.layers for each in (layer.keys, layer.values)]
    axes = {name: {0: "batch_size", 2: "past_sequence_length"} for name in names}
    mask = {0: "batch_size", 1: "past_sequence_length + 1"}
    rows = {0: "batch_size", 1: "sequence_length"}
    with silence(), torch.no_grad():
        torch.onnx.export(
            CachedLogits(model).eval(),  # the exporter leaves the model in the mode of what it is given
            (TOKENS, torch.ones(1, 16, dtype=torch.long), torch.arange(5, 16)[None], *past),
            path,
            dynamo=False,
            opset_version=17,
            dynamic_axes={"input_ids": rows, "attention_mask": mask, "position_ids": rows, "logits": rows} | axes,
            input_names=["input_ids", "attention_mask", "position_ids", *names],
            output_names=["logits", *(name.replace("past_key_values", "present") for name in names)],
        )
    return path
