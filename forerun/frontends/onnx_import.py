"""ONNX graphs to IR: `@forward(input_ids[1, T]) -> logits[1, T, V]`, operator by operator."""

from __future__ import annotations

import hashlib
from collections import ChainMap
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forerun.errors import CorruptFileError, NotAModelError, UnsupportedOperationError
from forerun.frontends import (
    onnx_attention,
    onnx_elementwise,
    onnx_indices,
    onnx_products,
    onnx_quantized,
    onnx_sizes,
    onnx_views,
)
from forerun.frontends.forward import (
    FORWARD,
    SEQUENCE,
    SourceLine,
    innermost_line,
    location,
    require_logits,
    unsupported,
)
from forerun.frontends.importer import Imported
from forerun.frontends.onnx_file import OnnxFile, needed, properties
from forerun.frontends.onnx_inputs import bound_inputs, logits_of
from forerun.frontends.onnx_rules import KNOWN_RULES, RULES, Call, Value
from forerun.frontends.onnx_values import NUMPY, Extent, Known
from forerun.frontends.programs import DERIVED
from forerun.frontends.weight_symbols import WeightSymbols
from forerun.ir import (
    Builder,
    Function,
    ModuleOp,
    Parameter,
    Return,
    SSAValue,
    TensorType,
    VerifyException,
    tensor_type,
    verify,
)

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

FILES = (
    onnx_attention,
    onnx_elementwise,
    onnx_indices,
    onnx_products,
    onnx_quantized,
    onnx_sizes,
    onnx_views,
)
"""Where the rules are: each file enters its own into the tables."""

SHORTEST = 2
"""A graph is imported for sequences of at least two positions, as torch traces them: one is a size that broadcasts."""
CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
STACK = "pkg.torch.onnx.stack_trace"
"""The property under which torch's exporter notes the lines of the model's source."""

Scope = ChainMap[str, Any]
"""Values, and tensors that have not been read, by name: those of a graph in front of those of the graph around it."""


def import_graph(file: OnnxFile, name: str, max_length: int) -> Imported:
    """The module of a graph, for every T up to `max_length`, and its weights by symbol.

    Raises TraceError, NotAModelError, CorruptFileError or UnsupportedOperationError, which names the node.
    """
    function = Function.of(FORWARD, [("input_ids", TensorType.of((1, SEQUENCE), "i64"))])
    (tokens,) = function.block.args
    importer = _Importer(file, function, Extent(SHORTEST, max(max_length, SHORTEST)))
    inputs = bound_inputs(file.graph, name, tokens, Builder(function.block))
    output = logits_of(file.graph, name)
    (logits,) = importer.run(file.graph, [output], Scope(inputs))
    if not isinstance(logits, SSAValue):
        raise NotAModelError(f"{name} gives {output} that do not depend on input_ids: give a decoder.")
    require_logits(name, tensor_type(logits).dims, SEQUENCE)
    build = Builder(function.block)
    build.emit(Return.make(build.cast(logits, "f32")))
    module = importer.weights.module
    module.body.block.add_op(function)
    verify(module)
    return module, importer.weights.tensors


