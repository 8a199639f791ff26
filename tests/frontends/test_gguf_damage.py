"""Damaged GGUF files give one sentence, quickly and in little memory; models may be split into several files."""

import shutil
import struct
import threading
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from forerun.errors import (
    CorruptFileError,
    ForerunError,
    NotAModelError,
    SourceNotFoundError,
    UnsupportedOperationError,
)
from forerun.frontends.gguf import load_gguf
from forerun.frontends.gguf_header import read_header
from forerun.frontends.source import open_source
from tests.frontends.gguf_files import TOKENIZER, TOKENS, VOCABULARY, add, random_model, stored_tensors, write

LAYERS = 2
PARAMETERS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
METADATA = {
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.block_count": LAYERS,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
} | TOKENIZER


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORERUN_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def model():
    return random_model("llama", **PARAMETERS)


@pytest.fixture(scope="module")
def tensors(model):
    return stored_tensors(model, "llama", LAYERS)


@pytest.fixture(scope="module")
def whole(tensors, tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf", "llama", METADATA, tensors)


def refused(error: type[ForerunError], path: Path, *words: str) -> None:
    with pytest.raises(error) as caught:
        load_gguf(path, torch.float32)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    for word in words:
        assert word in message


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(
    keys: list[bytes], table: list[tuple[str, list[int], int, int]], counts: tuple[int, int] | None = None
) -> bytes:
    """A GGUF written by hand: keys as stored in the file, and tensors as (name, dimensions, encoding, offset)."""
    content = b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(table), len(keys)))) + b"".join(keys)
    for name, dimensions, encoding, offset in table:
        content += text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, encoding, offset)
    return content + b"\0" * (-len(content) % 32) + b"\0" * 4096


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header([ARCHITECTURE], [("a", [32, 4], 0, 0), ("b", [32, 4], 0, 256)]), "places b in the bytes of a"),
        (header([ARCHITECTURE], [("b", [32, 4], 0, 64), ("a", [32, 4], 0, 0)]), "places b in the bytes of a"),
        (header([ARCHITECTURE], [("a", [32, 4], 0, 0), ("b", [32, 4], 0, 0)]), "in the bytes of"),
        (header([ARCHITECTURE], [("a", [32, 4], 0, 16)]), "offset 16, which is not a multiple of 32"),
        (header([ARCHITECTURE], [("a", [8], 0, 0), ("a", [8], 0, 32)]), "two tensors named a"),
        (header([ARCHITECTURE, ARCHITECTURE], []), "general.architecture twice"),
        (header([ARCHITECTURE], [("a", [2**62, 2**62], 0, 0)]), "cut short"),
        (header([ARCHITECTURE], [("a", [2**63, 2, 2, 2], 0, 0)]), "cut short"),
        (header([ARCHITECTURE], [("a", [0, 4], 0, 0)]), "impossible shape"),
        (header([ARCHITECTURE], [("a", [], 0, 0)]), "0 dimensions"),
        (header([ARCHITECTURE], [("a", [1] * 5, 0, 0)]), "5 dimensions"),
        (header([ARCHITECTURE], [("a", [32], 0, 2**63)]), "cut short"),
        (header([ARCHITECTURE], [("", [32], 0, 0)]), "without a readable name"),
        (header([ARCHITECTURE], [], (2**60, 1)), "tensors, more than it has room for"),
        (header([ARCHITECTURE], [], (0, 2**60)), "metadata keys, more than it has room for"),
        (header([ARCHITECTURE], [], (0, 50)), "without a readable name"),
        (header([text("k") + struct.pack("<IIQ", 9, 8, 2**60)], []), "strings in an array, more"),
        (header([text("k") + struct.pack("<IIQ", 9, 4, 2**60)], []), "ends inside its header"),
        (header([text("k") + struct.pack("<IIQ", 9, 9, 1)], []), "array of the type 9"),
        (header([text("k") + struct.pack("<IQ", 8, 2**63)], []), "ends inside its header"),
        (header([text("k") + struct.pack("<IB", 7, 2)], []), "stores 2 as a boolean"),
        (header([text("k") + struct.pack("<I", 13)], []), "unknown type 13"),
        (header([struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", 4, 1)], []), "without a readable name"),
        (header([text("general.alignment") + struct.pack("<II", 4, 0)], []), "alignment of 0"),
        (header([text("general.alignment") + struct.pack("<II", 4, 48)], []), "alignment of 48"),
        (header([text("general.alignment") + struct.pack("<I", 8) + text("32")], []), "alignment of '32'"),
        (header([], []), "names no architecture"),
    ],
)
def test_headers_that_cannot_be(tmp_path, content, words):
    (tmp_path / "bad.gguf").write_bytes(content)
    refused(ForerunError, tmp_path / "bad.gguf", words)


def test_an_encoding_that_nobody_knows(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(header([ARCHITECTURE], [("a", [32], 99, 0)]))
    refused(UnsupportedOperationError, tmp_path / "bad.gguf", "a in the unknown encoding 99")


def test_sizes_that_the_tensors_contradict_ask_for_no_memory(tensors, tmp_path):
    """Matrices of these sizes would take terabytes."""
    huge = {
        "llama.embedding_length": 2**20,
        "llama.feed_forward_length": 2**30,
        "llama.attention.head_count": 2**20,
        "llama.attention.key_length": 2**20,
    }
    for key, value in huge.items():
        path = write(tmp_path / "bad.gguf", "llama", METADATA | {key: value}, tensors)
        started = time.monotonic()
        refused(ForerunError, path)
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_a_sentence(whole, tmp_path, seed):
    """Header bytes are set at random, alone and in runs, and the file is cut: it loads, or says what is wrong."""
    generator = np.random.default_rng(seed)
    content = whole.read_bytes()
    first = min(entry.start for entry in read_header(whole).tensors)
    path = tmp_path / "bad.gguf"
    outcomes = set()
    for _ in range(60):
        harmed = bytearray(content)
        start, length = int(generator.integers(4, first)), int(generator.choice([1, 1, 1, 4, 8]))
        harmed[start : start + length] = generator.choice([0, 1, 127, 255, *generator.bytes(2)], length).tolist()
        if generator.random() < 0.1:
            del harmed[int(generator.integers(8, len(harmed))) :]
        path.write_bytes(harmed)
        started = time.monotonic()
        try:
            load_gguf(path, torch.float32)
            outcomes.add("loads")
        except ForerunError as error:
            outcomes.add("two lines" if "\n" in str(error) else "refused")
        assert time.monotonic() - started < 30
    assert {"refused"} <= outcomes <= {"refused", "loads"}


DAMAGED_TOKENIZERS: dict[str, dict[str, Any]] = {
    "tokens lists 0": {"tokens": None, "no": 1},
    "tokens is not a list of strings": {"tokens": "all"},
    "tokens lists 97 tokens": {"tokens": [*TOKENS, "more"], "token_type": None},
    "token_type is not a list of 96": {"token_type": [1] * 5},
    "merges holds 'ab', which is not a pair": {"merges": ["ab"]},
    "merges is missing": {"merges": None},
    "damaged tokenizer": {"merges": ["xyz abc"]},
    "eos_token_id is 96": {"eos_token_id": 96},
    "bos_token_id is 4294967295": {"bos_token_id": 2**32 - 1},
    "unknown_token_id is 'x'": {"unknown_token_id": "x"},
    "eot_token_id is 200": {"eot_token_id": 200},
    "add_bos_token is neither": {"add_bos_token": 1},
    "kind 'strange'": {"model": "strange"},
    "model is not a string": {"model": [1, 2]},
    "pre is not a string": {"pre": 7},
    "kind None": {"model": None},
}


@pytest.mark.parametrize("words", DAMAGED_TOKENIZERS)
def test_a_damaged_tokenizer_is_not_no_tokenizer(tensors, tmp_path, words):
    changes = {f"tokenizer.ggml.{key}": value for key, value in DAMAGED_TOKENIZERS[words].items()}
    metadata = {key: value for key, value in (METADATA | changes).items() if value is not None}
    path = write(tmp_path / "bad.gguf", "llama", metadata, tensors)
    refused(ForerunError, path, "tokens is not a list" if words == "tokens lists 0" else words)


def test_a_file_without_a_tokenizer_has_none(tensors, model, tmp_path):
    metadata = {key: value for key, value in METADATA.items() if not key.startswith("tokenizer.")}
    loaded, tokenizer = load_gguf(write(tmp_path / "m.gguf", "llama", metadata, tensors), torch.float32)
    assert tokenizer is None
    assert loaded.config.vocab_size == VOCABULARY
    assert loaded.config.eos_token_id is None


def test_tokens_that_are_added_on_encoding(tensors, tmp_path):
    for flag, ids in (("add_bos_token", [1, 95]), ("add_eos_token", [95, 2])):
        path = write(tmp_path / "m.gguf", "llama", METADATA | {f"tokenizer.ggml.{flag}": True}, tensors)
        tokenizer = load_gguf(path, torch.float32)[1]
        assert tokenizer is not None
        assert tokenizer.encode("ab") == ids


PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(70)),
    "▁",
    "a",
    "b",
    "▁a",
    "ab",
    "▁ab",
    "1",
    "2",
    "12",
]


