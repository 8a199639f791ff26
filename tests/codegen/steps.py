"""IR of small steps, written out kernel by kernel, with random weights and rows for tests of code generation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from forerun import ir
from forerun.ir.builder import Builder
from forerun.runtime.executable import Rows
from forerun.signature import STEP_ARGUMENTS

NAMES = ("tokens", "positions", "sequences", "slots", "bases", "paths", "block_tables", "outputs")
ROW_TYPES = {name: (STEP_ARGUMENTS[name].dims, STEP_ARGUMENTS[name].dtype) for name in NAMES}


@dataclass
class Step:
    """A module under construction: its `@step` and weights."""

    seed: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    symbols: list = field(default_factory=list)

    def __post_init__(self):
        arguments = [(name, ir.TensorType.of(*each)) for name, each in ROW_TYPES.items()]
        self.function = ir.Function.of("step", arguments)
        self.build = Builder(self.function.block)
        self.generator = torch.Generator().manual_seed(self.seed)

    def argument(self, name: str):
        return self.function.argument(name)

    def weight(self, name: str, *shape: int, scale: float = 1.0, tensor: torch.Tensor | None = None):
        if name not in self.weights:
            value = torch.randn(*shape, generator=self.generator) * scale if tensor is None else tensor
            self.weights[name] = value
            dtype = ir.dtype_name(value.dtype)
            self.symbols.append(ir.Weight.make(symbol=ir.Symbol(name), shape=tuple(value.shape), dtype=dtype))
        kept = self.weights[name]
        return self.build.add(
            ir.Parameter, symbol=ir.Symbol(name), shape=tuple(kept.shape), dtype=ir.dtype_name(kept.dtype)
        )

    def cache(self, name: str, heads: int, key_dim: int, value_dim: int):
        for half, dim in (("keys", key_dim), ("values", value_dim)):
            symbol = ir.Symbol(f"{name}.{half}")
            self.symbols.append(ir.State.make(symbol=symbol, per="position", shape=(heads, dim), dtype="f32"))

    def kernel(self, inputs: Sequence, body: Callable, kind: str):
        block = ir.Block(arg_types=[each.type for each in inputs])
        results = body(Builder(block), *block.args)
        results = results if isinstance(results, tuple) else (results,)
        block.add_op(ir.Yield.make(*results))
        kernel = ir.Kernel.of(inputs, ir.Region(block), kind=kind)
        self.build.emit(kernel)
        return kernel.results[0] if len(kernel.results) == 1 else tuple(kernel.results)

    def finish(self, *results):
        self.function.block.add_op(ir.Return.make(*results))
        module = ir.ModuleOp([*self.symbols, self.function])
        ir.verify(module)
        return module


def decoder(
    layers=2, hidden=96, heads=6, groups=2, key_dim=16, ffn=208, vocabulary=331, block=16, length=512, seed=0
) -> tuple[ir.ModuleOp, dict[str, torch.Tensor]]:
    """A Llama-like step with tied embedding, grouped queries and rotary positions."""
    step = Step(seed)
    angles = torch.arange(length)[:, None] / 10000 ** (torch.arange(0, key_dim, 2) / key_dim)[None]
    angles = torch.cat((angles, angles), -1)
    arguments = {name: step.argument(name) for name in ROW_TYPES}
    table = step.weight("embedding", vocabulary, hidden, scale=0.3)
    cos, sin = step.weight("cos", tensor=angles.cos()), step.weight("sin", tensor=angles.sin())
    x = step.kernel([table, arguments["tokens"]], lambda b, t, i: b.add(ir.Gather, t, i), "row_wise")

    def rotated(b, value, count, cos, sin, positions):
        tables = [b.reshape(b.add(ir.Gather, each, positions), ("N", 1, key_dim)) for each in (cos, sin)]
        tables = [b.broadcast(each, ("N", count, key_dim)) for each in tables]
        return b.add(ir.Rotary, b.reshape(value, ("N", count, key_dim)), *tables)

    for layer in range(layers):
        name = f"layer{layer}."
        step.cache(name + "cache", groups, key_dim, key_dim)
        halves = ir.Symbol(name + "cache.keys"), ir.Symbol(name + "cache.values")
        norm = step.weight(name + "norm", hidden)
        q, k, v = (
            step.weight(name + each, count * key_dim, hidden, scale=hidden**-0.5)
            for each, count in (("q", heads), ("k", groups), ("v", groups))
        )

        def project(b, x, norm, q, k, v, cos, sin, positions, slots, halves=halves):
            y = b.add(ir.RMSNorm, x, norm, eps=1e-5)
            query = rotated(b, b.add(ir.Linear, y, q), heads, cos, sin, positions)
            key = rotated(b, b.add(ir.Linear, y, k), groups, cos, sin, positions)
            value = b.reshape(b.add(ir.Linear, y, v), ("N", groups, key_dim))
            for each, symbol in zip((key, value), halves, strict=True):
                b.emit(ir.StateWrite.make(each, slots, symbol=symbol))
            return query

        inputs = [x, norm, q, k, v, cos, sin, arguments["positions"], arguments["slots"]]
        query = step.kernel(inputs, project, "linear")

        def attend(b, q, positions, sequences, bases, paths, tables, halves=halves):
            return b.add(
                ir.TreeAttention,
                *(q, positions, sequences, bases, paths, tables),
                symbol=halves[0],
                values=halves[1],
                block=block,
                scale=key_dim**-0.5,
                value_dim=key_dim,
            )

        names = ("positions", "sequences", "bases", "paths", "block_tables")
        attended = step.kernel([query, *(arguments[each] for each in names)], attend, "attention")
        out = step.weight(name + "o", hidden, heads * key_dim, scale=(heads * key_dim) ** -0.5)

        def residual(b, a, w, x):
            return b.map("add", b.add(ir.Linear, b.reshape(a, ("N", heads * key_dim)), w), x)

        x = step.kernel([attended, out, x], residual, "linear")
        norm = step.weight(name + "norm2", hidden)
        gate, up = (step.weight(name + each, ffn, hidden, scale=hidden**-0.5) for each in ("gate", "up"))

        def gated(b, x, norm, gate, up):
            y = b.add(ir.RMSNorm, x, norm, eps=1e-5)
            return b.map("mul", b.map("silu", b.add(ir.Linear, y, gate)), b.add(ir.Linear, y, up))

        hidden_values = step.kernel([x, norm, gate, up], gated, "linear")
        down = step.weight(name + "down", hidden, ffn, scale=ffn**-0.5)
        x = step.kernel([hidden_values, down, x], lambda b, a, w, x: b.map("add", b.add(ir.Linear, a, w), x), "linear")

    norm = step.weight("norm", hidden)

    def head(b, x, outputs, norm, table):
        logits = b.add(ir.Linear, b.add(ir.RMSNorm, b.add(ir.Gather, x, outputs), norm, eps=1e-5), table)
        topk = b.emit(ir.TopK.make(logits, k=8, index_dtype="i32"))
        return logits, topk.results[1], topk.results[0]

    return step.finish(*step.kernel([x, arguments["outputs"], norm, table], head, "head")), step.weights


def prompt_rows(tokens: Sequence[int], start: int, table: Sequence[int], block: int = 16) -> Rows:
    """Rows of one sequence's prompt from position `start` on, which read and write through its block table."""
    count = len(tokens)
    positions = np.arange(start, start + count)
    slots = np.asarray(table)[positions // block] * block + positions % block
    return rows_of(tokens, positions, np.zeros(count), slots, positions + 1, np.zeros((count, 1)), [table])


def rows_of(tokens, positions, sequences, slots, bases, paths, tables, outputs=None) -> Rows:
    arrays = (tokens, positions, sequences, slots, bases, paths, tables)
    outputs = np.arange(len(np.asarray(tokens))) if outputs is None else outputs
    return Rows(*(np.ascontiguousarray(np.asarray(each), dtype=np.int32) for each in (*arrays, outputs)))


def stored(module, storage: str, *names: str):
    """The module with weights stored as `storage`."""
    for name, weight in ir.weights(module).items():
        if name in names:
            weight.storage = storage
    ir.verify(module)
    return module


LENGTH = 200


def attention_step(heads, groups, key_dim, value_dim, options, seed=0):
    step = Step(seed)
    tables = [
        step.weight(name, LENGTH * 2, count * dim)
        for name, count, dim in (("q", heads, key_dim), ("k", groups, key_dim), ("v", groups, value_dim))
    ]
    step.cache("cache", groups, key_dim, value_dim)
    halves = ir.Symbol("cache.keys"), ir.Symbol("cache.values")
    arguments = {name: step.argument(name) for name in ROW_TYPES}

    def write(b, q, k, v, tokens, slots):
        query, key, value = (
            b.reshape(b.add(ir.Gather, each, tokens), ("N", count, dim))
            for each, count, dim in ((q, heads, key_dim), (k, groups, key_dim), (v, groups, value_dim))
        )
        for each, symbol in zip((key, value), halves, strict=True):
            b.emit(ir.StateWrite.make(each, slots, symbol=symbol))
        return query

    query = step.kernel([*tables, arguments["tokens"], arguments["slots"]], write, "row_wise")
    more = {}
    for name, shape in (("bias", (heads, LENGTH)), ("sinks", (heads,))):
        if name in options:
            more[name] = step.weight(name, *shape)

    def attend(b, q, positions, sequences, bases, paths, table, *rest):
        named = dict(zip(more, rest, strict=True))
        if "window" in options:
            window = b.constant(options["window"] - 1, "i32")
            named["first"] = b.map("max", b.map("sub", positions, window), b.constant(0, "i32"))
        return b.add(
            ir.TreeAttention,
            *(q, positions, sequences, bases, paths, table),
            **named,
            symbol=halves[0],
            values=halves[1],
            block=16,
            scale=0.3,
            softcap=options.get("softcap"),
            value_dim=value_dim,
            bias_by=options.get("bias"),
        )

    names = ("positions", "sequences", "bases", "paths", "block_tables")
    inputs = [query, *(arguments[each] for each in names), *more.values()]
    return step.finish(step.kernel(inputs, attend, "attention")), step.weights


def tree_rows(generator, table, committed, count, first_free):
    """A random tree after `committed` positions; its rows' slots are scattered."""
    parents = [-1] + [int(generator.integers(0, row)) for row in range(1, count)]
    slots = first_free + generator.permutation(3 * count)[:count]
    paths = []
    for row in range(count):
        path, at = [], row
        while at >= 0:
            path.append(int(slots[at]))
            at = parents[at]
        paths.append(path[::-1])
    positions = np.array([committed + len(path) - 1 for path in paths])
    wide = np.zeros((count, max(map(len, paths))), np.int32)
    for row, path in enumerate(paths):
        wide[row, : len(path)] = path
    tokens = generator.integers(0, LENGTH, count)
    return rows_of(tokens, positions, np.zeros(count), slots, np.full(count, committed), wide, [table])


ATTENTIONS = [
    (6, 2, 16, 16, {}),
    (4, 4, 20, 36, {"softcap": 5.0}),
    (4, 1, 64, 64, {"window": 19}),
    (6, 3, 32, 24, {"bias": "key", "sinks": True}),
    (2, 1, 16, 48, {"bias": "distance", "window": 40, "softcap": 3.0}),
]
