"""How long does it take from compile() to the first token, kernels cached and not, and how much memory is used?

python -m benchmarks.startup
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.common import model_path, report

GENERATE = """
import json, sys, time
from benchmarks.machine import pin_threads
from benchmarks.memory import peak_bytes
path, dtype, strategy, threads = sys.argv[1:]
pin_threads(int(threads))
import forerun
began = time.perf_counter()
model = forerun.compile(path, strategy=strategy, dtype=dtype)
compiled = time.perf_counter()
prompt = model.tokenizer.encode("The lighthouse keeper opened the bottle and")
model.generate(prompt, max_new_tokens=1, do_sample=False)
first = time.perf_counter()
model.generate(prompt, max_new_tokens=32, do_sample=False)
print(json.dumps({
    "compile_seconds": compiled - began,
    "first_token_seconds": first - began,
    "weight_bytes": model.executable.weight_bytes,
    "cache_bytes": model.engine.state.bytes,
    "peak_bytes": peak_bytes(),
}))
"""

IMPORTS = """
import json
import torch, tvm
from benchmarks.memory import peak_bytes
print(json.dumps({"peak_bytes": peak_bytes()}))
"""


@dataclass(frozen=True)
class Startup:
    """A fresh process that compiles and generates; seconds from the call of compile()."""

    uncached_seconds: float  # to the first token, with an empty forerun cache directory
    cached_seconds: float  # the same, with the cache that the first process filled
    compile_seconds: float  # compile() only, in the second process
    weight_bytes: int
    cache_bytes: int  # keys and values of one sequence of max_length, and spare slots
    import_bytes: int  # the memory of `import torch, tvm` alone
    peak_bytes: int  # of the second process
    uncached_peak_bytes: int

    @property
    def memory_ratio(self) -> float:
        return self.peak_bytes / (self.weight_bytes + self.cache_bytes + self.import_bytes)


def measure_startup(path: Path, dtype: str, strategy: str, threads: int) -> Startup:
    arguments = [str(path), dtype, strategy, str(threads)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "FORERUN_CACHE_DIR": folder}
        uncached, cached = (_python(GENERATE, arguments, environment) for _ in range(2))
    imports = _python(IMPORTS, [], dict(os.environ))
    return Startup(
        uncached_seconds=uncached["first_token_seconds"],
        cached_seconds=cached["first_token_seconds"],
        compile_seconds=cached["compile_seconds"],
        weight_bytes=int(cached["weight_bytes"]),
        cache_bytes=int(cached["cache_bytes"]),
        import_bytes=int(imports["peak_bytes"]),
        peak_bytes=int(cached["peak_bytes"]),
        uncached_peak_bytes=int(uncached["peak_bytes"]),
    )


def _python(code: str, arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=None, help="a directory or a GGUF file (default: SmolLM2)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--strategy", default="tree_spec")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    given = parser.parse_args()
    found = measure_startup(model_path(given.model), given.dtype, given.strategy, given.threads)
    rows: list[tuple[str, object]] = [
        ("first token, nothing cached, s", found.uncached_seconds),
        ("first token, kernels cached, s", found.cached_seconds),
        ("of which compile(), s", found.compile_seconds),
        ("weights, MB", found.weight_bytes / 1e6),
        ("cache, MB", found.cache_bytes / 1e6),
        ("import torch, tvm, MB", found.import_bytes / 1e6),
        ("peak, kernels cached, MB", found.peak_bytes / 1e6),
        ("peak, nothing cached, MB", found.uncached_peak_bytes / 1e6),
        ("peak : weights + cache + imports", found.memory_ratio),
    ]
    report("startup", given.out, ("what", "measured"), rows, {**asdict(found), "memory_ratio": found.memory_ratio})
    return 0


if __name__ == "__main__":
    sys.exit(main())
