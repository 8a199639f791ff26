"""A tiny configuration of every causal language model type of transformers.

Configurations name their sizes alike, so most types need only `SIZES`. Where a list says what each layer is, the model
has each kind of layer that the type's usual configuration has. `OWN` holds what a type needs besides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.models import HEADS, HIDDEN, INNER, LAYERS, POSITIONS, STANDARD_DEVIATION, VOCABULARY, randomize

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

HEAD = HIDDEN // HEADS
WINDOW = 8
EXPERTS = 4
CHOSEN = 2
RANK = 16


def _each(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


SIZES: Mapping[str, Any] = {
    **_each(VOCABULARY, "vocab_size", "vocab_size_per_layer_input", "unpadded_vocab_size"),
    **_each(
        HIDDEN,
        *("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size", "lru_width", "emb_dim"),
        *("attention_hidden_size", "backbone_hidden_size", "input_embedding_size", "output_embedding_size"),
    ),
    **_each(LAYERS, "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"),
    **_each(LAYERS, "num_encoder_layers", "num_decoder_layers"),
    **_each(
        HEADS,
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
        *("encoder_attention_heads", "swa_num_attention_heads", "attention_heads", "num_encoder_attention_heads"),
        *("num_decoder_attention_heads", "linear_num_heads"),
    ),
    **_each(2, "num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads"),
    **_each(HEADS, "linear_num_value_heads"),
    **_each(HEAD, "head_dim", "swa_head_dim", "kv_channels", "linear_key_head_dim", "linear_value_head_dim"),
    **_each(HEAD, "qk_nope_head_dim", "v_head_dim", "index_head_dim", "linear_head_dim", "dim_head"),
    **_each(8, "rotary_dim", "sliding_window", "sliding_window_size", "window_size"),
    **_each(
        INNER,
        *("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff", "d_ff"),
        *("ffn_hidden_size", "intermediate_size_mlp", "feed_forward_size"),
    ),
    **_each(HIDDEN, "moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"),
    **_each(HIDDEN, "shared_intermediate_size", "shared_experts_intermediate_size", "prefix_dense_intermediate_size"),
    **_each(EXPERTS, "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
    **_each(CHOSEN, "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"),
    **_each(1, "n_group", "topk_group", "num_expert_group", "topk_groups", "n_groups", "mamba_n_groups"),
    **_each(1, "first_k_dense_replace", "num_dense_layers", "num_mem_blocks"),
    **_each(RANK, "kv_lora_rank", "q_lora_rank", "laurel_rank", "o_lora_rank", "gated_norm_rank", "adapter_rank"),
    **_each(2, "index_n_heads", "conv_L_cache", "number_of_conv_states"),
    **_each(8, "index_topk", "mamba_d_state", "state_size", "time_step_rank", "mamba_dt_rank", "mamba_n_heads"),
    **_each(8, "ssm_state_size", "mamba_num_heads"),
    **_each(HEAD, "mamba_head_dim", "qk_rope_head_dim", "hidden_size_per_layer_input"),
    **_each(POSITIONS, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"),
    **_each(16, "chunk_size", "mamba_chunk_size", "attention_chunk_size", "block_size"),
    **_each(STANDARD_DEVIATION, "initializer_range", "init_std", "initializer_factor"),
    **_each(28, "image_size"),
    **_each(14, "patch_size"),
    "bos_token_id": 1,
    **_each(None, "eos_token_id", "forced_eos_token_id", "forced_bos_token_id"),
    "pad_token_id": 0,
    "num_nextn_predict_layers": 0,
    "is_decoder": True,
}
"""What a configuration gets if it has the field."""

LISTS = ("layer_types", "mlp_layer_types", "layers_block_type", "indexer_types")
"""What configurations say of each layer."""

ALTERNATING = ["sliding_attention", "full_attention"]
SHARING = {"num_hidden_layers": 4, "layer_types": ALTERNATING * 2, "num_kv_shared_layers": 2}
"""The last layers read the keys and values of the first."""
ROTARY = {"rope_type": "default", "rope_theta": 10000.0}
CODEBOOK = {"num_codebooks": 1}
ADAPTER = {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN}
ALONE = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0, "num_kv_shared_layers": 4}

OWN: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(ALTERNATING, ROTARY), "layer_types": ALTERNATING},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": HIDDEN, "moe_num_experts": EXPERTS, "moe_top_k": CHOSEN},
    },
    "dots1": {"n_shared_experts": 1, "layer_types": ALTERNATING},
    "dots3_note": {"audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN}, "vision_config": ADAPTER},
    "dots3_note_text": {
        "head_dim": 2 * HEAD,
        "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": HEADS,
        "swa_head_dim": 2 * HEAD,
        "swa_qk_nope_head_dim": HEAD,
        "swa_v_head_dim": HEAD,
        "swa_q_lora_rank": RANK,
        "swa_kv_lora_rank": RANK,
    },
    "falcon_h1": {"mamba_d_ssm": 2 * HIDDEN},
    "gemma3n_text": SHARING,
    "gemma4_assistant": {"text_config": ALONE},
    "gemma4_text": {**SHARING, "global_head_dim": 2 * HEAD},
    "gemma4_unified_text": {**SHARING, "global_head_dim": 2 * HEAD},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": HEAD, "zero_expert_num": 2},
    "mamba2": {"num_heads": 2 * HEADS, "head_dim": HEAD},
    "moshi": {"audio_vocab_size": VOCABULARY, "sliding_window": POSITIONS, **CODEBOOK},
    "musicgen": {"decoder": CODEBOOK},
    "musicgen_melody": {"decoder": CODEBOOK},
    "nemotron_h": {"moe_shared_expert_intermediate_size": HIDDEN},
    "qwen4_exp_text": {
        "hc_lowrank": RANK,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": WINDOW},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "attention_head_size": HEAD,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [32, 32],
    },
    "roc_bert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY},
    "xlstm": {"hidden_size": 2 * HIDDEN},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_hidden_size": 2 * HIDDEN,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What the configuration of a type needs besides, or to have something that its defaults leave out."""