@pytest.mark.parametrize(("prefix", "first"), [(None, "▁ab"), (True, "▁ab"), (False, "ab")])
def test_a_sentencepiece_text_begins_with_a_space_or_not(tensors, tmp_path, prefix, first):
    changes = {
        "model": "llama",
        "tokens": PIECES,
        "scores": [-float(index) for index in range(len(PIECES))],
        "token_type": [2, 3, 3, *[6] * 70, *[1] * (len(PIECES) - 73)],
        "merges": None,
        "add_space_prefix": prefix,
    }
    metadata = METADATA | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    present = {key: value for key, value in metadata.items() if value is not None}
    tokenizer = load_gguf(write(tmp_path / "m.gguf", "llama", present, tensors), torch.float32)[1]
    assert tokenizer is not None
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("ab ab")) == ["<s>", first, "▁ab"]
    assert tokenizer.decode(tokenizer.encode("ab ab")[1:]) == "ab ab"


@pytest.mark.parametrize(
    ("pre", "cut"), [("gpt-2", "12 12"), ("smollm", "1 2 1 2"), ("qwen2", "1 2 1 2"), ("falcon", "12 12")]
)
def test_texts_are_cut_before_merges_as_the_file_says(tensors, tmp_path, pre, cut):
    vocabulary = [*TOKENS[:-1], "12"]
    changes = {"pre": pre, "tokens": vocabulary, "merges": ["1 2"]}
    metadata = METADATA | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    tokenizer = load_gguf(write(tmp_path / "m.gguf", "llama", metadata, tensors), torch.float32)[1]
    assert tokenizer is not None
    assert " ".join(tokenizer.convert_ids_to_tokens(tokenizer.encode("12!12"))).replace(" ! ", " ") == cut


