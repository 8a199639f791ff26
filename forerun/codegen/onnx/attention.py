"""Tree attention as standard ONNX: over the cached positions and the step's own rows, under a mask.

    K, V = concat(cached, new)
    scores = q K^T scaled, capped, biased;  -inf where `visible` is false
    result = softmax(scores) V

`visible` [N, C + N] says which cached positions and which rows of the step a row sees: for one sequence, all cached
positions, its ancestors and itself. All rows share one product with the cache: gathering each row's own history reads
it N times (`benchmarks.onnx_attention`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from forerun.codegen.onnx.graph import ELEMENTS, Graph

CACHED, ALL = "C", "L"
"""The dimensions of cached positions C, and of C + N."""


@dataclass(frozen=True)
class Attention:
    """One tree attention; values are given by their names.

    query [N, H, D], cached keys [C, G, D] and values [C, G, Dv], new keys [N, G, D] and values [N, G, Dv], first [N]
    """

    query: str
    keys: tuple[str, str]  # cached, new
    values: tuple[str, str]
    heads: int
    groups: int
    key_dim: int
    value_dim: int
    scale: float
    softcap: float | None
    first: str | None
    bias: str | None
    bias_by: str | None
    sinks: str | None


def emit_attention(graph: Graph, given: Attention) -> str:
    """Returns the result [N, H, Dv]."""
    heads, groups = given.heads, given.groups
    query = graph.node("Mul", given.query, graph.constant(given.scale, "f32"))
    query = _grouped(graph, graph.transpose(query, 1, 0, 2), given, given.key_dim)
    # An empty cache is part of no product by itself: ONNX Runtime divides by its size.
    keys, values = (graph.node("Concat", *each, axis=0) for each in (given.keys, given.values))
    scores = graph.node("MatMul", query, graph.transpose(keys, 1, 2, 0))  # [G, H / G * N, C + N]
    if groups != heads:
        scores = graph.node("Reshape", scores, graph.constant([heads, -1, 0], "i64"))
    if given.softcap is not None:
        cap = graph.constant(given.softcap, "f32")
        scores = graph.node("Mul", graph.node("Tanh", graph.node("Div", scores, cap)), cap)
    if given.bias is not None:
        scores = graph.node("Add", scores, _bias(graph, given, given.bias))
    weights = _weights(graph, given, graph.node("Add", scores, _mask(graph, given)))
    if groups != heads:
        weights = graph.node("Reshape", weights, graph.constant([groups, -1, 0], "i64"))
    result = graph.node("MatMul", weights, graph.transpose(values, 1, 0, 2))  # [G, H / G * N, Dv]
    if groups != heads:
        result = graph.node("Reshape", result, graph.constant([heads, -1, given.value_dim], "i64"))
    return graph.transpose(result, 1, 0, 2)


def _grouped(graph: Graph, value: str, given: Attention, size: int) -> str:
    """[H, N, D] as [G, H / G * N, D]."""
    if given.groups == given.heads:
        return value
    return graph.node("Reshape", value, graph.constant([given.groups, -1, size], "i64"))


def _mask(graph: Graph, given: Attention) -> str:
    """0 where a row sees a key and -inf elsewhere, [N, C + N]; layers with the same window share it."""
    visible = graph.input("visible", ("N", ALL), "i1")
    if given.first is not None:
        first = graph.node("Cast", given.first, to=ELEMENTS["i64"])
        column = graph.node("Unsqueeze", first, graph.constant([1], "i64"))
        visible = graph.node("And", visible, graph.node("GreaterOrEqual", _key_positions(graph), column))
    return graph.node("Where", visible, graph.constant(0.0, "f32"), graph.constant(-math.inf, "f32"), hint="mask")


def _key_positions(graph: Graph) -> str:
    """The positions of all keys, [C + N] i64."""
    parts = graph.input("cached_positions", (CACHED,), "i32"), graph.input("positions", ("N",), "i32")
    return graph.node("Cast", graph.node("Concat", *parts, axis=0), to=ELEMENTS["i64"], hint="key_positions")


def _bias(graph: Graph, given: Attention, bias: str) -> str:
    """What is added to the scores [H, N, C + N], as it broadcasts. Later positions than a row's own are not seen."""
    keys = _key_positions(graph)
    if given.bias_by == "key":
        chosen = graph.node("Gather", bias, keys, axis=1)
        return graph.node("Unsqueeze", chosen, graph.constant([1], "i64"))
    rows = graph.node("Cast", graph.input("positions", ("N",), "i32"), to=ELEMENTS["i64"])
    behind = graph.node("Sub", graph.node("Unsqueeze", rows, graph.constant([1], "i64")), keys)
    return graph.node("Gather", bias, graph.node("Max", behind, graph.constant(0, "i64")), axis=1)


def _weights(graph: Graph, given: Attention, scores: str) -> str:
    """The softmax over the keys; a sink is one more key of that score, without a value."""
    if given.sinks is None:
        return graph.node("Softmax", scores, axis=2)
    column = graph.node("Reshape", given.sinks, graph.constant([given.heads, 1, 1], "i64"))
    column = graph.node("Expand", column, graph.shape((given.heads, "N", 1)))
    weights = graph.node("Softmax", graph.node("Concat", scores, column, axis=2), axis=2)
    last = graph.constant([-1], "i64")
    return graph.node("Slice", weights, graph.constant([0], "i64"), last, graph.constant([2], "i64"))
