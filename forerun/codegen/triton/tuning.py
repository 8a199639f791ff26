"""The autotuner: measures how a launch is best divided on this GPU, once, and keeps the choice on disk.

A choice belongs to a kernel's structure and shape (the digest of its text), a row bucket and a GPU's name. Candidates
give the same bits (`configs`), so that a choice is a matter of time alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.codegen.triton.configs import candidates, tuned_rows
from forerun.codegen.triton.step import Config, Launch, Source
from forerun.codegen.triton.untyped import OutOfResources, testing, triton
from forerun.storage import cache_directory, write_atomically


def choices_file(gpu: str) -> Path:
    name = "".join(letter if letter.isalnum() else "_" for letter in gpu)
    return cache_directory() / "triton" / f"choices-{name}-{triton.__version__}.json"


def known_choices(sources: Mapping[str, Source]) -> dict[str, str]:
    """What was measured of these kernels, on any GPU: "GPU, kernel, rows, tiles" -> the choice in words."""
    found: dict[str, str] = {}
    for file in sorted((cache_directory() / "triton").glob("choices-*.json")):
        gpu = file.stem.removeprefix("choices-").rpartition("-")[0]
        chosen = _read(file)
        for name, source in sources.items():
            for rows in (16, 32, 256):
                for shared in source.together:
                    if (config := chosen.get(choice_key(source, rows, shared))) is not None:
                        found[f"{gpu} {name} rows {rows} together {shared}"] = str(config)
    return found


def choice_key(source: Source, rows: int, shared: int) -> str:
    """A kernel's structure and shape, in a row bucket."""
    digest = hashlib.sha256(source.text.encode()).hexdigest()[:16]
    return f"{digest} {source.kind} rows {tuned_rows(rows)} shared {shared}"


def read_choices(gpu: str) -> dict[str, Config]:
    """What was measured on a GPU of this name."""
    return _read(choices_file(gpu))


def _read(file: Path) -> dict[str, Config]:
    """The choices of a file; none where it is missing or not whole, so that they are measured again."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {key: Config(**each) for key, each in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write_choices(gpu: str, chosen: Mapping[str, Config]) -> None:
    write_atomically(choices_file(gpu), json.dumps({key: vars(each) for key, each in chosen.items()}, indent=1))


class Autotuner:
    """Measures each launch that it has not seen on this GPU."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu
        self.chosen = read_choices(gpu)

    def __call__(self, executable: Any, launch: Launch, rows: int, shared: int, pointers: Any, sizes: Any) -> Config:
        source: Source = executable.sources[launch.source]
        key = choice_key(source, rows, shared)
        if key not in self.chosen:
            options = candidates(launch, rows, shared)
            times = {each: self._measure(executable, launch, pointers, sizes, each) for each in options}
            self.chosen[key] = min(options, key=lambda each: times[each])
            write_choices(self.gpu, self.chosen | read_choices(self.gpu))
        return self.chosen[key]

    @staticmethod
    def _measure(executable: Any, launch: Launch, pointers: Any, sizes: Any, config: Config) -> float:
        """Milliseconds, the median, weights not in the cache; infinite where the GPU has not the room."""
        try:
            return testing.do_bench(
                lambda: executable.launch(launch, pointers, sizes, config), warmup=5, rep=20, return_mode="median"
            )
        except OutOfResources:
            return float("inf")
