"""A path is compiled twice: the second time reads what the first left on disk, and gives the same bits."""

import inspect
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers.models import WordLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

import forerun
from forerun import build as building
from forerun import entries, prebuilt, storage
from forerun.build import LengthWarning, build
from forerun.codegen.backends import BACKENDS
from forerun.errors import InvalidOptionError
from forerun.execute.tvm import code as kept_code
from forerun.prebuilt import Built
from forerun.progress import SilentProgress
from tests.models import FAMILIES

TOKENIZER = prebuilt.TOKENIZER
KEPT = BACKENDS["cpu"].kept
assert KEPT is not None
PROMPT = [5, 9, 200, 13, 5, 9]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels' code, compiled once for all tests here."""
    return tmp_path_factory.mktemp("code")


@pytest.fixture
def source(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for each in code.iterdir():
        shutil.copy(each, tmp_path / "cache")
    FAMILIES["llama"]().save_pretrained(tmp_path / "model")
    yield tmp_path / "model"
    for each in kept_files(tmp_path / "cache"):
        shutil.copy(each, code)


def kept_files(cache: Path) -> list[Path]:
    """The files of compiled code."""
    return [each for each in cache.iterdir() if each.suffix in (kept_code.IR, kept_code.LIBRARY) and each.is_file()]


def word_tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["none", "one", "two", "three"])}
    made = tokenizers.Tokenizer(WordLevel(words, unk_token="none"))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="none")


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


START = """
import json, sys
import forerun
model = forerun.compile({source!r}, {strategy}, max_length=64)
model.generate([5, 9, 200], 4)
print(json.dumps(sorted(sys.modules)))
"""
BARE = "import json, sys, torch, transformers, tvm; print(json.dumps(sorted(sys.modules)))"
FRONT_HALF = ("xdsl", "forerun.ir", "forerun.passes", "forerun.frontends.source", "forerun.frontends.torch_export")
CODE_GENERATORS = ("forerun.codegen.tvm.lowering", "forerun.codegen.triton.lowering", "forerun.codegen.reference")
TRACERS = ("torch.export", "torch._export", "torch._dynamo", "torch._inductor", "transformers.modeling_utils")


def modules(program: str) -> set[str]:
    """The modules imported by the end of a program, run in a process of its own."""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def bare() -> set[str]:
    """The modules that the libraries import by themselves."""
    return modules(BARE)


@pytest.mark.parametrize(
    "strategy",
    ["'autoregressive'", "forerun.TreeSpec()", "forerun.TreeSpec(drafters=(forerun.DraftModel({source!r}),))"],
)
def test_the_second_start_imports_no_compiler(source: Path, bare: set[str], strategy: str) -> None:
    """No xDSL, tracing or code generator is imported: what is kept is read and run."""
    word_tokenizer().save_pretrained(source)
    program = START.format(source=str(source), strategy=strategy.format(source=str(source)))
    assert "xdsl" in modules(program)
    imported = modules(program)
    assert "forerun.execute.tvm.executable" in imported, "the model runs"
    for name in (*FRONT_HALF, *CODE_GENERATORS):
        assert not [each for each in imported if each == name or each.startswith(f"{name}.")]
    for name in TRACERS:
        new = [each for each in imported - bare if each == name or each.startswith(f"{name}.")]
        assert not new, "a library may bring these by itself; forerun does not ask for more"


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


