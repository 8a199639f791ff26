"""The metadata keys of GGUF files by architecture: those that are read, those that change nothing, and at which values.

Sources: the specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), llama.cpp's readers (its
`llama-arch.cpp`, `load_hparams` and `src/models/`) and its converters. A key that an architecture does not list changes
the text in a way that no transformers model follows, unless it has a value of `NEUTRAL`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any


class Kind(Enum):
    """The kind that a key's value must have."""

    COUNT = "a positive integer"
    SIZE = "an integer of at least 0"
    NUMBER = "a positive number"
    REAL = "a finite number"
    FLAG = "true or false"
    TEXT = "a string"
    ANY = "any value"


@dataclass(frozen=True)
class Key:
    """One key: the kind of its value, and the transformers parameter that it sets, if it sets one directly.

    A key `per_layer` may be an array of a value for each layer, which must all be equal.
    """

    kind: Kind
    parameter: str | None = None
    required: bool = False
    per_layer: bool = False
    otherwise: str | None = None  # another key that is read if this one is missing


class Rotary(Enum):
    """How transformers rotates queries and keys."""

    NONE = "not at all"
    FULL = "the whole head"
    PARTIAL = "a share of the head"
    BY_LAYER_TYPE = "the whole head, with frequencies of their own in layers with a sliding window"


