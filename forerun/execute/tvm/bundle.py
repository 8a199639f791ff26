"""Bundles of the format "tvm": a compiled library, its header and its packed weights. docs/bundle.md describes them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from forerun.artifacts.bundle import Bundle
from forerun.artifacts.written import Exportable, Written
from forerun.codegen.program import Program
from forerun.codegen.tvm.layout import HELP, Processor, TvmProgram
from forerun.errors import CorruptFileError
from forerun.execute.soundness import require_sound
from forerun.execute.tvm.artifact import STEP, WEIGHTS, read_step, write_step
from forerun.execute.tvm.executable import TvmExecutable
from forerun.execute.tvm.header import header, layout_of
from forerun.execute.tvm.library import Module, TvmError
from forerun.execute.tvm.linking import LINK, can_link, link, linked
from forerun.execute.tvm.processor import require, same_system, this_processor
from forerun.records import restored

LIBRARY, OBJECT, HEADER = "step.so", "step.o", "step.h"


def write(folder: Path, exportable: Exportable) -> Written:
    """Writes the files of a bundle. A model that runs on this back end is not compiled again for this machine.

    Raises `InvalidOptionError` for an `mcpu` or `mtriple` that LLVM does not know, and OSError.
    """
    progress = exportable.progress
    step, code, write_weights, processor = _parts(exportable)
    with progress.stage("library"):
        name, notes = _write_code(folder, code, processor)
        if exportable.mcpu or exportable.mtriple:
            notes.append(f"The code is for {processor.cpu} ({processor.triple}); it was compiled here, but not run.")
        layout = layout_of(step)
        (folder / HEADER).write_text(header(step, layout, exportable.eos_token_ids), encoding="utf-8")
    with progress.stage("weights"):
        write_step(folder, step, write_weights)
    content = {
        "code": name,
        "header": HEADER,
        "program": STEP,
        "weights": WEIGHTS,
        "processor": asdict(processor),
        "layout": asdict(layout) | {"calls": [list(row) for row in layout.calls]},
    }
    return Written.of(step, content, notes)


def load(bundle: Bundle, threads: int | None = None) -> TvmExecutable:
    """Returns the step of a bundle, ready to run.

    Raises `DeviceError` if it was compiled for a machine that is not like this one, `CorruptFileError` if it is not
    whole, `DeviceMemoryError`, and `ForerunError` if its code is not linked yet and there is no C compiler.
    """
    try:
        content = bundle.manifest.content
        name, processor = str(content["code"]), restored(Processor, content["processor"])
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{bundle.folder} does not say what its code was compiled for ({error}): export the model again."
        ) from error
    require(processor, str(bundle.folder))
    if name not in (LIBRARY, OBJECT):
        raise CorruptFileError(f"{bundle.folder} names {name!r} as its code: export the model again.")
    path = bundle.path(name)
    step, weights = read_step(bundle)
    require_sound(step, bundle.manifest, str(bundle.folder))
    with ExitStack() as stack:
        library = path if name == LIBRARY else stack.enter_context(linked(path))
        try:
            code = Module.load(library)
        except TvmError as error:
            raise CorruptFileError(f"{path} cannot be loaded ({error}): export the model again.") from error
    if not code.has(HELP):
        raise CorruptFileError(f"{bundle.folder} was written by an older version of forerun: export the model again.")
    return TvmExecutable(step, code, weights, threads)


def _parts(exportable: Exportable) -> tuple[Program, Module, Callable[[BinaryIO], None], Processor]:
    """Returns the step that is exported, its code, what writes its weights, and what the code was compiled for."""
    own: TvmExecutable | None = exportable.executable
    if own is not None and not (exportable.mcpu or exportable.mtriple):
        return own.step, own.code, own.weights.tofile, this_processor()
    program: TvmProgram = exportable.program()
    with exportable.progress.stage("kernels"):
        compiled = program.compile(exportable.mtriple, exportable.mcpu)
    # Weights are packed alike for all processors.
    write = program.write if own is None else own.weights.tofile
    return program.program, Module.of(compiled.module), write, compiled.processor


def _write_code(folder: Path, code: Module, processor: Processor) -> tuple[str, list[str]]:
    """Writes a shared library, or an object file where it cannot be linked; returns its name, and notes."""
    if code.library is not None:
        (folder / LIBRARY).write_bytes(code.library)
        return LIBRARY, []
    code.write(folder / OBJECT, "o")
    if same_system(processor.triple, this_processor().triple) and can_link():
        link(folder / OBJECT, folder / LIBRARY)
        (folder / OBJECT).unlink()
        return LIBRARY, []
    return OBJECT, [f"{OBJECT} is not linked: `{LINK}` does it on a machine of its kind, as forerun.load does there."]