PARTS = {"musicgen": "decoder", "musicgen_melody": "decoder"}
"""The part of a configuration that the causal language model takes."""


def tiny_config(model_type: str, tied: bool = True) -> PreTrainedConfig:
    """Returns the tiny configuration of a type; the head is tied to the embedding only if the type's usually is."""
    kind: Any = CONFIG_MAPPING[model_type]
    config = kind(**_settings(kind, OWN.get(model_type, {}), {} if tied else {"tie_word_embeddings": False}))
    return getattr(config, PARTS[model_type]) if model_type in PARTS else config


def _settings(kind: Any, own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    found = {name: value for name, value in {**SIZES, **changes}.items() if name in names}
    if "kv_lora_rank" in names:
        found["num_key_value_heads"] = HEADS
    parts = {name: _class_of(part) for name, part in (getattr(kind, "sub_configs_defaults", None) or {}).items()}
    for name, part in parts.items():
        inner = {**OWN.get(part.model_type, {}), **own.get(name, {})}
        found[name] = {"model_type": part.model_type, **_settings(part, inner, changes)}
    own = {name: value for name, value in own.items() if name not in parts}
    return {**found, **_layers(kind, found, own), **own}


def _class_of(part: Any) -> Any:
    """The class of a part of a configuration."""
    return part if isinstance(part, type) else CONFIG_MAPPING[part.model_type]


def _layers(kind: Any, found: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The lists that say something of each layer, with every kind that the type's own configuration has."""
    names = {each.name for each in fields(kind)} & {*LISTS}
    if not names or names & own.keys():
        return {}
    try:
        usual = kind()
    except Exception:  # a type without a usual configuration
        return {}
    kinds = {name: list(dict.fromkeys(getattr(usual, name, None) or [])) for name in names}
    kinds = {name: each for name, each in kinds.items() if each}
    if not kinds:
        return {}
    count = max(found.get("num_hidden_layers", LAYERS), *(len(each) for each in kinds.values()))
    repeated = {name: [each[min(at, len(each) - 1)] for at in range(count)] for name, each in kinds.items()}
    return {**repeated, "num_hidden_layers": count}


def tiny_model(model_type: str, seed: int = 0, tied: bool = True) -> PreTrainedModel:
    """Returns a tiny model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = tiny_config(model_type, tied)
    kind: Any = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type])
    model = kind(config) if model_type in PARTS else AutoModelForCausalLM.from_config(config)
    model.eval()
    randomize(model, seed)
    return model
