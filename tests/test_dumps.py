"""Dumps: what each pass changed, layers written once, a folder that is one dump, and what differs between two."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import forerun
from forerun import logs, opt
from forerun.cli import main
from forerun.dump_folder import MANIFEST
from forerun.errors import InvalidOptionError
from tests.models import FAMILIES

SMALL = ("--max-length", "64", "--quiet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    FAMILIES["llama"]().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def dumped(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dump")
    assert main(["dump", str(model), "-o", str(path), *SMALL]) == 0
    return path


def manifest(folder: Path) -> dict[str, object]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def test_a_file_a_pass_and_each_is_listed(dumped: Path) -> None:
    said = manifest(dumped)
    files = sorted(str(each.relative_to(dumped)) for each in dumped.rglob("*") if each.is_file())
    assert sorted([*said["files"], MANIFEST]) == files
    assert [each["files"] for each in said["passes"]] == [
        [each] for each in files if each.endswith(".mlir") and not each.startswith("00_")
    ]
    assert said["target"] == "cpu"
    assert said["options"]["max_length"] == 64
    assert {"python", "torch", "xdsl", "apache-tvm"} <= {*said["versions"]}
    assert said["memory"]["weights"] > 4 * 64 * 64


def test_a_pass_says_what_it_raised_how_often_and_where(dumped: Path) -> None:
    (file,) = dumped.glob("*_raise_norms.mlir")
    head = file.read_text(encoding="utf-8").partition("builtin.module")[0]
    assert "// patterns: RaiseRMSNorm 5 times, WeightIntoRMSNorm 5 times\n" in head
    assert "// +10 spec.rms_norm at modeling_llama.py:" in head
    assert "// -10 spec.map mul\n" in head


def test_no_two_files_are_the_same(dumped: Path) -> None:
    texts = [each.read_text(encoding="utf-8").partition("builtin.module")[2] for each in dumped.glob("*.mlir")]
    whole = [each for each in texts if each]
    assert len({*whole}) == len(whole)
    (file,) = dumped.glob("*_raise_experts.mlir")
    assert file.read_text(encoding="utf-8").splitlines()[-1].startswith("// the module is that of 05_canonicalize.mlir")


def test_kernels_are_listed_with_the_places_that_use_them(dumped: Path) -> None:
    kernels = {each["name"]: each for each in manifest(dumped)["kernels"] if each["kind"] == "products"}
    gate = kernels["layers.*.mlp.gate_up"]
    assert gate["places"] == ["layers.0.mlp.gate_up", "layers.1.mlp.gate_up"]
    assert gate["files"] == [f"kernels/layers_mlp_gate_up_products.{each}" for each in ("nest", "py", "schedule")]
    nest = (dumped / gate["files"][0]).read_text(encoding="utf-8")
    assert nest.startswith("// layers.0-1.mlp.gate_up\n")
    (last,) = dumped.glob("*_plan_memory.mlir")
    assert 'label = "layers.0.mlp.gate_up"' in last.read_text(encoding="utf-8")


def test_layers_are_folded_unless_all_are_wanted(tmp_path: Path) -> None:
    deep = FAMILIES["llama"](num_hidden_layers=6)
    forerun.compile(deep, max_length=64, dump_dir=tmp_path)
    folded = (tmp_path / "02_canonicalize.mlir").read_text(encoding="utf-8")
    assert "// layers 1..5 as layer 0" in folded
    assert "--full writes all of them" in folded


def test_full_files_are_what_opt_reads(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(model), "-o", str(tmp_path), "--full", "--no-kernels", *SMALL]) == 0
    capsys.readouterr()
    (derived,) = tmp_path.glob("*_insert_kv_cache.mlir")
    before = sorted(each for each in tmp_path.glob("*.mlir") if each < derived)[-1]
    assert opt.main([str(before), "-p", "insert-kv-cache", "--locations"]) == 0
    shown = capsys.readouterr().out
    assert 'loc("modeling_llama.py":' in shown
    assert "unknown" not in shown


def test_only_some_modules(model: Path, tmp_path: Path) -> None:
    command = ["dump", str(model), "--no-kernels", *SMALL, "-o"]
    assert main([*command, str(tmp_path / "changed"), "--after-change"]) == 0
    changed = [each for each in manifest(tmp_path / "changed")["passes"] if each["files"]]
    assert {each["changed"] for each in changed} == {True}
    assert len(changed) < len(manifest(tmp_path / "changed")["passes"])
    assert main([*command, str(tmp_path / "one"), "--before", "raise-norms", "--after", "raise-norms"]) == 0
    names = sorted(each.name for each in (tmp_path / "one").glob("*.mlir"))
    assert names == ["03_before_raise_norms.mlir", "03_raise_norms.mlir"]


def test_a_pass_that_does_not_exist(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", str(model), "-o", str(tmp_path), "--before", "raise-norm"]) == 2
    assert "There is no pass 'raise-norm'; did you mean raise-norms?" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_dump_replaces_a_dump(model: Path, tmp_path: Path) -> None:
    command = ["dump", str(model), "-o", str(tmp_path), *SMALL]
    assert main(command) == 0
    assert (tmp_path / "kernels").is_dir()
    assert main([*command, "--no-kernels", "--after", "raise-norms"]) == 0
    assert sorted(each.name for each in tmp_path.iterdir()) == ["03_raise_norms.mlir", MANIFEST]


def test_a_dump_that_was_interrupted_is_replaced(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from forerun.passes.raise_norms import RaiseNorms

    def broken(*_: object) -> None:
        raise MemoryError("no memory")

    command = ["dump", str(model), "-o", str(tmp_path), "--no-kernels", *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(RaiseNorms, "apply", broken)
        assert main(command) == 2
    assert (tmp_path / "02_canonicalize.mlir").is_file()
    assert main(command) == 0


def test_nothing_else_is_overwritten(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["dump", str(model), "-o", str(tmp_path), "--no-kernels", *SMALL]
    (tmp_path / "notes").write_text("mine", encoding="utf-8")
    assert main(command) == 2
    assert f"'{tmp_path}' holds notes and no dump; give a new or an empty folder." in capsys.readouterr().err
    (tmp_path / "notes").unlink()
    assert main(command) == 0
    edited = tmp_path / "03_raise_norms.mlir"
    edited.write_text("mine", encoding="utf-8")
    assert main(command) == 2
    assert "03_raise_norms.mlir was edited since; move it away" in capsys.readouterr().err
    assert edited.read_text(encoding="utf-8") == "mine"


def test_what_differs_between_two_dumps(
    model: Path, dumped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dump", str(model), "-o", str(tmp_path), "--no-kernels", "--max-length", "32", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["dump", "--diff", str(dumped), str(dumped)]) == 0
    assert capsys.readouterr().out == "the two are the same\n"
    assert main(["dump", "--diff", str(dumped), str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "options: max_length: 64 -> 32\n" in shown
    assert "only the first has kernels/head_products.nest\n" in shown
    assert "-  spec.weight @derived.0 {shape = [64," in shown
    assert "+  spec.weight @derived.0 {shape = [32," in shown
    assert "time:" not in shown
    files = sorted(dumped.glob("*.mlir"))
    assert main(["dump", "--diff", str(files[2]), str(files[3])]) == 0
    assert "spec.rms_norm" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"files": {}}', '{"files": {}, "passes": [{"name": "x"}]}', '{"passes": 3}']
)
def test_a_damaged_description(content: str, dumped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / MANIFEST).write_text(content, encoding="utf-8")
    assert main(["dump", "--diff", str(dumped), str(tmp_path)]) == 2
    assert "dump" in capsys.readouterr().err


def test_an_edited_kernel_differs(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "other"):
        assert main(["dump", str(model), "-o", str(tmp_path / name), "--after", "plan-memory", *SMALL]) == 0
    schedule = tmp_path / "other" / "kernels" / "layers_mlp_gate_up_products.schedule"
    schedule.write_text(schedule.read_text(encoding="utf-8").replace("unroll = 1", "unroll = 4"), encoding="utf-8")
    capsys.readouterr()
    assert main(["dump", "--diff", str(tmp_path / "one"), str(tmp_path / "other")]) == 0
    assert "+unroll = 4" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["nowhere", "."])
def test_what_is_no_dump_is_not_compared(
    other: str, dumped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dump", "--diff", str(dumped), str(tmp_path / other)]) == 2
    assert "give " in capsys.readouterr().err


def test_what_is_left_as_it_is_spelled_is_said(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 8)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            x = self.table(input_ids)
            x = x * torch.rsqrt(x.abs().mean(-1, keepdim=True) + 1.0)
            return x @ self.table.weight.T

    forerun.compile(Odd(), max_length=32, dump_dir=tmp_path)
    (file,) = tmp_path.glob("*_raise_norms.mlir")
    assert "// raise-norms: at test_dumps.py:" in file.read_text(encoding="utf-8")


def test_the_log_tells_what_is_asked(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(logs.VARIABLE, "passes, kernels,steps")
    loggers = [logging.getLogger(f"forerun.{each}") for each in logs.TOPICS]
    try:
        model = forerun.compile(FAMILIES["llama"](), max_length=64)
        before = capsys.readouterr().err.splitlines()
        model.generate([1, 2, 3], max_new_tokens=4)
    finally:
        for each in loggers:
            each.handlers.clear()
            each.setLevel(logging.NOTSET)
            each.propagate = True
    assert any(each.startswith("[passes] raise-norms: ") and "RaiseRMSNorm 5 times" in each for each in before)
    assert "[kernels] layers_mlp_gate_up_products: layers.0-1.mlp.gate_up" in before
    steps = [each for each in capsys.readouterr().err.splitlines() if each.startswith("[steps] ")]
    assert steps[0].startswith("[steps] 0 trees of 0 rows, 2 rows of prompts: 0 tokens; draft ")
    assert sum(int(each.partition(": ")[2].split()[0]) for each in steps) == 4


def test_a_topic_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "pases")
    with pytest.raises(InvalidOptionError, match="FORERUN_LOG names 'pases'; the topics are passes, kernels, steps"):
        logs.log_as_asked()
