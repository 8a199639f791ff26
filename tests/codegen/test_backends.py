"""A back end is one entry of the registry: one made up here compiles, is cached, refused, listed and dumped."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forerun
from forerun.cli import main
from forerun.codegen.backends import BACKENDS, WEIGHT_DTYPES
from forerun.compile_options import AUTO, resolve_target, targets
from forerun.errors import DeviceError, InvalidOptionError, UnknownTargetError
from forerun.progress import SilentProgress
from tests.models import FAMILIES

PROMPT = [5, 9, 200, 13]


def refuse() -> None:
    raise DeviceError("There is no such machine.")


def texts(program: Any) -> dict[str, str]:
    return {"branches.py": str(program.branches)}


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Restores the registry, including its order."""
    before = dict(BACKENDS)
    yield
    BACKENDS.clear()
    BACKENDS.update(before)


def register(base: str, first: bool = False, **changes: Any) -> None:
    """Registers another entry named "that", after the others or before them."""
    made = replace(BACKENDS[base], name="that", **changes)
    others = {name: each for name, each in BACKENDS.items() if name != "that"}
    BACKENDS.clear()
    BACKENDS.update({"that": made, **others} if first else {**others, "that": made})


def test_a_made_up_back_end_compiles(tmp_path: Path) -> None:
    model = FAMILIES["llama"]()
    expected = forerun.compile(model, "autoregressive", target="reference", max_length=64)
    register("reference", texts=f"{__name__}:texts")
    made = forerun.compile(model, "tree_spec", target="that", max_length=64, dump_dir=tmp_path)
    found, wanted = (each.generate(PROMPT, 8, return_logits=True) for each in (made, expected))
    assert found.token_ids == wanted.token_ids
    assert made.origin is not None
    assert made.origin.target == "that"
    assert (tmp_path / "kernels" / "branches.py").read_text().startswith("((0, ")


def test_it_is_kept_where_its_entry_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORERUN_CACHE_DIR", str(tmp_path / "cache"))
    FAMILIES["llama"]().save_pretrained(tmp_path / "model")
    for kept in (BACKENDS["cpu"].kept, None):
        register("cpu", kept=kept)
        stages: list[set[str]] = []
        logits: list[Any] = []
        for _ in range(2):
            progress = SilentProgress()
            model = forerun.compile(
                tmp_path / "model", "autoregressive", target="that", max_length=64, progress=progress
            )
            logits.append(model.generate(PROMPT, 4, return_logits=True).logits)
            stages.append(set(progress.seconds))
        assert ("trace" in stages[1]) == (kept is None)
        assert np.array_equal(*logits)


def test_what_a_machine_cannot_run_is_refused_and_not_chosen() -> None:
    register("reference", first=True, probe=f"{__name__}:refuse")
    with pytest.raises(DeviceError, match="no such machine"):
        forerun.compile("/no/such/model", target="that")
    assert resolve_target(AUTO) != "that"
    register("reference", first=True, probe=None)
    assert resolve_target(AUTO) == "that"


def test_auto_is_the_first_that_has_the_dtype() -> None:
    register("reference", first=True, weight_dtypes=("float16",))
    assert resolve_target(AUTO, "float16") == "that"
    assert resolve_target(AUTO, "native") == "cpu"
    with pytest.raises(InvalidOptionError, match="that target has no kernels for dtype 'native'; use one of float16"):
        resolve_target("that", "native")


def test_it_is_listed_and_dumped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FAMILIES["llama"]().save_pretrained(tmp_path / "model")
    dump = ["dump", str(tmp_path / "model"), "--target", "that", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(dump) == 2
    assert "use one of auto, c, cpu, cuda, onnx, reference." in capsys.readouterr().err
    register("reference", texts=f"{__name__}:texts", weight_dtypes=("float32", "native"))
    assert targets() == {
        "auto": tuple(WEIGHT_DTYPES),
        **{name: BACKENDS[name].weight_dtypes for name in ("c", "cpu", "cuda", "onnx", "reference", "that")},
    }
    with pytest.raises(UnknownTargetError, match="auto, c, cpu, cuda, onnx, reference, that"):
        resolve_target("the other")
    assert main(dump) == 0
    assert (tmp_path / "out" / "kernels" / "branches.py").is_file()
    with pytest.raises(SystemExit):
        main(["dump", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "auto, c, cpu, cuda, onnx, reference, that; auto is the best available" in shown
    assert "native (cpu, onnx, reference, that only)" in shown
    assert "float32, bfloat16" in shown