def test_words_of_llama_3_are_tokens_without_merges_and_texts_begin_with_bos(tensors, tmp_path):
    tokens = [*TOKENS[:-2], "ab", "abc"]
    metadata = METADATA | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": tokens}
    for flag, ids in ((None, [1, 95]), (False, [95])):
        stated = metadata if flag is None else metadata | {"tokenizer.ggml.add_bos_token": flag}
        tokenizer = load_gguf(write(tmp_path / "m.gguf", "llama", stated, tensors), torch.float32)[1]
        assert tokenizer is not None
        assert tokenizer.encode("abc") == ids


def test_what_a_tokenizer_does_not_follow_is_refused(tensors, tmp_path):
    for key, value in {"pre": "no-such-cut", "suppress_tokens": [3, 4]}.items():
        path = write(tmp_path / "bad.gguf", "llama", METADATA | {f"tokenizer.ggml.{key}": value}, tensors)
        refused(UnsupportedOperationError, path, f"tokenizer.ggml.{key}")
    refused(NotAModelError, write(tmp_path / "bad.gguf", "llama", METADATA | {"general.type": "adapter"}, tensors))


def split(folder: Path, tensors: dict[str, np.ndarray], count: int = 3, stem: str = "model") -> list[Path]:
    """The parts that gguf-split writes: all metadata in the first, and a share of the tensors in each."""
    paths = [folder / f"{stem}-{part + 1:05}-of-{count:05}.gguf" for part in range(count)]
    for part, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        if part == 0:
            add(writer, METADATA)
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(tensors))
        for name in list(tensors)[part::count]:
            writer.add_tensor(name, np.ascontiguousarray(tensors[name]))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_a_split_model_is_opened_by_its_first_part(tensors, whole, tmp_path):
    parts = split(tmp_path, tensors)
    joined, single = open_source(parts[0]).importer.weights, open_source(whole).importer.weights
    assert joined.keys() == single.keys()
    assert all(torch.equal(joined[name], single[name]) for name in single)


