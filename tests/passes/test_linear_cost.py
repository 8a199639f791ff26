"""Passes cost as much per layer of a large model as of a small one: a Llama 70B, 80 layers, on no device."""

import gc
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from forerun import ir
from forerun.frontends.torch_export import import_program
from forerun.frontends.tracing import TokenLogits, trace_module
from forerun.passes.base import PassContext
from forerun.passes.pipeline import run_pipeline, step_pipeline
from forerun.passes.substitute import clone_with

LENGTH = 512


@cache
def two_layers() -> ir.ModuleOp:
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=2,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return import_program(trace_module(TokenLogits(model), "Llama", LENGTH))


def end_of_layer(body: list[ir.SpecOperation], layer: int) -> int:
    """Where the residual stream leaves a layer: the sum after its last linear layer."""
    for index, each in enumerate(body):
        weight = each.weight.owner if isinstance(each, ir.Linear) else None
        name = weight.symbol if isinstance(weight, ir.Parameter) else ""
        if name.endswith(f"layers.{layer}.mlp.down_proj.weight"):
            return index + 1
    raise AssertionError(f"no layer {layer}")


def llama(layers: int) -> ir.ModuleOp:
    """A program of `layers` layers: the second layer of an imported one, repeated, each time with its own weights."""
    module = two_layers().clone()
    forward = ir.functions(module)["forward"]
    body = forward.body
    start, stop = end_of_layer(body, 0), end_of_layer(body, 1)
    layer, incoming, last = body[start + 1 : stop + 1], body[start].results[0], body[stop].results[0]
    behind = body[stop + 1]
    build = ir.Builder(ir.InsertPoint.before(behind))
    declare = ir.Builder(ir.InsertPoint.before(forward))
    inside = {value for each in layer for value in each.results}
    outside = {value for each in layer for value in each.operands if value not in inside}
    uses = [(use.operation, use.index) for use in last.uses]
    stream = last
    for number in range(2, layers):
        values = {each: each for each in outside} | {incoming: stream}
        for value in outside:
            owner = value.owner
            if isinstance(owner, ir.Parameter) and ".layers.1." in owner.symbol:
                symbol = ir.Symbol(owner.symbol.replace(".layers.1.", f".layers.{number}."))
                declare.emit(ir.Weight.make(symbol=symbol, shape=owner.shape, dtype=owner.dtype))
                values[value] = build.add(ir.Parameter, symbol=symbol, shape=owner.shape, dtype=owner.dtype)
        for each in layer:
            clone_with(each, values, {}, build)
        stream = values[last]
    for operation, index in uses:
        operation.operands[index] = stream
    ir.verify(module)
    return module


def seconds(layers: int) -> dict[str, float]:
    """The time of every pass over a model with `layers` layers."""
    module = llama(layers)
    passes = step_pipeline(max_rows=64, max_outputs=16, block=16, candidates=8)
    gc.collect()
    gc.disable()
    try:
        records = run_pipeline(module, passes, PassContext(max_length=LENGTH), check=False)
    finally:
        gc.enable()
    ir.verify(module)
    attentions = [each for each in ir.walk(ir.functions(module)["step"].body) if isinstance(each, ir.TreeAttention)]
    assert len(attentions) == layers
    total: dict[str, float] = {}
    for each in records:
        total[each.name] = total.get(each.name, 0.0) + each.seconds
    return total


def test_passes_are_linear_in_the_layers() -> None:
    small, large = (
        min((seconds(layers) for _ in range(2)), key=lambda each: sum(each.values())) for layers in (20, 80)
    )
    shown = ", ".join(f"{name} {small[name]:.2f} -> {large[name]:.2f} s" for name in small)
    print(f"20 -> 80 layers: {sum(small.values()):.2f} -> {sum(large.values()):.2f} s ({shown})")
    assert sum(large.values()) <= 5 * sum(small.values()), shown