ALL_SCALINGS = ("linear", "yarn", "longrope")


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp: its transformers model, and its keys without the prefix."""

    model_type: str
    keys: Mapping[str, Key]
    rotary: Rotary = Rotary.FULL
    scalings: tuple[str, ...] = ALL_SCALINGS  # that the transformers model has
    own_head_size: bool = True  # whether a head may have another size than hidden size / heads
    grouped: bool = True  # whether several query heads may share a key head
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])  # parameters that no key carries
    neutral: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])  # besides NEUTRAL
    tensor_parameters: Mapping[str, tuple[str, Any, Any]] = field(default_factory=dict[str, tuple[str, Any, Any]])
    """Parameters that a tensor of the first layer decides: its name, the value with it, and without it."""
    window_period: int | None = None  # of layers: all but the last of each period have a sliding window
    scalar_of_layers: int | None = None  # the layer count of the size that scales by hidden size / heads


SHAPE = {
    "context_length": Key(Kind.COUNT, "max_position_embeddings", required=True),
    "embedding_length": Key(Kind.COUNT, "hidden_size", required=True),
    "block_count": Key(Kind.COUNT, "num_hidden_layers", required=True),
    "feed_forward_length": Key(Kind.COUNT, "intermediate_size", required=True, per_layer=True),
    "vocab_size": Key(Kind.COUNT),
}
HEADS = {
    "attention.head_count": Key(Kind.COUNT, "num_attention_heads", required=True, per_layer=True),
    "attention.head_count_kv": Key(Kind.COUNT, "num_key_value_heads", per_layer=True),
    "attention.key_length": Key(Kind.COUNT),
    "attention.value_length": Key(Kind.COUNT),
}
ROPE = {
    "rope.dimension_count": Key(Kind.COUNT),
    "rope.freq_base": Key(Kind.NUMBER),
    "rope.scale_linear": Key(Kind.REAL),
    "rope.scaling.type": Key(Kind.TEXT),
    "rope.scaling.factor": Key(Kind.REAL),
    "rope.scaling.original_context_length": Key(Kind.COUNT),
    "rope.scaling.finetuned": Key(Kind.FLAG),  # llama.cpp stores it for its own finetuning
    "rope.scaling.attn_factor": Key(Kind.NUMBER),
    "rope.scaling.yarn_beta_fast": Key(Kind.NUMBER),
    "rope.scaling.yarn_beta_slow": Key(Kind.NUMBER),
}
RMS, LAYER = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
PARALLEL = {"use_parallel_residual": (True,)}


def _norm(key: str, parameter: str) -> dict[str, Key]:
    """The epsilon of all norms; some converters write it as if the norms were of the other kind."""
    return {key: Key(Kind.NUMBER, parameter, required=True, otherwise=LAYER if key == RMS else RMS)}


LLAMA = {**SHAPE, **HEADS, **ROPE, **_norm(RMS, "rms_norm_eps")}
EXPERTS = {
    "expert_count": Key(Kind.COUNT, "num_experts", required=True),
    "expert_used_count": Key(Kind.COUNT, "num_experts_per_tok", required=True),
    "expert_feed_forward_length": Key(Kind.COUNT, "moe_intermediate_size", required=True, per_layer=True),
}
WINDOW = {"attention.sliding_window": Key(Kind.SIZE)}
GEMMA = {
    **LLAMA,
    **WINDOW,
    "attention.sliding_window_pattern": Key(Kind.ANY),
    "final_logit_softcapping": Key(Kind.REAL),
}
BIAS = {"attention_bias": ("attn_output.bias", True, False), "mlp_bias": ("ffn_down.bias", True, False)}

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture(
            "llama",
            LLAMA,
            neutral={"tensor_data_layout": ("Meta AI original pth",)},
            tensor_parameters=BIAS,
        ),
        "qwen2": Architecture("qwen2", LLAMA),
        "qwen2moe": Architecture(
            "qwen2_moe",
            {
                **LLAMA,
                **EXPERTS,
                "feed_forward_length": Key(Kind.COUNT, "intermediate_size", per_layer=True),
                "expert_shared_feed_forward_length": Key(
                    Kind.COUNT, "shared_expert_intermediate_size", required=True, per_layer=True
                ),
            },
            fixed={"norm_topk_prob": False, "decoder_sparse_step": 1},
            neutral={"expert_gating_func": (1,)},
        ),
        "qwen3": Architecture("qwen3", LLAMA),
        "qwen3moe": Architecture(
            "qwen3_moe",
            {
                **LLAMA,
                **EXPERTS,
                "feed_forward_length": Key(Kind.COUNT, "intermediate_size", per_layer=True),
            },
            fixed={"norm_topk_prob": True, "decoder_sparse_step": 1},
            neutral={"expert_gating_func": (1,), "expert_weights_norm": (True,)},
        ),
        "phi3": Architecture(
            "phi3",
            {**LLAMA, **WINDOW},
            rotary=Rotary.PARTIAL,
            scalings=("longrope",),
        ),
        "starcoder2": Architecture(
            "starcoder2",
            {**SHAPE, **HEADS, **ROPE, **WINDOW, **_norm(LAYER, "norm_epsilon")},
        ),
        "stablelm": Architecture(
            "stablelm",
            # Converters write use_parallel_residual as they please; llama.cpp and we go by the tensors.
            {**SHAPE, **HEADS, **ROPE, **_norm(LAYER, "layer_norm_eps"), "use_parallel_residual": Key(Kind.FLAG)},
            rotary=Rotary.PARTIAL,
            own_head_size=False,
            tensor_parameters={
                "use_qkv_bias": ("attn_q.bias", True, False),
                "use_parallel_residual": ("ffn_norm.weight", False, True),
            },
        ),
        "nemotron": Architecture(
            "nemotron",
            {**SHAPE, **HEADS, **ROPE, **_norm(LAYER, "norm_eps")},
            rotary=Rotary.PARTIAL,
            tensor_parameters=BIAS,
        ),
        "falcon": Architecture(
            "falcon",
            {
                **SHAPE,
                **HEADS,
                **ROPE,
                **_norm(LAYER, "layer_norm_epsilon"),
                "feed_forward_length": Key(Kind.COUNT, "ffn_hidden_size"),
                "attention.head_count_kv": Key(Kind.COUNT, "num_kv_heads", per_layer=True),
            },
            own_head_size=False,
            fixed={"new_decoder_architecture": True},
            tensor_parameters={"num_ln_in_parallel_attn": ("attn_norm_2.weight", 2, 1)},
            neutral={"tensor_data_layout": ("jploski",), "attention.use_norm": (True, False), **PARALLEL},
        ),
        "gpt2": Architecture(
            "gpt2",
            {**SHAPE, **HEADS, **_norm(LAYER, "layer_norm_epsilon"), "feed_forward_length": Key(Kind.COUNT, "n_inner")},
            rotary=Rotary.NONE,
            own_head_size=False,
            grouped=False,
        ),
        "bloom": Architecture(
            "bloom",
            {
                **SHAPE,
                **HEADS,
                **_norm(LAYER, "layer_norm_epsilon"),
                "attention.head_count": Key(Kind.COUNT, "n_head", required=True, per_layer=True),
                "context_length": Key(Kind.COUNT),  # ALiBi has no longest position
                "feed_forward_length": Key(Kind.COUNT, required=True),
            },
            rotary=Rotary.NONE,
            own_head_size=False,
            grouped=False,
            neutral={"attention.max_alibi_bias": (8,)},
        ),
        "gemma2": Architecture(
            "gemma2",
            {**GEMMA, "attention.sliding_window": Key(Kind.COUNT), "attn_logit_softcapping": Key(Kind.REAL)},
            fixed={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096},
            window_period=2,
            scalar_of_layers=46,
        ),
        "gemma3": Architecture(
            "gemma3_text",
            {**GEMMA, "rope.freq_base_swa": Key(Kind.NUMBER)},
            rotary=Rotary.BY_LAYER_TYPE,
            fixed={"sliding_window": 0},
            window_period=6,
            scalar_of_layers=62,
        ),
    }
)

NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "attention.causal": (True,),
        "attention.clamp_kqv": (0,),
        "attention.decay_lora_rank": (0,),
        "attention.gate_lora_rank": (0,),
        "attention.iclr_lora_rank": (0,),
        "attention.kv_lora_rank": (0,),
        "attention.max_alibi_bias": (0,),
        "attention.output_scale": (0, 1),
        "attention.q_lora_rank": (0,),
        "attention.relative_buckets_count": (0,),
        "attention.scale": (0,),
        "attention.shared_kv_layers": (0,),
        "attention.sliding_window": (0,),
        "attention.sliding_window_pattern": (1,),
        "attention.temperature_length": (0,),
        "attention.temperature_scale": (0,),
        "attention.value_residual_mix_lora_rank": (0,),
        "attn_logit_softcapping": (0,),
        "decoder_block_count": (0,),
        "embedding_scale": (0, 1),
        "expert_count": (0,),
        "expert_feed_forward_length": (0,),
        "expert_gating_func": (0,),
        "expert_group_count": (0, 1),
        "expert_group_used_count": (0, 1),
        "expert_shared_count": (0,),
        "expert_shared_feed_forward_length": (0,),
        "expert_used_count": (0,),
        "expert_weights_norm": (False,),
        "expert_weights_scale": (0, 1),
        "final_logit_softcapping": (0,),
        "full_attention_interval": (0, 1),
        "interleave_moe_layer_step": (0,),
        "leading_dense_block_count": (0,),
        "logit_scale": (0, 1),
        "moe_every_n_layers": (0,),
        "n_deepstack_layers": (0,),
        "nextn_predict_layers": (0,),
        "pooling_type": (0,),
        "residual_scale": (0, 1),
        "rope.scale": (0, 1),
        "rope.scaling.alpha": (0,),
        "rope.scaling.yarn_attn_factor": (1,),
        "rope.scaling.yarn_ext_factor": (-1,),
        "rope.scaling.yarn_log_multiplier": (0,),
        "router_logit_softcapping": (0,),
        "swin_norm": (False,),
        "tensor_data_layout": ("reference",),
        "use_parallel_residual": (False,),
    }
)
"""Values at which a key says what is the case without it, for architectures that do not read the key."""

TOKEN_IDS = {"bos_token_id": "bos_token_id", "unknown_token_id": "unk_token_id", "padding_token_id": "pad_token_id"}
"""Keys of `tokenizer.ggml` and the transformers parameters that they set."""

ENDS = (
    "eos_token_id",
    "eot_token_id",
    "eom_token_id",
    "fim_pad_token_id",
    "fim_rep_token_id",
    "fim_sep_token_id",
)
"""Keys of `tokenizer.ggml` with the tokens at which llama.cpp ends a text."""
