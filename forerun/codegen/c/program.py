"""The output of code generation for a C compiler: plain data, and the weights as the code reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from forerun.codegen.program import Program


@dataclass(frozen=True)
class CProgram:
    """A step as C, and the weights that it reads."""

    program: Program
    text: str
    packed: Callable[[], Mapping[str, NDArray[Any]]]  # float32, int32, or bfloat16 as uint16; each is read once
