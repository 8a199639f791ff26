"""Checks of the programs that make a module: their classes, their entries' names, their arguments and results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from forerun.errors import InvalidOptionError, NotAModelError, TraceError
from forerun.ir import SSAValue

DERIVED = ("constants", "step", "draft", "resume", "attention_part", "ffn_part")
"""The functions that passes add to a module."""

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def require_programs(programs: Any) -> None:
    """Raises `NotAModelError` unless these are programs by name, `InvalidOptionError` for a name no entry can have."""
    if not isinstance(programs, Mapping) or not programs:
        found = "none" if isinstance(programs, Mapping) else f"an object of type {type(programs).__name__}"
        raise NotAModelError(
            f"A module is imported from a dict of programs by their entries' names, but {found} was given; give "
            "{'forward': torch.export.export(...)}."
        )
    given: Mapping[Any, Any] = programs
    for name, program in given.items():
        if not isinstance(name, str) or _NAME.fullmatch(name) is None:
            raise InvalidOptionError(
                f"{name!r} is not the name of an entry; choose one of letters, digits and _, such as 'encode'."
            )
        if name in DERIVED:
            raise InvalidOptionError(f"{name!r} is the name of a function that passes add; name the entry otherwise.")
        if not isinstance(program, ExportedProgram):
            raise NotAModelError(
                f"The program of {name!r} is an object of type {type(program).__name__}, not an ExportedProgram; give "
                "what torch.export.export returns."
            )


def require_tensors(name: str, inputs: Sequence[Node]) -> None:
    """Raises `TraceError` for an argument that is not a tensor."""
    for node in inputs:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            raise TraceError(
                f"The program of {name!r} takes {node.name}, which is {value!r} and not a tensor; trace a module "
                "whose forward takes tensors only."
            )


def returned_tensors(name: str, results: Sequence[Any]) -> list[SSAValue]:
    """Returns the results. Raises `TraceError` for one that is not a tensor."""
    for each in results:
        if not isinstance(each, SSAValue):
            raise TraceError(
                f"The program of {name!r} returns {each!r}, which is not a tensor; trace a module whose forward "
                "returns tensors only."
            )
    return list(results)
