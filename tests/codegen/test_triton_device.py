"""Tests what is refused before anything is allocated, what is cached on disk, and what only a GPU can show."""

from math import prod

import numpy as np
import pytest
import torch
from steps import Step, decoder
from triton_steps import LIMITS

import forerun
from forerun import ir
from forerun.cli import main
from forerun.codegen.program import Config
from forerun.codegen.triton.lowering import emit
from forerun.compile_options import resolve_target
from forerun.errors import DeviceError, DeviceMemoryError, UnsupportedOperationError
from forerun.execute.triton import build, gpu, tuning
from forerun.execute.triton.launcher import bucket
from forerun.execute.triton.sources import load
from forerun.runtime.certify import certify
from forerun.runtime.certify_loop import certify_loop
from forerun.runtime.executable import WHOLE, Draw
from forerun.runtime.sampling import SamplingSettings, sample_token
from tests.compiled import planned_step, triton_step
from tests.ir.build import no_weights
from tests.models import FAMILIES

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and torch finds none")


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="NVIDIA GPU"):
        forerun.compile("/no/such/model", target="cuda")


def test_a_dump_without_triton(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    FAMILIES["llama"]().save_pretrained(tmp_path / "model")
    options = ["--target", "cuda", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(["dump", str(tmp_path / "model"), *options]) == 2
    assert "needs Triton, which is not installed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_gpu_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(DeviceError, match=r"Tesla T4.*7\.5.*8\.0"):
        gpu.require_gpu()
    assert resolve_target("auto") == "cpu"


def test_auto_is_the_gpu_where_one_is_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert resolve_target("auto") == "cuda"
    assert resolve_target("auto", "native") == "cpu"


def test_too_little_memory_says_how_much_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = decoder(layers=1)
    program = emit(planned_step(module, **LIMITS))
    needed = gpu.needed_bytes(program)
    assert needed["weights"] == sum(4 * prod(each.type.dims) for each in ir.weights(module).values())
    state, kept = 4 * 2 * (2 * 16) * 16 * gpu.cache_blocks(program.program), sum(needed.values())
    assert needed["cache"] == state
    gpu.require_memory(needed, free=kept + 10**9)
    with pytest.raises(DeviceMemoryError, match=r"needs 0\.5\d GB.*0\.10 GB are free"):
        gpu.require_memory(needed, free=10**8)


def test_nothing_is_read_before_the_model_is_known_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "require_gpu", lambda: None)

    step = Step()
    table = step.weight("w", 4, 6)
    scanned = step.kernel(
        [table, step.argument("tokens")], lambda b, t, i: b.add(ir.Scan, b.add(ir.Gather, t, i), dim=1), "row_wise"
    )
    with pytest.raises(UnsupportedOperationError, match=r"spec\.scan"):
        triton_step(step.finish(scanned), no_weights, **LIMITS)
    module, _ = decoder(layers=1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**6, 10**6))
    with pytest.raises(DeviceMemoryError):
        triton_step(module, no_weights, **LIMITS)


def test_buckets_hold_their_rows_and_stay_within_what_was_planned() -> None:
    assert [bucket(count, 100) for count in (0, 1, 3, 16, 17, 64, 65, 100)] == [1, 1, 4, 16, 32, 64, 100, 100]
    assert bucket(1500, 2000) == 2000


def test_choices_are_kept_whole_and_found_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path))
    module, _ = decoder(layers=1)
    sources = emit(planned_step(module, **LIMITS)).program.sources
    name, source = next((name, each) for name, each in sources.items() if each.kind == "products")
    chosen = {tuning.choice_key(source, 7, 1): Config(128, 16, 8, 5)}
    tuning.write_choices("NVIDIA H200", chosen)
    assert tuning.read_choices("NVIDIA H200") == chosen
    assert tuning.read_choices("NVIDIA H100") == {}
    assert tuning.choice_key(source, 16, 1) in chosen, "row counts of one tile share a choice"
    assert tuning.choice_key(source, 17, 1) not in chosen
    listed = tuning.known_choices(sources)
    assert list(listed) == [f"NVIDIA_H200 {name} rows 16 together 1"]
    file = tuning.choices_file("NVIDIA H200")
    whole = file.read_text(encoding="utf-8")
    for damaged in ('{"half', "", "[]", whole.replace("128", "129")):
        file.write_text(damaged, encoding="utf-8")
        assert tuning.read_choices("NVIDIA H200") == {}
    file.unlink()
    file.mkdir()
    assert tuning.read_choices("NVIDIA H200") == {}
    tuning.write_choices("NVIDIA H200", chosen)
    assert tuning.read_choices("NVIDIA H200") == chosen


