"""A model of more than 2 GB, the limit of a protocol buffer: its weights are on disk once and never twice in memory."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM

import forerun
from forerun.progress import SilentProgress

VOCABULARY, WIDTH, HEADS, HEAD, INNER = 280_000, 2048, 2, 64, 96
LIMIT = 2**31
PROMPT = [5, 9, 200, 9, 31]
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY, "hidden_size": WIDTH,
    "intermediate_size": INNER, "num_hidden_layers": 1, "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    "head_dim": HEAD, "tie_word_embeddings": True, "max_position_embeddings": 128, "bos_token_id": 1,
    "eos_token_id": None, "rope_theta": 10000.0, "torch_dtype": "float32",
}  # fmt: skip


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    weights = sparse_model(tmp_path / "model")
    assert weights > LIMIT
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    options = ["--out", "bundle", "--max-length", "64", "--quiet"]
    command = [sys.executable, "-m", "forerun.cli", "export", "model", *options]
    subprocess.run(command, cwd=tmp_path, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert before * 1024 < weights
    assert peak < 2.2 * weights
    onnx.checker.check_model(str(tmp_path / "bundle" / "step.onnx"), full_check=True)
    loaded = forerun.load(tmp_path / "bundle", "autoregressive", progress=SilentProgress())
    found = loaded.generate(PROMPT, max_new_tokens=3, return_logits=True)
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        expected = model(torch.tensor([PROMPT + found.token_ids])).logits[0, len(PROMPT) - 1 : -1].numpy()
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, expected, atol=1e-3)
    assert found.token_ids == expected.argmax(-1).tolist()


def sparse_model(folder: Path) -> int:
    """Writes a model whose embeddings are random for 256 tokens and a hole in the file for the others; their bytes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    inside, layer = HEADS * HEAD, "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        **{f"{layer}.self_attn.{name}_proj.weight": (inside, WIDTH) for name in "qkv"},
        f"{layer}.self_attn.o_proj.weight": (WIDTH, inside),
        **{f"{layer}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")},
        f"{layer}.mlp.down_proj.weight": (WIDTH, INNER),
        f"{layer}.input_layernorm.weight": (WIDTH,),
        f"{layer}.post_attention_layernorm.weight": (WIDTH,),
        "model.norm.weight": (WIDTH,),
    }
    described, end = dict[str, object](), 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        described[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    random, start = np.random.default_rng(0), 0
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        begin = file.tell()
        for shape in shapes.values():
            file.seek(begin + start)
            rows = (min(shape[0], 256), *shape[1:])
            random.standard_normal(rows, np.float32).__imul__(0.05 if len(shape) > 1 else 1.0).tofile(file)
            start += 4 * int(np.prod(shape))
        file.truncate(begin + end)
    return end
