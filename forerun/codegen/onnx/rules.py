"""One table from `spec` operations to standard ONNX operators. A rule returns the names of the results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from forerun import ir
from forerun.codegen.onnx.graph import ELEMENTS, Graph
from forerun.errors import UnsupportedOperationError
from forerun.ir import each_of, refused, tensor_type


class Context(Protocol):
    """The entry that is being written."""

    graph: Graph

    def weight(self, symbol: str) -> str:
        """Returns a weight as float32 or integers."""
        ...

    def write(self, operation: ir.StateWrite) -> None:
        """Records what a step leaves in a state."""
        ...

    def read(self, operation: ir.StateRead, slots: str) -> str:
        """Returns records of a state per request."""
        ...

    def attention(self, operation: ir.TreeAttention) -> str:
        """Returns the result of a tree attention."""
        ...


Rule = Callable[[Context, Any, Sequence[str]], "str | tuple[str, ...]"]


def dtype_of(value: ir.SSAValue) -> str:
    return tensor_type(value).dtype


def _whole(dtype: str) -> bool:
    return dtype in ir.INTEGER_DTYPES


# --- elementwise functions: (graph, dtype of the values, operands) -> name

Function = Callable[[Graph, str, Sequence[str]], str]


def _same(kind: str) -> Function:
    return lambda graph, dtype, given: graph.node(kind, *given)


def _logical(kind: str) -> Function:
    """`And` for truth values, `BitwiseAnd` for integers."""
    return lambda graph, dtype, given: graph.node(kind if dtype == "i1" else f"Bitwise{kind}", *given)


def _not_equal(graph: Graph, dtype: str, given: Sequence[str]) -> str:
    return graph.node("Not", graph.node("Equal", *given))


def _remainder(graph: Graph, dtype: str, given: Sequence[str]) -> str:
    """The remainder with the divisor's sign."""
    if _whole(dtype):
        return graph.node("Mod", *given)
    floor = graph.node("Floor", graph.node("Div", *given))
    return graph.node("Sub", given[0], graph.node("Mul", floor, given[1]))


def _floor_div(graph: Graph, dtype: str, given: Sequence[str]) -> str:
    if _whole(dtype):
        return graph.node("Div", graph.node("Sub", given[0], graph.node("Mod", *given)), given[1])
    return graph.node("Floor", graph.node("Div", *given))


def _of(formula: Callable[[Graph, Callable[[float], str], Sequence[str]], str]) -> Function:
    """A formula that uses numbers of the operands' dtype."""
    return lambda graph, dtype, given: formula(graph, lambda number: graph.constant(number, dtype), given)


FUNCTIONS: ir.FunctionTable[Function] = ir.FunctionTable(
    "functions in ONNX",
    {
        **{name: _same(name.capitalize()) for name in ("add", "sub", "mul", "div", "pow", "max", "min", "where")},
        **{name: _same(name.capitalize()) for name in ("neg", "abs", "sign", "floor", "ceil", "round", "exp", "log")},
        **{name: _same(name.capitalize()) for name in ("sqrt", "reciprocal", "sin", "cos", "tanh", "erf", "sigmoid")},
        **{name: _same(name.capitalize()) for name in ("relu", "softplus")},
        **{name: _logical(name.capitalize()) for name in ("and", "or", "xor", "not")},
        "eq": _same("Equal"),
        "ne": _not_equal,
        "lt": _same("Less"),
        "le": _same("LessOrEqual"),
        "gt": _same("Greater"),
        "ge": _same("GreaterOrEqual"),
        "floor_div": _floor_div,
        "remainder": _remainder,
        "expm1": _of(lambda graph, number, x: graph.node("Sub", graph.node("Exp", *x), number(1.0))),
        "exp2": _of(lambda graph, number, x: graph.node("Pow", number(2.0), *x)),
        "log1p": _of(lambda graph, number, x: graph.node("Log", graph.node("Add", *x, number(1.0)))),
        "log2": _of(lambda graph, number, x: graph.node("Mul", graph.node("Log", *x), number(1.0 / math.log(2.0)))),
        "rsqrt": lambda graph, dtype, x: graph.node("Reciprocal", graph.node("Sqrt", *x)),
        "silu": lambda graph, dtype, x: graph.node("Mul", *x, graph.node("Sigmoid", *x)),
        "gelu": lambda graph, dtype, x: graph.node("Gelu", *x),
        "gelu_tanh": lambda graph, dtype, x: graph.node("Gelu", *x, approximate="tanh"),
        "log_sigmoid": lambda graph, dtype, x: graph.node("Neg", graph.node("Softplus", graph.node("Neg", *x))),
    },
)

