"""A tiny GGUF file with experts in quantized blocks, kept as they are: the contract, and the values of the blocks."""

from pathlib import Path

import gguf
import numpy as np
import pytest

import forerun
from forerun.runtime.certify import certify
from tests.frontends.gguf_files import TOKENIZER, VOCABULARY, add, random_model, stored_tensors
from tests.quantized import random_blocks

LAYERS, HIDDEN, INNER, EXPERTS, HEADS = 2, 256, 256, 4, 4
FORMATS = {"ffn_gate_exps": "Q4_K", "ffn_up_exps": "Q4_K", "ffn_down_exps": "Q6_K", "attn_q": "Q8_0"}
PROMPT = [5, 9, 5, 9, 17, 5, 9]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("native") / "experts.gguf"
    model = random_model(
        "qwen3_moe",
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        moe_intermediate_size=INNER,
        num_experts=EXPERTS,
        num_experts_per_tok=2,
        num_hidden_layers=LAYERS,
        vocab_size=VOCABULARY,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )
    writer = gguf.GGUFWriter(path, "qwen3moe")
    keys = {
        "block_count": LAYERS,
        "context_length": 256,
        "embedding_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.key_length": HIDDEN // HEADS,
        "attention.value_length": HIDDEN // HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "expert_count": EXPERTS,
        "expert_used_count": 2,
        "expert_feed_forward_length": INNER,
    }
    add(writer, {f"qwen3moe.{key}": value for key, value in keys.items()})
    add(writer, TOKENIZER)
    for name, values in stored_tensors(model, "qwen3moe", LAYERS).items():
        encoding = FORMATS.get(name.split(".")[-2])
        if encoding is None:
            writer.add_tensor(name, np.ascontiguousarray(values))
            continue
        blocks = random_blocks(int(np.prod(values.shape[:-1])), values.shape[-1], encoding.lower())
        writer.add_tensor(name, blocks.reshape(*values.shape[:-1], -1), raw_dtype=gguf.GGMLQuantizationType[encoding])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def compiled(file: Path, **options: str) -> forerun.CompiledModel:
    strategy = forerun.TreeSpec(policy=forerun.Fixed(8))
    return forerun.compile(file, strategy, target="cpu", max_length=128, **options)


@pytest.fixture(scope="module")
def narrow(file: Path) -> forerun.CompiledModel:
    return compiled(file, dtype="native")


def test_experts_keep_their_blocks(narrow: forerun.CompiledModel) -> None:
    stored = {name: each.element for name, each in narrow.executable.step.weights.items() if "experts" in name}
    assert len(stored) == 2 * LAYERS
    assert set(stored.values()) == {"q4_k", "q6_k"}


def test_products_of_integers_are_certified(narrow: forerun.CompiledModel) -> None:
    report = certify(narrow.executable, cases=10, seed=1)
    assert report.exact, str(report)


def test_blocks_have_the_values_of_the_dequantized_file(file: Path) -> None:
    kept, plain = compiled(file, dtype="native", arithmetic="float32"), compiled(file, dtype="float32")
    found, expected = (each.generate(PROMPT, 24, return_logits=True) for each in (kept, plain))
    assert found.token_ids == expected.token_ids
    assert np.allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
