"""`forerun bench` and edited kernels: work counted by hand, files by their names, bad input in words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forerun
from forerun.cli import main
from forerun.errors import InvalidOptionError
from forerun.execute.work import ATTENTION, work_of
from forerun.overrides import FOLDER
from forerun.runtime.trial import Trial
from forerun.tuning.roofline import bound_of, groups
from tests.models import FAMILIES, HIDDEN, INNER, VOCABULARY

COMPILED: dict[str, Any] = {"strategy": "autoregressive", "target": "cpu", "max_length": 64}
OPTIONS = ["--target", "cpu", "--max-length", "64", "--quiet"]
HEADS, GROUPS, DIM = 4, 2, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    FAMILIES["llama"]().save_pretrained(path / "model")
    assert main(["dump", str(path / "model"), "--out", str(path / "dumps"), "--asm", *OPTIONS]) == 0
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> forerun.CompiledModel:
    return forerun.compile(folder / "model", **COMPILED)


def products_file(folder: Path) -> Path:
    return next(iter(sorted((folder / "dumps" / "kernels").glob("*products.schedule"))))


def test_bytes_and_operations_are_those_that_one_counts_by_hand(model: forerun.CompiledModel) -> None:
    """Of the kernel of gate and up, that of the head, and that of an attention, for 7 rows after 20 tokens."""
    executable: Any = model.executable
    step, rows = executable.step, 7
    trial = Trial(executable, 20)
    trial.begin()
    tree = trial.tree(rows)
    work = {each.name: work_of(step, each, tree) for each in step.kernels}
    wide = next(each for each in step.kernels if len(each.matrices) == 2)
    assert work[wide.name].weight_bytes == 2 * HIDDEN * INNER * 4
    assert work[wide.name].value_bytes == (rows * HIDDEN + rows * INNER) * 4
    assert work[wide.name].flops == {"float32": 2 * rows * HIDDEN * 2 * INNER}
    head = next(each for each in step.kernels if any(VOCABULARY in result.dims for result in each.results))
    assert work[head.name].weight_bytes == HIDDEN * VOCABULARY * 4
    assert work[head.name].flops == {"float32": 2 * rows * HIDDEN * VOCABULARY}
    attention = next(each for each in step.kernels if each.attended)
    seen = int((tree.positions + 1).sum())
    assert work[attention.name].flops == {ATTENTION: 2 * seen * HEADS * 2 * DIM}
    cached = (20 + rows) * 2 * GROUPS * DIM * 4  # each row of a tree has a record of its own
    assert work[attention.name].value_bytes == cached + 2 * rows * HIDDEN * 4 + _integers(attention, tree)
    covered = [name for group in groups(step) for name in (each.name for each in group.kernels)]
    assert covered == [each.name for group in groups(step) for each in group.kernels]
    assert sum(len(each.kernels) for each in groups(step)) == len(step.kernels)


def _integers(kernel: Any, rows: Any) -> int:
    """The bytes of an attention's integer inputs: where the rows and their histories are."""
    names = ("positions", "sequences", "bases", "paths", "block_tables")
    return sum(getattr(rows, name).size for name in names) * 4


def test_the_bound_is_the_larger_of_reading_and_computing(model: forerun.CompiledModel) -> None:
    class Machine:
        bandwidth = 1e9
        flops = {"float32": 1e12, ATTENTION: 1e12}  # noqa: RUF012

        def measure(self) -> None: ...

    executable: Any = model.executable
    trial = Trial(executable, 20)
    trial.begin()
    kernel = next(each for each in executable.step.kernels if len(each.matrices) == 2)
    work = work_of(executable.step, kernel, trial.tree(7))
    assert bound_of(work, Machine()) == (work.bytes / 1e9, "bytes")
    Machine.flops["float32"] = 1e6
    assert bound_of(work, Machine()) == (sum(work.flops.values()) / 1e6, "flops")


