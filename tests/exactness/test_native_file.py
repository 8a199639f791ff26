"""A tiny GGUF file whose matrices have every format that files can have, kept as they are: the contract, the bits."""

from itertools import cycle
from pathlib import Path

import gguf
import numpy as np
import pytest

import forerun
from forerun import ir
from forerun.frontends.source import open_source
from forerun.runtime.certify import certify
from tests.frontends.gguf_files import TOKENIZER, VOCABULARY, add, random_model, stored_tensors
from tests.quantized import random_blocks

pytestmark = pytest.mark.real
LAYERS, HIDDEN, INNER, HEADS, GROUPS = 2, 256, 512, 4, 2
FORMATS = ("F16", "BF16", *(name.upper() for name in ir.ENCODINGS))
PROMPT = [5, 9, 5, 9, 17, 5, 9]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("native") / "tiny.gguf")


def written(path: Path) -> Path:
    """Writes a file as llama.cpp does; each matrix has another format."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": GROUPS, "max_position_embeddings": 256}
    model = random_model("llama", **sizes, **heads, tie_word_embeddings=False)
    writer = gguf.GGUFWriter(path, "llama")
    keys = {"block_count": LAYERS, "context_length": 256, "embedding_length": HIDDEN, "feed_forward_length": INNER}
    counts = {"attention.head_count": HEADS, "attention.head_count_kv": GROUPS, "rope.dimension_count": HIDDEN // HEADS}
    add(writer, {f"llama.{key}": value for key, value in (keys | counts).items()})
    add(writer, {"llama.attention.layer_norm_rms_epsilon": 1e-5} | TOKENIZER)
    formats = cycle(FORMATS)
    for name, values in stored_tensors(model, "llama", LAYERS).items():
        if values.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(values))
            continue
        encoding = next(formats)
        kind = gguf.GGMLQuantizationType[encoding]
        known = encoding.lower() in ir.ENCODINGS
        blocks = random_blocks(*values.shape, encoding.lower()) if known else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def compiled(file: Path, **options: str) -> forerun.CompiledModel:
    strategy = forerun.TreeSpec(policy=forerun.Fixed(8))
    return forerun.compile(file, strategy, target="cpu", max_length=128, **options)


def test_every_format_is_kept(file: Path) -> None:
    native = open_source(file, native=True).native
    assert native is not None
    stored = {"bf16", "f16", *ir.ENCODINGS}
    assert set(native.storages.values()) == stored


def test_exact_products_have_the_bits_of_float32(file: Path) -> None:
    native, wide = compiled(file, dtype="native", arithmetic="float32"), compiled(file, dtype="float32")
    kept, expanded = (each.generate(PROMPT, 24, return_logits=True) for each in (native, wide))
    assert kept.has_bits_of(expanded)


def test_narrow_products_keep_the_contract(file: Path) -> None:
    model = compiled(file, dtype="native")
    report = certify(model.executable, cases=5, seed=3)
    assert report.exact, str(report)
    plain = forerun.with_strategy(model, "autoregressive")
    fast, slow = (each.generate(PROMPT, 24, return_logits=True) for each in (model, plain))
    assert fast.has_bits_of(slow)
    assert fast.stats.rows > fast.stats.steps
