"""Kernels are named in the words of the model."""

from __future__ import annotations

import pytest

from forerun import ir
from forerun.codegen.program import alike, identifier
from tests.frontends.families import lowered_family


@pytest.mark.parametrize(
    ("name", "shared", "spelt"),
    [
        ("layers.3.mlp.gate_up", "layers.*.mlp.gate_up", "layers_mlp_gate_up"),
        ("h.0.experts.*.w1_w3", "h.*.experts.*.w1_w3", "h_experts_w1_w3"),
        ("draft.early.head", "draft.early.head", "draft_early_head"),
        ("onnx::MatMul_12", "onnx::MatMul_12", "onnx_MatMul_12"),
        ("0", "*", "kernel"),
        ("2.3d", "*.3d", "_3d"),
    ],
)
def test_names_without_numbers(name: str, shared: str, spelt: str) -> None:
    assert alike(name) == shared
    assert identifier(name) == identifier(shared) == spelt
    assert spelt.isidentifier()
