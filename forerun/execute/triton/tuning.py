"""The autotuner: measures once how a launch is best divided on this GPU, and stores the choice on disk.

A choice belongs to a kernel's structure and shape (the digest of its text), a row bucket and a GPU's name. Candidates
give the same bits (`configs`), so a choice only affects time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forerun.codegen.program import Config, Launch, Source
from forerun.entries import remove
from forerun.execute.triton.configs import candidates, tuned_rows
from forerun.execute.triton.untyped import OutOfResources, testing, triton
from forerun.storage import cache_directory, keeping, write_atomically


def choices_file(gpu: str) -> Path | None:
    name = "".join(letter if letter.isalnum() else "_" for letter in gpu)
    folder = cache_directory()
    return None if folder is None else folder / "triton" / f"choices-{name}-{triton.__version__}.json"


def known_choices(sources: Mapping[str, Source]) -> dict[str, str]:
    """Returns what was measured for these kernels, on any GPU: "GPU, kernel, rows, tiles" -> the choice in words."""
    found: dict[str, str] = {}
    folder = cache_directory()
    for file in [] if folder is None else sorted((folder / "triton").glob("choices-*.json")):
        gpu = file.stem.removeprefix("choices-").rpartition("-")[0]
        chosen = _read(file)
        for name, source in sources.items():
            for rows in (16, 32, 256):
                for shared in source.together:
                    if (config := chosen.get(choice_key(source, rows, shared))) is not None:
                        found[f"{gpu} {name} rows {rows} together {shared}"] = str(config)
    return found


def choice_key(source: Source, rows: int, shared: int) -> str:
    """Returns the key of a kernel's structure and shape, in a row bucket."""
    digest = hashlib.sha256(source.text.encode()).hexdigest()[:16]
    return f"{digest} {source.kind} rows {tuned_rows(rows)} shared {shared}"


def read_choices(gpu: str) -> dict[str, Config]:
    """Returns what was measured on a GPU of this name."""
    file = choices_file(gpu)
    return {} if file is None else _read(file)


def _read(file: Path) -> dict[str, Config]:
    """Returns the choices of a file; none if it is missing or damaged, so that they are measured again."""
    try:
        if not file.is_file():
            return {}
        found = json.loads(file.read_text(encoding="utf-8"))
        choices = found["choices"]
        if found["sha256"] != _checksum(choices):
            return {}
        return {key: Config(**each) for key, each in choices.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}


def write_choices(gpu: str, chosen: Mapping[str, Config]) -> None:
    """Stores the choices where they can be stored (`storage.keeping`)."""
    file = choices_file(gpu)
    if file is None:
        return
    choices = {key: vars(each) for key, each in chosen.items()}
    with keeping("autotuner's choices"):
        if file.is_dir():
            remove(file)
        write_atomically(file, json.dumps({"sha256": _checksum(choices), "choices": choices}, indent=1))


def _checksum(choices: Any) -> str:
    return hashlib.sha256(json.dumps(choices, sort_keys=True).encode()).hexdigest()


class Autotuner:
    """Measures each launch that has not been measured on this GPU."""

    def __init__(self, gpu: str) -> None:
        self.gpu = gpu
        self.chosen = read_choices(gpu)

    def __call__(self, launcher: Any, launch: Launch, rows: int, shared: int, pointers: Any, sizes: Any) -> Config:
        source: Source = launcher.sources[launch.source]
        key = choice_key(source, rows, shared)
        if key not in self.chosen:
            options = candidates(launch, rows, shared)
            times = {each: self._measure(launcher, launch, pointers, sizes, each) for each in options}
            self.chosen[key] = min(options, key=lambda each: times[each])
            write_choices(self.gpu, self.chosen | read_choices(self.gpu))
        return self.chosen[key]

    @staticmethod
    def _measure(launcher: Any, launch: Launch, pointers: Any, sizes: Any, config: Config) -> float:
        """Returns the median milliseconds, weights not in the cache; infinite if the launch exceeds GPU resources."""
        try:
            return testing.do_bench(
                lambda: launcher.launch(launch, pointers, sizes, config), warmup=5, rep=20, return_mode="median"
            )
        except OutOfResources:
            return float("inf")
