"""Products, and the norms that stand in front of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as functional
from xdsl.irdl import AttrSizedOperandSegments, operand_def, opt_operand_def

from forerun.ir.elementwise import broadcast_dims
from forerun.ir.families import AlongAxes, Computation
from forerun.ir.operation import Environment, Types, ValueOperation, operation, require, tensor_type
from forerun.ir.properties import NUMBER, TEXT, optional, parameter
from forerun.ir.types import TensorType

BFLOAT16, INT8 = "bfloat16", "int8"
"""Arithmetics of products besides that of float32."""
CHUNK = 32
"""Features of a row that share a scale in integer arithmetic."""


@operation
class Linear(Computation, ValueOperation):
    """x w^T + b: x [..., in], w [out, in], b [out].

    With the arithmetic "bfloat16", x is rounded to bfloat16; with "int8", to 8-bit integers (`quantized`).
    """

    name = "spec.linear"

    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    arithmetic: str | None = optional(TEXT)

    @classmethod
    def infer(
        cls, x: TensorType, weight: TensorType, bias: TensorType | None = None, *, arithmetic: str | None = None
    ) -> Types:
        require(arithmetic is None or arithmetic in ROUNDED, f"has an unknown arithmetic {arithmetic!r}")
        require(arithmetic != INT8 or has_chunks(x), f"cannot divide the features of {x} into chunks of {CHUNK}")
        require(weight.rank == 2 and x.dims[-1:] == weight.dims[1:], f"cannot multiply {x} by {weight}")
        require(x.dtype == weight.dtype, f"mixes {x.dtype} and {weight.dtype}")
        require(bias is None or bias.dims == weight.dims[:1], "needs a bias of one number per output")
        return [x.with_dims((*x.dims[:-1], weight.dims[0]))]

    def evaluate(
        self, environment: Environment, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        rounded = x if self.arithmetic is None else ROUNDED[self.arithmetic](x)
        return functional.linear(rounded, weight, bias)


@operation
class ExpertLinear(Computation, ValueOperation):
    """For each of a row's k chosen experts, x w[id]^T + b[id]: w [E, out, in], ids [..., k], b [E, out].

    x is [..., in], the same for all choices of a row, or [..., k, in], one for each. An id is below E. `arithmetic` is
    as in `Linear`.
    """

    name = "spec.expert_linear"

    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    ids = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    arithmetic: str | None = optional(TEXT)

    @classmethod
    def infer(
        cls,
        x: TensorType,
        weight: TensorType,
        ids: TensorType,
        bias: TensorType | None = None,
        *,
        arithmetic: str | None = None,
    ) -> Types:
        require(arithmetic is None or arithmetic in ROUNDED, f"has an unknown arithmetic {arithmetic!r}")
        require(arithmetic != INT8 or has_chunks(x), f"cannot divide the features of {x} into chunks of {CHUNK}")
        require(weight.rank == 3 and x.dims[-1:] == weight.dims[2:], f"cannot multiply {x} by {weight}")
        require(x.dtype == weight.dtype, f"mixes {x.dtype} and {weight.dtype}")
        require(ids.dtype in ("i32", "i64") and ids.rank > 0, f"cannot choose experts by {ids}")
        require(isinstance(ids.dims[-1], int), f"needs a fixed number of choices, not {ids.dims[-1]}")
        require(x.dims[:-1] in (ids.dims, ids.dims[:-1]), f"has rows {x} with choices {ids}")
        require(bias is None or bias.dims == weight.dims[:2], "needs a bias of one number per expert and output")
        return [x.with_dims((*ids.dims, weight.dims[1]))]

    @property
    def by_choice(self) -> bool:
        """Whether each choice of a row has an x of its own."""
        return tensor_type(self.x).rank > tensor_type(self.ids).rank

    def evaluate(
        self,
        environment: Environment,
        x: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        rounded = x if self.arithmetic is None else ROUNDED[self.arithmetic](x)
        each = rounded if self.by_choice else rounded.unsqueeze(-2).expand(*ids.shape, -1)
        result = each.new_empty((*ids.shape, weight.shape[1]))
        for expert in range(len(weight)):
            chosen = ids.eq(expert)
            result[chosen] = functional.linear(each[chosen], weight[expert], None if bias is None else bias[expert])
        return result


WeightProduct = Linear | ExpertLinear
"""The products with weights."""


def numbers_read(product: WeightProduct) -> int:
    """Returns how many numbers of its weight a product reads for one row: of experts, those of the chosen."""
    outputs, features = (int(dim) for dim in tensor_type(product.weight).dims[-2:])
    chosen = int(tensor_type(product.ids).dims[-1]) if isinstance(product, ExpertLinear) else 1
    return chosen * outputs * features


def has_chunks(x: TensorType) -> bool:
    """Whether the last dimension is a multiple of the features that share a scale in integer arithmetic."""
    size = x.dims[-1] if x.dims else 0
    return isinstance(size, int) and size % CHUNK == 0


def quantized(x: torch.Tensor) -> torch.Tensor:
    """Returns what x is in integer arithmetic: 32 features share a scale, the largest magnitude over 127."""
    chunks = x.reshape(*x.shape[:-1], -1, CHUNK)
    largest = chunks.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(largest, 127).div(largest)  # a number divided by a tensor would round twice
    numbers = torch.round(chunks * torch.where(largest > 0, inverse, largest))
    return (numbers * (largest / 127)).flatten(-2)


def rounded_to_bfloat16(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().to(x.dtype)


ROUNDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {BFLOAT16: rounded_to_bfloat16, INT8: quantized}
"""What rows are in each arithmetic."""


@operation
class MatMul(Computation, ValueOperation):
    """A batched product of the last two dimensions, the others broadcast."""

    name = "spec.matmul"

    a = operand_def(TensorType)
    b = operand_def(TensorType)

    @classmethod
    def infer(cls, a: TensorType, b: TensorType) -> Types:
        require(a.rank >= 2 and b.rank >= 2 and a.dims[-1] == b.dims[-2], f"cannot multiply {a} by {b}")
        require(a.dtype == b.dtype, f"mixes {a.dtype} and {b.dtype}")
        return [a.with_dims((*broadcast_dims([a.dims[:-2], b.dims[:-2]]), a.dims[-2], b.dims[-1]))]

    def evaluate(self, environment: Environment, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.matmul(a, b)


@operation
class RMSNorm(AlongAxes, ValueOperation):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467); the weight may be left out."""

    name = "spec.rms_norm"

    x = operand_def(TensorType)
    weight = opt_operand_def(TensorType)
    eps: float = parameter(NUMBER)

    @classmethod
    def infer(cls, x: TensorType, weight: TensorType | None = None, *, eps: float) -> Types:
        require(weight is None or weight.dims == x.dims[-1:], "needs a weight of one number per feature")
        return [x]

    def evaluate(self, environment: Environment, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        wide = x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (y if weight is None else y * weight.float()).to(x.dtype)


@operation
class LayerNorm(AlongAxes, ValueOperation):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (arXiv 1607.06450).

    The bias may be left out, and the weight as well.
    """

    name = "spec.layer_norm"
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    LISTED: ClassVar[bool] = False

    x = operand_def(TensorType)
    weight = opt_operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    eps: float = parameter(NUMBER)

    @classmethod
    def infer(
        cls, x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None, *, eps: float
    ) -> Types:
        require(bias is None or weight is not None, "has a bias without a weight")
        given = (each for each in (weight, bias) if each is not None)
        require(all(each.dims == x.dims[-1:] for each in given), "needs a weight and a bias of one number per feature")
        return [x]

    def evaluate(
        self, environment: Environment, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], weight, bias, eps=self.eps)
