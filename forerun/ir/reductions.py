"""Operations along dimensions: reductions, running sums, softmax, the choice of the largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from xdsl.irdl import operand_def, result_def

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.ir.families import AlongAxes, AlongDim
from forerun.ir.operation import Environment, Types, ValueOperation, operation, require, require_dim, tensor_type
from forerun.ir.properties import FLAG, INTEGER, INTEGERS, TEXT, default, parameter
from forerun.ir.types import INTEGER_DTYPES, TensorType, torch_dtype


def _argmax(x: torch.Tensor, dim: Sequence[int], keepdim: bool) -> torch.Tensor:
    return torch.argmax(x, dim=dim[0], keepdim=keepdim)


REDUCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "sum": torch.sum,
    "mean": torch.mean,
    "max": torch.amax,
    "min": torch.amin,
    "any": torch.any,
    "all": torch.all,
    "argmax": _argmax,
}


@operation
class Reduce(AlongAxes, ValueOperation):
    """A reduction over `dims`, which stay with size 1 if `keep` is set."""

    name = "spec.reduce"

    x = operand_def(TensorType)
    function: str = parameter(TEXT)
    dims: tuple[int, ...] = parameter(INTEGERS)
    keep: bool = default(FLAG, False)

    @property
    def axes(self) -> tuple[int, ...]:
        return self.dims

    @classmethod
    def infer(cls, x: TensorType, *, function: str, dims: Sequence[int], keep: bool = False) -> Types:
        require(function in REDUCTIONS, f"has no function {function!r}, only {', '.join(REDUCTIONS)}")
        require(all(0 <= dim < x.rank for dim in dims), f"has no dimensions {list(dims)} in {x}")
        require(len(set(dims)) == len(dims), f"names a dimension twice in {list(dims)}")
        require(len(dims) > 0 or x.rank == 0, "needs a dimension to reduce")
        require(function != "argmax" or len(dims) == 1, "takes argmax along exactly one dimension")
        logical, exact = function in ("any", "all"), function in ("max", "min")
        require(
            exact or logical == (x.dtype == "i1"), f"takes {'i1' if logical else 'numbers'} for {function}, not {x}"
        )
        require(function != "mean" or x.dtype not in INTEGER_DTYPES, f"takes floating-point numbers for mean, not {x}")
        sizes: list[Dim] = []
        for axis, size in enumerate(x.dims):
            if axis not in dims:
                sizes.append(size)
            elif keep:
                sizes.append(1)
        return [TensorType.of(sizes, "i64" if function == "argmax" else x.dtype)]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        found = REDUCTIONS[self.function](x, dim=self.dims, keepdim=self.keep)
        return found.to(torch_dtype(tensor_type(self.result).dtype))


@operation
class Scan(AlongDim, ValueOperation):
    """A running sum along `dim`."""

    name = "spec.scan"

    x = operand_def(TensorType)

    @classmethod
    def infer(cls, x: TensorType, *, dim: int) -> Types:
        require_dim(dim, x)
        return [x]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, self.dim).to(x.dtype)


@operation
class Softmax(AlongDim, ValueOperation):
    """exp(x - max) over its sum, along `dim`."""

    name = "spec.softmax"

    x = operand_def(TensorType)

    @classmethod
    def infer(cls, x: TensorType, *, dim: int) -> Types:
        require_dim(dim, x)
        return [x]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, self.dim)


@operation
class TopK(AlongAxes):
    """The k largest along the last dimension, largest first, the lower index first among equals.

    NaN counts as -inf, and is returned as -inf.
    """

    name = "spec.topk"

    x = operand_def(TensorType)
    k: int = parameter(INTEGER)
    index_dtype: str = default(TEXT, "i64")
    values = result_def(TensorType)
    indices = result_def(TensorType)

    @classmethod
    def infer(cls, x: TensorType, *, k: int, index_dtype: str = "i64") -> Types:
        require(x.rank > 0, "needs an operand with a last dimension, not a scalar")
        require(k >= 1, f"needs a k of at least 1, not {k}")
        require(dimensions.ordered(k, x.dims[-1]), f"cannot choose {k} elements from the last dimension of {x}")
        dims = (*x.dims[:-1], k)
        return [x.with_dims(dims), TensorType.of(dims, index_dtype)]

    def evaluate(self, environment: Environment, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        numbers = torch.where(x.isnan(), -torch.inf, x) if x.is_floating_point() else x
        values, indices = torch.sort(numbers, dim=-1, descending=True, stable=True)
        return values[..., : self.k], indices[..., : self.k].to(torch_dtype(self.index_dtype))
