"""The cache of what transformers converts from a GGUF header: an entry is found unchanged, or made again."""

import shutil
from pathlib import Path

import pytest
import tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from forerun.frontends import gguf_cache
from forerun.frontends.gguf_cache import cached_conversion

CONFIG = {"hidden_size": 64, "model_type": "llama"}


@pytest.fixture
def converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Requests a conversion; returns the words' ids and whether the conversion was made again."""
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path / "cache"))

    def ask(digest: str = "header") -> tuple[list[int], bool]:
        made: list[bool] = []

        def convert():
            made.append(True)
            model = WordLevel({"none": 0, "one": 1, "two": 2}, unk_token="none")
            return CONFIG, PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(model), unk_token="none")

        config, tokenizer = cached_conversion(digest, convert)
        assert config == CONFIG
        assert tokenizer is not None
        return tokenizer.encode("two"), bool(made)

    return ask


def test_a_header_is_converted_once(converted) -> None:
    assert converted() == ([2], True)
    assert converted() == ([2], False)
    assert converted("another") == ([2], True)


def test_other_code_or_libraries_convert_again(converted, monkeypatch) -> None:
    converted()
    monkeypatch.setattr(gguf_cache, "version", lambda name: "another")
    assert converted() == ([2], True)
    monkeypatch.undo()


def test_no_damage_is_an_error_or_another_token(converted, tmp_path) -> None:
    converted()
    (folder,) = (tmp_path / "cache" / "gguf").iterdir()
    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in (each.relative_to(copy) for each in copy.rglob("*") if each.is_file()):
        for damaged in (b"", b"{}", (copy / file).read_bytes().replace(b"2", b"1") + b" "):
            (folder / file).write_bytes(damaged)
            assert converted()[0] == [2], (file, damaged)
            assert converted() == ([2], False)
        (folder / file).unlink()
        assert converted() == ([2], True)