class _Importer:
    """Imports the nodes of a graph into the function's block; the branch that is taken of an `If` in its place."""

    def __init__(self, file: OnnxFile, function: Function, extent: Extent) -> None:
        self.file = file
        self.function = function
        self.extent = extent
        self.weights = WeightSymbols(ModuleOp([]), {FORWARD, *DERIVED})
        self.tensors: dict[tuple[Any, ...], torch.Tensor] = {}
        """Weights by their numbers: exporters write tied weights twice."""
        self.emitted: dict[Known, SSAValue] = {}

    def run(self, graph: GraphProto, outputs: list[str], scope: Scope) -> list[Value]:
        """The outputs of a graph, given the values around it."""
        scope.update({each.name: each for each in graph.initializer if each.name not in scope.maps[0]})
        if graph.sparse_initializer:
            raise NotAModelError(f"{self.file.path} holds sparse weights: export it with dense ones.")
        for index, node in enumerate(needed(graph, outputs)):
            operands = tuple(self.value(each, scope) if each else None for each in node.input)
            results = self.call(node, index, operands, scope)
            scope.update(zip_longest(node.output, results[: len(node.output)]))
        return [self.value(each, scope) for each in outputs]

    def value(self, name: str, scope: Scope) -> Value:
        """The value of a name; a stored tensor is read when it is first used."""
        found = scope.get(name)
        if name in scope and found is None:
            raise UnsupportedOperationError(
                f"The ONNX graph uses {name!r}, an output of a node that no rule gives; export the model without it."
            )
        if found is None:
            raise CorruptFileError(f"{self.file.path} uses {name!r}, which no node gives: export the model again.")
        if not isinstance(found, SSAValue | Known):
            found = Known.of(self.file.array(found), name)
            next(each for each in scope.maps if name in each)[name] = found
        return found

    def call(self, node: NodeProto, index: int, operands: tuple[Value | None, ...], scope: Scope) -> list[Value | None]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if not domain and node.op_type == "If":
            return self.branch(node, operands, scope)
        rule = RULES.get((domain, node.op_type))
        known = KNOWN_RULES.get(node.op_type) if not domain else None
        if rule is None and known is None:
            raise self.unsupported(node, self._without_rule(node))
        hint = next((each for each in node.output if each), None)
        call = Call(
            Builder(
                self.function.block,
                location(source_line(node) or (node.name or node.op_type, index)),
                hint and symbol_of(hint),
            ),
            node.op_type,
            operands,
            self.file.attributes(node),
            len(node.output),
            self.extent,
            self.emit,
        )
        try:
            result = known(call) if known is not None and all(isinstance(each, Known) for each in operands) else None
            result = result if result is not None or rule is None else rule(call)
        except (ValueError, TypeError, KeyError, IndexError, AssertionError, VerifyException) as error:
            raise self.unsupported(node, f"is used in a form without a rule ({error})") from error
        results = list(result) if isinstance(result, tuple) else [result]
        return [each if isinstance(each, SSAValue | Known) else None for each in results]

    def branch(self, node: NodeProto, operands: tuple[Value | None, ...], scope: Scope) -> list[Value | None]:
        """The branch that the condition chooses for every sequence."""
        (condition,) = operands
        if not isinstance(condition, Known) or condition.symbolic:
            raise self.unsupported(node, "chooses a branch by the values of tensors")
        name = "then_branch" if condition.number() else "else_branch"
        graph = next(each.g for each in node.attribute if each.name == name)
        return [*self.run(graph, [each.name for each in graph.output], scope.new_child())]

    def emit(self, known: Known) -> SSAValue:
        """A known value in the IR: a constant if it is one number, else a weight. Raises ValueError."""
        if known not in self.emitted:
            self.emitted[known] = self._emit(known)
        return self.emitted[known]

    def _emit(self, known: Known) -> SSAValue:
        if known.symbolic:
            raise ValueError(f"the size {known} as a number")
        if known.dtype not in NUMPY:
            raise ValueError(f"numbers of dtype {known.dtype}")
        shape = known.array.shape
        build = Builder(self.function.block)
        if known.array.size == 1:
            return build.reshape(build.constant(known.number(), known.dtype), shape)
        tensor, name = self.tensor(known), symbol_of(known.name or "constant")
        weight = self.weights.weight(name, tensor, TensorType.of(shape, known.dtype), FORWARD)
        self.weights.tensors[weight["symbol"]] = tensor
        return build.add(Parameter, **weight)

    def tensor(self, known: Known) -> torch.Tensor:
        """The tensor of a weight, one for all that have the same numbers."""
        array = np.ascontiguousarray(known.array)
        key = (known.dtype, array.shape, hashlib.blake2b(array.data.cast("B")).digest() if array.size else b"")
        if key not in self.tensors:
            self.tensors[key] = torch.from_numpy(array if array.flags.writeable else array.copy())
        return self.tensors[key]

    def _without_rule(self, node: NodeProto) -> str:
        return "repeats or chooses nodes while it runs" if node.op_type in CONTROL_FLOW else "has no rule"

    def unsupported(self, node: NodeProto, what: str) -> UnsupportedOperationError:
        domain = f"{node.domain}." if node.domain else ""
        line = source_line(node)
        place = f", node {node.name!r}," if node.name and line is None else ""
        return unsupported(f"{domain}{node.op_type}{place}", line, what, "onnx")


def symbol_of(name: str) -> str:
    """A name without characters that the text of a symbol would have to quote."""
    return "".join(each if each.isalnum() or each in "._-" else "_" for each in name.removeprefix("/"))


def source_line(node: NodeProto) -> SourceLine | None:
    """The innermost line of the model's source, if the exporter has noted it."""
    return innermost_line(properties(node).get(STACK, ""))
