"""The output of code generation for ONNX Runtime: graphs as bytes, and the tensors of their one weight file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from forerun.codegen.program import DraftPart
from forerun.signature import Signature, StateRecord

WEIGHTS = "weights.bin"
"""The file of all tensors, beside the graphs."""
ALIGNMENT = 4096
"""Every tensor begins at a multiple of this many bytes: a page, so that a file can be mapped."""
DRAFT = "draft"
"""The graph of the part that drafts."""
NEW = ".new"
"""What the name of a state's output adds to that of its input."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the weight file: where its bytes lie, and how to make them."""

    offset: int
    bytes: int
    make: Callable[[], NDArray[Any]]


@dataclass(frozen=True)
class OnnxProgram:
    """A module as ONNX graphs that share their weights."""

    graphs: Mapping[str, bytes]  # a ModelProto for each entry, the step first
    entries: Mapping[str, Signature]  # the inputs and outputs of the graphs
    tensors: Mapping[str, StoredTensor]
    states: Mapping[str, StateRecord]
    vocabulary: int
    candidates: int
    block: int
    max_rows: int
    max_outputs: int
    max_path: int
    max_length: int
    branches: tuple[tuple[int, str, int], ...]  # layer, kind and bytes of weights of each residual branch
    head_bytes: int
    draft: DraftPart | None  # what of them the graph "draft" evaluates
    notes: tuple[str, ...]
    opset: int

    def write(self, folder: Path) -> None:
        """Writes the graphs and the weight file; one tensor at a time is in memory. Raises OSError."""
        with (folder / WEIGHTS).open("wb") as file:
            for tensor in self.tensors.values():
                file.seek(tensor.offset)
                file.write(tensor.make().data)
        for name, graph in self.graphs.items():
            (folder / f"{name}.onnx").write_bytes(graph)
