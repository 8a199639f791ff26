"""Bundles of the format "tvm": what they hold, the bits that they give without torch, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forerun
from forerun.artifacts.bundle import Bundle
from forerun.codegen.program import Program
from forerun.errors import CorruptFileError, DeviceError, ForerunError, InvalidOptionError
from forerun.execute.soundness import require_sound
from forerun.execute.tvm import bundle as tvm_bundle
from forerun.execute.tvm.header import layout_of
from forerun.execute.tvm.library import Module
from forerun.execute.tvm.processor import host, this_processor
from tests.models import FAMILIES

PROMPT = [5, 9, 5, 9, 17, 5, 9]
FAMILIES_EXPORTED = ("llama", "mistral", "gpt2", "bloom")
LOADED = """
import json, sys
import numpy as np
import forerun

found = {}
for folder in json.loads(sys.argv[1]):
    for threads in (None, 1):
        model = forerun.load(folder, threads=threads)
        text = model.generate(json.loads(sys.argv[2]), max_new_tokens=24, return_logits=True)
        found.setdefault(folder, []).append([text.token_ids, text.logits.tobytes().hex(), text.stats.steps])
absent = [name for name in ("torch", "transformers", "xdsl", "tvm", "tvm_ffi") if name in sys.modules]
print(json.dumps([found, absent]))
"""


def alone(program: str, *arguments: str, **variables: str) -> str:
    """Runs a program in a process of its own and returns what it prints."""
    environment = os.environ | {"FORERUN_THREADS": "2"} | variables
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def models() -> dict[str, forerun.CompiledModel]:
    strategy = forerun.TreeSpec(drafters=(forerun.PromptLookup(),), policy=forerun.Fixed(8))
    return {name: forerun.compile(FAMILIES[name](), strategy, max_length=128) for name in FAMILIES_EXPORTED}


@pytest.fixture(scope="module")
def folders(models: dict[str, forerun.CompiledModel], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("bundles")
    return {name: model.export(parent / name, format="tvm") for name, model in models.items()}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(folders["llama"], tmp_path / "bundle"))


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "bundle.json").read_text())


# --- the same bits


def test_a_loaded_bundle_has_the_same_bits_without_torch(
    models: dict[str, forerun.CompiledModel], folders: dict[str, Path]
) -> None:
    """Each family in one process, with all threads and with one."""
    names = {str(folder): name for name, folder in folders.items()}
    found, absent = json.loads(alone(LOADED, json.dumps(list(names)), json.dumps(PROMPT)).splitlines()[-1])
    assert absent == []
    for folder, texts in found.items():
        expected = models[names[folder]].generate(PROMPT, max_new_tokens=24, return_logits=True)
        assert expected.logits is not None
        for tokens, logits, steps in texts:
            assert tokens == expected.token_ids
            assert logits == expected.logits.tobytes().hex()
            assert steps == expected.stats.steps


def test_a_model_of_another_back_end_is_compiled_for_the_export(tmp_path: Path) -> None:
    source = FAMILIES["llama"]()
    interpreted = forerun.compile(source, "autoregressive", target="reference", max_length=64)
    here = forerun.compile(source, "autoregressive", max_length=64)
    loaded = forerun.load(interpreted.export(tmp_path / "bundle", format="tvm"))
    expected = here.generate(PROMPT, max_new_tokens=8, return_logits=True)
    assert loaded.generate(PROMPT, max_new_tokens=8, return_logits=True).has_bits_of(expected)


def test_another_strategy_and_parts_of_the_step_run_from_a_bundle(
    models: dict[str, forerun.CompiledModel], folders: dict[str, Path]
) -> None:
    expected = models["llama"].generate(PROMPT, max_new_tokens=16, return_logits=True)
    for strategy in ("autoregressive", forerun.TreeSpec(drafters=(forerun.SkipLayers(),), policy=forerun.Fixed(4))):
        loaded = forerun.load(folders["llama"], strategy)
        assert loaded.generate(PROMPT, max_new_tokens=16, return_logits=True).has_bits_of(expected)


def test_a_measured_cost_is_scaled_and_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = forerun.compile(FAMILIES["llama"](), "tree_spec", max_length=128)
    folder = model.export(tmp_path / "bundle", format="tvm")
    assert described(folder)["cost"] == json.loads(json.dumps(model.cost and model.cost.to_dict()))
    monkeypatch.setattr("forerun.runtime.calibration.ALIKE", 1e9)
    monkeypatch.setattr("forerun.schedules.calibrate", lambda engine: pytest.fail("everything was measured again"))
    cost = forerun.load(folder).cost
    assert cost is not None
    assert model.cost is not None
    ratios = np.array(cost.measured) / np.array(model.cost.measured)
    assert np.allclose(ratios, ratios[0])


# --- what a bundle says


def test_a_bundle_describes_what_a_caller_needs(folders: dict[str, Path]) -> None:
    folder = folders["mistral"]
    manifest = described(folder)
    content = manifest["content"]
    assert manifest["format"] == "tvm"
    assert manifest["exactness"]["level"] == "bits"
    assert content["code"] in ("step.so", "step.o")
    assert content["processor"]["triple"] == host()[0]
    assert (folder / content["weights"]).stat().st_size == 4 * content["layout"]["weights"]
    step = Program.read((folder / content["program"]).read_text())
    arguments = [each["name"] for each in content["layout"]["entries"]["step"]["arguments"]]
    assert arguments == [each.name for each in step.step.signature.arguments]
    assert len(content["layout"]["calls"]) == len(layout_of(step).calls)
    header = (folder / content["header"]).read_text()
    assert f"FORERUN_VOCABULARY = {step.vocabulary}," in header
    assert f"forerun_weights = {content['layout']['weights']};" in header


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_layout_of_states_is_that_of_the_code(family: str, models: dict[str, forerun.CompiledModel]) -> None:
    """The places of a slot's numbers by the strides that a bundle gives are those that `copy_slots` uses."""
    executable: Any = models[family].executable
    layout = layout_of(executable.step)
    for slot in (0, 3, 15):
        places = [
            each.place + row * each.lead_stride + slot * each.slot_stride + number * each.stride
            for each in layout.states.values()
            for row in range(each.lead)
            for number in range(each.last)
        ]
        assert sorted(places) == sorted(executable._states.words[slot].tolist())


