"""The generic operations: elementwise maps, reductions, views, products. The decoder's own are in `decoder.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as functional
from xdsl.irdl import irdl_op_definition

from forerun.ir import dims as dimensions
from forerun.ir.dims import Dim
from forerun.ir.operation import (
    Environment,
    Parameters,
    SpecOperation,
    Tensors,
    require,
    require_dim,
    require_parameters,
)
from forerun.ir.types import TensorType, torch_dtype

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
    "gelu_tanh": (1, lambda x: functional.gelu(x, approximate="tanh")),
    "softplus": (1, functional.softplus),
    "log_sigmoid": (1, functional.logsigmoid),
}

REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
    "any": torch.any,
    "all": torch.all,
    "argmax": lambda x, dim, keepdim: torch.argmax(x, dim=dim[0], keepdim=keepdim),
}


def broadcast_dims(shapes: Sequence[Sequence[Dim]]) -> tuple[Dim, ...]:
    """numpy's broadcasting over named dimensions: names must be equal, or 1."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        require(len(sizes) <= 1, f"dimensions {sorted(map(str, sizes))} do not broadcast")
        result.append(next(iter(sizes), 1))
    return tuple(result)


@irdl_op_definition
class Parameter(SpecOperation):
    """The value of a `spec.weight` symbol."""

    name = "spec.parameter"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        require_parameters(parameters, "symbol")
        return [TensorType.of(parameters["shape"], parameters["dtype"])]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return environment.weights(self.parameter("symbol"))


@irdl_op_definition
class Constant(SpecOperation):
    """One number, of rank 0."""

    name = "spec.constant"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        value = parameters["value"]
        require(isinstance(value, bool | int | float), f"the value of a constant is a number, not {value!r}")
        return [TensorType.of((), parameters["dtype"])]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return torch.tensor(self.parameter("value"), dtype=torch_dtype(self.parameter("dtype")))


@irdl_op_definition
class Iota(SpecOperation):
    """0, 1, ..., size - 1, as i64."""

    name = "spec.iota"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        return [TensorType.of((parameters["size"],), "i64")]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return torch.arange(dimensions.evaluate(self.parameter("size"), environment.bindings))


