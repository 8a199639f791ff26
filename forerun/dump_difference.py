"""What differs between two dumps, or two of their files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forerun.dump_folder import read_manifest
from forerun.errors import InvalidOptionError, SourceNotFoundError
from forerun.storage import expanded

TIME = "// time:"
"""Begins the line of a dumped module that differs from run to run."""


@dataclass(frozen=True)
class Difference:
    """What was said of two dumps that differs, and their texts that do."""

    said: list[str]
    files: dict[str, list[str]]
    """A unified diff of each text that both have."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = [*self.said, *(line for each in self.files.values() for line in each)]
        return "".join(f"{line}\n" for line in lines) or "the two are the same\n"


def difference(one_place: str, other_place: str) -> Difference:
    """Compares two dumps, or two files of dumps.

    Raises `SourceNotFoundError` if one does not exist, and `InvalidOptionError` for a folder without a dump.
    """
    one, other = expanded(one_place), expanded(other_place)
    for each in (one, other):
        if not each.exists():
            raise SourceNotFoundError(f"{str(each)!r} does not exist; give two dumps, or two files of dumps.")
    if one.is_file() and other.is_file():
        return Difference([], _named({"": _unified(one, other)}))
    manifests = read_manifest(one), read_manifest(other)
    files = [each["files"] for each in manifests]
    both = [name for name in files[0] if name in files[1]]
    found = {name: _unified(one / name, other / name) for name in both}  # which may have been edited since
    return Difference([*_said(*manifests), *_only(*files)], _named(found))


def print_difference(model: str | None, places: Sequence[str], as_json: bool) -> int:
    """Prints what differs between two places; returns the exit code. No model may be given as well."""
    if model is not None:
        raise InvalidOptionError("--diff compares two dumps; leave out the model.")
    found = difference(*places)
    print(json.dumps(found.to_dict()) if as_json else found, end="\n" if as_json else "")
    return 0


def _named(found: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {name: lines for name, lines in found.items() if lines}


def _said(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterable[str]:
    """The model, the options, the versions and the memory that differ, and what each pass did."""
    for name in ("model", "target", "forerun", "options", "versions", "memory"):
        yield from _changed(name, one.get(name), other.get(name))
    passes = [_done(each) for each in one["passes"]], [_done(each) for each in other["passes"]]
    for line in difflib.unified_diff(passes[0], passes[1], lineterm="", n=0):
        if not line.startswith(("---", "+++", "@@")):
            yield line
    kernels = [{each["source"]: each for each in manifest.get("kernels", ())} for manifest in (one, other)]
    for name in sorted({*kernels[0]} & {*kernels[1]}):
        places = [len(each[name]["places"]) for each in kernels]
        if places[0] != places[1]:
            yield f"kernel {name}: {places[0]} places -> {places[1]}"


def _changed(name: str, one: Any, other: Any) -> Iterable[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if key not in ("states", "values"):
                yield from _changed(f"{name}: {key}", one.get(key), other.get(key))
    elif one != other:
        yield f"{name}: {one} -> {other}"


def _done(record: Mapping[str, Any]) -> str:
    """What a pass did, without its time."""
    changes = ", ".join(f"{each['count']:+d} {each['operation']}" for each in record["changes"])
    patterns = ", ".join(f"{name} {count} times" for name, count in record["patterns"].items())
    return "; ".join(
        filter(None, [f"{record['name']}: {record['after']} operations", changes, patterns, *record["notes"]])
    )


def _only(one: Mapping[str, str], other: Mapping[str, str]) -> Iterable[str]:
    for name in one:
        if name not in other:
            yield f"only the first has {name}"
    for name in other:
        if name not in one:
            yield f"only the second has {name}"


def _unified(one: Path, other: Path) -> list[str]:
    return list(difflib.unified_diff(_lines(one), _lines(other), str(one), str(other), lineterm=""))


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith(TIME)]