def flipped(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[random.Random(file.name).randrange(len(content))] ^= 0x10
    file.write_bytes(content)


def replaced(file: Path) -> None:
    file.unlink()
    file.mkdir()


def linked(file: Path) -> None:
    file.rename(file.parent.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent.parent / "elsewhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b" "),
    "empty": lambda file: file.write_bytes(b""),
    "flipped": flipped,
    "missing": lambda file: file.unlink(),
    "a folder": replaced,
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a link": linked,
}


def code_of(folder: Path) -> Path:
    key = json.loads((folder / "step.json").read_text())["key"]
    [found] = [each for each in kept_files(folder.parent.parent) if each.stem == key]
    return found


def test_no_damaged_file_is_read(source: Path, tmp_path: Path) -> None:
    """Every file of a kept model and its code, damaged in every way: never an error, never the model."""
    word_tokenizer().save_pretrained(source)
    compiled(source)
    (folder,) = folders(source)
    code = code_of(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    names = [each.relative_to(copy) for each in copy.rglob("*") if each.is_file()]
    assert len(names) >= 6
    assert prebuilt.load(folder, KEPT).tokenizer.encode("two") == [2]
    for kind, damage in DAMAGES.items():
        for name in names:
            if kind == "longer" and name.name == entries.CHECKSUMS:
                continue  # space after JSON
            damage(folder / name)
            assert prebuilt.load(folder, KEPT) is None, (damage, name)
            shutil.rmtree(folder)
            shutil.copytree(copy, folder)
        if damage is linked:
            continue  # code reached through a link is whole
        whole = code.read_bytes()
        damage(code)
        assert prebuilt.load(folder, KEPT) is None, (damage, code)
        shutil.rmtree(code) if code.is_dir() else code.unlink(missing_ok=True)
        code.write_bytes(whole)
    (folder / TOKENIZER / "added_tokens.json").write_text('{"two": 9}')
    assert prebuilt.load(folder, KEPT) is None


@pytest.mark.parametrize("damage", ["flipped", "a folder"])
def test_what_is_damaged_is_made_again(source: Path, damage: str) -> None:
    word_tokenizer().save_pretrained(source)
    _, tokens, logits = compiled(source)
    (folder,) = folders(source)
    for name in (folder / "weights.bin", folder / TOKENIZER / "tokenizer.json", code_of(folder)):
        DAMAGES[damage](name)
    stages, again, same = compiled(source)
    assert "trace" in stages
    assert again == tokens
    assert np.array_equal(same, logits)
    assert "trace" not in compiled(source)[0]
    assert prebuilt.load(folder, KEPT).tokenizer.encode("two") == [2]


def test_two_files_of_one_size_time_and_ends_are_two_models(source: Path) -> None:
    weights = source / "model.safetensors"
    times = weights.stat().st_mtime_ns, weights.stat().st_mtime_ns
    os.utime(weights, ns=times)
    _, _, logits = compiled(source)
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    place = next(at for at in range(middle, len(content), 4) if content[at + 3] & 0x7F in (0x3D, 0x3E))
    content[place + 3] ^= 0x80  # the sign of a weight far from both ends
    weights.write_bytes(content)
    os.utime(weights, ns=times)
    stages, _, others = compiled(source)
    assert "trace" in stages
    assert not np.array_equal(logits, others)
    assert len(folders(source)) == 2


def test_whatever_the_text_depends_on_makes_another_folder(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"dtype": "float32", "max_length": 64}
    names = [prebuilt.folder_for(source, options, KEPT)]
    for name in ("generation_config.json", "modeling_own.py", "chat_template.jinja", "sub/part.py"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
        names.append(prebuilt.folder_for(source, options, KEPT))
    monkeypatch.setenv("TVM_SOMETHING", "1")
    names.append(prebuilt.folder_for(source, options, KEPT))
    names.append(prebuilt.folder_for(source, options | {"generation_config": GenerationConfig(do_sample=True)}, KEPT))
    names.append(prebuilt.folder_for(source, options | {"generation_config": GenerationConfig(do_sample=False)}, KEPT))
    names.append(prebuilt.folder_for(source, options | {"trust_remote_code": True}, KEPT))
    assert None not in names
    assert len(set(names)) == len(names)
    assert prebuilt.folder_for(source, options | {"hook": print}, KEPT) is None  # there is no telling what it does


@pytest.mark.parametrize("name", ["adapter_config.json", "config.json"])
def test_a_model_whose_text_depends_on_another_place_is_not_kept(source: Path, name: str) -> None:
    (source / name).write_text('{"auto_map": {"AutoModel": "owner/other--modeling.Own"}}')
    assert prebuilt.folder_for(source, {}, KEPT) is None


def test_every_argument_that_shapes_the_text_is_in_the_key(monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    asked: list[Mapping[str, object]] = []
    monkeypatch.setattr(prebuilt, "folder_for", lambda path, options, kept: asked.append(options))
    compiled(source)
    assert {*asked[0]} == {*inspect.signature(build).parameters} - {"source", "dump_dir", "progress", "threads"}


def test_a_model_that_changes_while_it_is_compiled_is_not_kept(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = building.generate_code

    def changing(*arguments: Any) -> Any:
        (source / "config.json").write_text((source / "config.json").read_text() + " ")
        return original(*arguments)

    monkeypatch.setattr(building, "generate_code", changing)
    compiled(source)
    assert folders(source) == []


def test_dependencies_are_part_of_the_key() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert {re.split("[<>=]", each)[0] for each in project["dependencies"]} <= {*prebuilt.LIBRARIES}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "forerun"]


def test_a_cache_that_is_a_file_is_said_once_and_done_without(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, tokens, _ = compiled(source)
    (source.parent / "file").write_text("")
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(source.parent / "file"))
    monkeypatch.setattr(storage, "_said", set())
    assert compiled(source)[1] == tokens
    once = said(caplog)
    assert len(once) == 1
    assert "kept for the next start" in once[0]
    assert compiled(source)[1] == tokens
    assert said(caplog) == once


def test_a_capped_length_is_said_at_every_start(source: Path) -> None:
    for _ in range(2):
        with pytest.warns(LengthWarning, match="was capped at"):
            forerun.compile(source, "autoregressive", max_length=9999)


def test_no_unusable_cache_is_an_error(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    executable = forerun.compile(source, "autoregressive", max_length=64).executable
    built = Built(executable, word_tokenizer(), (3,))
    for place in ("/proc/nothing", "x" * 300, "~nobody-of-this-name/cache"):
        monkeypatch.setenv("FORERUN_CACHE_DIR", place)
        monkeypatch.setattr(storage, "_said", set())
        caplog.clear()
        folder = prebuilt.folder_for(source, {}, KEPT)
        assert (folder is None) == place.startswith("~")
        if folder is not None:
            assert prebuilt.load(folder, KEPT) is None
            prebuilt.save(folder, built, KEPT)
        assert kept_code.load("key") is None
        kept_code.save("key", executable.code)
        assert any("kept for the next start" in each for each in said(caplog)), place


def test_a_full_disk_is_said_and_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    word_tokenizer().save_pretrained(source)

    def full(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")  # as the tokenizers package has it

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", full)
    monkeypatch.setattr(storage, "_said", set())
    compiled(source)
    assert list((source.parent / "cache" / "models").iterdir()) == []
    assert "No space left on device" in caplog.text


def test_room_is_made_beside_other_processes(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders come and go between every two looks at them."""
    models = source.parent / "cache" / "models"
    stopped = threading.Event()

    def busy(number: int) -> None:
        while not stopped.is_set():
            folder = models / f"model-{number}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights.bin").write_bytes(bytes(1000))
            shutil.rmtree(folder, ignore_errors=True)

    threads = [threading.Thread(target=busy, args=[number]) for number in range(3)]
    for each in threads:
        each.start()
    monkeypatch.setenv("FORERUN_CACHE_GB", "0.000002")
    try:
        assert all(prebuilt._make_room(models, 500) for _ in range(200))
        assert not prebuilt._make_room(models, 5000)
    finally:
        stopped.set()
        for each in threads:
            each.join()


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
