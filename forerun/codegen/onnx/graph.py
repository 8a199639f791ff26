"""An ONNX graph under construction. Equal nodes are made once, so that what layers share is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, TensorProto, ValueInfoProto, helper, numpy_helper

from forerun import dims as dimensions
from forerun.dims import Dim

ELEMENTS: Mapping[str, int] = {
    "f64": TensorProto.DOUBLE,
    "f32": TensorProto.FLOAT,
    "bf16": TensorProto.BFLOAT16,
    "f16": TensorProto.FLOAT16,
    "i64": TensorProto.INT64,
    "i32": TensorProto.INT32,
    "i16": TensorProto.INT16,
    "i8": TensorProto.INT8,
    "i1": TensorProto.BOOL,
    "i4": TensorProto.INT4,
}
"""ONNX's element types, by the names of the IR."""
NUMPY: Mapping[str, Any] = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "i64": np.int64,
    "i32": np.int32,
    "i16": np.int16,
    "i8": np.int8,
    "i1": np.bool_,
}


class Graph:
    """Nodes, inputs, outputs and initializers; values are known by their names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.inputs: dict[str, ValueInfoProto] = {}
        self.outputs: dict[str, ValueInfoProto] = {}
        self.initializers: dict[str, TensorProto] = {}
        self._nodes: list[Any] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self._sizes: dict[str, tuple[str, int]] = {}  # where a dimension's size is read: an input and its axis
        self._taken: set[str] = set()
        self._reshaped: dict[str, str] = {}  # what a reshaped value was before

    def input(self, name: str, dims: Sequence[Dim], dtype: str) -> str:
        """Declares an input, unless there is one of that name, and returns its name."""
        if name not in self.inputs:
            self.inputs[name] = _described(name, dims, dtype)
            self._taken.add(name)
            for axis, dim in enumerate(dims):
                if (symbol := dimensions.symbol(dim)) and dim == symbol:
                    self._sizes.setdefault(symbol, (name, axis))
        return name

    def output(self, name: str, value: str, dims: Sequence[Dim], dtype: str) -> None:
        """Declares an output, which gets its own name."""
        self.outputs[name] = _described(name, dims, dtype)
        self._nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def initializer(self, tensor: TensorProto) -> str:
        """Adds an initializer, unless there is one of that name."""
        self.initializers.setdefault(tensor.name, tensor)
        self._taken.add(tensor.name)
        return tensor.name

    def constant(self, value: Any, dtype: str) -> str:
        """Returns a small tensor of numbers."""
        array = np.asarray(value, NUMPY[dtype])
        key = ("constant", dtype, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.initializer(numpy_helper.from_array(array, self._fresh("constant")))
        return self._known[key]

    def node(self, kind: str, *inputs: str, hint: str = "", **attributes: Any) -> str:
        """Returns the result of an operator."""
        return self.nodes(kind, inputs, 1, hint, **attributes)[0]

    def nodes(self, kind: str, inputs: Sequence[str], count: int, hint: str = "", **attributes: Any) -> list[str]:
        """Returns the results of an operator that has several."""
        key = (kind, tuple(inputs), count, repr(sorted(attributes.items())))
        if (key, 0) not in self._known:
            names = [self._fresh(hint or kind.lower()) for _ in range(count)]
            self._nodes.append(helper.make_node(kind, list(inputs), names, name=names[0], **attributes))
            self._known.update({(key, number): name for number, name in enumerate(names)})
        return [self._known[key, number] for number in range(count)]

    # --- sizes and shapes

    def size(self, dim: Dim) -> str:
        """Returns a dimension as a tensor [1] of i64."""
        parts = dimensions.affine(dim)
        if not parts.symbol:
            return self.constant([parts.offset], "i64")
        source, axis = self._sizes[parts.symbol]
        found = self.node("Shape", source, start=axis, end=axis + 1)
        if parts.scale != 1:
            found = self.node("Mul", found, self.constant([parts.scale], "i64"))
        return found if not parts.offset else self.node("Add", found, self.constant([parts.offset], "i64"))

    def scalar(self, dim: Dim) -> str:
        """Returns a dimension as a tensor [] of i64."""
        return self.node("Squeeze", self.size(dim), self.constant([0], "i64"))

    def shape(self, dims: Sequence[Dim]) -> str:
        """Returns dimensions as a tensor [rank] of i64."""
        if all(isinstance(dim, int) for dim in dims):
            return self.constant(list(dims), "i64")
        return self.node("Concat", *(self.size(dim) for dim in dims), axis=0)

    def reshape(self, value: str, dims: Sequence[Dim]) -> str:
        """Returns the same elements in another shape; one named size is left to the runtime, which may not be 0."""
        value = self._reshaped.get(value, value)
        named = [axis for axis, dim in enumerate(dims) if not isinstance(dim, int)]
        if len(named) > 1:
            result = self.node("Reshape", value, self.shape(dims), allowzero=1)
        else:
            sizes = [-1 if axis in named else dim for axis, dim in enumerate(dims)]
            result = self.node("Reshape", value, self.constant(sizes, "i64"))
        self._reshaped[result] = value
        return result

    def transpose(self, value: str, *permutation: int) -> str:
        return self.node("Transpose", value, perm=list(permutation))

    def proto(self) -> GraphProto:
        """Returns the graph, without nodes that nothing uses."""
        needed, kept = set(self.outputs), list[Any]()
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        initializers = [each for name, each in self.initializers.items() if name in needed]
        return helper.make_graph(
            kept[::-1], self.name, list(self.inputs.values()), list(self.outputs.values()), initializers
        )

    def _fresh(self, hint: str) -> str:
        name, count = hint, 0
        while name in self._taken:
            count += 1
            name = f"{hint}_{count}"
        self._taken.add(name)
        return name


def _described(name: str, dims: Sequence[Dim], dtype: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEMENTS[dtype], list(dims))