# --- operations


def _map(context: Context, operation: ir.Map, given: Sequence[str]) -> str:
    return FUNCTIONS[operation.function](context.graph, dtype_of(operation.inputs[-1]), given)


def _constant(context: Context, operation: ir.Constant, given: Sequence[str]) -> str:
    return context.graph.constant(operation.value, operation.dtype)


def _iota(context: Context, operation: ir.Iota, given: Sequence[str]) -> str:
    graph = context.graph
    return graph.node("Range", graph.constant(0, "i64"), graph.scalar(operation.size), graph.constant(1, "i64"))


def _cast(context: Context, operation: ir.Cast, given: Sequence[str]) -> str:
    if operation.dtype == dtype_of(operation.x):
        return given[0]
    return context.graph.node("Cast", *given, to=ELEMENTS[operation.dtype])


def _reshape(context: Context, operation: ir.Reshape, given: Sequence[str]) -> str:
    return context.graph.reshape(given[0], operation.shape)


def _broadcast(context: Context, operation: ir.Broadcast, given: Sequence[str]) -> str:
    """Only what grows is named: an `Expand` leaves an axis alone whose size it is given as 1."""
    own = tensor_type(operation.x).dims
    before = (*(1,) * (len(operation.shape) - len(own)), *own)
    dims = [1 if old == new else new for old, new in zip(before, operation.shape, strict=True)]
    return context.graph.node("Expand", given[0], context.graph.shape(dims))


def _transpose(context: Context, operation: ir.Transpose, given: Sequence[str]) -> str:
    return context.graph.transpose(given[0], *operation.permutation)


def _slice(context: Context, operation: ir.Slice, given: Sequence[str]) -> str:
    graph = context.graph
    bounds = graph.size(operation.start), graph.size(operation.stop)
    axis, step = graph.constant([operation.dim], "i64"), graph.constant([operation.step], "i64")
    return graph.node("Slice", given[0], *bounds, axis, step)


def _concat(context: Context, operation: ir.Concat, given: Sequence[str]) -> str:
    return context.graph.node("Concat", *given, axis=operation.dim)


def _gather(context: Context, operation: ir.Gather, given: Sequence[str]) -> str:
    graph, (table, *indices) = context.graph, given
    if len(indices) == 1:
        return graph.node("Gather", table, indices[0], axis=0)
    dims = ir.broadcast_dims([tensor_type(each).dims for each in operation.indices])
    shape, parts = graph.shape(dims), list[str]()
    for each in indices:
        whole = graph.node("Expand", graph.node("Cast", each, to=ELEMENTS["i64"]), shape)
        parts.append(graph.node("Unsqueeze", whole, graph.constant([-1], "i64")))
    return graph.node("GatherND", table, graph.node("Concat", *parts, axis=-1))


def _take_along(context: Context, operation: ir.TakeAlong, given: Sequence[str]) -> str:
    """ONNX wants an index as long as the values along the other axes, which are cut to it."""
    graph, (x, index) = context.graph, given
    own, wanted = tensor_type(operation.x).dims, tensor_type(operation.index).dims
    for axis, (size, least) in enumerate(zip(own, wanted, strict=True)):
        if axis != operation.dim and size != least:
            one = graph.constant([axis], "i64")
            x = graph.node("Slice", x, graph.constant([0], "i64"), graph.size(least), one)
    return graph.node("GatherElements", x, index, axis=operation.dim)


