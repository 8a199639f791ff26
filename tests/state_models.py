"""Tiny decoders written as IR, each with its own forward pass in torch, with states per row and per request.

Both attend as well, so that states of all kinds lie side by side. `SUMS` adds to the stream, for each position, a
decaying sum of the embeddings up to it, `TURNED` one whose numbers move by one place for each position; `WINDOWS` adds
the embeddings of the three positions before; `MEMORY` adds the mean embedding of a source text that `@encode` reads
once.
"""

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch

from forerun import ir
from forerun.passes.base import PassContext
from forerun.passes.canonicalize import Canonicalize
from forerun.passes.fuse_kernels import FuseKernels
from forerun.passes.pipeline import run_pipeline
from forerun.passes.plan_memory import PlanMemory

WIDTH, HEADS, HEAD, VOCABULARY = 32, 2, 16, 61
LIMITS = {"max_rows": 64, "max_outputs": 64, "max_path": 16, "max_length": 160}
DECAY = 0.75

ROWS = "!spec.tensor<[N], i32>"
HIDDEN = f"!spec.tensor<[N, {WIDTH}], f32>"
RECORD = f"!spec.tensor<[{WIDTH}], f32>"
SPLIT = f"!spec.tensor<[N, {HEADS}, {HEAD}], f32>"
TABLE = f"!spec.tensor<[{VOCABULARY}, {WIDTH}], f32>"
BEST = "!spec.tensor<[M, 8], f32>, !spec.tensor<[M, 8], i32>"
SQUARE = f"!spec.tensor<[{WIDTH}, {WIDTH}], f32>"
WEIGHTS = {"table": (VOCABULARY, WIDTH), "head": (VOCABULARY, WIDTH)} | dict.fromkeys("qkvo", (WIDTH, WIDTH))

ARGUMENTS = (
    f"%tokens: {ROWS}, %positions: {ROWS}, %sequences: {ROWS}, %slots: {ROWS}, %bases: {ROWS}, "
    "%paths: !spec.tensor<[N, D], i32>, %outputs: !spec.tensor<[M], i32>, "
)
RECORDS = f"%parents: {ROWS}, %records: {ROWS}, %order: {ROWS}, "
HISTORY = "%positions, %sequences, %bases, %paths, %block_tables"

DECLARATIONS = "".join(
    f'spec.weight @{name} {{shape = [{", ".join(map(str, shape))}], dtype = "f32"}}\n'
    for name, shape in WEIGHTS.items()
) + "".join(
    f'spec.state @attention.{half} {{per = "position", shape = [{HEADS}, {HEAD}], dtype = "f32"}}\n'
    for half in ("keys", "values")
)


def _linear(result: str, x: str, weight: str, kind: str = HIDDEN, matrix: str = SQUARE) -> str:
    shape = matrix[matrix.index("[") : matrix.index("]") + 1]
    return f"""
  %{weight} = spec.parameter @{weight}() {{shape = {shape}, dtype = "f32"}} -> {matrix}
  %{result} = spec.linear(%{x}, %{weight}) -> {kind}"""


def _heads(name: str) -> str:
    return f"""{_linear(f"{name}_flat", "mixed", name)}
  %{name}_heads = spec.reshape(%{name}_flat) {{shape = ["N", {HEADS}, {HEAD}]}} -> {SPLIT}"""


EMBEDDED = f"""
  %table = spec.parameter @table() {{shape = [{VOCABULARY}, {WIDTH}], dtype = "f32"}} -> {TABLE}
  %x = spec.gather(%table, %tokens) -> {HIDDEN}"""

DECODED = f"""
  %mixed = spec.map(%x, %added) {{function = "add"}} -> {HIDDEN}{_heads("q")}{_heads("k")}{_heads("v")}
  spec.state_write @attention.keys(%k_heads, %slots)
  spec.state_write @attention.values(%v_heads, %slots)
  %attended = spec.tree_attention @attention.keys(%q_heads, {
    HISTORY
}) {{values = @attention.values, block = 16, value_dim = {HEAD}, scale = 0.25}} -> {SPLIT}
  %flat = spec.reshape(%attended) {{shape = ["N", {WIDTH}]}} -> {HIDDEN}{_linear("out", "flat", "o")}
  %stream = spec.map(%mixed, %out) {{function = "add"}} -> {HIDDEN}
  %wanted = spec.gather(%stream, %outputs) -> !spec.tensor<[M, {WIDTH}], f32>{
    _linear("logits", "wanted", "head", f"!spec.tensor<[M, {VOCABULARY}], f32>", TABLE)
}
  %best, %ids = spec.topk(%logits) {{k = 8, index_dtype = "i32"}} -> {BEST}
  spec.return(%logits, %ids, %best)
}}
"""

SUMS = f"""{DECLARATIONS}spec.state @sum {{per = "row", shape = [{WIDTH}], dtype = "f32"}}
spec.func @step({ARGUMENTS}{RECORDS}%block_tables: !spec.tensor<[S, B], i32>) {{{EMBEDDED}
  %added = spec.tree_recurrence @sum(%parents, %records, %order, %x) {{}} {{
  ^bb0(%before: {RECORD}, %own: {RECORD}):
    %decay = spec.constant() {{value = {DECAY}, dtype = "f32"}} -> !spec.tensor<[], f32>
    %faded = spec.map(%before, %decay) {{function = "mul"}} -> {RECORD}
    %after = spec.map(%faded, %own) {{function = "add"}} -> {RECORD}
    spec.yield(%after, %after)
  }} -> {HIDDEN}{DECODED}"""

