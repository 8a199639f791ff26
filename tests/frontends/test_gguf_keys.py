"""Every metadata key of a GGUF file: applied, without effect, or refused by name."""

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
from tests.frontends.gguf_cases import (
    ALSO,
    CASES,
    COMMON,
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    IDS,
    INNER,
    KEY_HEADS,
    LAYERS,
    POSITIONS,
    RMS,
    SHAPE,
    WIDE,
    WITHOUT_CONSEQUENCE,
)
from tests.frontends.gguf_files import TOKENIZER, VOCABULARY, random_model, stored_tensors, write


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORERUN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def logits(model) -> torch.Tensor:
    """The logits `[length, vocabulary]` of a text beyond the cases' original lengths and windows, and of one within."""
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
    """Without a key the logits differ or the file is refused, so the test above shows that the key is read."""
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
    """A function that loads a file with keys besides the usual ones; a key with value None is left out."""

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
    """llama.cpp does this for these sizes, though their files do not say so; others scale by the head size."""
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
    with pytest.raises(CorruptFileError, match=f"block_count is {layers}, but the tensors are of 3 layers"):
        llama({"llama.block_count": layers})


@pytest.mark.parametrize("key", [key for key in PLAIN if not key.endswith(("kv", "_length", "vocab_size"))])
def test_a_required_key_that_is_missing_is_named(llama, key):
    with pytest.raises(ForerunError, match=f"lacks llama.{key}"):
        llama({f"llama.{key}": None})
