"""The measurements of `benchmarks.gpu`, one function per question. Each returns table rows and data for JSON."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import forerun
from benchmarks.common import Prompt
from benchmarks.shapes import LLAMA_8B, SMOLLM2, shaped_llama
from forerun import ir
from forerun.build import limits_of, lower
from forerun.codegen.backends import WEIGHT_DTYPES
from forerun.codegen.planned import PlannedStep, StepLimits
from forerun.codegen.triton.lowering import emit
from forerun.execute.triton.build import TUNE, bind
from forerun.execute.triton.timing import graph_of, kernel_seconds, seconds_of, step_seconds
from forerun.ir.builder import Builder
from forerun.progress import SilentProgress
from forerun.runtime.certify import certify
from forerun.runtime.certify_loop import certify_loop
from forerun.runtime.device_loop import Drafting, OnDevice
from forerun.runtime.engine import Engine
from forerun.runtime.executable import WHOLE, Rows
from forerun.runtime.request import Request
from forerun.runtime.round_size import SameSize
from forerun.schedules import with_strategy

HEADS, GROUPS, DIM = 32, 8, 128
"""Of the 8B shape's attention."""


@dataclass(frozen=True)
class Line:
    """One row of the table. `reached` is None if there is no target."""

    what: str
    measured: str
    target: str
    reached: bool | None


def copy_bandwidth() -> float:
    """Bytes per second of a device copy of 2 GiB, reads and writes counted."""
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source), rounds=20)
    return 2 * source.nbytes / seconds


def random_model(settings: dict[str, Any], layers: int, dtype: str, max_length: int) -> Any:
    """A compiled Llama of this shape, with random weights created on the device one at a time."""
    lowered = lower(shaped_llama(settings, layers), dtype, max_length, progress=SilentProgress())
    declared = ir.weights(lowered.module)
    generator = torch.Generator("cuda").manual_seed(0)

    def weight(name: str) -> torch.Tensor:
        if declared[name].derived is not None:
            return lowered.weights(name)
        shape = [int(dim) for dim in declared[name].type.dims]
        if len(shape) == 1:
            return torch.ones(shape)
        return torch.randn(shape, generator=generator, device="cuda", dtype=torch.bfloat16) * shape[1] ** -0.5

    return bind(emit(PlannedStep(lowered.module, weight, limits_of(lowered), WEIGHT_DTYPES[dtype])))


