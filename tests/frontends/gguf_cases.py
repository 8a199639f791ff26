"""Configurations of every architecture that a GGUF file may have, key by key."""

import math
from typing import Any

import torch

from tests.frontends.gguf_files import VOCABULARY

HIDDEN, HEADS, KEY_HEADS, HEAD_SIZE, INNER, LAYERS, POSITIONS = 48, 4, 2, 16, 80, 3, 72
IDS = torch.randint(0, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(1))
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "context_length": POSITIONS,
    "embedding_length": HIDDEN,
    "block_count": LAYERS,
    "feed_forward_length": INNER,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KEY_HEADS,
}
WIDE = {"attention.key_length": HEAD_SIZE, "attention.value_length": HEAD_SIZE}
RMS, LAYER = {"attention.layer_norm_rms_epsilon": 0.25}, {"attention.layer_norm_epsilon": 0.25}
LINEAR_KEYS = {"rope.freq_base": 500.0, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
YARN_KEYS = {
    "rope.freq_base": 500.0,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 64,
    "rope.scaling.attn_factor": 1.5,
    "rope.scaling.yarn_beta_fast": 2.0,
    "rope.scaling.yarn_beta_slow": 0.5,
    "rope.scaling.finetuned": True,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "attention_factor": 1.5 * (0.1 * math.log(4) + 1),
    "beta_fast": 2.0,
    "beta_slow": 0.5,
}
LONG, SHORT = [float(4 + each) for each in range(HEAD_SIZE // 2)], [1 + 0.25 * each for each in range(HEAD_SIZE // 2)]
NARROW = HIDDEN // HEADS  # the head size where it cannot be set on its own

# name: architecture, its keys, the transformers model, its parameters besides COMMON, and tensors besides the weights
CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "llama",
        {**SHAPE, **WIDE, **RMS, **LINEAR_KEYS, "rope.dimension_count": HEAD_SIZE},
        "llama",
        {"head_dim": HEAD_SIZE, "rms_norm_eps": 0.25, "rope_parameters": LINEAR},
        {},
    ),
    "llama yarn, biases": (
        "llama",
        {**SHAPE, **WIDE, **RMS, **YARN_KEYS},
        "llama",
        {
            "head_dim": HEAD_SIZE,
            "rms_norm_eps": 0.25,
            "rope_parameters": YARN,
            "attention_bias": True,
            "mlp_bias": True,
        },
        {},
    ),
    "llama longrope": (
        "llama",
        {
            **SHAPE,
            **WIDE,
            **RMS,
            "rope.scaling.type": "longrope",
            "rope.scaling.original_context_length": 18,
            "rope.scaling.attn_factor": 1.25,
        },
        "llama",
        {
            "head_dim": HEAD_SIZE,
            "rms_norm_eps": 0.25,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "long_factor": LONG,
                "short_factor": SHORT,
                "attention_factor": 1.25,
                "original_max_position_embeddings": 18,
            },
        },
        {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
    ),
    "qwen2": (
        "qwen2",
        {**SHAPE, **WIDE, **RMS, **YARN_KEYS},
        "qwen2",
        {"head_dim": HEAD_SIZE, "rms_norm_eps": 0.25, "rope_parameters": YARN},
        {},
    ),
    "qwen3": (
        "qwen3",
        {**SHAPE, **WIDE, **RMS, **YARN_KEYS},
        "qwen3",
        {"head_dim": HEAD_SIZE, "rms_norm_eps": 0.25, "rope_parameters": YARN},
        {},
    ),
    "qwen2moe": (
        "qwen2moe",
        {
            **SHAPE,
            **RMS,
            **LINEAR_KEYS,
            "expert_count": 6,
            "expert_used_count": 3,
            "expert_feed_forward_length": 40,
            "expert_shared_feed_forward_length": 56,
        },
        "qwen2_moe",
        {
            "rms_norm_eps": 0.25,
            "rope_parameters": LINEAR,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "shared_expert_intermediate_size": 56,
        },
        {},
    ),
    "qwen3moe": (
        "qwen3moe",
        {
            **SHAPE,
            **WIDE,
            **RMS,
            **LINEAR_KEYS,
            "expert_count": 6,
            "expert_used_count": 3,
            "expert_feed_forward_length": 40,
        },
        "qwen3_moe",
        {
            "head_dim": HEAD_SIZE,
            "rms_norm_eps": 0.25,
            "rope_parameters": LINEAR,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
        },
        {},
    ),
    "phi3": (
        "phi3",
        {
            **SHAPE,
            **RMS,
            "rope.freq_base": 500.0,
            "rope.dimension_count": 8,
            "rope.scaling.original_context_length": 18,
            "rope.scaling.attn_factor": 1.25,
            "attention.sliding_window": 11,
        },
        "phi3",
        {
            "rms_norm_eps": 0.25,
            "sliding_window": 11,
            "original_max_position_embeddings": 18,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "partial_rotary_factor": 8.0 / NARROW + 1e-9,
                "long_factor": LONG[:4],
                "short_factor": SHORT[:4],
                "attention_factor": 1.25,
                "original_max_position_embeddings": 18,
            },
        },
        {"rope_factors_long.weight": LONG[:4], "rope_factors_short.weight": SHORT[:4]},
    ),
    "starcoder2": (
        "starcoder2",
        {**SHAPE, **WIDE, **LAYER, **LINEAR_KEYS, "attention.sliding_window": 11},
        "starcoder2",
        {"head_dim": HEAD_SIZE, "norm_epsilon": 0.25, "rope_parameters": LINEAR, "sliding_window": 11},
        {},
    ),
    "stablelm": (
        "stablelm",
        {**SHAPE, **LAYER, **LINEAR_KEYS, "rope.dimension_count": 8, "use_parallel_residual": True},
        "stablelm",
        {
            "layer_norm_eps": 0.25,
            "rope_parameters": LINEAR | {"partial_rotary_factor": 8.0 / NARROW + 1e-9},
            "use_qkv_bias": True,
        },
        {},
    ),
    "stablelm in parallel": (
        "stablelm",
        {**SHAPE, **LAYER},
        "stablelm",
        {
            "layer_norm_eps": 0.25,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            "use_parallel_residual": True,
        },
        {},
    ),
    "nemotron": (
        "nemotron",
        {**SHAPE, **WIDE, **LAYER, **LINEAR_KEYS, "rope.dimension_count": 12},
        "nemotron",
        {
            "head_dim": HEAD_SIZE,
            "norm_eps": 0.25,
            "rope_parameters": LINEAR | {"partial_rotary_factor": 0.75},
        },
        {},
    ),
    "falcon of one key head": (
        "falcon",
        {**SHAPE, **LAYER, **LINEAR_KEYS, "attention.head_count_kv": 1},
        "falcon",
        {"num_kv_heads": 1, "ffn_hidden_size": INNER, "layer_norm_epsilon": 0.25, "rope_parameters": LINEAR},
        {},
    ),
    "falcon": (
        "falcon",
        {**SHAPE, **LAYER, **LINEAR_KEYS, "tensor_data_layout": "jploski"},
        "falcon",
        {
            "num_kv_heads": KEY_HEADS,
            "ffn_hidden_size": INNER,
            "layer_norm_epsilon": 0.25,
            "rope_parameters": LINEAR,
            "new_decoder_architecture": True,
        },
        {},
    ),
    "gpt2": (
        "gpt2",
        {**SHAPE, **LAYER, "attention.head_count_kv": HEADS},
        "gpt2",
        {"n_inner": INNER, "layer_norm_epsilon": 0.25},
        {},
    ),
    "bloom": (
        "bloom",
        {
            **SHAPE,
            **LAYER,
            "attention.head_count_kv": HEADS,
            "feed_forward_length": 4 * HIDDEN,
            "attention.max_alibi_bias": 8.0,
        },
        "bloom",
        {"layer_norm_epsilon": 0.25},
        {},
    ),
    "gemma2": (
        "gemma2",
        {
            **SHAPE,
            **WIDE,
            **RMS,
            **LINEAR_KEYS,
            "attention.sliding_window": 7,
            "attention.sliding_window_pattern": 3,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
        },
        "gemma2",
        {
            "head_dim": HEAD_SIZE,
            "rms_norm_eps": 0.25,
            "rope_parameters": LINEAR,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": HEAD_SIZE,
            "tie_word_embeddings": True,
        },
        {},
    ),
    "gemma3": (
        "gemma3",
        {
            **SHAPE,
            **WIDE,
            **RMS,
            **LINEAR_KEYS,
            "rope.freq_base_swa": 50.0,
            "attention.sliding_window": 7,
            "attention.sliding_window_pattern": [True, False, True],
            "final_logit_softcapping": 2.0,
        },
        "gemma3_text",
        {
            "head_dim": HEAD_SIZE,
            "rms_norm_eps": 0.25,
            "rope_parameters": {
                "full_attention": LINEAR,
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "final_logit_softcapping": 2.0,
            "query_pre_attn_scalar": HEAD_SIZE,
        },
        {},
    ),
}
# The format implies these without the key, or another key or the tensors say the same.
WITHOUT_CONSEQUENCE = {
    "use_parallel_residual",
    "tensor_data_layout",
    "vocab_size",
    "attention.max_alibi_bias",
    "attention.value_length",
    "rope.scaling.finetuned",
}
ALSO = {  # by case
    "llama": {"attention.key_length", "rope.dimension_count"},
    "gpt2": {"attention.head_count_kv"},
    "bloom": {"attention.head_count_kv", "context_length"},
    "qwen2moe": {"feed_forward_length"},
    "qwen3moe": {"feed_forward_length"},
}
