"""GGUF files of small random models, as llama.cpp's converters write them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from tokenizers import pre_tokenizers
from torch import nn

VOCABULARY = 96
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 1], "ab"]
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * VOCABULARY,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}


def write(path: Path, architecture: str, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """A file with exactly this metadata and these tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    add(writer, metadata)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add(writer: gguf.GGUFWriter, metadata: Mapping[str, Any]) -> None:
    """Each value in the type that converters give it: integers as uint32, floats as float32."""
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, list(value))


def stored_tensors(model: nn.Module, architecture: str, layers: int) -> dict[str, np.ndarray]:
    """The model's weights under llama.cpp's names and in its order."""
    arch = next(each for each in MODEL_ARCH if MODEL_ARCH_NAMES[each] == architecture)
    names = get_tensor_name_map(arch, layers)
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    if getattr(model.config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    stored: dict[str, np.ndarray] = {}
    for name, values in state.items():
        if name.endswith("experts.gate_up_proj"):  # [experts, 2 * inner, hidden]
            layer = name.split(".")[2]
            gate, up = np.split(values, 2, axis=1)
            stored |= {f"blk.{layer}.ffn_gate_exps.weight": gate, f"blk.{layer}.ffn_up_exps.weight": up}
            continue
        if name.endswith("experts.down_proj"):
            name += ".weight"
        base, suffix = name.rsplit(".", 1)
        short = names.get_name(base) or names.get_name(base.removeprefix("transformer."))
        assert short is not None, name
        key = f"{short}.{suffix}"
        stored[key] = _reordered(key, values, architecture, model.config)
    return stored


def _reordered(name: str, values: np.ndarray, architecture: str, config: Any) -> np.ndarray:
    heads = config.num_attention_heads
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        count = heads if ".attn_q." in name else config.num_key_value_heads
        return values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if architecture in ("gemma2", "gemma3", "nemotron") and name.endswith("norm.weight"):
        return values + 1
    if architecture == "gpt2" and values.ndim == 2 and name.startswith("blk."):
        return values.T
    if architecture == "bloom" and "attn_qkv" in name:  # [heads, 3, head size, ...] to [3, heads, head size, ...]
        return values.reshape(heads, 3, -1, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)
    if architecture == "falcon" and "attn_qkv" in name:
        groups = config.num_kv_heads
        rows = values.reshape(groups, heads // groups + 2, -1, *values.shape[1:])
        parts = (rows[:, :-2], rows[:, -2], rows[:, -1])
        return np.concatenate([part.reshape(-1, *values.shape[1:]) for part in parts])
    return values


def random_model(model_type: str, **parameters: Any) -> nn.Module:
    """The same random weights each time, norms and biases included."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **parameters)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1) * 0.5)
    return model
