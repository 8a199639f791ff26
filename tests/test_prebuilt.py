"""A path compiled twice: the second time, what the first left on disk is read, and gives the same bits."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import forerun
from forerun.errors import InvalidOptionError
from forerun.progress import SilentProgress
from tests.models import FAMILIES

PROMPT = [5, 9, 200, 13, 5, 9]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels' code, compiled once for all tests here."""
    return tmp_path_factory.mktemp("code")


@pytest.fixture
def source(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for each in code.glob("*.ll"):
        shutil.copy(each, tmp_path / "cache")
    FAMILIES["llama"]().save_pretrained(tmp_path / "model")
    yield tmp_path / "model"
    for each in (tmp_path / "cache").glob("*.ll"):
        shutil.copy(each, code)


def compiled(path: Path, **options: object):
    """The stages of a compilation, and the tokens and logits of its model."""
    progress = SilentProgress()
    model = forerun.compile(path, "autoregressive", max_length=64, progress=progress, **options)
    result = model.generate(PROMPT, 12, return_logits=True)
    return set(progress.seconds), result.token_ids, result.logits


def folders(path: Path) -> list[Path]:
    return list((path.parent / "cache" / "models").glob("*"))


def test_the_second_start_reads_what_the_first_left(source: Path) -> None:
    stages, tokens, logits = compiled(source)
    assert "trace" in stages
    stages, again, same = compiled(source)
    assert "trace" not in stages
    assert again == tokens
    assert np.array_equal(same, logits)


def test_parts_and_limits_survive(source: Path) -> None:
    first = forerun.compile(source, "autoregressive", max_length=64).executable
    second = forerun.compile(source, "autoregressive", max_length=64).executable
    assert second.branches == first.branches != ()
    names = ("block", "width", "vocabulary", "candidates", "max_rows", "max_outputs", "max_path", "max_length")
    assert [getattr(second, each) for each in names] == [getattr(first, each) for each in names]


def test_options_and_files_make_another_model(source: Path) -> None:
    compiled(source)
    assert "trace" in compiled(source, dtype="bfloat16")[0]
    changed = FAMILIES["llama"]()
    changed.get_input_embeddings().weight.data.mul_(1.5)
    changed.save_pretrained(source)
    assert "trace" in compiled(source)[0]
    assert len(folders(source)) == 3


@pytest.mark.parametrize("name", ["weights.bin", "step.json", "arrays.npz", "model.json"])
def test_a_damaged_folder_is_made_again(source: Path, name: str) -> None:
    _, tokens, _ = compiled(source)
    (folder,) = folders(source)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    stages, again, _ = compiled(source)
    assert "trace" in stages
    assert again == tokens
    assert "trace" not in compiled(source)[0]


def test_lost_code_is_compiled_again(source: Path) -> None:
    compiled(source)
    for each in (source.parent / "cache").glob("*.ll"):
        each.unlink()
    assert "trace" in compiled(source)[0]


def test_the_room_is_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled(source)
    (first,) = folders(source)
    os.utime(first, (1, 1))
    size = sum(each.stat().st_size for each in first.iterdir())
    monkeypatch.setenv("FORERUN_CACHE_GB", str(1.5 * size / 1e9))
    compiled(source, dtype="bfloat16")
    assert first not in folders(source)
    assert len(folders(source)) == 1
    monkeypatch.setenv("FORERUN_CACHE_GB", "0")
    assert "trace" in compiled(source, dtype="bfloat16")[0]
    monkeypatch.setenv("FORERUN_CACHE_GB", "much")
    with pytest.raises(InvalidOptionError, match="FORERUN_CACHE_GB is 'much'"):
        compiled(source)
