"""Where the kernels of a program are used, and their names without the number of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterable

from forerun.codegen.program import Program


def alike(name: str) -> str:
    """Returns the name that a kernel shares with those of other layers: layers.3.mlp.down_proj is
    layers.*.mlp.down_proj."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def identifier(name: str) -> str:
    """Returns a kernel's name, without the number of a layer, as programs and files spell it."""
    parts = (re.sub(r"\W+", "_", part).strip("_") for part in name.split(".") if not part.isdigit() and part != "*")
    found = "_".join(filter(None, parts)) or "kernel"
    return f"_{found}" if found[0].isdigit() else found


def places(program: Program) -> dict[str, list[str]]:
    """Returns the names of the kernels that run each source, in the order of the program, each once."""
    found: dict[str, dict[str, None]] = {name: {} for name in program.sources}
    for kernel in (each for entry in program.entries for each in entry.kernels):
        for launch in (*kernel.launches, *kernel.on_demand):
            found[launch.source][kernel.name] = None
    return {name: list(names) for name, names in found.items()}


def in_words(names: Iterable[str]) -> str:
    """Returns names of kernels as one line; those of layers 0 to 29 that are alike are layers.0-29.mlp.gate_up."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        number = next((part for part in name.split(".") if part.isdigit()), None)
        numbers.setdefault(_split(name), []).extend([] if number is None else [int(number)])
    return ", ".join(name.replace("\0", _ranges(sorted(each)), 1) for name, each in numbers.items())


def nests(program: Program) -> dict[str, str]:
    """The loop nest of every distinct kernel below the places that use it, by the name of a file."""
    used = places(program)
    return {f"{name}.nest": f"// {in_words(used[name])}\n{each.nest}\n" for name, each in program.sources.items()}


def _split(name: str) -> str:
    """The name with a mark in place of its first number."""
    parts = name.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), None)
    if number is not None:
        parts[number] = "\0"
    return ".".join(parts)


def _ranges(numbers: list[int]) -> str:
    """0-3,5 for 0, 1, 2, 3 and 5."""
    found: list[list[int]] = []
    for each in numbers:
        if found and each == found[-1][1] + 1:
            found[-1][1] = each
        else:
            found.append([each, each])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in found)
