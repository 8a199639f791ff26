"""Operations that move elements without computing: views, joins, choices by index."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from xdsl.ir import SSAValue
from xdsl.irdl import operand_def, var_operand_def

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.ir.elementwise import broadcast_dims
from forerun.ir.families import AlongDim, Computation
from forerun.ir.operation import Environment, Types, ValueOperation, operation, require, require_dim
from forerun.ir.properties import DIMENSION, DIMENSIONS, INTEGER, INTEGERS, default, parameter
from forerun.ir.types import TensorType


@operation
class Reshape(Computation, ValueOperation):
    """The same elements in row-major order under another shape."""

    name = "spec.reshape"

    x = operand_def(TensorType)
    shape: tuple[Dim, ...] = parameter(DIMENSIONS)

    @classmethod
    def infer(cls, x: TensorType, *, shape: Sequence[Dim]) -> Types:
        same = dimensions.volume(shape) == dimensions.volume(x.dims)
        require(same, f"cannot reshape {x} to {list(shape)}, which has another number of elements")
        return [x.with_dims(shape)]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        return x.reshape([dimensions.evaluate(dim, environment.bindings) for dim in self.shape])


@operation
class Broadcast(Computation, ValueOperation):
    """Repeat dimensions of size 1 (and new leading ones) up to `shape`."""

    name = "spec.broadcast"

    x = operand_def(TensorType)
    shape: tuple[Dim, ...] = parameter(DIMENSIONS)

    @classmethod
    def infer(cls, x: TensorType, *, shape: Sequence[Dim]) -> Types:
        require(broadcast_dims([x.dims, shape]) == tuple(shape), f"cannot broadcast {x} to {list(shape)}")
        return [x.with_dims(shape)]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        return x.expand([dimensions.evaluate(dim, environment.bindings) for dim in self.shape])


@operation
class Transpose(Computation, ValueOperation):
    """Result dimension i is operand dimension `permutation[i]`."""

    name = "spec.transpose"

    x = operand_def(TensorType)
    permutation: tuple[int, ...] = parameter(INTEGERS)

    @classmethod
    def infer(cls, x: TensorType, *, permutation: Sequence[int]) -> Types:
        whole = sorted(permutation) == list(range(x.rank))
        require(whole, f"has the permutation {permutation}, which does not list every axis of {x} once")
        return [x.with_dims([x.dims[axis] for axis in permutation])]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        return x.permute(self.permutation)


@operation
class Slice(AlongDim, ValueOperation):
    """Elements start, start + step, ... below stop along `dim`; the bounds are dimensions, not negative."""

    name = "spec.slice"

    x = operand_def(TensorType)
    start: Dim = parameter(DIMENSION)
    stop: Dim = parameter(DIMENSION)
    step: int = default(INTEGER, 1)

    @classmethod
    def infer(cls, x: TensorType, *, dim: int, start: Dim, stop: Dim, step: int = 1) -> Types:
        require_dim(dim, x)
        require(step >= 1, f"needs a step of at least 1, not {step}")
        size = dimensions.add(stop, dimensions.multiply(start, -1))
        within = all(dimensions.ordered(*pair) for pair in ((0, start), (start, stop), (stop, x.dims[dim])))
        require(within, f"cannot slice dimension {dim} of {x} from {start} to {stop}")
        if step != 1:
            require(isinstance(size, int), f"cannot step over the named dimension {x.dims[dim]}; use a step of 1")
            size = math.ceil(int(size) / step)
        dims = list(x.dims)
        dims[dim] = size
        return [x.with_dims(dims)]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        start, stop = (dimensions.evaluate(bound, environment.bindings) for bound in (self.start, self.stop))
        return x[(slice(None),) * self.dim + (slice(start, stop, self.step),)]


def first_of(value: SSAValue) -> SSAValue:
    """Returns the value whose first rows these are: a linear may multiply by the first rows of a matrix alone."""
    while isinstance(view := value.owner, Slice) and view.dim == 0 and view.start == 0 and view.step == 1:
        value = view.x
    return value


@operation
class Concat(AlongDim, ValueOperation):
    """The operands, concatenated along `dim`."""

    name = "spec.concat"

    inputs = var_operand_def(TensorType)

    @classmethod
    def infer(cls, *inputs: TensorType, dim: int) -> Types:
        require(len(inputs) > 0, "needs at least one operand")
        require_dim(dim, *inputs)
        others = {tuple(size for axis, size in enumerate(each.dims) if axis != dim) for each in inputs}
        require(len(others) == 1, f"cannot concatenate {[str(each) for each in inputs]} along dimension {dim}")
        require(len({each.dtype for each in inputs}) == 1, "mixes dtypes")
        total: Dim = 0
        for each in inputs:
            total = dimensions.add(total, each.dims[dim])
        dims = list(inputs[0].dims)
        dims[dim] = total
        return [inputs[0].with_dims(dims)]

    def evaluate(self, environment: Environment, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat(inputs, self.dim)


@operation
class Gather(Computation, ValueOperation):
    """Rows of a table: result[i..., :] = table[index0[i...], index1[i...], ..., :], the indices broadcast together."""

    name = "spec.gather"

    table = operand_def(TensorType)
    indices = var_operand_def(TensorType)

    @classmethod
    def infer(cls, table: TensorType, *indices: TensorType) -> Types:
        require(0 < len(indices) <= table.rank, f"has {len(indices)} indices into {table}")
        require(all(each.dtype in ("i64", "i32") for each in indices), "needs indices of i64 or i32")
        return [table.with_dims((*broadcast_dims([each.dims for each in indices]), *table.dims[len(indices) :]))]

    def evaluate(self, environment: Environment, table: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
        return table[tuple(index.long() for index in indices)]


@operation
class TakeAlong(AlongDim, ValueOperation):
    """result[.., i, ..] = x[.., index[.., i, ..], ..] along `dim` (torch.gather)."""

    name = "spec.take_along"

    x = operand_def(TensorType)
    index = operand_def(TensorType)

    @classmethod
    def infer(cls, x: TensorType, index: TensorType, *, dim: int) -> Types:
        require(x.rank == index.rank, f"cannot index {x} with {index}: their ranks differ")
        require(index.dtype in ("i64", "i32"), "needs indices of i64 or i32")
        require_dim(dim, x)
        pairs = enumerate(zip(index.dims, x.dims, strict=True))
        within = all(axis == dim or dimensions.ordered(*pair) for axis, pair in pairs)
        require(within, f"has indices {index}, which is larger than {x}")
        return [x.with_dims(index.dims)]

    def evaluate(self, environment: Environment, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.gather(x, self.dim, index.long())
