"""The back ends: what a model can be compiled for, one entry each. Nothing else in forerun knows one by its name.

An entry names the functions that do its work as "module:name", resolved when needed (`named`): so a back end's
libraries are imported only where it is used, and a saved model runs without its code generator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from forerun.errors import ForerunError

WEIGHT_DTYPES: Mapping[str, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "native": "native"}
"""The weight dtypes, and their names in the IR."""
FLOAT32, BFLOAT16, INT8 = "float32", "bfloat16", "int8"
"""The arithmetics of products."""
NARROWEST: Mapping[str, str] = {"native": INT8, "bfloat16": BFLOAT16}
"""The narrowest arithmetic that a matrix of a weight dtype can have besides float32."""


@dataclass(frozen=True)
class Kept:
    """How compiled models of a back end are saved on disk, for the next start."""

    machine: str  # () -> what the code depends on besides the model; its `str` tells machines apart
    size: str  # (executable) -> its bytes on disk
    save: str  # (folder, executable) -> None
    load: str  # (entry, threads) -> executable; `CorruptFileError` if it differs from what was written


@dataclass(frozen=True)
class Bundled:
    """How programs of a back end are written to bundles of a format, and read back."""

    format: str
    write: str  # (folder, `artifacts.written.Exportable`) -> `artifacts.written.Written`; makes the bundle's own files
    load: str  # (`artifacts.bundle.Bundle`, threads) -> executable; `CorruptFileError` if it is not whole
    promise: str  # what it promises, in a sentence
    probe: str | None = None  # () -> None; raises a `ForerunError` if this machine cannot write such bundles


@dataclass(frozen=True)
class Ahead:
    """What a back end reports about kernels that are compiled on a machine that cannot run them."""

    probe: str  # () -> None; raises a `ForerunError` if this machine cannot compile them
    report: str  # (program) -> `Report`


@dataclass(frozen=True)
class Tuning:
    """How the kernels of a back end are edited, measured and tuned: by files, NAME and `suffix`."""

    suffix: str
    trusted: bool  # whether no edit can change a bit; if not, an edited kernel is checked before it is used
    files: str  # (program) -> the text of every kernel that can be edited, by file name
    edited: str  # (program, texts by file name) -> program with these; raises `InvalidOptionError`
    versions: (
        str  # (program, executable, kernel, texts of its file) -> `runtime.kernel_versions.Versions`; "": as generated
    )
    times: str  # (executable, state, rows) -> the seconds of every kernel of a step
    peaks: str  # (executable) -> `tuning.roofline.Peaks`
    assembly: str  # (program, kernels) -> what they are compiled to: texts by file name
    machine: str  # () -> what was measured; its `str` tells machines apart
    candidates: str | None = None  # (program, file, text) -> texts that a search tries next; None: nothing to search
    changes: str | None = None  # (program, file, text) -> in words, what the text changes


@dataclass(frozen=True)
class Report:
    """What `forerun dump` lists for a program's kernels."""

    resources: list[dict[str, Any]]  # for each kernel on each architecture
    choices: dict[str, str]  # by machine and kernel: what an autotuner chose


