"""A compiled model keeps its own copy of the weights, and requests no more memory than is available."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forerun
from forerun import available
from forerun.build import MAX_ROWS, limits_of, lower
from forerun.errors import DeviceMemoryError
from tests.compiled import triton_step
from tests.models import FAMILIES

PROMPT = [5, 9, 200, 13]


def program(model: torch.nn.Module) -> torch.export.ExportedProgram:
    dynamic = {1: torch.export.Dim.DYNAMIC(max=64)}

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids, use_cache=False).logits

    return torch.export.export(Logits(), (torch.arange(1, 12)[None],), dynamic_shapes=(dynamic,), strict=False)


@pytest.mark.parametrize("target", ["cpu", "reference"])
@pytest.mark.parametrize("exported", [False, True])
def test_training_on_does_not_change_what_was_compiled(target: str, exported: bool) -> None:
    model = FAMILIES["llama"]()
    source = program(model) if exported else model
    compiled = forerun.compile(source, "autoregressive", target=target, max_length=64)
    before = compiled.generate(PROMPT, 6, return_logits=True).logits
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.mul_(1.5)
    model.config.eos_token_id = 5
    after = compiled.generate(PROMPT, 6, return_logits=True).logits
    assert np.array_equal(before, after)
    other = forerun.compile(source, "autoregressive", target=target, max_length=64)
    assert not np.array_equal(other.generate(PROMPT, 6, return_logits=True).logits, before)


def test_the_interpreted_kernels_have_weights_of_their_own() -> None:
    pytest.importorskip("triton")
    model = FAMILIES["llama"]()
    lowered = lower(model, max_length=64)
    limits = {**limits_of(lowered), "max_rows": MAX_ROWS}
    executable = triton_step(lowered.module, lowered.weights, device="cpu", **limits)
    places = {each.untyped_storage().data_ptr() for each in model.parameters()}
    assert not places & {each.untyped_storage().data_ptr() for each in executable.launcher.weights.values()}


@pytest.mark.parametrize("target", ["cpu", "reference"])
@pytest.mark.parametrize("length", [10**9, 2**31 - 1])
def test_an_absurd_cache_is_refused_before_it_is_tried(target: str, length: int) -> None:
    model = FAMILIES["llama"](max_position_embeddings=10**20)
    with pytest.raises(DeviceMemoryError, match=rf"needs [\d.]+ GB of memory.*{length} positions.*GB are available"):
        forerun.compile(model, "autoregressive", target=target, max_length=length)


@pytest.mark.parametrize("target", ["cpu", "reference"])
def test_the_memory_of_a_real_cache_is_counted(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One byte less than needed is too little, and then nothing is allocated."""
    model = FAMILIES["llama"]()
    executable = forerun.compile(model, "autoregressive", target=target, max_length=256).executable
    blocks = -(-256 // 16) + -(-MAX_ROWS // 16)
    state = executable.new_state(blocks)
    bytes_: Any = state.bytes if target == "cpu" else sum(each.nbytes for each in state.values())
    monkeypatch.setattr(available, "available_bytes", lambda: bytes_)
    executable.new_state(blocks)
    monkeypatch.setattr(available, "available_bytes", lambda: bytes_ - 1)
    monkeypatch.setattr(torch, "zeros", None)
    monkeypatch.setattr(torch, "full", None)
    with pytest.raises(DeviceMemoryError, match=r"a cache of 512 positions"):
        executable.new_state(blocks)


def test_available_memory_is_the_least_that_any_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable: 50 kB\nSwapFree: 10 kB\n")
    monkeypatch.setattr(available, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(available, "_resource_limits", lambda: iter(()))
    monkeypatch.setattr(available, "_groups", lambda: iter([tmp_path]))
    assert available.available_bytes() == 60 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 700\n")
    assert available.available_bytes() == 60 * 1024
    (tmp_path / "memory.max").write_text("6000\n")
    assert available.available_bytes() == 1700
    monkeypatch.setattr(available, "_resource_limits", lambda: iter([-5]))
    assert available.available_bytes() == 0