def _rotary(context: Context, operation: ir.Rotary, given: Sequence[str]) -> str:
    """x cos + concat(right, left) sin', where sin' is sin with its first half negated: shared by all layers."""
    graph, (x, cos, sin) = context.graph, given
    size = int(tensor_type(operation.x).dims[-1])
    sign = graph.constant([-1.0] * (size // 2) + [1.0] * (size // 2), dtype_of(operation.sin))
    left, right = graph.nodes("Split", [x], 2, axis=-1, num_outputs=2)
    turned = graph.node("Mul", graph.node("Concat", right, left, axis=-1), graph.node("Mul", sin, sign))
    return graph.node("Add", graph.node("Mul", x, cos), turned)


def _linear(context: Context, operation: ir.Linear, given: Sequence[str]) -> str:
    """`Gemm` reads the matrix as it is, [out, in], so that an embedding and a head can share it."""
    graph, (x, weight, *bias) = context.graph, given
    if operation.arithmetic is not None:
        raise UnsupportedOperationError(f"the onnx target has no {operation.arithmetic} arithmetic.")
    (*lead, features), outputs = tensor_type(operation.x).dims, tensor_type(operation.weight).dims[0]
    flat = x if len(lead) == 1 else graph.reshape(x, ("rows", int(features)))
    product = graph.node("Gemm", flat, weight, *bias, transB=1, hint="linear")
    return product if len(lead) == 1 else graph.reshape(product, (*lead, outputs))


def _expert_linear(context: Context, operation: ir.ExpertLinear, given: Sequence[str]) -> str:
    """A product with a copy of the chosen experts' matrices: ONNX has no operator that reads them in place."""
    graph, (x, weight, ids, *bias) = context.graph, given
    if operation.arithmetic is not None:
        raise UnsupportedOperationError(f"the onnx target has no {operation.arithmetic} arithmetic.")
    last = graph.constant([-1], "i64")
    if not operation.by_choice:
        x = graph.node("Unsqueeze", x, graph.constant([-2], "i64"))
    matrices = graph.node("Gather", weight, ids, axis=0)
    product = graph.node("MatMul", matrices, graph.node("Unsqueeze", x, last), hint="expert_linear")
    result = graph.node("Squeeze", product, last)
    return graph.node("Add", result, graph.node("Gather", bias[0], ids, axis=0)) if bias else result


def _rms_norm(context: Context, operation: ir.RMSNorm, given: Sequence[str]) -> str:
    graph, x = context.graph, given[0]
    weight = given[1] if operation.weight is not None else _ones(context, operation.x)
    return graph.node("RMSNormalization", x, weight, axis=-1, epsilon=operation.eps)


def _layer_norm(context: Context, operation: ir.LayerNorm, given: Sequence[str]) -> str:
    graph, (x, *rest) = context.graph, given
    rest = rest or [_ones(context, operation.x)]
    return graph.node("LayerNormalization", x, *rest, axis=-1, epsilon=operation.eps)


def _ones(context: Context, value: ir.SSAValue) -> str:
    return context.graph.constant([1.0] * int(tensor_type(value).dims[-1]), dtype_of(value))


def _softmax(context: Context, operation: ir.Softmax, given: Sequence[str]) -> str:
    return context.graph.node("Softmax", *given, axis=operation.dim)


REDUCTIONS: ir.ReductionTable[str] = ir.ReductionTable(
    "reductions in ONNX",
    {
        "sum": "ReduceSum",
        "mean": "ReduceMean",
        **each_of("ReduceMax", "max", "any"),
        **each_of("ReduceMin", "min", "all"),
        "argmax": "ArgMax",
    },
)


def _reduce(context: Context, operation: ir.Reduce, given: Sequence[str]) -> str:
    graph, kind = context.graph, REDUCTIONS[operation.function]
    if operation.function == "argmax":
        return graph.node(kind, *given, axis=operation.dims[0], keepdims=int(operation.keep))
    logical = dtype_of(operation.x) == "i1"
    x = graph.node("Cast", *given, to=ELEMENTS["i32"]) if logical else given[0]
    found = graph.node(kind, x, graph.constant(list(operation.dims), "i64"), keepdims=int(operation.keep))
    return graph.node("Cast", found, to=ELEMENTS["i1"]) if logical else found


def _scan(context: Context, operation: ir.Scan, given: Sequence[str]) -> str:
    return context.graph.node("CumSum", *given, context.graph.constant(operation.dim, "i64"))


def _matmul(context: Context, operation: ir.MatMul, given: Sequence[str]) -> str:
    return context.graph.node("MatMul", *given)


def _topk(context: Context, operation: ir.TopK, given: Sequence[str]) -> tuple[str, str]:
    """The lower index comes first on ties in ONNX too; NaN is made the smallest."""
    graph, (x,) = context.graph, given
    if not _whole(dtype_of(operation.x)):
        x = graph.node("Where", graph.node("IsNaN", x), graph.constant(-math.inf, dtype_of(operation.x)), x)
    values, ids = graph.nodes("TopK", [x, graph.constant([operation.k], "i64")], 2, axis=-1)
    return values, graph.node("Cast", ids, to=ELEMENTS[operation.index_dtype])


def _parameter(context: Context, operation: ir.Parameter, given: Sequence[str]) -> str:
    return context.weight(operation.symbol)


def _tree_attention(context: Context, operation: ir.TreeAttention, given: Sequence[str]) -> str:
    return context.attention(operation)


def _state_write(context: Context, operation: ir.StateWrite, given: Sequence[str]) -> tuple[str, ...]:
    context.write(operation)
    return ()


def _state_read(context: Context, operation: ir.StateRead, given: Sequence[str]) -> str:
    return context.read(operation, given[0])


RULES: ir.OperationTable[Rule] = ir.OperationTable(
    "operations in ONNX",
    {
        ir.Parameter: _parameter,
        ir.Constant: _constant,
        ir.Map: _map,
        ir.Cast: _cast,
        ir.Iota: _iota,
        ir.Reshape: _reshape,
        ir.Broadcast: _broadcast,
        ir.Transpose: _transpose,
        ir.Slice: _slice,
        ir.Concat: _concat,
        ir.Gather: _gather,
        ir.TakeAlong: _take_along,
        ir.Rotary: _rotary,
        ir.Linear: _linear,
        ir.ExpertLinear: _expert_linear,
        ir.MatMul: _matmul,
        ir.RMSNorm: _rms_norm,
        ir.LayerNorm: _layer_norm,
        ir.Softmax: _softmax,
        ir.Reduce: _reduce,
        ir.Scan: _scan,
        ir.TopK: _topk,
        ir.TreeAttention: _tree_attention,
        ir.StateWrite: _state_write,
        ir.StateRead: _state_read,
        ir.TreeRecurrence: refused("keeps a state per row, which is not exported to ONNX; export the model for TVM"),
        ir.Exchange: refused("passes between two parts, which are not exported"),
        ir.Ancestors: refused("reads a state at single positions, which is not exported to ONNX; export for TVM"),
        **each_of(
            refused("runs over a whole sequence; what is exported is a step"), ir.Attention, ir.Recurrence, ir.Window
        ),
        **each_of(refused("is no operation of a step"), ir.Kernel, ir.Return, ir.Yield, ir.Function),
        **each_of(refused("is no operation of a step"), ir.Weight, ir.State),
    },
)
"""The ONNX operators of each operation."""
