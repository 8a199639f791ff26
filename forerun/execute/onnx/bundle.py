"""Bundles of the format "onnx": a graph for each entry, and one weight file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from forerun.artifacts.bundle import Bundle
from forerun.artifacts.manifest import Limits, StateRecord
from forerun.artifacts.written import Exportable, Written
from forerun.codegen.onnx.program import NEW, WEIGHTS, OnnxProgram, StateInfo
from forerun.codegen.program import DraftPart
from forerun.execute.onnx.executable import OnnxExecutable
from forerun.execute.onnx.library import session
from forerun.records import restored


def write(folder: Path, exportable: Exportable) -> Written:
    """Writes the graphs and the weights."""
    program: OnnxProgram = exportable.program()
    with exportable.progress.stage("write graphs and weights"):
        program.write(folder)
    return Written(
        entries=program.entries,
        states={name: StateRecord(each.per, each.shape, each.dtype) for name, each in program.states.items()},
        limits=Limits(
            max_length=program.max_length,
            max_rows=program.max_rows,
            max_outputs=program.max_outputs,
            max_path=program.max_path,
            candidates=program.candidates,
            block=program.block,
        ),
        vocabulary=program.vocabulary,
        content={
            "opset": program.opset,
            "graphs": {name: f"{name}.onnx" for name in program.graphs},
            "weights": WEIGHTS,
            "state_outputs": {name: name + NEW for name in program.states},
            "branches": program.branches,
            "head_bytes": program.head_bytes,
            "draft": program.draft and asdict(program.draft),
        },
        notes=program.notes,
    )


def load(bundle: Bundle, threads: int | None = None) -> OnnxExecutable:
    """Opens the graphs of a bundle, once all files have been checked."""
    manifest = bundle.manifest
    bundle.path(manifest.content["weights"])
    graphs: dict[str, Any] = manifest.content["graphs"]
    paths = {name: bundle.path(file) for name, file in graphs.items()}
    limits, content = manifest.limits, manifest.content
    program = OnnxProgram(
        graphs={},
        entries=manifest.entries,
        tensors={},
        states={name: StateInfo(each.per, each.shape, each.dtype) for name, each in manifest.states.items()},
        vocabulary=manifest.model.vocabulary,
        candidates=limits.candidates,
        block=limits.block,
        max_rows=limits.max_rows,
        max_outputs=limits.max_outputs,
        max_path=limits.max_path,
        max_length=limits.max_length,
        branches=restored(tuple[tuple[int, str, int], ...], content["branches"]),
        head_bytes=int(content["head_bytes"]),
        draft=restored(DraftPart | None, content["draft"]),
        notes=manifest.notes,
        opset=int(content["opset"]),
    )
    return OnnxExecutable(program, {name: session(str(path), threads) for name, path in paths.items()})
