"""How does an exported step attend fastest on ONNX Runtime: under a mask, or by gathering each row's history?

python -m benchmarks.onnx_attention

Times the attentions of SmolLM2's 30 layers alone, with random queries, keys and values, in both forms and as the
standard `Attention` operator, and checks that all give the same numbers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper

from benchmarks.common import report
from forerun.codegen.onnx.attention import CACHED, Attention, emit_attention
from forerun.codegen.onnx.graph import Graph
from forerun.codegen.onnx.lowering import IR_VERSION, OPSET

HEADS, GROUPS, SIZE, LAYERS = 9, 3, 64, 30
ROWS, CONTEXTS = (1, 8, 16), (128, 512, 1536)
SAME = 1e-5


def gathered(graph: Graph, given: Attention) -> str:
    """Each row's keys and values in the order of its history, whose places are an input [N, T]."""
    history, mask = graph.input("history", ("N", "T"), "i64"), graph.input("history_mask", ("N", 1, 1, "T"), "f32")
    keys, values = (
        graph.node("Gather", graph.node("Concat", *each, axis=0), history, axis=0)
        for each in (given.keys, given.values)
    )
    query = graph.node("Mul", given.query, graph.constant(given.scale, "f32"))
    query = graph.node("Reshape", query, graph.constant([-1, GROUPS, HEADS // GROUPS, SIZE], "i64"))
    scores = graph.node("MatMul", query, graph.transpose(keys, 0, 2, 3, 1))
    weights = graph.node("Softmax", graph.node("Add", scores, mask), axis=3)
    result = graph.node("MatMul", weights, graph.transpose(values, 0, 2, 1, 3))
    return graph.node("Reshape", result, graph.constant([-1, HEADS, SIZE], "i64"))


def operator(graph: Graph, given: Attention) -> str:
    """The standard operator, under the same mask."""
    batch = graph.constant([0], "i64")
    keys, values = (
        graph.node("Unsqueeze", graph.transpose(graph.node("Concat", *each, axis=0), 1, 0, 2), batch)
        for each in (given.keys, given.values)
    )
    query = graph.node("Unsqueeze", graph.transpose(given.query, 1, 0, 2), batch)
    visible = graph.input("visible", ("N", "L"), "i1")
    found = graph.node("Attention", query, keys, values, visible, scale=given.scale)
    return graph.transpose(graph.node("Squeeze", found, batch), 1, 0, 2)


FORMS = {"mask": emit_attention, "gather": gathered, "operator": operator}


def session(emit: Callable[[Graph, Attention], str], threads: int) -> Any:
    """All layers, one after another; each layer's result is the next one's query."""
    graph = Graph("attentions")
    value = graph.input("query", ("N", HEADS, SIZE), "f32")
    new = graph.input("new", ("N", GROUPS, SIZE), "f32")
    for layer in range(LAYERS):
        keys, values = (graph.input(f"{half}{layer}", (CACHED, GROUPS, SIZE), "f32") for half in ("keys", "values"))
        plain = {"softcap": None, "first": None, "bias": None, "bias_by": None, "sinks": None}
        shape = {"heads": HEADS, "groups": GROUPS, "key_dim": SIZE, "value_dim": SIZE, "scale": SIZE**-0.5}
        value = emit(graph, Attention(query=value, keys=(keys, new), values=(values, new), **shape, **plain))
    graph.output("result", value, ("N", HEADS, SIZE), "f32")
    model = helper.make_model(graph.proto(), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def inputs(rows: int, context: int) -> dict[str, Any]:
    """Random numbers, and a tree in which every row sees the cached positions and the rows before it."""
    random = np.random.default_rng(rows + context)
    names = [f"{half}{layer}" for half in ("keys", "values") for layer in range(LAYERS)]
    given: dict[str, Any] = {name: random.standard_normal((context, GROUPS, SIZE), np.float32) for name in names}
    given["query"] = random.standard_normal((rows, HEADS, SIZE), np.float32)
    given["new"] = random.standard_normal((rows, GROUPS, SIZE), np.float32)
    given["visible"] = np.tril(np.ones((rows, context + rows), np.bool_), context)
    given["history"] = np.tile(np.arange(context + rows), (rows, 1))
    given["history_mask"] = np.where(given["visible"], 0, -np.inf).astype(np.float32)[:, None, None]
    return given


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("results"), help="the folder for the JSON result")
    arguments = parser.parse_args()
    sessions = {name: session(emit, arguments.threads) for name, emit in FORMS.items()}
    wanted = {name: [each.name for each in found.get_inputs()] for name, found in sessions.items()}
    lines: list[tuple[Any, ...]] = []
    for context in CONTEXTS:
        for rows in ROWS:
            given = inputs(rows, context)
            times: dict[str, list[float]] = {name: [] for name in FORMS}
            results: dict[str, Any] = {}
            for _ in range(arguments.rounds):
                for name, found in sessions.items():
                    own = {each: given[each] for each in wanted[name]}
                    began = time.perf_counter()
                    results[name] = found.run(None, own)[0]
                    times[name].append((time.perf_counter() - began) * 1e3)
            assert all(np.abs(each - results["mask"]).max() < SAME for each in results.values())
            lines.append((context, rows, *(median(each) for each in times.values())))
    columns = ("cached", "rows", *(f"{name}: ms" for name in FORMS))
    report("onnx_attention", arguments.out, columns, lines, {"columns": columns, "lines": lines})
    return 0


if __name__ == "__main__":
    sys.exit(main())