def test_blocks_of_a_split_model_are_kept(tensors, tmp_path):
    kind = gguf.GGMLQuantizationType.Q8_0
    quantized = {name: gguf.quants.quantize(v, kind) if v.ndim > 1 else v for name, v in tensors.items()}
    parts = [tmp_path / f"q-{part + 1:05}-of-00002.gguf" for part in range(2)]
    for part, path in enumerate(parts):
        writer = gguf.GGUFWriter(path, "llama")
        add(writer, METADATA if part == 0 else {})
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        for name in list(tensors)[part::2]:
            raw = kind if tensors[name].ndim > 1 else None
            writer.add_tensor(name, np.ascontiguousarray(quantized[name]), raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    source = open_source(parts[0], native=True)
    assert source.native is not None
    matrices = {name for name, each in source.importer.weights.items() if each.dim() == 2}
    assert set(source.native.blocks) == matrices
    for name, blocks in source.native.blocks.items():
        values = gguf.quants.dequantize(blocks.flatten(1).numpy(), kind)
        assert torch.equal(source.importer.weights[name], torch.from_numpy(values))


def test_parts_that_are_missing_or_others(tensors, tmp_path):
    parts = split(tmp_path, tensors)
    refused(NotAModelError, parts[1], "part 2 of 3", parts[0].name)
    strangers = split(tmp_path, dict(list(tensors.items())[:4]), stem="other")
    kept = parts[2].read_bytes()
    shutil.copy(parts[1], parts[2])
    with pytest.raises(CorruptFileError, match="says that it is part 2 of 3, but its name says 3"):
        load_gguf(parts[0], torch.float32)
    shutil.copy(strangers[2], parts[2])
    with pytest.raises(CorruptFileError, match=r"both hold|promises"):
        load_gguf(parts[0], torch.float32)
    parts[2].unlink()
    with pytest.raises(SourceNotFoundError, match=r"model-00003-of-00003\.gguf, part 3 of 3"):
        load_gguf(parts[0], torch.float32)
    parts[2].write_bytes(kept[: len(kept) // 2])
    with pytest.raises(CorruptFileError, match=r"model-00003-of-00003\.gguf"):
        load_gguf(parts[0], torch.float32)
    renamed = parts[0].rename(tmp_path / "model.gguf")
    refused(NotAModelError, renamed, "first of 3 parts", "-00001-of-00003.gguf")


def test_threads_read_each_their_own_file(model, tensors, whole, tmp_path):
    """Two files of different sizes are read at once: neither gets the other's header."""
    narrow = random_model("llama", **PARAMETERS | {"intermediate_size": 16})
    other = METADATA | {"llama.feed_forward_length": 16, "tokenizer.ggml.eos_token_id": 5}
    small = write(tmp_path / "small.gguf", "llama", other, stored_tensors(narrow, "llama", LAYERS))
    failures: list[BaseException] = []

    def load(path: Path, size: int, end: int) -> None:
        try:
            for _ in range(4):
                loaded, tokenizer = load_gguf(path, torch.float32)
                assert (loaded.config.intermediate_size, loaded.config.eos_token_id) == (size, end)
                assert tokenizer is not None
                assert tokenizer.eos_token_id == end
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load, args=args) for args in ((whole, 64, 2), (small, 16, 5)) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_no_name_of_the_gguf_package_is_replaced(whole, monkeypatch):
    """Reading must not pass through the package's own reader, which transformers imports by name."""

    def fail(*args, **kwargs):
        raise AssertionError("the package's reader was asked")

    monkeypatch.setattr(gguf, "GGUFReader", fail)
    assert load_gguf(whole, torch.float32)[1] is not None
