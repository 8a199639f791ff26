"""Bundles of the format "onnx": standard graphs that give the model's tokens on a stock ONNX Runtime."""

import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import shape_inference

import forerun
from forerun.cli import main
from forerun.progress import SilentProgress
from tests.models import FAMILIES

QUIET = SilentProgress()
CHOSEN = ("llama", "mistral", "gemma3_text", "gpt2", "bloom", "gpt_neox")
"""Grouped heads, windows of several widths, learned positions, biases by distance, parallel branches."""
TREES = forerun.TreeSpec(policy=forerun.Fixed(8))
COMPILING = ("torch", "transformers", "xdsl", "tvm", "onnx")
"""Packages that only compiling needs."""
PROMPT = [5, 9, 5, 9, 5, 9, 31, 7]
NEW = 24
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "run_onnx.py"


@pytest.fixture(scope="module", params=CHOSEN)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model and the folder of its bundle."""
    model = FAMILIES[request.param]()
    folder = tmp_path_factory.mktemp("bundles") / request.param
    compiled = forerun.compile(model, TREES, target="reference", max_length=128, progress=QUIET)
    assert compiled.export(folder) == folder
    return model, folder


def greedy(model: Any, count: int = NEW) -> list[int]:
    """The tokens of transformers, one forward pass over the whole text for each."""
    text = list(PROMPT)
    for _ in range(count):
        with torch.no_grad():
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(PROMPT) :]


def test_loaded_bundles_give_the_tokens_of_transformers(exported: tuple[Any, Path]) -> None:
    model, folder = exported
    loaded = forerun.load(folder, progress=QUIET)
    assert loaded.strategy == TREES
    expected = greedy(model)
    for strategy in ("autoregressive", TREES, "tree_spec"):
        found = forerun.with_strategy(loaded, strategy, QUIET).generate(PROMPT, max_new_tokens=NEW, return_logits=True)
        assert found.token_ids == expected
        assert found.logits is not None
        with torch.no_grad():
            own = model(torch.tensor([PROMPT + expected])).logits[0, len(PROMPT) - 1 : -1].numpy()
        np.testing.assert_allclose(found.logits, own, atol=1e-4)


def test_the_example_gives_the_same_tokens_in_fewer_steps(exported: tuple[Any, Path]) -> None:
    model, folder = exported
    example = loop()
    expected = greedy(model)
    plain, steps = example.generate(example.Model(folder), PROMPT, NEW, 1)
    tree, fewer = example.generate(example.Model(folder), PROMPT, NEW, 8)
    assert plain == tree == expected
    assert steps == NEW
    assert fewer <= steps


def loop() -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("run_onnx", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_graphs_are_standard_and_checked_whole(exported: tuple[Any, Path]) -> None:
    _, folder = exported
    path = str(folder / "step.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        onnx.checker.check_model(path, full_check=True)
        graph = onnx.load(path, load_external_data=False)
        inferred = shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    assert [each.domain for each in graph.opset_import] == [""]
    assert {each.domain for each in graph.graph.node} == {""}
    assert all(each.type.tensor_type.HasField("shape") for each in inferred.graph.value_info)


def test_onnx_runtime_optimizes_silently(exported: tuple[Any, Path], capfd: pytest.CaptureFixture[str]) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2  # warnings
    onnxruntime.InferenceSession(exported[1] / "step.onnx", options)
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_the_example_imports_three_packages() -> None:
    outside = {
        line.split()[1].split(".")[0]
        for line in EXAMPLE.read_text().splitlines()
        if line.startswith(("import", "from"))
    }
    assert outside - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "tokenizers"}
    assert len(EXAMPLE.read_text().splitlines()) <= 150


def test_half_precision_weights_stay_half_size(tmp_path: Path) -> None:
    model = FAMILIES["llama"]()
    sizes: dict[str, int] = {}
    for dtype in ("float32", "bfloat16"):
        forerun.compile(model, TREES, target="reference", dtype=dtype, max_length=64, progress=QUIET).export(
            tmp_path / dtype
        )
        sizes[dtype] = (tmp_path / dtype / "weights.bin").stat().st_size
        onnx.checker.check_model(str(tmp_path / dtype / "step.onnx"), full_check=True)
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]
    loaded = forerun.load(tmp_path / "bfloat16", "autoregressive", progress=QUIET)
    expected = forerun.compile(
        model, "autoregressive", target="reference", dtype="bfloat16", max_length=64, progress=QUIET
    )
    text = expected.generate(PROMPT, max_new_tokens=NEW).token_ids
    assert loaded.generate(PROMPT, max_new_tokens=NEW).token_ids == text
    assert loaded.dtype == "bfloat16"


def test_a_loaded_bundle_says_that_it_cannot_be_exported(exported: tuple[Any, Path], tmp_path: Path) -> None:
    loaded = forerun.load(exported[1], "autoregressive", progress=QUIET)
    with pytest.raises(forerun.errors.InvalidOptionError, match=r"compile its source .* copy the bundle's folder"):
        loaded.export(tmp_path / "again")


def test_the_description_lists_what_a_loader_needs(exported: tuple[Any, Path]) -> None:
    described = json.loads((exported[1] / "bundle.json").read_text())
    assert described["schema"] == 1
    assert described["format"] == "onnx"
    assert described["exactness"]["level"] == "near-ties"
    assert set(described["files"]) == {"step.onnx", "weights.bin"}
    session_inputs = {each["name"] for each in described["entries"]["step"]["arguments"]}
    assert {"tokens", "positions", "visible", "outputs", *described["states"]} - session_inputs <= {"positions"}


def test_options_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = forerun.compile(FAMILIES["gpt2"](), "autoregressive", target="reference", max_length=64, progress=QUIET)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    with pytest.raises(forerun.errors.InvalidOptionError, match="is not empty"):
        model.export(tmp_path / "full")
    with pytest.raises(forerun.errors.InvalidOptionError, match="no format 'onxx'"):
        model.export(tmp_path / "new", format="onxx")
    with pytest.raises(forerun.errors.InvalidOptionError, match="for no processor"):
        model.export(tmp_path / "new", mcpu="znver5")
    with pytest.raises(forerun.errors.InvalidOptionError, match="is a file"):
        model.export(tmp_path / "full" / "mine", force=True)
    assert [each.name for each in tmp_path.rglob("*")] == ["full", "mine"]
    bundle = str(model.export(tmp_path / "new"))
    assert main(["generate", bundle, "--token-ids", "1,2", "--dtype", "bfloat16"]) == 2
    assert "leave out --dtype" in capsys.readouterr().err
    assert main(["generate", bundle, "--token-ids", "1,2,3", "--max-new-tokens", "4", "--quiet"]) == 0
    assert len(capsys.readouterr().out.strip().split(",")) == 4


def test_a_bundle_runs_without_the_compiler(exported: tuple[Any, Path]) -> None:
    code = (
        "import sys, forerun; "
        f"found = forerun.load({str(exported[1])!r}).generate({PROMPT}, max_new_tokens={NEW}); "
        f"print(found.token_ids, [each for each in {COMPILING} if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{greedy(exported[0])} []"


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one writes graphs, the other runs them."""
    model, options = FAMILIES["gpt2"](), {"max_length": 64, "progress": QUIET}
    compiled = forerun.compile(model, "autoregressive", target="reference", **options)

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("forerun.execute.onnx.library.import_module", missing)
    with pytest.raises(forerun.errors.DeviceError, match=rf"package {package} is not installed: pip install"):
        compiled.export(tmp_path / "b") if package == "onnx" else forerun.compile(model, target="onnx", **options)