def tree_rows(count: int, committed: int, tables: int, vocabulary: int) -> Rows:
    """A tree of `count` rows, a chain with side branches, after a committed context of one sequence."""
    random = np.random.default_rng(0)
    depth = np.minimum(np.arange(count), 7)
    slots = ((tables - -(-count // 16)) * 16 + np.arange(count)).astype(np.int32)
    paths = np.zeros((count, 8), np.int32)
    for row in range(count):
        paths[row, : depth[row] + 1] = [*slots[: depth[row]], slots[row]]
    table = np.arange(tables, dtype=np.int32)[None]
    every = np.arange(count, dtype=np.int32)
    return Rows(
        random.integers(0, vocabulary, count, dtype=np.int32), (committed + depth).astype(np.int32),
        np.zeros(count, np.int32), slots, np.full(count, committed, np.int32), paths, table, every,
    )  # fmt: skip


def round_seconds(executable: Any, count: int, rounds: int = 100) -> tuple[float, float]:
    """Seconds per iteration of the loop on the device, from drafting to commit, by the host's clock while the host
    reads behind the device; and the rows of the iterations."""
    engine = Engine(executable)
    loop = OnDevice(executable.loop(engine.state, Drafting(), count), SameSize(count))
    loop.prepare(engine)
    prompt = np.random.default_rng(0).integers(0, executable.vocabulary, 256).tolist()
    begun, ended, rows = 0.0, 0.0, [0]
    for step in loop.decode(engine, Request(prompt, executable.max_length - 300)):
        ended = time.perf_counter()
        rows.append(step.rows)
        if len(rows) == 12:
            begun = ended
        if len(rows) == 12 + rounds:
            break
    return (ended - begun) / max(1, len(rows) - 12), mean(rows[12:] or [0])


def steps(name: str, settings: dict[str, Any], layers: int, bandwidth: float) -> tuple[list[Line], dict[str, Any]]:
    """t(1), t(32) and the fraction of the bandwidth, for a model with random bfloat16 weights after 256 positions."""
    executable = random_model(settings, layers, "bfloat16", 2048)
    blocks = -(-executable.max_length // 16) + 16
    state = executable.new_state(blocks)
    seconds: dict[int, float] = {}
    whole: dict[int, float] = {}
    for count in (1, 4, 8, 16, 32, 64):
        rows = tree_rows(count, 256, executable.step.tables, executable.vocabulary)
        executable.run(WHOLE, state, rows)
        seconds[count] = step_seconds(executable, state, rows)
        begin = time.perf_counter()
        for _ in range(20):
            executable.run(WHOLE, state, rows)
        whole[count] = (time.perf_counter() - begin) / 20
    rounds = {count: round_seconds(executable, count) for count in (1, 8, 32)}
    kernels = kernel_seconds(executable, state, tree_rows(1, 256, executable.step.tables, executable.vocabulary))
    fraction, ratio = executable.weight_bytes / seconds[1] / bandwidth, seconds[32] / seconds[1]
    lines = [
        Line(f"{name}: t(1) with the host", f"{whole[1] * 1e3:.3f} ms", "", None),
        Line(f"{name}: a round of 1 row on the device", f"{rounds[1][0] * 1e3:.3f} ms", "", None),
        Line(f"{name}: a round of {rounds[32][1]:.1f} rows on the device", f"{rounds[32][0] * 1e3:.3f} ms", "", None),
    ]
    if name == "Llama-3.1-8B":
        lines.append(
            Line(f"{name}: weight bytes over t(1), of the bandwidth", f"{fraction:.3f}", ">= 0.80", fraction >= 0.8)
        )
        lines.append(Line(f"{name}: t(32) / t(1)", f"{ratio:.3f}", "<= 1.10", ratio <= 1.1))
    else:
        lines.append(Line(f"{name}: t(1)", f"{seconds[1] * 1e3:.3f} ms", "<= 0.45 ms", seconds[1] <= 0.45e-3))
        lines.append(Line(f"{name}: weight bytes over t(1), of the bandwidth", f"{fraction:.3f}", "", None))
    told = {
        "seconds": seconds, "seconds_with_host": whole, "round_seconds": rounds,
        "weight_bytes": executable.weight_bytes,
        "launches": executable.step.launches, "fraction": fraction,
        "kernels": [vars(each) for each in kernels],
        "choices": {str(key): str(each) for key, each in executable.launcher.choices.items()},
    }  # fmt: skip
    return lines, told


def attention_step(length: int) -> Any:
    """A step that is one tree attention of the 8B shape over a cache of `length` positions."""
    arguments = [(name, ir.TensorType.of(("N",), "i32")) for name in ("tokens", "positions", "sequences", "bases")]
    arguments.append(("paths", ir.TensorType.of(("N", "D"), "i32")))
    arguments.append(("block_tables", ir.TensorType.of(("S", "B"), "i32")))
    function = ir.Function.of("step", arguments)
    build = Builder(function.block)
    symbol, numbers = ir.Symbol("cache"), HEADS * DIM
    table = build.add(ir.Parameter, symbol=ir.Symbol("q"), shape=(64, numbers), dtype="f32")

    def kernel(inputs: list[Any], kind: str, body: Callable[..., Any]) -> Any:
        block = ir.Block(arg_types=[each.type for each in inputs])
        block.add_op(ir.Yield.make(body(Builder(block), *block.args)))
        made = ir.Kernel.of(inputs, ir.Region(block), kind=kind)
        build.emit(made)
        return made.results[0]

    query = kernel(
        [table, function.argument("tokens")],
        "row_wise",
        lambda b, t, i: b.reshape(b.add(ir.Gather, t, i), ("N", HEADS, DIM)),
    )
    names = ("positions", "sequences", "bases", "paths", "block_tables")
    options = {"symbol": symbol, "block": 16, "scale": DIM**-0.5, "value_dim": DIM}
    attended = kernel(
        [query, *(function.argument(name) for name in names)],
        "attention",
        lambda b, *operands: b.add(ir.TreeAttention, *operands, **options),
    )
    function.block.add_op(ir.Return.make(attended))
    module = ir.ModuleOp([
        ir.Weight.make(symbol=ir.Symbol("q"), shape=(64, numbers), dtype="f32"),
        ir.Cache.make(symbol=symbol, heads=GROUPS, key_dim=DIM, value_dim=DIM),
        function,
    ])  # fmt: skip
    ir.verify(module)
    weights = {"q": torch.randn(64, numbers)}
    limits = StepLimits(max_rows=32, max_outputs=32, max_path=64, max_length=length)
    return bind(emit(PlannedStep(module, weights.__getitem__, limits, "bf16")))


def tree_attention(length: int, bandwidth: float) -> tuple[list[Line], dict[str, Any]]:
    """32 rows of a tree after a context, compared with FlexAttention and SDPA under the same mask."""
    rows = 32
    executable = attention_step(length)
    committed = length - 32
    given = tree_rows(rows, committed, executable.step.tables, 64)
    state = executable.new_state(executable.step.tables)
    state.numbers.normal_()
    ours = seconds_of(graph_of(executable.launches(state, given, ["attention_1"])).replay, cold=True)
    query = torch.randn(1, HEADS, rows, DIM, device="cuda", dtype=torch.bfloat16)
    key, value = (torch.randn(1, GROUPS, length, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ancestors = torch.zeros(rows, length, dtype=torch.bool)
    ancestors[:, :committed] = True
    for row in range(rows):
        depth = min(row, 7)
        ancestors[row, committed : committed + depth] = True
        ancestors[row, committed + row] = True
    mask = ancestors.cuda()
    blocks = create_block_mask(lambda b, h, q, k: mask[q, k], None, None, rows, length, device="cuda")
    flex = torch.compile(flex_attention)
    flexed = seconds_of(lambda: flex(query, key, value, block_mask=blocks, enable_gqa=True), cold=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    masked = mask[None, None]
    torchs = seconds_of(lambda: attend(query, key, value, attn_mask=masked, enable_gqa=True), cold=True)
    moved = 2 * length * GROUPS * DIM * 2
    fraction, name = moved / ours / bandwidth, f"tree attention, 32 rows, {length // 1024}K"
    lines = [
        Line(f"{name}: bytes over time, of the bandwidth", f"{fraction:.3f}", ">= 0.80", fraction >= 0.8),
        Line(f"{name}: FlexAttention over ours", f"{flexed / ours:.2f}", "> 1", flexed > ours),
        Line(f"{name}: SDPA over ours", f"{torchs / ours:.2f}", "> 1", torchs > ours),
    ]
    return lines, {"ours": ours, "flex_attention": flexed, "sdpa": torchs, "bytes": moved, "fraction": fraction}


def generation(path: Any, prompts: list[Prompt], new_tokens: int) -> tuple[list[Line], dict[str, Any]]:
    """Tokens per second of `tree_spec` and of transformers, by default and with a static cache and torch.compile."""
    from transformers import AutoModelForCausalLM

    model = forerun.compile(path, "tree_spec", "bfloat16", "cuda")
    encoded = [each.encode(model.tokenizer) for each in prompts]
    model.generate(encoded[0], new_tokens, do_sample=False)
    drafted = [model.generate(each, new_tokens, do_sample=False) for each in encoded]
    own = mean(each.stats.tokens_per_second for each in drafted)
    on_device, on_host = with_strategy(model, "autoregressive"), with_strategy(model, "autoregressive")
    on_host.on_device = None
    plain_rate = mean(on_device.generate(each, new_tokens, do_sample=False).stats.tokens_per_second for each in encoded)
    host = [on_host.generate(each, new_tokens, do_sample=False) for each in encoded]
    equal = sum(one.token_ids == other.token_ids for one, other in zip(drafted, host, strict=True))
    folder, file = (path.parent, path.name) if path.is_file() else (path, None)
    theirs = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16).cuda().eval()

    def speed() -> float:
        rates: list[float] = []
        for ids in encoded:
            torch.cuda.synchronize()
            begin = time.perf_counter()
            given = torch.tensor([ids], device="cuda")
            made = theirs.generate(given, max_new_tokens=new_tokens, do_sample=False)
            torch.cuda.synchronize()
            rates.append((made.shape[1] - len(ids)) / (time.perf_counter() - begin))
        return mean(rates)

    speed()
    plain = speed()
    theirs.generation_config.cache_implementation = "static"
    theirs.forward = torch.compile(theirs.forward, mode="max-autotune", fullgraph=True)
    speed()
    compiled = speed()
    lines = [
        Line("tree_spec, texts equal to plain decoding's", f"{equal} of {len(host)}", "all", equal == len(host)),
        Line("tree_spec, accepted length", f"{mean(each.stats.accepted_length for each in drafted):.2f}", "", None),
        Line("tree_spec over autoregressive", f"{own / plain_rate:.2f}", "", None),
        Line("tree_spec over transformers generate, SmolLM2", f"{own / plain:.1f}", ">= 12", own >= 12 * plain),
        Line("tree_spec over a static cache and torch.compile", f"{own / compiled:.1f}", ">= 2", own >= 2 * compiled),
    ]
    return lines, {
        "tree_spec": own,
        "autoregressive": plain_rate,
        "transformers": plain,
        "transformers_compiled": compiled,
    }


def verification(path: Any, dtype: str, cases: int) -> tuple[list[Line], dict[str, Any]]:
    """`forerun verify`: compares every row of every step bit for bit with plain decoding."""
    before = os.environ.get(TUNE)
    os.environ[TUNE] = "0"  # bits do not depend on it, and compiling candidates takes minutes
    try:
        if path is None:
            executable = random_model(SMOLLM2, 30, dtype, 2048)
        else:
            executable = forerun.compile(path, "autoregressive", dtype, "cuda").executable
    finally:
        os.environ[TUNE] = "1" if before is None else before
    report = certify(executable, cases)
    lines = [
        Line(f"verify, {cases} cases, {dtype}", f"{report.differences} of {report.rows} rows differ", "0", report.exact)
    ]
    told = report.to_dict()
    if (loop := certify_loop(executable, max(1, cases // 10))) is not None:
        differing = f"{loop.differences} of {loop.texts} texts differ"
        lines.append(Line(f"verify, the loop on the device, {dtype}", differing, "0", loop.exact))
        told["loop"] = loop.to_dict()
    return lines, told


__all__ = ["LLAMA_8B", "SMOLLM2", "Line", "copy_bandwidth", "generation", "steps", "tree_attention", "verification"]
