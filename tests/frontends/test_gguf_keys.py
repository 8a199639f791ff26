"""Every metadata key of a GGUF file: applied, of no consequence, or refused by name."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from forerun.errors import CorruptFileError, ForerunError, UnsupportedOperationError
from forerun.frontends.gguf import load_gguf
from forerun.frontends.gguf_config import configuration
from forerun.frontends.gguf_keys import ARCHITECTURES
from forerun.frontends.gguf_parts import read_model
from forerun.frontends.source import open_source
from tests.frontends.gguf_files import TOKENIZER, VOCABULARY, random_model, stored_tensors, write

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
NARROW = HIDDEN // HEADS  # a head where it cannot have a size of its own

# name: architecture, its keys, the transformers model, its parameters beside COMMON, and tensors beside the weights
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
# What the format says without the key, or what another key or the tensors say as well.
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


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORERUN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def logits(model) -> torch.Tensor:
    """Of a text beyond the original lengths and windows of the cases, and of one within: `[length, vocabulary]`."""
    with torch.no_grad():
        return torch.cat([model(ids, use_cache=False).logits[0] for ids in (IDS, IDS[:, :6])])


def keyed(architecture: str, keys: dict[str, Any]) -> dict[str, Any]:
    return {f"{architecture}.{name}": value for name, value in keys.items()} | TOKENIZER


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model of each architecture: its keys and tensors, and the logits that transformers gives it."""
    architecture, keys, model_type, parameters, beside = CASES[request.param]
    model = random_model(model_type, **COMMON | parameters)
    tensors = stored_tensors(model, architecture, LAYERS)
    tensors |= {name: np.array(values, np.float32) for name, values in beside.items()}
    return architecture, keys, tensors, logits(model), request.param


def test_a_file_with_every_key_is_the_model_of_the_configuration(case, tmp_path):
    architecture, keys, tensors, expected, _ = case
    path = write(tmp_path / "model.gguf", architecture, keyed(architecture, keys), tensors)
    model, _ = load_gguf(path, torch.float32)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert model.config.eos_token_id == 2


def test_no_key_of_those_files_is_at_its_default(case, tmp_path):
    """Without it the text is another, or the file is refused: so that the test above shows that it is read."""
    architecture, keys, tensors, expected, name = case
    same = set()
    for left_out in keys:
        rest = {key: value for key, value in keys.items() if key != left_out}
        path = write(tmp_path / "model.gguf", architecture, keyed(architecture, rest), tensors)
        try:
            model, _ = load_gguf(path, torch.float32)
        except ForerunError:
            continue
        if torch.allclose(logits(model), expected, rtol=1e-3, atol=1e-3):
            same.add(left_out)
    if keys.get("rope.scaling.type") != "yarn":
        same.discard("rope.scaling.type")
    assert same <= WITHOUT_CONSEQUENCE | ALSO.get(name, set())


def test_every_architecture_has_a_case():
    assert {each[0] for each in CASES.values()} == set(ARCHITECTURES)


PLAIN = SHAPE | WIDE | RMS
LLAMA_PARAMETERS = COMMON | {"head_dim": HEAD_SIZE, "rms_norm_eps": 0.25}


@pytest.fixture(scope="module")
def llama_tensors():
    return stored_tensors(random_model("llama", **LLAMA_PARAMETERS), "llama", LAYERS)


@pytest.fixture
def llama(llama_tensors, tmp_path):
    """A function from keys beside the usual ones to a loaded file; a key of value None is left out."""

    def load(keys: dict[str, Any], **tensors: np.ndarray):
        metadata = {key: value for key, value in (keyed("llama", PLAIN) | keys).items() if value is not None}
        path = write(tmp_path / "model.gguf", "llama", metadata, llama_tensors | tensors)
        return load_gguf(path, torch.float32)[0]

    return load


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"llama.rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {"rope_type": "default"}),
        ({"llama.rope.scaling.factor": 0.0, "llama.rope.scale_linear": 1.0}, {"rope_type": "default"}),
        (
            {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 2.5},
            {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": POSITIONS},
        ),
    ],
)
def test_rotary_scaling_in_both_spellings(llama, keys, rope):
    expected = random_model("llama", **LLAMA_PARAMETERS, rope_parameters={"rope_theta": 10000.0} | rope)
    torch.testing.assert_close(logits(llama(keys)), logits(expected), rtol=1e-5, atol=1e-5)