@dataclass(frozen=True)
class Backend:
    """A back end: its name, its capabilities, and the functions that do its work."""

    name: str
    weight_dtypes: tuple[str, ...]
    emit: str  # (`PlannedStep`) -> a program: plain data, and functions of tensors
    bind: str  # (program, and threads if it takes them) -> `runtime.executable.Executable`
    probe: str | None = None  # () -> None; raises a `ForerunError` if this machine cannot run its programs
    texts: str | None = None  # (program) -> the loop nest and the text of every kernel, by the name of a file
    arithmetics: tuple[str, ...] = (FLOAT32,)  # of products, from the widest to the narrowest
    cache_in_memory: bool = True  # whether states lie in the machine's own memory: passes refuse what does not fit
    fused: bool = True  # whether it compiles fused kernels; else the operations of `@step`
    threads: bool = False  # whether `bind` and what loads its models take a number of threads
    exact: bool = True  # whether a row's bits do not depend on the rows that share its step
    kept: Kept | None = None  # None: compiled anew at every start
    bundled: Bundled | None = None  # None: cannot be exported
    ahead: Ahead | None = None
    tuning: Tuning | None = None

    def require_usable(self) -> None:
        """Raises a `ForerunError` if this machine cannot run its programs."""
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
    """Imports and returns what "module:name" refers to."""
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
            bundled=Bundled(
                format="triton",
                write="forerun.execute.triton.bundle:write",
                load="forerun.execute.triton.bundle:load",
                promise="The tokens and the logits of the model compiled for cuda, bit for bit, whatever the schedule.",
            ),
            ahead=Ahead("forerun.execute.triton.gpu:require_triton", "forerun.execute.triton.build:report"),
            tuning=Tuning(
                suffix=".py",
                trusted=False,
                files="forerun.execute.triton.build:files",
                edited="forerun.execute.triton.build:edited",
                versions="forerun.execute.triton.versions:TritonVersions",
                times="forerun.execute.triton.timing:times",
                peaks="forerun.tuning.cuda:CudaPeaks",
                assembly="forerun.execute.triton.compilation:assembly",
                machine="forerun.execute.triton.gpu:machine",
            ),
        ),
        Backend(
            name="cpu",
            weight_dtypes=("float32", "bfloat16", "native"),
            arithmetics=(FLOAT32, BFLOAT16, INT8),
            emit="forerun.codegen.tvm.lowering:emit",
            bind="forerun.execute.tvm.executable:bind",
            texts="forerun.codegen.tvm.lowering:texts",
            threads=True,
            kept=Kept(
                machine="forerun.execute.tvm.processor:this_processor",
                size="forerun.execute.tvm.artifact:size",
                save="forerun.execute.tvm.artifact:save",
                load="forerun.execute.tvm.artifact:load",
            ),
            bundled=Bundled(
                format="tvm",
                write="forerun.execute.tvm.bundle:write",
                load="forerun.execute.tvm.bundle:load",
                promise="The tokens and the logits of the compiled model, bit for bit, whatever the schedule.",
            ),
            tuning=Tuning(
                suffix=".schedule",
                trusted=True,
                files="forerun.codegen.tvm.lowering:files",
                edited="forerun.codegen.tvm.lowering:edited",
                versions="forerun.execute.tvm.versions:TvmVersions",
                times="forerun.execute.tvm.versions:times",
                peaks="forerun.tuning.cpu:CpuPeaks",
                assembly="forerun.execute.tvm.assembly:assembly",
                candidates="forerun.codegen.tvm.lowering:candidates",
                changes="forerun.codegen.tvm.lowering:changes",
                machine="forerun.execute.tvm.processor:this_processor",
            ),
        ),
        Backend(
            name="reference",
            weight_dtypes=("float32", "bfloat16", "native"),
            arithmetics=(FLOAT32, BFLOAT16, INT8),
            emit="forerun.codegen.reference:emit",
            bind="forerun.execute.reference:ReferenceExecutable",
            exact=False,
        ),
        Backend(
            name="onnx",
            weight_dtypes=("float32", "bfloat16", "native"),
            emit="forerun.codegen.onnx.lowering:emit",
            bind="forerun.execute.onnx.executable:bind",
            probe="forerun.execute.onnx.library:require_onnxruntime",
            fused=False,
            threads=True,
            exact=False,
            bundled=Bundled(
                format="onnx",
                write="forerun.execute.onnx.bundle:write",
                load="forerun.execute.onnx.bundle:load",
                promise="Greedy tokens are those of the compiled model, up to near-ties: ONNX Runtime rounds a row "
                "differently in steps of different sizes.",
                probe="forerun.execute.onnx.library:require_onnx",
            ),
        ),
        Backend(
            name="c",
            weight_dtypes=("float32", "bfloat16"),
            emit="forerun.codegen.c.lowering:emit",
            bind="forerun.execute.c.executable:bind",
            probe="forerun.execute.c.executable:require_compiler",
            texts="forerun.codegen.c.lowering:texts",
        ),
    )
}
"""The back ends by name; "auto" is the first that this machine can use."""
