"""Digests of files, and what distinguishes a model on disk from every other."""

import hashlib
import os
import random
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from forerun import digests
from forerun.digests import CHUNK, file_digest, known_digest
from forerun.entries import UNFINISHED, Entry, new_entry, remove
from forerun.errors import CorruptFileError
from forerun.identity import identity


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    found: list[Path] = []
    monkeypatch.setattr(digests, "file_digest", lambda path, into: (found.append(path), file_digest(path, into))[1])
    return found


def aged(file: Path, monkeypatch: pytest.MonkeyPatch, seconds: int = 10) -> None:
    """Advances the clock, so that the file no longer counts as changed just now."""
    later = time.time_ns() + seconds * 10**9
    monkeypatch.setattr(digests.time, "time_ns", lambda: later)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_every_byte_counts(tmp_path: Path, size: int) -> None:
    content = bytearray(random.Random(size).randbytes(size))
    file = tmp_path / "file"
    file.write_bytes(content)
    into = bytearray(size)
    digest = file_digest(file, memoryview(into))
    assert into == content
    chunks = [hashlib.sha256(content[at : at + CHUNK]).digest() for at in range(0, size, CHUNK)]
    assert digest == file_digest(file) == hashlib.sha256(b"".join(chunks)).hexdigest()
    for place in {0, size // 2, size - 1} if size else ():
        content[place] ^= 1
        file.write_bytes(content)
        assert file_digest(file) != digest
        content[place] ^= 1


def test_a_file_that_has_not_changed_is_read_once(tmp_path, read, monkeypatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"text")
    aged(file, monkeypatch)
    assert known_digest(file) == known_digest(file) == file_digest(file)
    assert read == [file]


def test_a_known_file_is_read_into_a_buffer(tmp_path, read, monkeypatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(content := random.Random(0).randbytes(1000))
    aged(file, monkeypatch)
    for _ in range(2):
        into = bytearray(1000)
        assert known_digest(file, memoryview(into)) == file_digest(file)
        assert into == content
    assert read == [file]
    for size in (999, 1001):
        with pytest.raises(ValueError, match="bytes"):
            known_digest(file, memoryview(bytearray(size)))


def test_a_file_that_was_changed_just_now_is_not_trusted(tmp_path, read) -> None:
    """Its next change may have the same time."""
    file = tmp_path / "file"
    file.write_bytes(b"text")
    known_digest(file)
    known_digest(file)
    assert read == [file, file]


def test_a_change_is_seen_whatever_its_times_say(tmp_path, monkeypatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"text")
    os.utime(file, (1, 1))
    aged(file, monkeypatch)
    first = known_digest(file)
    file.write_bytes(b"next")
    os.utime(file, (1, 1))
    second = known_digest(file)
    assert first != second == file_digest(file)
    (tmp_path / "other").write_bytes(b"text")
    os.utime(tmp_path / "other", (1, 1))
    os.replace(tmp_path / "other", file)
    assert known_digest(file) == first


def test_a_file_that_changes_while_it_is_read_has_no_digest(tmp_path, monkeypatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"text")
    monkeypatch.setattr(
        digests, "file_digest", lambda path, _: (file_digest(path), path.write_bytes(b"longer text"))[0]
    )
    with pytest.raises(OSError, match="changes while it is read"):
        known_digest(file)


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"stamp": 1}', "null", '{"digest": 5}', "\0"])
def test_a_damaged_record_is_made_again(tmp_path, cache, monkeypatch, damage) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"text")
    aged(file, monkeypatch)
    digest = known_digest(file)
    (record,) = (cache / "digests").iterdir()
    whole = record.read_text()
    record.write_text(damage)
    assert known_digest(file) == digest
    assert record.read_text() == whole


def test_writers_and_removers_break_no_reader(tmp_path) -> None:
    """A reader gets what one writer wrote, or `CorruptFileError`."""
    folder, stopped, failures = tmp_path / "entry", threading.Event(), list[BaseException]()

    def repeat(work) -> None:
        try:
            while not stopped.is_set():
                work()
        except BaseException as error:
            failures.append(error)

    def write() -> None:
        with new_entry(folder) as unfinished:
            text = str(threading.get_ident()) * 1000
            (unfinished / "one").write_text(text)
            (unfinished / "two").write_text(text)

    threads = [threading.Thread(target=repeat, args=[work]) for work in (write, write, lambda: remove(folder))]
    for each in threads:
        each.start()
    whole = broken = 0
    ending = time.monotonic() + 3
    while time.monotonic() < ending:
        try:
            entry = Entry(folder)
            assert set(entry.read("one")) <= set(b"0123456789")
            whole += 1
        except CorruptFileError:
            broken += 1
    stopped.set()
    for each in threads:
        each.join()
    assert not failures
    assert whole
    assert broken
    assert not [*tmp_path.glob(f"{UNFINISHED}*")]


def model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_links_are_followed_and_hidden_files_are_not(tmp_path) -> None:
    folder = model(tmp_path / "model")
    (tmp_path / "blob").write_bytes(b"first")
    (folder / "tokenizer.json").symlink_to(tmp_path / "blob")
    first = identity(folder)
    (tmp_path / "blob").write_bytes(b"other")
    assert identity(folder) != first
    (tmp_path / "blob").write_bytes(b"first")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    (folder / "loop").symlink_to(folder)
    assert identity(folder) == first


def test_what_an_index_points_at_is_included(tmp_path) -> None:
    folder = model(tmp_path / "model")
    (tmp_path / "shard").write_bytes(b"first")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../shard", "b": 5, "c": "nothing"}}')
    first = identity(folder)
    (tmp_path / "shard").write_bytes(b"other")
    assert identity(folder) != first


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 5}', "[" * 100000, "\xff"])
def test_a_damaged_index_is_no_error(tmp_path, text) -> None:
    folder = model(tmp_path / "model")
    (folder / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    assert identity(folder)


def test_a_folder_without_a_model_is_not_walked(tmp_path) -> None:
    assert identity(tmp_path) is None
    assert identity(Path("/usr")) is None
    assert identity(tmp_path / "nothing") is None
    os.mkfifo(tmp_path / "pipe")
    assert identity(tmp_path / "pipe") is None
    folder = model(tmp_path / "model")
    os.mkfifo(folder / "pipe")
    assert identity(folder)


def test_a_models_own_code_may_use_every_package(tmp_path) -> None:
    folder = model(tmp_path / "model")
    (folder / "config.json").write_text('{"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}')
    assert f"pytest {version('pytest')}" in identity(folder)


def test_all_parts_of_a_split_file_count(tmp_path) -> None:
    for number in (1, 2):
        (tmp_path / f"big-0000{number}-of-00002.gguf").write_bytes(b"GGUF" + bytes([number]))
    (tmp_path / "big-00001-of-00003.gguf").write_bytes(b"GGUF")
    first = tmp_path / "big-00001-of-00002.gguf"
    whole = identity(first)
    assert len(whole) == 2
    (tmp_path / "big-00002-of-00002.gguf").write_bytes(b"GGUF!")
    assert identity(first) != whole
