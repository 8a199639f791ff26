"""Small modules for tests: one function, built operation by operation or written as text."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from forerun import ir
from forerun.dims import Dim

DTYPES = {torch.float32: "f32", torch.int64: "i64", torch.int32: "i32", torch.bool: "i1", torch.bfloat16: "bf16"}


def function(arguments: dict[str, ir.TensorType], body: Callable[..., object], name: str = "forward") -> ir.ModuleOp:
    """A module with one function; `body(build, *arguments)` returns a value or several."""
    made = ir.Function.of(name, list(arguments.items()))
    results = body(ir.Builder(made.block), *made.block.args)
    made.block.add_op(ir.Return.make(*(results if isinstance(results, (tuple, list)) else (results,))))
    return ir.ModuleOp([made])


def tensor(dims: Sequence[Dim], dtype: str = "f32") -> ir.TensorType:
    return ir.TensorType.of(dims, dtype)


def no_weights(name: str) -> torch.Tensor:
    raise AssertionError(f"weight {name} was read")


def run(
    operation: type[ir.SpecOperation],
    *inputs: torch.Tensor,
    bindings: dict[str, int] | None = None,
    states: dict[str, torch.Tensor] | None = None,
    **parameters: object,
) -> tuple[torch.Tensor, ...]:
    """Evaluates one operation on tensors, after checking that its shape rule predicts the result."""
    environment = ir.Environment(no_weights, states or {}, bindings or {})
    named = {name: each for name, each in parameters.items() if isinstance(each, torch.Tensor)}
    block = ir.Block(arg_types=[tensor(each.shape, DTYPES[each.dtype]) for each in (*inputs, *named.values())])
    operands = block.args[: len(inputs)]
    made = operation.make(*operands, **(parameters | dict(zip(named, block.args[len(inputs) :], strict=True))))
    given = dict(zip(block.args, (*inputs, *named.values()), strict=True))
    results = made.evaluate(environment, *made.placed([given[each] for each in made.operands]))
    results = (results,) if isinstance(results, torch.Tensor) else tuple(results)
    for value, result in zip(made.results, results, strict=True):
        kind = ir.tensor_type(value)
        assert kind.sizes(bindings or {}) == tuple(result.shape)
        assert kind.dtype == DTYPES[result.dtype]
    return results


def raw(
    kind: type[ir.SpecOperation],
    inputs: Sequence[ir.SSAValue],
    types: Sequence[ir.TensorType],
    parameters: dict[str, Any],
) -> ir.SpecOperation:
    """An operation with the given results and parameters, whatever its shape rule and its declaration say."""
    properties = {name: ir.encode(value) for name, value in parameters.items()}
    return kind.create(operands=inputs, result_types=types, properties=properties)