@irdl_op_definition
class Map(SpecOperation):
    """An elementwise function with numpy's broadcasting; operands of one dtype (but the condition of `where`)."""

    name = "spec.map"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        function = parameters["function"]
        require(function in FUNCTIONS, f"spec.map has no function {function!r}")
        require(len(types) == FUNCTIONS[function][0], f"{function} takes {FUNCTIONS[function][0]} operands")
        values = types[1:] if function == "where" else types
        require(function != "where" or types[0].dtype == "i1", "the condition of where is i1")
        require(len({each.dtype for each in values}) == 1, f"{function} mixes {[each.dtype for each in values]}")
        dtype = "i1" if function in COMPARISONS else values[0].dtype
        return [TensorType.of(broadcast_dims([each.dims for each in types]), dtype)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return FUNCTIONS[self.parameter("function")][1](*inputs)


@irdl_op_definition
class Cast(SpecOperation):
    """The same values in another dtype."""

    name = "spec.cast"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        return [types[0].with_dtype(parameters["dtype"])]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return inputs[0].to(torch_dtype(self.parameter("dtype")))


@irdl_op_definition
class Reduce(SpecOperation):
    """A reduction over `dims`, which stay with size 1 where `keep` is set."""

    name = "spec.reduce"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        function, over = parameters["function"], parameters["dims"]
        require(function in REDUCTIONS, f"spec.reduce has no function {function!r}")
        require(all(0 <= dim < types[0].rank for dim in over), f"no dimensions {over} in {types[0]}")
        require(function != "argmax" or len(over) == 1, "argmax is along one dimension")
        dims: list[Dim] = []
        for axis, dim in enumerate(types[0].dims):
            if axis not in over:
                dims.append(dim)
            elif parameters.get("keep"):
                dims.append(1)
        return [TensorType.of(dims, "i64" if function == "argmax" else types[0].dtype)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        reduction = REDUCTIONS[self.parameter("function")]
        return reduction(inputs[0], dim=self.parameter("dims"), keepdim=self.parameter("keep", False))


@irdl_op_definition
class Scan(SpecOperation):
    """A running sum along `dim`."""

    name = "spec.scan"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        require_dim(parameters["dim"], types[0])
        return [types[0]]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return torch.cumsum(inputs[0], self.parameter("dim")).to(inputs[0].dtype)


@irdl_op_definition
class Reshape(SpecOperation):
    """The same elements in row-major order under another shape."""

    name = "spec.reshape"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        shape = parameters["shape"]
        same = dimensions.volume(shape) == dimensions.volume(types[0].dims)
        require(same, f"{types[0]} has not as many elements as {list(shape)}")
        return [types[0].with_dims(shape)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return inputs[0].reshape([dimensions.evaluate(dim, environment.bindings) for dim in self.parameter("shape")])


@irdl_op_definition
class Broadcast(SpecOperation):
    """Repeat dimensions of size 1 (and new leading ones) up to `shape`."""

    name = "spec.broadcast"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        shape = tuple(parameters["shape"])
        require(broadcast_dims([types[0].dims, shape]) == shape, f"{types[0]} does not broadcast to {list(shape)}")
        return [types[0].with_dims(shape)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return inputs[0].expand([dimensions.evaluate(dim, environment.bindings) for dim in self.parameter("shape")])


@irdl_op_definition
class Transpose(SpecOperation):
    """Result dimension i is operand dimension `permutation[i]`."""

    name = "spec.transpose"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        permutation = parameters["permutation"]
        require(sorted(permutation) == list(range(types[0].rank)), f"{permutation} permutes no {types[0]}")
        return [types[0].with_dims([types[0].dims[axis] for axis in permutation])]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return inputs[0].permute(self.parameter("permutation"))


def _ordered(low: Dim, high: Dim) -> bool:
    """Whether low <= high, as far as that can be told without values for the names."""
    a, b = dimensions.affine(low), dimensions.affine(high)
    return (a.scale, a.symbol) != (b.scale, b.symbol) or a.offset <= b.offset


@irdl_op_definition
class Slice(SpecOperation):
    """Elements start, start + step, ... below stop along `dim`; the bounds are dimensions, not negative."""

    name = "spec.slice"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        dim, step = parameters["dim"], parameters.get("step", 1)
        start, stop = parameters["start"], parameters["stop"]
        require_dim(dim, types[0])
        require(isinstance(step, int) and step >= 1, f"a step is 1 or more, not {step}")
        size = dimensions.add(stop, dimensions.multiply(start, -1))
        within = all(_ordered(*pair) for pair in ((0, start), (start, stop), (stop, types[0].dims[dim])))
        require(within, f"{start} to {stop} is no range of dimension {dim} of {types[0]}")
        if step != 1:
            require(isinstance(size, int), f"a step over the named dimension {types[0].dims[dim]}")
            size = math.ceil(int(size) / step)
        dims = list(types[0].dims)
        dims[dim] = size
        return [types[0].with_dims(dims)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        start, stop = (dimensions.evaluate(self.parameter(bound), environment.bindings) for bound in ("start", "stop"))
        index = [slice(None)] * self.parameter("dim") + [slice(start, stop, self.parameter("step", 1))]
        return inputs[0][tuple(index)]


@irdl_op_definition
class Concat(SpecOperation):
    """The operands one after another along `dim`."""

    name = "spec.concat"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        dim = parameters["dim"]
        require(len(types) > 0, "spec.concat takes one operand or more")
        require_dim(dim, *types)
        others = {tuple(size for axis, size in enumerate(each.dims) if axis != dim) for each in types}
        require(len(others) == 1, f"shapes {[str(each) for each in types]} do not concatenate along {dim}")
        require(len({each.dtype for each in types}) == 1, "spec.concat mixes dtypes")
        total: Dim = 0
        for each in types:
            total = dimensions.add(total, each.dims[dim])
        dims = list(types[0].dims)
        dims[dim] = total
        return [types[0].with_dims(dims)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return torch.cat(inputs, self.parameter("dim"))


@irdl_op_definition
class Gather(SpecOperation):
    """Rows of a table: result[i..., :] = table[index0[i...], index1[i...], ..., :], the indices broadcast together."""

    name = "spec.gather"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        table, *indices = types
        require(0 < len(indices) <= table.rank, f"{len(indices)} indices into {table}")
        require(all(each.dtype in ("i64", "i32") for each in indices), "indices are i64 or i32")
        return [table.with_dims((*broadcast_dims([each.dims for each in indices]), *table.dims[len(indices) :]))]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        table, *indices = inputs
        return table[tuple(index.long() for index in indices)]


@irdl_op_definition
class TakeAlong(SpecOperation):
    """result[.., i, ..] = x[.., index[.., i, ..], ..] along `dim` (torch.gather)."""

    name = "spec.take_along"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        dim, (x, index) = parameters["dim"], types
        require(x.rank == index.rank, f"{index} does not index {x}")
        require(index.dtype in ("i64", "i32"), "indices are i64 or i32")
        require_dim(dim, x)
        pairs = enumerate(zip(index.dims, x.dims, strict=True))
        require(all(axis == dim or _ordered(*pair) for axis, pair in pairs), f"{index} is larger than {x}")
        return [x.with_dims(index.dims)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return torch.gather(inputs[0], self.parameter("dim"), inputs[1].long())


@irdl_op_definition
class Linear(SpecOperation):
    """x w^T + b: x [..., in], w [out, in], b [out]."""

    name = "spec.linear"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        x, weight, *bias = types
        require(weight.rank == 2 and x.dims[-1:] == weight.dims[1:], f"{x} does not multiply {weight}")
        require(x.dtype == weight.dtype, f"spec.linear mixes {x.dtype} and {weight.dtype}")
        require(all(each.dims == weight.dims[:1] for each in bias), "the bias has one number an output")
        return [x.with_dims((*x.dims[:-1], weight.dims[0]))]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return functional.linear(*inputs)


@irdl_op_definition
class MatMul(SpecOperation):
    """A batched product of the last two dimensions, the others broadcast."""

    name = "spec.matmul"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        a, b = types
        require(a.rank >= 2 and b.rank >= 2 and a.dims[-1] == b.dims[-2], f"{a} does not multiply {b}")
        require(a.dtype == b.dtype, f"spec.matmul mixes {a.dtype} and {b.dtype}")
        return [a.with_dims((*broadcast_dims([a.dims[:-2], b.dims[:-2]]), a.dims[-2], b.dims[-1]))]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return torch.matmul(*inputs)


@irdl_op_definition
class Softmax(SpecOperation):
    """exp(x - max) over its sum, along `dim`."""

    name = "spec.softmax"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        require_dim(parameters["dim"], types[0])
        return [types[0]]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        return torch.softmax(inputs[0], self.parameter("dim"))


@irdl_op_definition
class TopK(SpecOperation):
    """The k largest along the last dimension, largest first, the lower index first among equals: (values, indices).

    NaN counts as -inf, and is given as such.
    """

    name = "spec.topk"

    @classmethod
    def infer(cls, types: Sequence[TensorType], parameters: Parameters) -> Sequence[TensorType]:
        k = parameters["k"]
        require(types[0].rank > 0, "a number has no last dimension")
        require(isinstance(k, int) and k >= 1, f"k is 1 or more, not {k}")
        require(_ordered(k, types[0].dims[-1]), f"{types[0]} has not {k} elements to choose from")
        dims = (*types[0].dims[:-1], k)
        return [types[0].with_dims(dims), TensorType.of(dims, parameters.get("index_dtype", "i64"))]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> Tensors:
        numbers = torch.where(inputs[0].isnan(), -torch.inf, inputs[0]) if inputs[0].is_floating_point() else inputs[0]
        values, indices = torch.sort(numbers, dim=-1, descending=True, stable=True)
        k, dtype = self.parameter("k"), torch_dtype(self.parameter("index_dtype", "i64"))
        return values[..., :k], indices[..., :k].to(dtype)
