"""What is common to bundles of all formats: nothing is used before it has been checked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import forerun
from forerun.artifacts.schedule import described, strategy_of
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
    "an unlisted file": (rewritten(lambda given: given["content"].update(weights="mine.bin")), "lists no file"),
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


def test_a_failed_export_leaves_the_place_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled()

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("forerun.codegen.onnx.program.OnnxProgram.write", full)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "kept").write_text("mine")
    for folder in ("new", "old"):
        with pytest.raises(OSError, match="No space left"):
            model.export(tmp_path / folder, force=True)
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["kept", "old"]
