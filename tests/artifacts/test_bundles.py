"""What is common to bundles of all formats: nothing is used before it has been checked."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forerun
from forerun.artifacts.bundle import new_bundle, require_new
from forerun.artifacts.schedule import described, strategy_of
from forerun.cli import main as run
from forerun.errors import NotAModelError
from forerun.progress import SilentProgress
from forerun.strategies import STRATEGIES
from tests.models import FAMILIES

QUIET = SilentProgress()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "whole"
    return compiled().export(folder)


def compiled() -> forerun.CompiledModel:
    return forerun.compile(FAMILIES["gpt2"](), "autoregressive", target="reference", max_length=64, progress=QUIET)


def rewritten(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        description = json.loads((folder / "bundle.json").read_text())
        change(description)
        (folder / "bundle.json").write_text(json.dumps(description))

    return damage


def truncated(folder: Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(1000)


def changed(folder: Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.write(b"\1\2\3\4")


def outside(folder: Path) -> None:
    (folder.parent / "outside.onnx").write_bytes((folder / "step.onnx").read_bytes())
    rewritten(lambda given: given["files"].update({"../outside.onnx": given["files"]["step.onnx"]}))(folder)


def linked(folder: Path) -> None:
    (folder.parent / "elsewhere.onnx").write_bytes((folder / "step.onnx").read_bytes())
    (folder / "step.onnx").unlink()
    (folder / "step.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def looped(folder: Path) -> None:
    (folder / "step.onnx").unlink()
    (folder / "step.onnx").symlink_to(folder / "step.onnx")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no description": (lambda folder: (folder / "bundle.json").unlink(), "holds no bundle"),
    "no JSON": (lambda folder: (folder / "bundle.json").write_text("{"), "is not the description of a bundle"),
    "no object": (lambda folder: (folder / "bundle.json").write_text("[1]"), "is not the description of a bundle"),
    "another schema": (rewritten(lambda given: given.update(schema=99)), "has schema 99"),
    "a missing part": (rewritten(lambda given: given.pop("limits")), "lacks part of a bundle's description"),
    "another format": (rewritten(lambda given: given.update(format="wasm")), "of format 'wasm'"),
    "a missing file": (lambda folder: (folder / "step.onnx").unlink(), "step.onnx is missing"),
    "a truncated weight file": (truncated, "has 1000 bytes instead of"),
    "a changed weight": (changed, "weights.bin has changed since it was written"),
    "a path that leaves the folder": (outside, "which leaves the folder"),
    "a link that leaves the folder": (linked, "which leaves the folder"),
    "an unlisted file": (rewritten(lambda given: given["content"]["graphs"].update(step="mine")), "lists no file"),
    "a text for a number": (rewritten(lambda given: given["limits"].update(max_rows="256")), "an integer should be"),
    "a limit of nothing": (rewritten(lambda given: given["limits"].update(max_rows=0)), "the limit max_rows = 0"),
    "an endless limit": (rewritten(lambda given: given["limits"].update(max_rows=2**31)), "the limit max_rows"),
    "another vocabulary": (rewritten(lambda given: given["model"].update(vocabulary=-1)), "a vocabulary of -1"),
    "a state of no size": (
        rewritten(lambda given: next(iter(given["states"].values())).update(shape=[-1])),
        "the state",
    ),
    "a loop of links": (looped, "which leaves the folder"),
    "no content": (rewritten(lambda given: given.update(content={})), "does not describe its graphs"),
    "an unknown drafter": (rewritten(lambda given: given["strategy"].update(kind="Eval")), "names 'Eval'"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_and_nothing_runs(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*given: Any) -> None:
        raise AssertionError("a damaged bundle was run")

    monkeypatch.setattr("onnxruntime.InferenceSession", ran)
    folder = tmp_path / "bundle"
    shutil.copytree(whole, folder)
    damage, said = DAMAGES[name]
    damage(folder)
    with pytest.raises(forerun.ForerunError, match=said):
        forerun.load(folder, progress=QUIET)


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_are_written_and_read_back(name: str) -> None:
    strategy = STRATEGIES[name]
    assert strategy_of(json.loads(json.dumps(described(strategy)))) == strategy


def test_a_draft_model_is_not_written_to_a_bundle() -> None:
    with pytest.raises(forerun.errors.InvalidOptionError, match="DraftModel cannot be written to a bundle"):
        described(forerun.TreeSpec(drafters=(forerun.DraftModel("demo"),)))


def test_a_failed_export_leaves_the_place_as_it_was(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = compiled()
    shutil.copytree(whole, tmp_path / "old")
    before = sorted(tmp_path.rglob("*"))

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("forerun.codegen.onnx.program.OnnxProgram.write", full)
    for folder in ("new", "old", "some/where/else"):
        with pytest.raises(OSError, match="No space left"):
            model.export(tmp_path / folder, force=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_older_bundle_comes_back_if_the_new_one_does_not_get_its_name(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "old")
    before, rename = sorted(tmp_path.rglob("*")), Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target == tmp_path / "old" and path.name.endswith("-old") is False:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), new_bundle(tmp_path / "old", force=True) as unfinished:
        (unfinished / "bundle.json").write_text("{}")
    assert sorted(tmp_path.rglob("*")) == before


def test_force_replaces_a_bundle_and_nothing_else(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("kept")
    (tmp_path / ".unfinished-novel").mkdir()
    os.utime(tmp_path / ".unfinished-novel", (0, 0))
    monkeypatch.chdir(tmp_path / "mine")
    for folder, said in (
        ("mine", "in use"),
        (".", "in use"),
        ("mine/thesis", "is a file"),
        ("mine/thesis/x", "is a file"),
    ):
        with pytest.raises(forerun.errors.InvalidOptionError, match=said):
            require_new(tmp_path / folder, force=True)
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(forerun.errors.InvalidOptionError, match="no bundle that could be replaced"):
        require_new(tmp_path / "mine", force=True)
    shutil.copytree(whole, tmp_path / "bundle")
    with pytest.raises(forerun.errors.InvalidOptionError, match="force=True"):
        require_new(tmp_path / "bundle", force=False)
    with new_bundle(tmp_path / "bundle", force=True) as unfinished:
        (unfinished / "bundle.json").write_text("{}")
    assert sorted(each.name for each in tmp_path.iterdir()) == [".unfinished-novel", "bundle", "mine"]
    assert (tmp_path / "bundle" / "bundle.json").read_text() == "{}"


def test_a_bundle_is_no_source_to_compile(whole: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(NotAModelError, match=r"is a bundle, .* load it with forerun\.load"):
        forerun.compile(whole)
    for command in (["export", str(whole), "--out", str(whole.parent / "again")], ["dump", str(whole)]):
        assert run(command) == 2
        assert "is a bundle, which was compiled when it was exported" in capsys.readouterr().err


def test_nothing_is_to_be_verified_in_a_bundle_that_is_not_bit_exact(whole: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["verify", str(whole)]) == 2
    assert "runs on onnx, which is not bit-exact" in capsys.readouterr().err


def test_the_example_names_a_folder_that_it_cannot_run(tmp_path: Path):
    example = Path(__file__).parents[2] / "examples" / "run_onnx.py"
    found = subprocess.run([sys.executable, example, tmp_path, "text"], capture_output=True, text=True, check=False)
    assert found.returncode != 0
    assert f"{tmp_path} is no bundle of format onnx" in found.stderr
    assert "Traceback" not in found.stderr