def test_kernels_load_without_a_cache(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = decoder(layers=1)
    source = next(iter(emit(planned_step(module, **LIMITS)).program.sources.values()))
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", "~nobody-of-this-name", tmp_path / "cache"):
        monkeypatch.setenv("FORERUN_CACHE_DIR", str(place))
        assert load(source, interpret=True).__doc__.startswith(source.name)
    (kept,) = (tmp_path / "cache").rglob("*.py")
    kept.write_text("damaged(")
    assert load(source, interpret=True).__doc__.startswith(source.name)


def test_the_autotuner_takes_the_fastest_and_measures_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path))
    module, weights = decoder(layers=1)
    executable = triton_step(module, weights.__getitem__, device="cpu", **LIMITS)
    launch = next(x for kernel in executable.step.kernels for x in kernel.launches if x.grid.kind == "products")
    measured: list[Config] = []

    def milliseconds(_: object, launch: object, pointers: object, sizes: object, config: Config) -> float:
        measured.append(config)
        return abs(config.block - 31) + config.stages

    monkeypatch.setattr(tuning.Autotuner, "_measure", staticmethod(milliseconds))
    best = tuning.Autotuner("some GPU")(executable.launcher, launch, 1, 1, [], {})
    assert (best.block, best.stages) == (32, 3)
    count = len(measured)
    assert count > 4
    assert tuning.Autotuner("some GPU")(executable.launcher, launch, 9, 1, [], {}) == best
    assert len(measured) == count


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom"])
def test_certified_on_the_gpu(family: str, dtype: str) -> None:
    model = forerun.compile(FAMILIES[family](), "autoregressive", dtype, "cuda", max_length=256)
    report = certify(model.executable, cases=25, seed=1)
    assert report.exact, str(report)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_decoding_on_the_gpu_is_certified(dtype: str) -> None:
    model = forerun.compile(FAMILIES["llama"](), "tree_spec", dtype, "cuda", max_length=256)
    assert model.on_device is not None
    report = certify_loop(model.executable, texts=20, seed=1)
    assert report is not None
    assert report.exact, str(report)


@pytest.mark.gpu
@needs_gpu
def test_no_candidate_changes_a_bit_on_the_gpu() -> None:
    from forerun.execute.triton.configs import candidates
    from forerun.execute.triton.executable import TritonExecutable

    made = forerun.compile(FAMILIES["llama"](), "autoregressive", "bfloat16", "cuda", max_length=256).executable
    assert isinstance(made, TritonExecutable)
    expected = None
    for number in range(9):

        def choose(_: object, launch, rows: int, shared: int, *more: object, number: int = number) -> Config:
            options = candidates(launch, rows, shared)
            return options[number % len(options)]

        other = TritonExecutable(made.step, made.launcher.weights, "cuda", choose)
        from tests.exactness.test_triton import text_rows, tokens_of

        rows = text_rows(tokens_of(other)[:40], 0, np.arange(3))
        found = other.run(WHOLE, other.new_state(8), rows).logits.tobytes()
        expected = expected or found
        assert found == expected


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_drawn_on_the_gpu_are_the_hosts(dtype: str) -> None:
    """Scores that differ only in the last bits of a logarithm could be ordered differently; none of these are."""
    from tests.exactness.test_triton import text_rows

    made = forerun.compile(FAMILIES["gemma2"](), "autoregressive", dtype, "cuda", max_length=256).executable
    rows = text_rows(np.random.default_rng(1).integers(0, made.vocabulary, 40, dtype=np.int32), 0, np.arange(3))
    for number, temperature in enumerate((0.3, 1.0, 20.0)):
        draw = Draw(2**64 - 1 - number, number, temperature)
        result = made.run(WHOLE, made.new_state(8), rows, draws=[draw])
        ids, values, drawn = result.candidates.copy(), result.candidate_logits.copy(), result.drawn.tolist()
        settings = SamplingSettings(do_sample=True, temperature=temperature, seed=draw.seed)
        assert values.tobytes() == np.take_along_axis(result.logits, ids, 1).tobytes()
        assert drawn == [sample_token(row, settings, number, place + 1) for place, row in enumerate(result.logits)]