# --- other machines


def test_code_for_aarch64_is_made_here_and_not_run(
    models: dict[str, forerun.CompiledModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models["llama"].export(tmp_path / "bundle", format="tvm", mtriple="aarch64-linux-gnu", mcpu="neoverse-n1")
    manifest = described(folder)
    assert manifest["content"]["code"] == "step.o"
    assert "neon" in manifest["content"]["processor"]["features"]
    assert any("not run" in note for note in manifest["notes"])
    assert any("not linked" in note for note in manifest["notes"])
    head = (folder / "step.o").read_bytes()[:20]
    assert head[:5] == b"\x7fELF\x02"
    assert struct.unpack("<H", head[18:20])[0] == 183, "the machine of the ELF header is AArch64"
    disassembler = shutil.which("llvm-objdump")
    if disassembler is not None:
        code = subprocess.run(
            [disassembler, "-d", "--mattr=+all", str(folder / "step.o")], capture_output=True, text=True, check=True
        ).stdout
        assert "__tvm_ffi_run" in code
        assert "\tfmla\t" in code or " fmla" in code
    if platform.machine() not in ("aarch64", "arm64"):
        monkeypatch.setattr(Module, "load", lambda path: pytest.fail("it was loaded"))
        with pytest.raises(DeviceError, match=r"was compiled for aarch64-linux-gnu, and this machine is .*: export"):
            forerun.load(folder)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the processor is one of x86-64")
def test_code_for_an_older_processor_runs_here(models: dict[str, forerun.CompiledModel], tmp_path: Path) -> None:
    if not host()[2].get("avx2"):
        pytest.skip("this machine has no AVX2")
    folder = models["llama"].export(tmp_path / "bundle", format="tvm", mcpu="x86-64-v3")
    assert described(folder)["content"]["processor"]["cpu"] == "x86-64-v3"
    expected = models["llama"].generate(PROMPT, max_new_tokens=8).token_ids
    assert forerun.load(folder).generate(PROMPT, max_new_tokens=8).token_ids == expected


def test_a_missing_feature_is_named_before_anything_runs(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triple, cpu, features = host()
    name = this_processor().features[-1]
    monkeypatch.setattr("forerun.execute.tvm.processor.host", lambda: (triple, cpu, features | {name: False}))
    monkeypatch.setattr(Module, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(DeviceError, match=f"lacks {name}: export"):
        forerun.load(copied)


@pytest.mark.parametrize("names", [{"mcpu": "nosuch"}, {"mtriple": "nosuch-linux-gnu"}])
def test_unknown_machines_are_refused(
    names: dict[str, str], models: dict[str, forerun.CompiledModel], tmp_path: Path
) -> None:
    with pytest.raises(InvalidOptionError, match="nosuch"):
        models["llama"].export(tmp_path / "bundle", format="tvm", **names)
    assert list(tmp_path.iterdir()) == []


# --- without a C compiler


def test_code_that_is_not_linked_is_linked_when_it_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path / "cache"))
    model = forerun.compile(FAMILIES["llama"](), "autoregressive", max_length=128)
    folder = model.export(tmp_path / "bundle", format="tvm")
    assert described(folder)["content"]["code"] == "step.o"
    with pytest.raises(ForerunError, match="is not linked yet, and this machine has no C compiler"):
        forerun.load(folder)
    monkeypatch.delenv("CC")
    if shutil.which("cc") is None:
        pytest.skip("this machine has no C compiler")
    expected = model.generate(PROMPT, max_new_tokens=8, return_logits=True)
    assert forerun.load(folder).generate(PROMPT, max_new_tokens=8, return_logits=True).has_bits_of(expected)


# --- damage


def truncated(folder: Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.truncate(1000)


def flipped(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)

    return damage


def removed(folder: Path) -> None:
    (folder / "step.json").unlink()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = described(folder)
        change(manifest)
        (folder / "bundle.json").write_text(json.dumps(manifest))

    return damage


def outside(manifest: dict[str, Any]) -> None:
    manifest["files"]["../step.so"] = manifest["files"].pop(manifest["content"]["code"])
    manifest["content"]["code"] = "../step.so"


DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights cut off": (truncated, r"weights\.bin has 1000 bytes instead of \d+: copy it again"),
    "weights changed": (flipped("weights.bin"), r"weights\.bin has changed since it was written"),
    "code changed": (flipped("step.so"), r"step\.so has changed since it was written"),
    "program changed": (flipped("step.json"), r"step\.json has changed since it was written"),
    "file missing": (removed, r"step\.json is missing: copy the whole folder"),
    "path outside": (edited(outside), r"'\.\./step\.so', which leaves the folder"),
    "other schema": (edited(lambda manifest: manifest.update(schema=99)), r"schema 99"),
    "no processor": (edited(lambda manifest: manifest["content"].pop("processor")), r"what its code was compiled for"),
    "code of another name": (
        edited(lambda manifest: manifest["content"].update(code="x.so")),
        r"names 'x\.so' as its code",
    ),
    "cost in other words": (edited(lambda manifest: manifest.update(cost={"rows": [0]})), r"cost model cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_sentence_and_nothing_is_executed(
    name: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "code changed" in name and not (copied / "step.so").is_file():
        pytest.skip("the code is not linked on this machine")
    damage, sentence = DAMAGED[name]
    damage(copied)
    monkeypatch.setattr(Module, "load", lambda path: pytest.fail("it was loaded"))
    with pytest.raises(CorruptFileError, match=sentence) as raised:
        forerun.load(copied)
    assert "\n" not in str(raised.value)


def test_a_library_of_another_kind_is_refused(copied: Path) -> None:
    """Digests agree, but the file is no library."""
    (copied / "step.so").write_bytes(b"not a library")
    manifest = described(copied)
    manifest["files"]["step.so"] = {"bytes": 13, "sha256": hashlib.sha256(b"not a library").hexdigest()}
    manifest["content"]["code"] = "step.so"
    (copied / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptFileError, match=r"step\.so cannot be loaded .*: export the model again"):
        forerun.load(copied)


def test_a_failed_export_leaves_the_folder_as_it_was(
    models: dict[str, forerun.CompiledModel], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {each.name: each.read_bytes() for each in copied.iterdir() if each.is_file()}

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tvm_bundle, "write_step", full)
    with pytest.raises(InvalidOptionError, match="is not empty"):
        models["llama"].export(copied, format="tvm")
    with pytest.raises(OSError, match="No space"):
        models["llama"].export(copied, format="tvm", force=True)
    assert {each.name: each.read_bytes() for each in copied.iterdir() if each.is_file()} == before
    assert [each.name for each in copied.parent.iterdir()] == [copied.name]


def test_a_step_that_does_not_fit_its_description_is_refused(copied: Path) -> None:
    """Digests cannot find a step that somebody has changed together with its description."""
    manifest = Bundle(copied).manifest
    step = Program.read((copied / "step.json").read_text())
    require_sound(step, manifest, "it")
    entry = step.step
    kernel = entry.kernels[0]
    launch = kernel.launches[0]
    far = replace(launch, operands=(*launch.operands[:-1], replace(launch.operands[-1], kind="scratch", key=10**12)))
    kernels = (replace(kernel, launches=(far, *kernel.launches[1:])), *entry.kernels[1:])
    for changed, said in (
        (replace(step, max_length=10**6), "max_length 1000000, and the limit"),
        (replace(step, block=1), "block 1, and the limit"),
        (replace(step, arena=16), "outside the step's memory|reads or writes at"),
        (replace(step, entries=(replace(entry, kernels=kernels), *step.entries[1:])), f"{kernel.name}, which reads or"),
        (replace(step, states={}), "states are others"),
    ):
        with pytest.raises(CorruptFileError, match=said):
            require_sound(changed, manifest, "it")
