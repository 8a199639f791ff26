"""The transformers configuration described by a GGUF file's metadata, with every key accounted for."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from forerun.errors import CorruptFileError, NotAModelError
from forerun.frontends.gguf_header import GgufHeader
from forerun.frontends.gguf_keys import ENDS, TOKEN_IDS, Kind, Rotary
from forerun.frontends.gguf_metadata import Keys, is_of, shown
from forerun.frontends.gguf_rotary import rotary_parameters

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
LAYER_TENSOR = re.compile(r"blk\.(\d+)\.")


def configuration(header: GgufHeader) -> dict[str, Any]:
    """The parameters of `AutoConfig.for_model`.

    Raises `NotAModelError` for an architecture that is not a known decoder, `CorruptFileError` for a value that is not
    of its kind or contradicts the tensors, and `UnsupportedOperationError` for one that the model does not follow.
    """
    keys = Keys(header)
    layers = keys.count("block_count")
    _check_layers(keys, layers)
    for name in keys.values:
        keys.check(name)
    for name, key in keys.architecture.keys.items():
        if key.required:
            keys.required(name)
    _check_inner_size(keys)
    if keys.get("expert_used_count", 0) > keys.get("expert_count", 0):
        raise keys.damaged("expert_used_count", f"is {keys.get('expert_used_count')}, more than there are experts")
    vocabulary = _vocabulary(keys)
    return {
        "model_type": keys.architecture.model_type,
        **keys.architecture.fixed,
        **_applied(keys),
        **{
            parameter: present if f"blk.0.{tensor}" in keys.tensors else absent
            for parameter, (tensor, present, absent) in keys.architecture.tensor_parameters.items()
        },
        **_attention(keys, layers),
        **_tokens(keys, vocabulary),
        "vocab_size": vocabulary,
        "tie_word_embeddings": HEAD not in keys.tensors,
    }


def _applied(keys: Keys) -> dict[str, Any]:
    """The keys that are parameters without conversion."""
    return {
        key.parameter: keys.get(name)
        for name, key in keys.architecture.keys.items()
        if key.parameter is not None and name in keys.values
    }


def _check_layers(keys: Keys, layers: int) -> None:
    """Compare before anything is built for each layer."""
    found = {int(match[1]) for name in keys.tensors if (match := LAYER_TENSOR.match(name)) and len(match[1]) < 10}
    if found != set(range(len(found))) or len(found) != layers:
        raise keys.damaged("block_count", f"is {layers}, but the tensors are of {len(found)} layers")


def _check_inner_size(keys: Keys) -> None:
    """If the transformers model derives the inner size from the hidden size, the file's tensors must agree."""
    name, down = "feed_forward_length", keys.tensors.get("blk.0.ffn_down.weight")
    if keys.architecture.keys[name].parameter is None and down is not None and keys.get(name) != down.shape[-1]:
        raise keys.damaged(name, f"is {keys.get(name)}, but {down.name} has {down.shape[-1]} columns")


def _vocabulary(keys: Keys) -> int:
    """The number of rows of the embedding; `vocab_size`, if present, must agree."""
    embedding = keys.tensors.get(EMBEDDING)
    if embedding is None:
        raise NotAModelError(f"{keys.header.path} lacks {EMBEDDING}: give a GGUF file of a whole model.")
    rows = embedding.shape[0]
    if keys.get("vocab_size", rows) != rows:
        raise keys.damaged("vocab_size", f"is {keys.get('vocab_size')}, but {EMBEDDING} has {rows} rows")
    return rows


def _attention(keys: Keys, layers: int) -> dict[str, Any]:
    """Heads and their sizes, the rotary embedding, windows and softcaps."""
    architecture = keys.architecture
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    key_heads = keys.get("attention.head_count_kv", heads)
    if heads % key_heads or (not architecture.grouped and key_heads != heads):
        raise keys.damaged("attention.head_count_kv", f"is {key_heads}, which does not fit {heads} query heads")
    size = _head_size(keys, hidden, heads)
    found: dict[str, Any] = rotary_parameters(keys, size)
    if architecture.own_head_size:
        found["head_dim"] = size
    key_parameter = architecture.keys["attention.head_count_kv"].parameter
    if architecture.grouped and key_parameter is not None:
        found[key_parameter] = key_heads
    if architecture.scalar_of_layers is not None:
        found["query_pre_attn_scalar"] = hidden // heads if layers == architecture.scalar_of_layers else size
    if "attention.sliding_window" in architecture.keys:
        found |= _windows(keys, layers)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if name in architecture.keys and name in keys.values:
            found[name] = keys.get(name) or None
    return found


def _head_size(keys: Keys, hidden: int, heads: int) -> int:
    whole = keys.architecture.rotary is Rotary.FULL and keys.architecture.own_head_size
    usual = keys.get("rope.dimension_count", hidden // heads) if whole else hidden // heads
    size = keys.get("attention.key_length", usual)
    if keys.get("attention.value_length", size) != size:
        raise keys.unsupported("attention.value_length", f"but a key has {size}")
    if not keys.architecture.own_head_size and size * heads != hidden:
        if "attention.key_length" in keys.values:
            raise keys.unsupported("attention.key_length")
        raise keys.damaged("attention.head_count", f"is {heads}, which does not divide {hidden} features")
    return size


def _windows(keys: Keys, layers: int) -> dict[str, Any]:
    """The layers that see only the last positions, and the number of those positions."""
    window = keys.get("attention.sliding_window", keys.architecture.fixed.get("sliding_window", 0))
    if keys.architecture.window_period is None:
        return {"sliding_window": window or None}
    sliding = _sliding_layers(keys, layers) if window else [False] * layers
    return {
        "sliding_window": window or keys.get("context_length"),
        "layer_types": ["sliding_attention" if each else "full_attention" for each in sliding],
    }


def _sliding_layers(keys: Keys, layers: int) -> Sequence[bool]:
    name = "attention.sliding_window_pattern"
    pattern = keys.get(name, keys.architecture.window_period)
    if isinstance(pattern, np.ndarray):
        if len(pattern) != layers or not set(pattern.tolist()) <= {0, 1}:
            raise keys.damaged(
                name, f"is {shown(pattern)}, but must say for each of {layers} layers if it has a window"
            )
        return [bool(each) for each in pattern]
    if not is_of(Kind.SIZE, pattern):
        raise keys.damaged(name, f"is {shown(pattern)}, but must be a number of layers or a list of booleans")
    return [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]


def _tokens(keys: Keys, vocabulary: int) -> dict[str, Any]:
    found: dict[str, Any] = {parameter: _token(keys, name, vocabulary) for name, parameter in TOKEN_IDS.items()}
    ends = dict.fromkeys(_token(keys, name, vocabulary) for name in ENDS)
    present = [each for each in ends if each is not None]
    found["eos_token_id"] = present[0] if len(present) == 1 else present or None
    return found


def _token(keys: Keys, name: str, vocabulary: int) -> int | None:
    full = f"tokenizer.ggml.{name}"
    value = keys.header.metadata.get(full)
    if value is not None and not (type(value) is int and 0 <= value < vocabulary):
        raise CorruptFileError(
            f"{keys.header.path}: {full} is {shown(value)}, not a token of a vocabulary of {vocabulary}; "
            f"download the file again."
        )
    return value
