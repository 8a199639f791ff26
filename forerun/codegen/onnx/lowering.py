"""A module's entries as ONNX graphs: rules from operations to operators, states as inputs and outputs.

The step takes what describes rows and trees (`tokens`, `positions`, `visible`, `outputs`) and the cached records of
each state; it returns logits, candidates, and the rows' own records. Whoever runs it keeps the cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnx import helper

from forerun import ir
from forerun.codegen.onnx.attention import CACHED, Attention, emit_attention
from forerun.codegen.onnx.graph import ELEMENTS, Graph
from forerun.codegen.onnx.program import DRAFT, NEW, OnnxProgram
from forerun.codegen.onnx.rules import RULES
from forerun.codegen.onnx.weights import WeightFile
from forerun.codegen.planned import PlannedStep
from forerun.codegen.regions import block_size
from forerun.errors import UnsupportedOperationError
from forerun.ir import tensor_type
from forerun.signature import STEP, Argument, Signature, StateRecord

OPSET = 24
"""The operator set of the graphs: the newest that ONNX Runtime's releases of the last year run."""
IR_VERSION = 11
"""The version of the file format that came with that operator set."""
STEP_RESULTS = ("logits", "candidates", "candidate_logits")
EmitAttention = Callable[[Graph, Attention], str]


class EntryGraph:
    """One entry that is being written (`rules.Context`)."""

    def __init__(self, module: ir.ModuleOp, function: ir.Function, file: WeightFile, emit: EmitAttention) -> None:
        self.graph = Graph(function.symbol)
        self.states = ir.states(module)
        self.function, self.file, self.emit = function, file, emit
        self.names: dict[ir.SSAValue, str] = {}
        self.written: dict[str, ir.SSAValue] = {}  # the rows' records, by state

    def write_graph(self) -> tuple[bytes, Signature]:
        """Returns the model, and the signature of its inputs and outputs."""
        for operation in self.function.body:
            if not operation.ends_body:
                self._operation(operation)
        self._results()
        graph = self.graph
        model = helper.make_model(
            graph.proto(),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="forerun",
        )
        arguments = tuple(_argument(each) for each in graph.inputs.values())
        results = tuple(_argument(each) for each in graph.outputs.values())
        return model.SerializeToString(), Signature(graph.name, arguments, results)

    def _operation(self, operation: ir.SpecOperation) -> None:
        of_rows = isinstance(operation, ir.StateWrite | ir.TreeAttention)
        given = [] if of_rows else [self.name(each) for each in operation.operands]
        found = RULES.of(operation)(self, operation, given)
        results = (found,) if isinstance(found, str) else found
        self.names.update(zip(operation.results, results, strict=True))

    def _results(self) -> None:
        step = self.function.symbol in (STEP, DRAFT)
        for number, value in enumerate(self.function.returned):
            name = STEP_RESULTS[number] if step else f"result_{number}"
            self.graph.output(name, self.name(value), tensor_type(value).dims, tensor_type(value).dtype)
        for symbol, value in self.written.items():
            self.graph.output(symbol + NEW, self.name(value), tensor_type(value).dims, tensor_type(value).dtype)

    def name(self, value: ir.SSAValue) -> str:
        if value not in self.names:
            kind = tensor_type(value)
            self.names[value] = self.graph.input(str(value.name_hint), kind.dims, kind.dtype)
        return self.names[value]

    # --- what the rules need

    def weight(self, symbol: str) -> str:
        return self.file.read(self.graph, symbol)

    def write(self, operation: ir.StateWrite) -> None:
        self.written[operation.symbol] = operation.value

    def read(self, operation: ir.StateRead, slots: str) -> str:
        state = self.states[operation.symbol]
        records = self.graph.input(operation.symbol, ("R", *state.shape), state.dtype)
        return self.graph.node("Gather", records, slots, axis=0)

    def attention(self, operation: ir.TreeAttention) -> str:
        pairs = [self._history(symbol) for symbol in (operation.symbol, operation.values)]
        keys, values = (self.states[symbol].shape for symbol in (operation.symbol, operation.values))
        optional = {
            name: None if value is None else self.name(value)
            for name, value in (("first", operation.first), ("bias", operation.bias), ("sinks", operation.sinks))
        }
        heads = int(tensor_type(operation.query).dims[1])
        return self.emit(
            self.graph,
            Attention(
                query=self.name(operation.query),
                keys=pairs[0],
                values=pairs[1],
                heads=heads,
                groups=keys[0],
                key_dim=keys[1],
                value_dim=values[1],
                scale=operation.scale,
                softcap=operation.softcap,
                bias_by=operation.bias_by,
                **optional,
            ),
        )

    def _history(self, symbol: str) -> tuple[str, str]:
        """The cached records of a state and the rows' own."""
        if symbol not in self.written:
            raise UnsupportedOperationError(
                f"The attention of @{self.function.symbol} reads the state {symbol} before the rows have written "
                "theirs; it is not exported to ONNX."
            )
        state = self.states[symbol]
        return self.graph.input(symbol, (CACHED, *state.shape), state.dtype), self.name(self.written[symbol])


def _argument(value: Any) -> Argument:
    kind = value.type.tensor_type
    dims = tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim)
    return Argument(value.name, dims, _NAMES[kind.elem_type])


_NAMES = {element: name for name, element in ELEMENTS.items()}


def emit(planned: PlannedStep, attention: EmitAttention = emit_attention) -> OnnxProgram:
    """Generates the graphs of a module whose step is not fused into kernels."""
    module, parts = planned.module, planned.parts
    file = WeightFile(module, planned.weights, planned.blocks or {})
    graphs: dict[str, bytes] = {}
    signatures: dict[str, Signature] = {}
    for name, function in ir.entries(module).items():
        graphs[name], signatures[name] = EntryGraph(module, function, file, attention).write_graph()
    logits, candidates, _ = (tensor_type(each).dims for each in ir.functions(module)[STEP].returned)
    return OnnxProgram(
        graphs=graphs,
        entries=signatures,
        tensors=file.tensors,
        states={name: StateRecord(each.per, tuple(each.shape), each.dtype) for name, each in ir.states(module).items()},
        vocabulary=int(logits[-1]),
        candidates=int(candidates[-1]),
        block=block_size(module) or 1,
        **planned.limits,
        branches=() if parts is None else parts.branches,
        head_bytes=0 if parts is None else parts.head_bytes,
        draft=None if parts is None else parts.draft,
        notes=tuple(file.notes),
        opset=OPSET,
    )
