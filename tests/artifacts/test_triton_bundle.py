"""Bundles of the format "triton", without a GPU: cubins, and the same bits in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import forerun
from forerun.build import emit, lower
from forerun.errors import CorruptFileError, DeviceError, InvalidOptionError
from forerun.execute.triton import build
from forerun.progress import SilentProgress
from tests.models import FAMILIES

PROMPT, NEW = [5, 9, 5], 2
LOADED = """
import json, sys
import forerun
model = forerun.load(sys.argv[1], "prompt_lookup")
text = model.generate(json.loads(sys.argv[2]), max_new_tokens=int(sys.argv[3]), return_logits=True)
absent = [name for name in ("transformers", "xdsl", "tvm", "tvm_ffi") if name in sys.modules]
print(json.dumps([text.token_ids, text.logits.tobytes().hex(), absent]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = forerun.compile(
        FAMILIES["llama"](), "autoregressive", "bfloat16", target="reference", max_length=64, progress=SilentProgress()
    )
    return model.export(tmp_path_factory.mktemp("triton") / "bundle", format="triton")


def test_every_kernel_has_a_cubin_for_each_architecture(folder: Path) -> None:
    manifest = json.loads((folder / "bundle.json").read_text())
    kernels, step = manifest["content"]["kernels"], json.loads((folder / "step.json").read_text())
    assert {each["capability"] for each in kernels} == {80, 90}
    for capability in (80, 90):
        assert {each["source"] for each in kernels if each["capability"] == capability} == set(step["sources"])
    for each in kernels:
        cubin = (folder / each["cubin"]).read_bytes()
        assert cubin[:4] == b"\x7fELF"
        assert each["function"].encode() in cubin
    assert len({each["cubin"] for each in kernels}) == len(kernels)


def test_a_loaded_bundle_has_the_same_bits_in_the_interpreter(folder: Path) -> None:
    """Torch and Triton are all that it imports of the large libraries."""
    lowered = lower(FAMILIES["llama"](), "bfloat16", 64, progress=SilentProgress(), cache_in_memory=False)
    here = forerun.CompiledModel(build.bind(emit(lowered, "cuda", "bfloat16"), "cpu"))
    expected = here.generate(PROMPT, max_new_tokens=NEW, return_logits=True)
    assert expected.logits is not None
    run = subprocess.run(
        [sys.executable, "-c", LOADED, str(folder), json.dumps(PROMPT), str(NEW)],
        capture_output=True, text=True, check=False, env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    tokens, logits, absent = json.loads(run.stdout.splitlines()[-1])
    assert absent == []
    assert tokens == expected.token_ids
    assert logits == expected.logits.tobytes().hex()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        forerun.load(folder)


def test_changed_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    content = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    try:
        with pytest.raises(CorruptFileError, match=r"weights\.bin has changed"):
            forerun.load(folder)
    finally:
        (folder / "weights.bin").write_bytes(content)


def test_weight_dtypes_that_a_format_lacks_are_refused(tmp_path: Path) -> None:
    model = forerun.compile(FAMILIES["gpt2"](), "autoregressive", target="reference", max_length=64)
    assert model.origin is not None
    model.origin = type(model.origin)(model.origin.source, "reference", "native")
    with pytest.raises(InvalidOptionError, match="has no native weights: compile the model with one of float32"):
        model.export(tmp_path / "bundle", format="triton")
