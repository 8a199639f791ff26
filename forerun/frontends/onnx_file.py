"""ONNX files: the graph, and the numbers that it stores inside or in files beside it.

Nothing is read but the file and the data that it names, inside its folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forerun.errors import CorruptFileError, NotAModelError, first_sentence
from forerun.frontends.directory import leaves
from forerun.frontends.onnx_values import Array

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

OLDEST = 13
"""The first opset that can be read: axes became operands of Squeeze and Unsqueeze, and softmax took its meaning."""
EXTERNAL = 1
"""TensorProto.EXTERNAL: the numbers are in another file."""
PACKED = ("int4", "uint4", "int2", "uint2", "float4_e2m1fn")
"""Element types of which a byte holds several."""


@dataclass(frozen=True, eq=False)
class OnnxFile:
    """An opened model, its functions written out in place."""

    path: Path
    model: ModelProto

    @property
    def graph(self) -> GraphProto:
        return self.model.graph

    def array(self, tensor: TensorProto) -> Array:
        """The numbers of a tensor, with the dtype that they are stored in. Raises `CorruptFileError`."""
        from onnx import numpy_helper

        try:
            return self._external(tensor) if tensor.data_location == EXTERNAL else numpy_helper.to_array(tensor).copy()
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise CorruptFileError(
                f"{self.path} holds a damaged tensor {tensor.name} ({first_sentence(error)}): export the model again."
            ) from error

    def attributes(self, node: NodeProto) -> dict[str, Any]:
        """A node's attributes: numbers, texts, lists of them, arrays and graphs."""
        from onnx import AttributeProto, helper

        found: dict[str, Any] = {}
        for each in node.attribute:
            if each.type == AttributeProto.TENSOR:
                found[each.name] = self.array(each.t)
            else:
                value = helper.get_attribute_value(each)
                found[each.name] = value.decode() if isinstance(value, bytes) else value
        return found

    def _external(self, tensor: TensorProto) -> Array:
        from onnx import TensorProto, helper, numpy_helper

        given = {each.key: each.value for each in tensor.external_data}
        name = given.get("location", "")
        if not name or leaves(name):
            raise CorruptFileError(
                f"{self.path} keeps {tensor.name} in {name!r}, outside its folder, which no model needs: do not trust "
                f"this model, or put the file beside it and name it there."
            )
        file = self.path.parent / name
        if not file.is_file():
            raise CorruptFileError(
                f"{self.path} keeps its weights in {name}, which is not beside it: download that file too."
            )
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
        count, start = int(np.prod(tensor.dims, dtype=np.int64)), int(given.get("offset", 0))
        stored = -(-count * _bits(dtype) // 8)
        if start < 0 or start + stored > file.stat().st_size:
            raise CorruptFileError(f"{file} ends before {tensor.name}: download it again.")
        raw = np.fromfile(file, np.uint8, stored, offset=start)
        if dtype.name not in PACKED:
            return raw.view(dtype).reshape(tuple(tensor.dims))
        held = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=raw.tobytes())
        return numpy_helper.to_array(held)


def _bits(dtype: np.dtype[Any]) -> int:
    if dtype.name in PACKED:
        return 2 if dtype.name.endswith("2") else 4
    return dtype.itemsize * 8


def read_onnx(path: Path) -> OnnxFile:
    """Opens a file without its external data. Raises `CorruptFileError` or `NotAModelError`."""
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import inliner
    except ImportError as error:
        raise NotAModelError(
            f'{path} is an ONNX model, and the package that reads it is not installed: run pip install "forerun[onnx]".'
        ) from error
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise CorruptFileError(f"{path} is not an ONNX model, or ends early: download or export it again.") from error
    opsets = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    if not model.graph.node or "ai.onnx" not in opsets:
        raise CorruptFileError(f"{path} holds no ONNX graph, or ends early: download or export it again.")
    if not OLDEST <= opsets["ai.onnx"] <= onnx.defs.onnx_opset_version():
        raise NotAModelError(
            f"{path} is written in opset {opsets['ai.onnx']}, and opsets {OLDEST} to {onnx.defs.onnx_opset_version()} "
            f"can be read: export the model in opset 17 or later, or install a newer onnx package."
        )
    if model.functions:
        try:
            model = inliner.inline_local_functions(model)
        except onnx.checker.ValidationError as error:
            raise CorruptFileError(
                f"{path} has functions that call each other without an end: export the model again."
            ) from error
    return OnnxFile(path, model)


def needed(graph: GraphProto, outputs: list[str]) -> list[NodeProto]:
    """The nodes that some outputs need, in the graph's order."""
    wanted = set(outputs)
    found: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            found.append(node)
            wanted.update(used_names(node))
    return found[::-1]


def used_names(node: NodeProto) -> Iterator[str]:
    """The names of values that a node uses, also in its branches."""
    yield from (each for each in node.input if each)
    for each in node.attribute:
        for graph in _graphs(each):
            yield from (output.name for output in graph.output)
            for inner in graph.node:
                yield from used_names(inner)


def _graphs(attribute: AttributeProto) -> list[GraphProto]:
    return [attribute.g] if attribute.HasField("g") else [*attribute.graphs]


def properties(node: NodeProto) -> Mapping[str, str]:
    """What an exporter noted about a node."""
    return {each.key: each.value for each in node.metadata_props}
