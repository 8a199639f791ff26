"""Values without operands (parameters, constants, counts), and elementwise operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial

import torch
import torch.nn.functional as functional
from xdsl.irdl import operand_def, var_operand_def
from xdsl.utils.exceptions import VerifyException

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.ir.families import Computation, Elementwise
from forerun.ir.operation import Environment, Types, ValueOperation, operation, require
from forerun.ir.properties import DIMENSION, DIMENSIONS, SCALAR, SYMBOL, TEXT, Symbol, parameter
from forerun.ir.types import TensorType, holds, torch_dtype

COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})

FUNCTIONS: dict[str, tuple[int, Callable[..., torch.Tensor]]] = {
    # name: (number of operands, meaning)
    "add": (2, torch.add),
    "sub": (2, torch.sub),
    "mul": (2, torch.mul),
    "div": (2, torch.div),
    "floor_div": (2, torch.floor_divide),
    "remainder": (2, torch.remainder),
    "pow": (2, torch.pow),
    "max": (2, torch.maximum),
    "min": (2, torch.minimum),
    "and": (2, torch.bitwise_and),
    "or": (2, torch.bitwise_or),
    "xor": (2, torch.bitwise_xor),
    "eq": (2, torch.eq),
    "ne": (2, torch.ne),
    "lt": (2, torch.lt),
    "le": (2, torch.le),
    "gt": (2, torch.gt),
    "ge": (2, torch.ge),
    "where": (3, torch.where),
    "not": (1, torch.bitwise_not),
    "neg": (1, torch.neg),
    "abs": (1, torch.abs),
    "sign": (1, torch.sign),
    "floor": (1, torch.floor),
    "ceil": (1, torch.ceil),
    "round": (1, torch.round),
    "exp": (1, torch.exp),
    "expm1": (1, torch.expm1),
    "exp2": (1, torch.exp2),
    "log": (1, torch.log),
    "log1p": (1, torch.log1p),
    "log2": (1, torch.log2),
    "sqrt": (1, torch.sqrt),
    "rsqrt": (1, torch.rsqrt),
    "reciprocal": (1, torch.reciprocal),
    "sin": (1, torch.sin),
    "cos": (1, torch.cos),
    "tanh": (1, torch.tanh),
    "erf": (1, torch.erf),
    "sigmoid": (1, torch.sigmoid),
    "relu": (1, torch.relu),
    "silu": (1, functional.silu),
    "gelu": (1, functional.gelu),
    "gelu_tanh": (1, partial(functional.gelu, approximate="tanh")),
    "softplus": (1, functional.softplus),
    "log_sigmoid": (1, functional.logsigmoid),
}


def broadcast_dims(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """numpy's broadcasting over named dimensions: names must be equal, or 1."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        require(len(sizes) <= 1, f"has dimensions {sorted(map(str, sizes))} that do not broadcast")
        result.append(next(iter(sizes), 1))
    return tuple(result)


@operation
class Parameter(Computation, ValueOperation):
    """The value of a `spec.weight` symbol."""

    name = "spec.parameter"

    symbol: Symbol = parameter(SYMBOL)
    shape: tuple[Dim, ...] = parameter(DIMENSIONS)
    dtype: str = parameter(TEXT)

    @classmethod
    def infer(cls, *, symbol: Symbol, shape: Sequence[Dim], dtype: str) -> Types:
        return [TensorType.of(shape, dtype)]

    def evaluate(self, environment: Environment) -> torch.Tensor:
        return environment.weights(self.symbol)


@operation
class Constant(Computation, ValueOperation):
    """One number, of rank 0."""

    name = "spec.constant"

    value: bool | int | float = parameter(SCALAR)
    dtype: str = parameter(TEXT)

    @classmethod
    def infer(cls, *, value: bool | int | float, dtype: str) -> Types:
        kind = TensorType.of((), dtype)
        require(holds(dtype, value), f"has the value {value}, which is not a number of {dtype}")
        return [kind]

    def evaluate(self, environment: Environment) -> torch.Tensor:
        return torch.tensor(self.value, dtype=torch_dtype(self.dtype))


@operation
class Iota(Computation, ValueOperation):
    """0, 1, ..., size - 1, as i64."""

    name = "spec.iota"

    size: Dim = parameter(DIMENSION)

    @classmethod
    def infer(cls, *, size: Dim) -> Types:
        return [TensorType.of((size,), "i64")]

    def evaluate(self, environment: Environment) -> torch.Tensor:
        return torch.arange(dimensions.evaluate(self.size, environment.bindings))


@operation
class Map(Elementwise):
    """An elementwise function with numpy's broadcasting; operands of one dtype (except the condition of `where`)."""

    name = "spec.map"

    inputs = var_operand_def(TensorType)
    function: str = parameter(TEXT)

    @classmethod
    def infer(cls, *inputs: TensorType, function: str) -> Types:
        if function not in FUNCTIONS:
            near = get_close_matches(function, FUNCTIONS)
            raise VerifyException(
                f"has no function {function!r}; {f'use {near[0]}' if near else 'see docs/ir.md for those it has'}"
            )
        require(len(inputs) == FUNCTIONS[function][0], f"needs {FUNCTIONS[function][0]} operands for {function}")
        values = inputs[1:] if function == "where" else inputs
        require(function != "where" or inputs[0].dtype == "i1", "needs a condition of i1 for where")
        require(len({each.dtype for each in values}) == 1, f"mixes {[each.dtype for each in values]} in {function}")
        dtype = "i1" if function in COMPARISONS else values[0].dtype
        return [TensorType.of(broadcast_dims([each.dims for each in inputs]), dtype)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> torch.Tensor:
        return FUNCTIONS[self.function][1](*inputs)


@operation
class Cast(Elementwise):
    """The same values in another dtype."""

    name = "spec.cast"

    x = operand_def(TensorType)
    dtype: str = parameter(TEXT)

    @classmethod
    def infer(cls, x: TensorType, *, dtype: str) -> Types:
        return [x.with_dtype(dtype)]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch_dtype(self.dtype))
