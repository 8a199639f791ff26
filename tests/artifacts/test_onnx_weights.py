"""Quantized blocks in bundles: standard `DequantizeLinear` where the format allows, float32 where it does not."""

import json
from pathlib import Path

import gguf
import numpy as np
import onnx
import pytest

import forerun
from forerun.progress import SilentProgress
from tests.frontends.test_gguf import llama, write_gguf

__all__ = ["llama"]

QUIET = SilentProgress()
PROMPT = [5, 9, 5, 9, 31]


@pytest.mark.parametrize(("encoding", "element"), [("Q8_0", onnx.TensorProto.INT8), ("Q4_0", onnx.TensorProto.INT4)])
def test_blocks_with_a_scale_are_kept(encoding: str, element: int, llama: object, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama, gguf.GGMLQuantizationType[encoding])
    folder = _exported(tmp_path)
    onnx.checker.check_model(str(folder / "step.onnx"), full_check=True)
    graph = onnx.load(str(folder / "step.onnx"), load_external_data=False).graph
    kept = {each.name for each in graph.initializer if each.data_type == element}
    widened = [each for each in graph.node if each.op_type == "DequantizeLinear"]
    assert {each.input[0] for each in widened} == kept
    assert len(kept) >= 14
    assert json.loads((folder / "bundle.json").read_text())["notes"] == []
    _same_logits(tmp_path / "model.gguf", folder)


def test_blocks_with_a_minimum_are_expanded_and_said_so(llama: object, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", llama, gguf.GGMLQuantizationType.Q4_1)
    folder = _exported(tmp_path)
    (note,) = json.loads((folder / "bundle.json").read_text())["notes"]
    assert "matrices of q4_1 are stored as float32" in note
    _same_logits(tmp_path / "model.gguf", folder)


def _exported(tmp_path: Path) -> Path:
    path, options = tmp_path / "model.gguf", {"target": "reference", "max_length": 64, "progress": QUIET}
    return forerun.compile(path, "autoregressive", dtype="native", **options).export(tmp_path / "bundle")


def _same_logits(path: Path, folder: Path) -> None:
    """The bundle's logits are those of the file's numbers as float32."""
    expanded = forerun.compile(path, "autoregressive", target="reference", max_length=64, progress=QUIET)
    loaded = forerun.load(folder, "autoregressive", progress=QUIET)
    options = {"max_new_tokens": 12, "return_logits": True}
    expected, found = (each.generate(PROMPT, **options) for each in (expanded, loaded))
    assert expected.logits is not None
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4)
    assert found.token_ids == expected.token_ids
