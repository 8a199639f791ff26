"""ATen's products, norms and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from forerun import dims as dimensions
from forerun.frontends.aten_rules import Scalar, promoted, rule
from forerun.frontends.aten_shifts import padded
from forerun.frontends.aten_views import unsqueeze
from forerun.ir import Attention, Builder, LayerNorm, Linear, MatMul, RMSNorm, SSAValue, tensor_type, torch_dtype


@rule("linear")
def _linear(build: Builder, x: SSAValue, weight: SSAValue, bias: SSAValue | None = None) -> SSAValue:
    return build.add(Linear, x, weight, bias)


@rule("matmul", "bmm", "mm")
def _matmul(build: Builder, a: SSAValue, b: SSAValue) -> SSAValue:
    kind_a, kind_b = tensor_type(a), tensor_type(b)
    if kind_b.rank == 1:
        product = build.add(MatMul, a, build.reshape(b, (*kind_b.dims, 1)))
        return build.reshape(product, tensor_type(product).dims[:-1])
    if kind_a.rank == 1:
        product = build.add(MatMul, build.reshape(a, (1, *kind_a.dims)), b)
        return build.reshape(product, (*tensor_type(product).dims[:-2], tensor_type(product).dims[-1]))
    return build.add(MatMul, a, b)


@rule("addmm", "baddbmm")
def _addmm(build: Builder, c: SSAValue, a: SSAValue, b: SSAValue, *, beta: Scalar = 1, alpha: Scalar = 1) -> SSAValue:
    product = _matmul(build, a, b)
    if alpha != 1:
        product = build.map("mul", *promoted(build, product, float(alpha)))
    if beta == 0:
        return product
    return build.map("add", build.map("mul", *promoted(build, c, float(beta))) if beta != 1 else c, product)


@rule("outer")
def _outer(build: Builder, a: SSAValue, b: SSAValue) -> SSAValue:
    return build.map("mul", *promoted(build, unsqueeze(build, a, 1), b))


@rule("conv1d")
def _conv1d(
    build: Builder,
    x: SSAValue,
    weight: SSAValue,
    bias: SSAValue | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> SSAValue:
    """A convolution as a sum over the window, the first place first: of each channel by itself, or of products."""
    channels, shared, width = tensor_type(weight).dims
    if stride[0] != 1 or isinstance(padding, str):
        raise ValueError("a convolution with a stride, or with a padding that is named")
    assert isinstance(width, int)
    assert isinstance(channels, int)
    x = padded(build, x, (padding[0], padding[0]))
    last = tensor_type(x).rank - 1
    rest = dimensions.add(tensor_type(x).dims[-1], -(width - 1) * dilation[0])
    total: SSAValue | None = None
    for place in range(width):
        start = place * dilation[0]
        window = build.slice(x, last, start, dimensions.add(rest, start))
        matrix = build.reshape(build.slice(weight, 2, place, place + 1), (channels, shared))
        if (groups, shared) == (channels, 1):
            term = build.map("mul", window, matrix)
        else:
            term = _grouped_product(build, window, matrix, groups)
        total = term if total is None else build.map("add", total, term)
    assert total is not None
    return total if bias is None else build.map("add", total, build.reshape(bias, (channels, 1)))


def _grouped_product(build: Builder, x: SSAValue, matrix: SSAValue, groups: int) -> SSAValue:
    """x [..., C, L] with matrix [O, C / groups] -> [..., O, L]: each group of features has its own rows of it."""
    last = tensor_type(x).rank - 1
    columns = build.transpose(x, (*range(last - 1), last, last - 1))
    outputs, inputs = tensor_type(matrix).dims
    assert isinstance(outputs, int)
    assert isinstance(inputs, int)
    found: list[SSAValue] = []
    for group in range(groups):
        own = build.slice(columns, last, group * inputs, (group + 1) * inputs)
        rows = build.slice(matrix, 0, group * outputs // groups, (group + 1) * outputs // groups)
        found.append(build.add(Linear, own, rows))
    return build.transpose(build.concat(found, last), (*range(last - 1), last, last - 1))


@rule("layer_norm")
def _layer_norm(
    build: Builder,
    x: SSAValue,
    shape: Sequence[int],
    weight: SSAValue | None = None,
    bias: SSAValue | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> SSAValue:
    if len(shape) != 1:
        raise ValueError("a layer norm over several dimensions")
    dtype = tensor_type(x).dtype
    if weight is None and bias is not None:
        weight = build.full(tuple(shape), 1.0, dtype)
    return build.add(LayerNorm, x, weight, bias, eps=eps)


@rule("rms_norm")
def _rms_norm(
    build: Builder, x: SSAValue, shape: Sequence[int], weight: SSAValue | None = None, eps: float | None = None
) -> SSAValue:
    if len(shape) != 1:
        raise ValueError("an rms norm over several dimensions")
    eps = torch.finfo(torch_dtype(tensor_type(x).dtype)).eps if eps is None else eps
    return build.add(RMSNorm, x, weight, eps=eps)


@rule("scaled_dot_product_attention")
def _attention(
    build: Builder,
    query: SSAValue,
    key: SSAValue,
    value: SSAValue,
    mask: SSAValue | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    attn_mask: SSAValue | None = None,
) -> SSAValue:
    if dropout > 0.0:
        raise ValueError("attention dropout")
    mask = attn_mask if mask is None else mask
    width = tensor_type(query).dims[-1]
    scale = 1 / math.sqrt(int(width)) if scale is None else float(scale)
    return build.add(Attention, query, key, value, scale=scale, causal=is_causal or None, mask=mask)