def test_linear_scaling_divides_positions(llama):
    """The definition, without transformers' scaling: positions p / 4."""
    with torch.no_grad():
        positions, mask = torch.arange(IDS.shape[1])[None] / 4, torch.ones_like(IDS)
        expected = llama({})(IDS, attention_mask=mask, position_ids=positions, use_cache=False).logits[0]
    scaled = llama({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    torch.testing.assert_close(logits(scaled)[: IDS.shape[1]], expected, rtol=1e-4, atol=1e-4)


def test_llama_3_scales_by_a_tensor_of_factors(llama):
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    model = random_model("llama", **LLAMA_PARAMETERS, rope_parameters=rope)
    plain = 1.0 / 10000.0 ** (torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy()
    loaded = llama({}, **{"rope_freqs.weight": factors})
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    with pytest.raises(CorruptFileError, match=r"rope_freqs\.weight has \[3\] factors"):
        llama({}, **{"rope_freqs.weight": factors[:3]})


def test_without_key_heads_there_is_no_grouping(tmp_path):
    model = random_model("llama", **LLAMA_PARAMETERS | {"num_key_value_heads": HEADS})
    keys = {key: value for key, value in PLAIN.items() if key != "attention.head_count_kv"}
    tensors = stored_tensors(model, "llama", LAYERS)
    loaded, _ = load_gguf(write(tmp_path / "model.gguf", "llama", keyed("llama", keys), tensors), torch.float32)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_an_epsilon_under_the_other_norms_key(llama):
    other = {"llama.attention.layer_norm_rms_epsilon": None, "llama.attention.layer_norm_epsilon": 0.25}
    assert torch.equal(logits(llama(other)), logits(llama({})))
    with pytest.raises(UnsupportedOperationError, match=r"llama\.attention\.layer_norm_epsilon = 0\.25"):
        llama({"llama.attention.layer_norm_epsilon": 0.25})


def test_counts_as_lists_for_layers(llama):
    plain = logits(llama({}))
    lists = {"attention.head_count": HEADS, "attention.head_count_kv": KEY_HEADS, "feed_forward_length": INNER}
    assert torch.equal(logits(llama({f"llama.{key}": [value] * LAYERS for key, value in lists.items()})), plain)
    with pytest.raises(UnsupportedOperationError, match=r"attention\.head_count_kv = a list of 3"):
        llama({"llama.attention.head_count_kv": [2, 2, 4]})
    with pytest.raises(CorruptFileError, match=r"attention\.head_count_kv lists 2 values for 3 layers"):
        llama({"llama.attention.head_count_kv": [2, 2]})


@pytest.mark.parametrize(
    ("architecture", "layers", "scaled_by"), [("gemma2", 46, 12), ("gemma3", 62, 12), ("gemma3", 46, 16)]
)
def test_gemmas_of_27b_scale_by_the_hidden_size(tmp_path, architecture, layers, scaled_by):
    """As llama.cpp has it of these sizes, whose files do not say so; others scale by the head's size."""
    tensors = {f"blk.{layer}.attn_norm.weight": np.ones(HIDDEN, np.float32) for layer in range(layers)}
    tensors["token_embd.weight"] = np.ones((VOCABULARY, HIDDEN), np.float32)
    keys = keyed(architecture, PLAIN | {"block_count": layers})
    header = read_model(write(tmp_path / "model.gguf", architecture, keys, tensors))
    assert configuration(header)["query_pre_attn_scalar"] == scaled_by


def test_no_more_experts_are_used_than_there_are(tmp_path):
    architecture, keys, model_type, parameters, _ = CASES["qwen3moe"]
    tensors = stored_tensors(random_model(model_type, **COMMON | parameters), architecture, LAYERS)
    path = write(tmp_path / "m.gguf", architecture, keyed(architecture, keys | {"expert_used_count": 7}), tensors)
    with pytest.raises(CorruptFileError, match="expert_used_count is 7, more than there are experts"):
        load_gguf(path, torch.float32)


def test_every_end_of_a_text_is_one(llama, tmp_path):
    model = llama(
        {
            "tokenizer.ggml.eot_token_id": 7,
            "tokenizer.ggml.eom_token_id": 9,
            "tokenizer.ggml.fim_pad_token_id": 7,
            "tokenizer.ggml.fim_rep_token_id": 11,
        }
    )
    assert model.config.eos_token_id == [2, 7, 9, 11]
    assert open_source(tmp_path / "model.gguf").eos_token_ids == (2, 7, 9, 11)


NOT_FOLLOWED = {
    "use_parallel_residual": True,
    "tensor_data_layout": "sideways",
    "expert_count": 8,
    "expert_used_count": 2,
    "expert_weights_scale": 2.5,
    "pooling_type": 3,
    "logit_scale": 0.5,
    "residual_scale": 0.5,
    "embedding_scale": 12.0,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "attention.causal": False,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "attention.scale": 0.5,
    "attention.sliding_window": 4,
    "attention.sliding_window_pattern": 2,
    "attention.temperature_scale": 0.5,
    "attention.shared_kv_layers": 1,
    "rope.dimension_sections": [4, 4, 0, 0],
    "rope.freq_base_swa": 100.0,
    "rope.scaling.alpha": 2.0,
    "rope.scaling.yarn_ext_factor": 0.5,
    "rope.scaling.yarn_attn_factor": 2.0,
    "rope.scaling.yarn_log_multiplier": 0.1,
    "rope.scaling.attn_factor": 2.0,
    "rope.scaling.type": "dynamic",
    "rope.scale": 2.0,
    "nextn_predict_layers": 1,
    "classifier.output_labels": ["yes", "no"],
    "embedding_length_out": 7,
    "hidden_activation": "relu",
    "attention.value_length": 8,
    "something.new": 1,
}


@pytest.mark.parametrize("key", NOT_FOLLOWED)
def test_what_the_model_does_not_follow_is_refused_by_name(llama, key):
    with pytest.raises(UnsupportedOperationError) as caught:
        llama({f"llama.{key}": NOT_FOLLOWED[key]})
    assert f"llama.{key} = " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_says_nothing_new_is_accepted(llama):
    neutral = {
        "attention.causal": True,
        "attention.clamp_kqv": 0.0,
        "attention.sliding_window": 0,
        "expert_count": 0,
        "expert_weights_scale": 1.0,
        "logit_scale": 0.0,
        "pooling_type": 0,
        "rope.scaling.finetuned": True,
        "rope.scaling.yarn_log_multiplier": 0.0,
        "tensor_data_layout": "Meta AI original pth",
        "use_parallel_residual": False,
        "embedding_length_out": HIDDEN,
    }
    beside = {"general.name": "mistral", "general.quantization_version": 2, "somebody.note": "llama", "imatrix.n": 1}
    loaded = llama({f"llama.{key}": value for key, value in neutral.items()} | beside)
    assert torch.equal(logits(loaded), logits(llama({})))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", "three"),
        ("block_count", 3.0),
        ("block_count", True),
        ("block_count", [3]),
        ("embedding_length", 0),
        ("embedding_length", 2**31 + 1),
        ("embedding_length", 64),
        ("attention.head_count", 0),
        ("attention.head_count", 3),
        ("attention.head_count_kv", 3),
        ("attention.head_count_kv", 8),
        ("attention.key_length", 0),
        ("attention.layer_norm_rms_epsilon", math.nan),
        ("attention.layer_norm_rms_epsilon", -1.0),
        ("attention.layer_norm_rms_epsilon", "small"),
        ("rope.freq_base", math.inf),
        ("rope.freq_base", 0.0),
        ("rope.scaling.factor", -2.0),
        ("rope.scaling.factor", math.nan),
        ("rope.scaling.type", 1),
        ("attention.causal", 1),
        ("expert_count", False),
        ("expert_used_count", 1),
        ("vocab_size", 95),
        ("context_length", 0),
    ],
)
def test_values_that_cannot_be_are_damage(llama, key, value):
    with pytest.raises(ForerunError) as caught:
        llama({f"llama.{key}": value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [1, 2, 4, 10**9])
def test_a_layer_count_is_compared_before_anything_is_built(llama, layers):
    with pytest.raises(CorruptFileError, match=f"block_count is {layers}, and the tensors are of 3 layers"):
        llama({"llama.block_count": layers})


@pytest.mark.parametrize("key", [key for key in PLAIN if not key.endswith(("kv", "_length", "vocab_size"))])
def test_a_required_key_that_is_missing_is_named(llama, key):
    with pytest.raises(ForerunError, match=f"lacks llama.{key}"):
        llama({f"llama.{key}": None})
