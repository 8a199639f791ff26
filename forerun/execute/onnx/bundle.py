"""Bundles of the format "onnx": a graph for each entry, and one weight file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forerun.artifacts.bundle import Bundle
from forerun.artifacts.manifest import Limits
from forerun.artifacts.written import Exportable, Written
from forerun.codegen.onnx.program import NEW, WEIGHTS, OnnxProgram
from forerun.codegen.program import DraftPart
from forerun.errors import CorruptFileError
from forerun.execute.onnx.executable import OnnxExecutable
from forerun.execute.onnx.library import session
from forerun.records import restored
from forerun.signature import Signature
from forerun.storage import BUNDLE


@dataclass(frozen=True)
class Content:
    """What `bundle.json` has for this format alone."""

    opset: int
    graphs: Mapping[str, str]  # the file of each entry
    weights: str
    state_outputs: Mapping[str, str]
    branches: tuple[tuple[int, str, int], ...]
    head_bytes: int
    draft: DraftPart | None


def write(folder: Path, exportable: Exportable) -> Written:
    """Writes the graphs and the weights."""
    program: OnnxProgram = exportable.program()
    with exportable.progress.stage("write graphs and weights"):
        program.write(folder)
    return Written(
        entries=program.entries,
        states=program.states,
        limits=Limits(
            max_length=program.max_length,
            max_rows=program.max_rows,
            max_outputs=program.max_outputs,
            max_path=program.max_path,
            candidates=program.candidates,
            block=program.block,
        ),
        vocabulary=program.vocabulary,
        content=asdict(
            Content(
                opset=program.opset,
                graphs={name: f"{name}.onnx" for name in program.graphs},
                weights=WEIGHTS,
                state_outputs={name: name + NEW for name in program.states},
                branches=program.branches,
                head_bytes=program.head_bytes,
                draft=program.draft,
            )
        ),
        notes=program.notes,
    )


def load(bundle: Bundle, threads: int | None = None) -> OnnxExecutable:
    """Opens the graphs of a bundle, once all files have been checked. Raises `CorruptFileError`, and `DeviceError`."""
    manifest, limits = bundle.manifest, bundle.manifest.limits
    try:
        content = restored(Content, manifest.content)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{bundle.folder} does not describe its graphs ({error}): export the model again."
        ) from error
    bundle.check()
    program = OnnxProgram(
        graphs={},
        entries=manifest.entries,
        tensors={},
        states=manifest.states,
        vocabulary=manifest.model.vocabulary,
        candidates=limits.candidates,
        block=limits.block,
        max_rows=limits.max_rows,
        max_outputs=limits.max_outputs,
        max_path=limits.max_path,
        max_length=limits.max_length,
        branches=content.branches,
        head_bytes=content.head_bytes,
        draft=content.draft,
        notes=manifest.notes,
        opset=content.opset,
    )
    sessions = {name: session(str(bundle.path(file)), threads) for name, file in content.graphs.items()}
    for name, signature in manifest.entries.items():
        if name not in sessions or not _fits(sessions[name], signature):
            raise CorruptFileError(
                f"The graph {name} of {bundle.folder} does not take or give what {BUNDLE} says: export the model again."
            )
    return OnnxExecutable(program, sessions)


def _fits(found: Any, signature: Signature) -> bool:
    """Whether a graph has the inputs and outputs of a signature."""
    pairs = ((found.get_inputs(), signature.arguments), (found.get_outputs(), signature.results))
    return all(
        [(each.name, tuple(each.shape)) for each in own] == [(each.name, each.dims) for each in listed]
        for own, listed in pairs
    )