def test_the_command_prints_a_line_for_each_kernel(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(folder / "model"), "--rows", "1", "3", "--turns", "2", "--json", *OPTIONS]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {each["rows"] for each in told["kernels"]} == {1, 3}
    assert told["peaks"]["bandwidth"] > 0
    assert set(told["peaks"]["flops"]) == {"float32", "bfloat16", "int8", ATTENTION}
    for each in told["kernels"]:
        assert each["bound"] == pytest.approx(each["achieved"] * max(each["seconds"], 1e-9))
        assert each["bytes"] > 0


def test_an_edited_schedule_is_checked_and_timed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = folder / products_file(folder).name
    mine.write_text(products_file(folder).read_text().replace("unroll = 1", "unroll = 2"))
    arguments = ["bench", str(folder / "model"), "--override", str(mine), "--rows", "1", "4", "--turns", "3", "--json"]
    assert main([*arguments, *OPTIONS]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kernel"] == mine.stem
    assert told["bits_identical"]
    assert [each["rows"] for each in told["steps"]] == [1, 4]


def test_compile_uses_a_folder_of_edits_and_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: forerun.CompiledModel
) -> None:
    file = products_file(folder)
    (tmp_path / file.name).write_text("unroll = 4\n", encoding="utf-8")
    expected = model.generate([5, 9, 200], 6, return_logits=True).logits
    for _ in range(2):  # the second time, the kept model
        edited = forerun.compile(folder / "model", **COMPILED, kernel_overrides=tmp_path)
        assert edited.overrides == {file.stem: "unroll 1 -> 4"}
        assert np.array_equal(edited.generate([5, 9, 200], 6, return_logits=True).logits, expected)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert forerun.compile(folder / "model", **COMPILED).overrides == edited.overrides
    (tmp_path / file.name).write_text(file.read_text(), encoding="utf-8")
    assert forerun.compile(folder / "model", **COMPILED).overrides == {}
    assert forerun.compile(folder / "model", **COMPILED, kernel_overrides=folder / "dumps" / "kernels").overrides == {}


def test_bad_folders_and_files_are_named(folder: Path, tmp_path: Path) -> None:
    def refused(where: Any, words: str, **options: Any) -> None:
        with pytest.raises(InvalidOptionError, match=words):
            forerun.compile(folder / "model", **(COMPILED | options), kernel_overrides=where)

    refused(tmp_path / "missing", "kernel_overrides names .*missing, which is not a folder")
    refused(tmp_path, r"has no file NAME\.schedule")
    name = products_file(folder).stem
    (tmp_path / f"{name}s.schedule").write_text("unroll = 2\n", encoding="utf-8")
    refused(tmp_path, rf"no kernel '{name}s' .* did you mean '{name}'\?")
    refused(tmp_path, "kernels of the reference target cannot be edited", target="reference")
    (tmp_path / f"{name}s.schedule").rename(tmp_path / f"{name}.schedule")
    (tmp_path / f"{name}.schedule").write_bytes(b"\xff")
    refused(tmp_path, "cannot be read")


REFUSED = {
    "--kernel nothing": "no kernel 'nothing'",
    "--rows 0": "rows must be 1 or more",
    "--rows 999": "rows",
    "--turns 0": "turns must be 1 or more",
    "--target reference": "not measured: use one of cpu and cuda",
    "--asm": "--asm shows one kernel",
    "--override missing": "--override names missing, which is not a file",
}


@pytest.mark.parametrize("given", REFUSED)
def test_bad_options_are_refused(folder: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [each for each in OPTIONS if "target" not in given or each not in ("--target", "cpu")]
    assert main(["bench", str(folder / "model"), *given.split(), *options]) == 2
    assert REFUSED[given] in capsys.readouterr().err


def test_assembly_is_written_next_to_the_source(folder: Path) -> None:
    kernels = folder / "dumps" / "kernels"
    name = products_file(folder).stem
    assert (kernels / f"{name}.ll").read_text().startswith("define ")
    assert "fma" in (kernels / f"{name}.s").read_text() or "fmla" in (kernels / f"{name}.s").read_text()
    assert {each.stem for each in kernels.glob("*.s")} == {each.stem for each in kernels.glob("*.py")}
