"""The identity of a model on disk: the bytes of all its files."""

import json
import os
import re
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from forerun.digests import known_digest

SPLIT = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")
"""A part of a split GGUF file: its number and the number of parts."""
ELSEWHERE = ("adapter_config.json",)
"""Files through which transformers reads a second model from elsewhere."""


def identity(path: Path) -> list[str] | None:
    """Returns a line for each file on which the model's text depends; None if it depends on files elsewhere.

    Raises OSError if a file cannot be read, or changes meanwhile.
    """
    if path.is_file():
        return [f"{name} {known_digest(file)}" for name, file in _parts(path)]
    has_graph = any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx"))
    if not (has_graph or (path / "config.json").is_file()) or any((path / name).exists() for name in ELSEWHERE):
        return None
    files = _files(path)
    lines = [f"{name} {known_digest(file)}" for name, file in sorted(files.items())]
    code = {reference for name in files if name.endswith(".json") for reference in _code(path / name)}
    if any("--" in reference for reference in code):  # "owner/name--module.Class": another repository's
        return None
    # A model's own code may use any installed package.
    return lines + (sorted(f"{each.name} {each.version}" for each in distributions()) if code else [])


def _parts(path: Path) -> Iterable[tuple[str, Path]]:
    """Yields the file, or all parts of a split one, and the files beside it that it may be read with.

    A GGUF file's tokenizer may come from the configuration beside it, the weights of a module of MLIR from a file of
    the same stem. An ONNX model's weights, tokenizer and end tokens are other files of its folder, or, of a folder
    `onnx`, files of the folder around it.
    """
    if path.suffix == ".onnx":
        around = path.parent.parent if path.parent.name == "onnx" else None
        outside = () if around is None else sorted(each for each in around.iterdir() if each.is_file())
        yield "whole", path
        yield from (("beside " + name, each) for name, each in sorted(_files(path.parent).items()) if each != path)
        yield from ((f"around {each.name}", each) for each in outside)
        return
    beside = [path.parent / name for name in ("tokenizer_config.json", "config.json")]
    beside += [path.with_suffix(".safetensors")]
    yield from ((f"beside {each.name}", each) for each in beside if each.is_file())
    found = SPLIT.fullmatch(path.name)
    if found is None:
        yield "whole", path
        return
    for each in sorted(path.parent.glob("*.gguf")):
        part = SPLIT.fullmatch(each.name)
        if part is not None and part.groups() == found.groups():
            yield each.name, each


def _files(folder: Path) -> dict[str, Path]:
    """Returns the folder's plain files that are not hidden, following links, and those that an index names."""
    found: dict[str, Path] = {}
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # through a link
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [each for each in folders if not each.startswith(".")]
        for each in (Path(where, name) for name in names if not name.startswith(".")):
            if each.is_file():
                found[each.relative_to(folder).as_posix()] = each
    for index in [each for name, each in found.items() if name.endswith(".index.json")]:
        shards = _json(index).get("weight_map")
        for shard in set(shards.values()) if isinstance(shards, dict) else ():
            if isinstance(shard, str) and (index.parent / shard).is_file():
                found[f"{index.name} {shard}"] = index.parent / shard
    return found


def _code(file: Path) -> set[str]:
    """Returns the model's own classes that a configuration names."""
    named = _json(file).get("auto_map")
    values = named.values() if isinstance(named, dict) else (named,)
    return {str(each) for value in values for each in (value if isinstance(value, list) else [value]) if each}


def _json(file: Path) -> dict[str, Any]:
    """Returns a file's JSON object; an empty one if it holds something else."""
    try:
        read: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}  # loading the model reports it
    return read if isinstance(read, dict) else {}
