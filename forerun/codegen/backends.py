"""The back ends: what a model can be compiled for, an entry each. Nothing else in forerun knows one by its name.

An entry says by "module:name" what does its work, found when it is needed (`named`): so a back end's libraries are
imported where it is used alone, and a kept model is run without its code generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from forerun.errors import ForerunError

WEIGHT_DTYPES: Mapping[str, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "native": "native"}
"""How matrices may be kept, and what the IR calls it."""


@dataclass(frozen=True)
class Kept:
    """How compiled models of a back end are kept on disk, for the next start."""

    machine: str  # () -> what the code depends on beside the model; its `str` tells machines apart
    size: str  # (executable) -> bytes that it takes on disk
    save: str  # (folder, executable) -> None
    load: str  # (entry) -> executable; `CorruptFileError` where it is not as it was written


@dataclass(frozen=True)
class Ahead:
    """What a back end tells of kernels that are compiled where they do not run."""

    probe: str  # () -> None; a `ForerunError` where this machine cannot compile them
    report: str  # (program) -> `Report`


@dataclass(frozen=True)
class Report:
    """What `forerun dump` lists of a program's kernels."""

    resources: list[dict[str, Any]]  # of each kernel on each architecture
    choices: dict[str, str]  # by machine and kernel: what an autotuner chose


@dataclass(frozen=True)
class Backend:
    """A back end: its name, what it can keep, and what does its work."""

    name: str
    weight_dtypes: tuple[str, ...]
    emit: str  # (`PlannedStep`) -> a program: plain data, and functions of tensors
    bind: str  # (program) -> `runtime.executable.Executable`
    probe: str | None = None  # () -> None; a `ForerunError` where this machine cannot run its programs
    texts: str | None = None  # (program) -> the text of every kernel by name
    cache_in_memory: bool = True  # whether states lie in the machine's own memory: passes refuse what has no room there
    exact: bool = True  # whether a row's bits do not depend on the rows that share its step
    kept: Kept | None = None  # None: compiled anew at every start
    ahead: Ahead | None = None

    def require_usable(self) -> None:
        """A `ForerunError` where this machine cannot run its programs."""
        if self.probe is not None:
            named(self.probe)()

    def usable(self) -> bool:
        """Whether "auto" may choose it on this machine."""
        try:
            self.require_usable()
        except ForerunError:
            return False
        return True


def named(reference: str) -> Any:
    """What "module:name" stands for, imported now."""
    return resolve_name(reference)


BACKENDS: dict[str, Backend] = {
    each.name: each
    for each in (
        Backend(
            name="cuda",
            weight_dtypes=("float32", "bfloat16", "float16"),
            emit="forerun.codegen.triton.lowering:emit",
            bind="forerun.execute.triton.build:bind",
            probe="forerun.execute.triton.gpu:require_gpu",
            texts="forerun.execute.triton.build:texts",
            cache_in_memory=False,
            ahead=Ahead("forerun.execute.triton.gpu:require_triton", "forerun.execute.triton.build:report"),
        ),
        Backend(
            name="cpu",
            weight_dtypes=("float32", "bfloat16", "native"),
            emit="forerun.codegen.tvm.lowering:emit",
            bind="forerun.execute.tvm.executable:bind",
            texts="forerun.codegen.tvm.lowering:texts",
            kept=Kept(
                machine="forerun.codegen.tvm.target:Machine.host",
                size="forerun.execute.tvm.artifact:size",
                save="forerun.execute.tvm.artifact:save",
                load="forerun.execute.tvm.artifact:load",
            ),
        ),
        Backend(
            name="reference",
            weight_dtypes=("float32", "bfloat16", "native"),
            emit="forerun.codegen.reference:emit",
            bind="forerun.execute.reference:ReferenceExecutable",
            exact=False,
        ),
    )
}
"""By name; "auto" is the first that this machine can use."""
