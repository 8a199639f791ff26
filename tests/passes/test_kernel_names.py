"""Kernels are named in the words of the model."""

from __future__ import annotations

import pytest

from forerun.codegen.kernel_places import alike, identifier, in_words
from tests.passes.test_fuse_kernels import fused, kernels

FIRST = {
    "llama": ["embed_tokens.lookup", "layers.0.self_attn.q_k_v", "layers.0.self_attn.attention"],
    "gpt2": ["lm_head.lookup", "h.0.attn.row_wise", "h.0.attn.c_attn", "h.0.attn.attention"],
    "phi": ["embed_tokens.lookup", "layers.0.self_attn.q_k_v+mlp.fc1", "layers.0.attention"],
}
"""Of phi, attention and feed-forward part are one branch; gpt2's matrices are transposed ones of its weights."""


@pytest.mark.parametrize("family", FIRST)
def test_the_words_of_the_model(family: str) -> None:
    labels = [each.label for each in kernels(fused(family)[1])]
    assert labels[: len(FIRST[family])] == FIRST[family]
    assert labels[-1] == "head"
    assert len({*labels}) == len(labels)


def test_experts_and_their_router() -> None:
    labels = [each.label for each in kernels(fused("mixtral")[1])]
    assert {"layers.0.mlp.gate", "layers.0.mlp.experts.gate_up_proj", "layers.1.mlp.experts.down_proj"} <= {*labels}


@pytest.mark.parametrize(
    ("name", "shared", "spelt"),
    [
        ("layers.3.mlp.gate_up", "layers.*.mlp.gate_up", "layers_mlp_gate_up"),
        ("h.0.experts.*.w1_w3", "h.*.experts.*.w1_w3", "h_experts_w1_w3"),
        ("draft.early.head", "draft.early.head", "draft_early_head"),
        ("layers.0.q_k_v+fc1", "layers.*.q_k_v+fc1", "layers_q_k_v_fc1"),
        ("onnx::MatMul_12", "onnx::MatMul_12", "onnx_MatMul_12"),
        ("0", "*", "kernel"),
        ("2.3d", "*.3d", "_3d"),
    ],
)
def test_names_without_numbers(name: str, shared: str, spelt: str) -> None:
    assert alike(name) == shared
    assert identifier(name) == identifier(shared) == spelt
    assert spelt.isidentifier()


def test_places_in_words() -> None:
    assert in_words([f"layers.{each}.mlp.down_proj" for each in (0, 1, 2, 4)]) == "layers.0-2,4.mlp.down_proj"
    assert in_words(["head"]) == "head"
    assert in_words(["h.0.a", "h.0.b", "h.1.a"]) == "h.0-1.a, h.0.b"