TURNED = SUMS.replace(
    "    %faded = spec.map(%before, ",
    f"""    %most = spec.slice(%before) {{dim = 0, start = 1, stop = {WIDTH}}} -> !spec.tensor<[{WIDTH - 1}], f32>
    %first = spec.slice(%before) {{dim = 0, start = 0, stop = 1}} -> !spec.tensor<[1], f32>
    %turned = spec.concat(%most, %first) {{dim = 0}} -> {RECORD}
    %faded = spec.map(%turned, """,
)

WINDOWS = f"""{DECLARATIONS}spec.state @window {{per = "position", shape = [{WIDTH}], dtype = "f32"}}
spec.func @step({ARGUMENTS}%block_tables: !spec.tensor<[S, B], i32>) {{{EMBEDDED}
  spec.state_write @window(%x, %slots)
  %earlier = spec.ancestors({HISTORY}) {{count = 3, block = 16}} -> !spec.tensor<[N, 3], i32>
  %window = spec.state_read @window(%earlier) {{shape = [{WIDTH}], dtype = "f32"}} -> !spec.tensor<[N, 3, {WIDTH}], f32>
  %added = spec.reduce(%window) {{function = "sum", dims = [1]}} -> {HIDDEN}{DECODED}"""

MEMORY = f"""{DECLARATIONS}spec.state @memory {{per = "request", shape = [{WIDTH}], dtype = "f32"}}
spec.func @encode(%source: !spec.tensor<[1, L], i32>, %requests: !spec.tensor<[1], i32>) {{
  %table = spec.parameter @table() {{shape = [{VOCABULARY}, {WIDTH}], dtype = "f32"}} -> {TABLE}
  %x = spec.gather(%table, %source) -> !spec.tensor<[1, L, {WIDTH}], f32>
  %mean = spec.reduce(%x) {{function = "mean", dims = [1]}} -> !spec.tensor<[1, {WIDTH}], f32>
  spec.state_write @memory(%mean, %requests)
  spec.return()
}}
spec.func @step({ARGUMENTS}%requests: !spec.tensor<[S], i32>, %block_tables: !spec.tensor<[S, B], i32>) {{{EMBEDDED}
  %places = spec.gather(%requests, %sequences) -> {ROWS}
  %added = spec.state_read @memory(%places) {{shape = [{WIDTH}], dtype = "f32"}} -> {HIDDEN}{DECODED}"""


@cache
def weights(seed: int = 0) -> Mapping[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*shape, generator=generator) * (1.0 if name == "table" else shape[1] ** -0.5)
        for name, shape in WEIGHTS.items()
    }


def planned(text: str, fused: bool = True) -> ir.ModuleOp:
    """The module after the last passes of the pipeline, those that make kernels included if `fused`."""
    module = ir.parse_ir(text)
    ir.verify(module)
    context = PassContext(weights().__getitem__, LIMITS["max_length"])
    limits = {name: LIMITS[name] for name in ("max_rows", "max_outputs")}
    run_pipeline(module, [Canonicalize(), *((FuseKernels(), PlanMemory(**limits)) if fused else ())], context)
    return module


# --- the same in torch ------------------------------------------------------------------------------------------------


def _decoded(x: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """[T, D] -> logits [T, V]"""
    known, mixed = weights(), x + added
    q, k, v = ((mixed @ known[name].T).view(len(x), HEADS, HEAD).transpose(0, 1) for name in "qkv")
    attended = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=0.25)
    stream = mixed + attended[0].transpose(0, 1).reshape(len(x), WIDTH) @ known["o"].T
    return stream @ known["head"].T


def sums(tokens: torch.Tensor) -> torch.Tensor:
    x = weights()["table"][tokens]
    powers = (torch.arange(len(x))[:, None] - torch.arange(len(x))[None]).float()
    return _decoded(x, torch.where(powers >= 0, DECAY**powers, 0.0) @ x)


def turned(tokens: torch.Tensor) -> torch.Tensor:
    x = weights()["table"][tokens]
    records = [x[0]]
    for own in x[1:]:
        records.append(records[-1].roll(-1) * DECAY + own)
    return _decoded(x, torch.stack(records))


def windows(tokens: torch.Tensor) -> torch.Tensor:
    x = weights()["table"][tokens]
    return _decoded(x, torch.cat([torch.zeros(3, WIDTH), x]).unfold(0, 3, 1)[: len(x)].sum(-1))


def memory(tokens: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    x = weights()["table"][tokens]
    return _decoded(x, weights()["table"][source[0]].mean(0).expand(len(x), -1))


def source(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, VOCABULARY, (1, int(random.integers(2, 9))), dtype=np.int32)


MODELS: dict[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "sums": (SUMS, sums),
    "turned": (TURNED, turned),
    "windows": (WINDOWS, windows),
    "memory": (MEMORY, memory),
}
