"""Kernels of published sizes compile to cubins without a GPU, and spill nothing.

These tests compile everything for sm_90, and the products and the head for sm_80; to compile everything for both, use
`forerun dump MODEL --target cuda`, or `FORERUN_AHEAD=all python -m pytest tests/codegen/test_triton_ahead.py`.
"""

import json
import os

import pytest

from benchmarks.shapes import LLAMA_8B, SMOLLM2, shaped_llama
from forerun.build import limits_of, lower
from forerun.cli import main
from forerun.codegen.backends import WEIGHT_DTYPES
from forerun.codegen.triton.lowering import emit
from forerun.execute.triton import compilation
from forerun.execute.triton.compilation import compile_loop, compile_step
from forerun.progress import SilentProgress
from tests.compiled import planned_step
from tests.models import FAMILIES

WEIGHTS = ("products", "head", "choice")
"""The kernels that read weights, and the one that merges what the head's tiles chose."""
EVERYTHING = os.environ.get("FORERUN_AHEAD") == "all"
MODELS = {
    "smollm2-float32": (SMOLLM2, "float32"),
    "smollm2-bfloat16": (SMOLLM2, "bfloat16"),
    "llama-8b-bfloat16": (LLAMA_8B, "bfloat16"),
}


def step_of(name: str, length: int = 4096):
    settings, dtype = MODELS[name]
    lowered = lower(shaped_llama(settings), dtype, length, progress=SilentProgress())
    return emit(planned_step(lowered.module, storage=WEIGHT_DTYPES[dtype], **limits_of(lowered))).program


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("smollm2-float32", 80),
        ("smollm2-float32", 90),
        pytest.param("smollm2-bfloat16", 80, marks=pytest.mark.slow),
        pytest.param("smollm2-bfloat16", 90, marks=pytest.mark.slow),
        pytest.param("llama-8b-bfloat16", 80, marks=pytest.mark.slow),
        ("llama-8b-bfloat16", 90),
    ],
)
def test_every_kernel_compiles_without_spills(name: str, capability: int) -> None:
    step = step_of(name)
    sources = step.sources
    few = capability == 80 and not EVERYTHING
    chosen = {each: source for each, source in sources.items() if not few or source.kind in WEIGHTS}
    rows = (1, 32) if not few else (32,)
    found = list(compile_step(step, chosen, rows, [capability]))
    assert {each.kernel.partition(",")[0] for each in found} == set(chosen)
    spilled = {f"{each.kernel} {each.config}": each.stack for each in found if each.stack}
    assert not spilled
    assert all(0 < each.registers <= 255 and each.shared <= 163 * 1024 for each in found)


@pytest.mark.parametrize("name", ["smollm2-float32", pytest.param("llama-8b-bfloat16", marks=pytest.mark.slow)])
def test_long_contexts_spill_nothing_either(name: str) -> None:
    """Their splits have several blocks of keys, whose sums are carried from block to block."""
    step = step_of(name, 8192 if name.startswith("smollm2") else 131072)
    chosen = {each: source for each, source in step.sources.items() if source.kind in ("attention", "combine")}
    found = list(compile_step(step, chosen, (1, 32), (80, 90)))
    assert {each.kernel for each in found if "8 tiles" in each.kernel} or name.startswith("smollm2")
    assert not {f"{each.kernel} {each.config} sm_{each.capability}": each.stack for each in found if each.stack}


@pytest.mark.parametrize("capability", [80, 90])
def test_the_loop_around_a_step_compiles_without_spills(capability: int) -> None:
    found = list(compile_loop(step_of("smollm2-bfloat16"), (1, 8, 32, 64), [capability]))
    assert len(found) == 5 * 4 - 1  # with one row, nothing moves
    assert not {f"{each.kernel} {each.config}": each.stack for each in found if each.stack}
    assert all(0 < each.registers <= 255 for each in found)


def test_a_layer_takes_six_launches() -> None:
    step = step_of("llama-8b-bfloat16")
    per_layer = sum(len(kernel.launches) for kernel in step.kernels if kernel.branch is not None)
    assert per_layer == 6  # projections, attention, its splits together, output, gate and up, down
    weights = sum(step.weight_bytes(each.matrices) for each in step.kernels)
    assert weights == 2 * (4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336) + 128256 * 4096)
    head = step.kernels[-1]
    assert [each.grid.kind for each in head.launches] == ["head", "choice"]
    assert [each.grid.kind for each in head.on_demand] == ["products"]


def test_dump_writes_sources_and_lists_registers(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "CAPABILITIES", (90,))
    model = tmp_path / "model"
    FAMILIES["gpt2"]().save_pretrained(model)
    options = ["--target", "cuda", "--dtype", "float16", "--max-length", "64", "--quiet", "--json"]
    assert main(["dump", str(model), "--out", str(tmp_path / "out"), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    names = {each["kernel"].partition(",")[0] for each in told["kernels"]}
    files = {file.stem: file.read_text() for file in (tmp_path / "out" / "kernels").glob("*.py")}
    assert set(files) == names
    assert {each["capability"] for each in told["kernels"]} == {90}
    for name, text in files.items():
        assert text.startswith(f'"""{name}: ')
        compile(text, name, "exec")
