"""Tiny random models of many families: seeded, float32, in evaluation mode.

Weights are large enough that greedy tokens vary and the largest two logits rarely tie.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 256
HIDDEN = 64
HEADS = 4
INNER = 128
LAYERS = 2
POSITIONS = 512
STANDARD_DEVIATION = 0.2

# Without an end token, every greedy text has the length that a test requests.
SPECIAL_TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
COMMON: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": STANDARD_DEVIATION, **SPECIAL_TOKENS}
MODERN: dict[str, Any] = {
    **COMMON,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
}
GROUPED: dict[str, Any] = {**MODERN, "num_key_value_heads": 2}
# Where embeddings outweigh the layers, a tied head repeats the last token forever.
UNTIED: dict[str, Any] = {"tie_word_embeddings": False}
GPT: dict[str, Any] = {**COMMON, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}


def build(model_type: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A causal language model of the configuration, with random weights."""
    config = AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    randomize(model, seed)
    return model


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Moves every parameter off its initial value, so that no bias is zero and no norm's weight is one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def tiny(model_type: str, base: dict[str, Any], **settings: Any) -> Callable[..., PreTrainedModel]:
    """A builder of one family's tiny model; its arguments change the configuration."""
    return lambda **changes: build(model_type, **(base | settings | changes))


FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": tiny("llama", GROUPED),
    "mistral": tiny("mistral", GROUPED, sliding_window=8),
    "qwen2": tiny("qwen2", GROUPED),
    "qwen3": tiny("qwen3", GROUPED, head_dim=16),
    "phi3": tiny("phi3", GROUPED, sliding_window=None),
    "gemma": tiny("gemma", GROUPED, head_dim=16),
    "gemma2": tiny("gemma2", GROUPED | UNTIED, head_dim=16, sliding_window=8, query_pre_attn_scalar=16),
    "gemma3_text": tiny(
        "gemma3_text",
        GROUPED | UNTIED,
        head_dim=16,
        sliding_window=8,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "granite": tiny("granite", GROUPED, attention_multiplier=0.25, embedding_multiplier=2.0, residual_multiplier=0.5),
    "glm": tiny("glm", GROUPED, head_dim=16),
    "smollm3": tiny("smollm3", GROUPED, no_rope_layer_interval=2),
    "olmo2": tiny("olmo2", GROUPED),
    "cohere": tiny("cohere", GROUPED, logit_scale=1.0),
    "starcoder2": tiny("starcoder2", GROUPED, sliding_window=8),
    "stablelm": tiny("stablelm", GROUPED),
    "phi": tiny("phi", MODERN),
    "persimmon": tiny("persimmon", MODERN),
    "gpt_neox": tiny("gpt_neox", MODERN, rotary_pct=0.25, use_parallel_residual=True),
    "gpt2": tiny("gpt2", GPT),
    "gpt_bigcode": tiny("gpt_bigcode", GPT),
    "gptj": tiny("gptj", GPT, rotary_dim=8),
    "codegen": tiny("codegen", GPT, rotary_dim=8),
    "gpt_neo": tiny(
        "gpt_neo",
        COMMON,
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=POSITIONS,
    ),
    "opt": tiny(
        "opt",
        COMMON,
        hidden_size=HIDDEN,
        ffn_dim=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        word_embed_proj_dim=HIDDEN,
        max_position_embeddings=POSITIONS,
        init_std=STANDARD_DEVIATION,
    ),
    "bloom": tiny("bloom", COMMON | UNTIED, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS),
    "falcon": tiny("falcon", MODERN, new_decoder_architecture=True, num_kv_heads=2, alibi=False),
    "mpt": tiny("mpt", COMMON | UNTIED, d_model=HIDDEN, n_heads=HEADS, n_layers=LAYERS, max_seq_len=POSITIONS),
    "biogpt": tiny("biogpt", MODERN | UNTIED),
    "flint": tiny("flint", GROUPED, head_dim=16, sliding_window=8),
    "youtu": tiny(
        "youtu",
        MODERN,
        num_key_value_heads=HEADS,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
    ),
    "xglm": tiny(
        "xglm",
        COMMON | UNTIED,
        d_model=HIDDEN,
        ffn_dim=INNER,
        num_layers=LAYERS,
        attention_heads=HEADS,
        max_position_embeddings=POSITIONS,
        init_std=STANDARD_DEVIATION,
    ),
}
ROUTED: dict[str, Any] = GROUPED | {"num_experts_per_tok": 2}
SMALL_EXPERTS: dict[str, Any] = ROUTED | {"num_experts": 8, "moe_intermediate_size": 48}
GROUPS: dict[str, Any] = ROUTED | {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
}
MIXTURES: dict[str, Callable[..., PreTrainedModel]] = {
    "mixtral": tiny("mixtral", ROUTED, num_local_experts=4),
    "qwen2_moe": tiny("qwen2_moe", SMALL_EXPERTS, shared_expert_intermediate_size=64),
    "qwen3_moe": tiny("qwen3_moe", SMALL_EXPERTS, head_dim=16),
    "olmoe": tiny("olmoe", ROUTED, num_experts=8),
    "granitemoe": tiny("granitemoe", ROUTED, num_local_experts=8, attention_multiplier=0.25),
    "glm4_moe": tiny("glm4_moe", GROUPS, head_dim=16),
    "dots1": tiny("dots1", GROUPS, head_dim=16),
    "jetmoe": tiny("jetmoe", ROUTED, num_local_experts=4, kv_channels=16),
}
"""Mixtures of experts."""
FAMILIES |= MIXTURES


SHORT: dict[str, Any] = {**COMMON, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 8}

RECURRENT: dict[str, Callable[..., PreTrainedModel]] = {
    "mamba": tiny("mamba", SHORT, state_size=16),
    "mamba2": tiny("mamba2", SHORT, num_heads=8, head_dim=16, state_size=16, n_groups=1, expand=2, chunk_size=8),
    "rwkv": tiny("rwkv", SHORT, attention_hidden_size=HIDDEN, intermediate_size=INNER),
    "lfm2": tiny("lfm2", GROUPED, layer_types=["conv", "full_attention"]),
    "falcon_h1": tiny("falcon_h1", GROUPED, mamba_d_ssm=128, **MAMBA2),
    "bamba": tiny("bamba", GROUPED, attn_layer_indices=[1], **MAMBA2),
    "qwen3_next": tiny(
        "qwen3_next",
        GROUPED | UNTIED,
        head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        mlp_only_layers=[0, 1],
        layer_types=["linear_attention", "full_attention"],
    ),
}
"""State-space models, RWKV, short convolutions, a gated delta rule, and hybrids of them with attention."""


WITHOUT_STREAM: dict[str, Callable[..., PreTrainedModel]] = {
    "roberta": tiny("roberta", MODERN | UNTIED, is_decoder=True),
}
"""Families that normalise after each sum, so that no residual stream runs through the layers."""


def encoder() -> PreTrainedModel:
    """A BERT: every position sees the later ones."""
    return build("bert", **MODERN)
