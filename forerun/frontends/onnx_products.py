"""ONNX's products, norms and softmax, and onnxruntime's norms with a residual in front."""

from __future__ import annotations

from typing import Any

from forerun.frontends.onnx_rules import MICROSOFT, Call, aten, rule
from forerun.frontends.onnx_values import Known
from forerun.ir import Builder, Linear, SSAValue, tensor_type


@rule("MatMul")
def _matmul(call: Call) -> SSAValue:
    """A product with a known matrix [in, out] is a linear layer, whose weight is [out, in]."""
    x, matrix = call.operands
    if isinstance(matrix, Known) and matrix.array.ndim == 2 and not isinstance(x, Known):
        return call.build.add(Linear, call.tensor(0), call.emit(transposed(matrix)))
    return aten("matmul")(call.build, *call.tensors())


def transposed(matrix: Known) -> Known:
    return Known(matrix.array.T, matrix.dtype, matrix.name)


@rule("Gemm")
def _gemm(call: Call) -> SSAValue:
    """alpha * a b + beta * c, with a [rows, in] and b [in, out], each transposed if an attribute says so."""
    build, matrix, bias = call.build, call.operand(1), call.optional(2)
    alpha, beta = float(call.attribute("alpha", 1.0)), float(call.attribute("beta", 1.0))
    a = aten("t")(build, call.tensor(0)) if call.attribute("transA", 0) else call.tensor(0)
    if isinstance(matrix, Known):
        product = build.add(Linear, a, call.emit(matrix if call.attribute("transB", 0) else transposed(matrix)))
    else:
        b = call.tensor(1)
        product = aten("matmul")(build, a, aten("t")(build, b) if call.attribute("transB", 0) else b)
    product = product if alpha == 1 else aten("mul")(build, product, alpha)
    if bias is None or beta == 0:
        return product
    return aten("add")(build, product, bias, alpha=beta)


@rule("Softmax")
def _softmax(call: Call) -> SSAValue:
    return aten("softmax")(call.build, call.tensor(0), call.attribute("axis", -1))


@rule("LogSoftmax")
def _log_softmax(call: Call) -> SSAValue:
    return aten("log_softmax")(call.build, call.tensor(0), call.attribute("axis", -1))


def _require_last(call: Call) -> None:
    rank = len(call.shape(0))
    if call.axis(-1, rank) != rank - 1:
        raise ValueError(f"axis = {call.attribute('axis')}, a norm over several dimensions")


@rule("LayerNormalization")
def _layer_norm(call: Call) -> SSAValue:
    _require_last(call)
    return layer_norm(call.build, call.tensor(0), call.optional(1), call.optional(2), call.attribute("epsilon", 1e-5))


@rule("RMSNormalization", "SimplifiedLayerNormalization")
@rule("SimplifiedLayerNormalization", domain=MICROSOFT)
def _rms_norm(call: Call) -> SSAValue:
    _require_last(call)
    return rms_norm(call.build, call.tensor(0), call.optional(1), call.attribute("epsilon", 1e-5))


def layer_norm(build: Builder, x: SSAValue, weight: SSAValue | None, bias: SSAValue | None, eps: float) -> SSAValue:
    """A layer norm over the last dimension."""
    return aten("layer_norm")(build, x, tensor_type(x).dims[-1:], _vector(build, weight), _vector(build, bias), eps)


def rms_norm(build: Builder, x: SSAValue, weight: SSAValue | None, eps: float) -> SSAValue:
    """An RMS norm over the last dimension."""
    return aten("rms_norm")(build, x, tensor_type(x).dims[-1:], _vector(build, weight), eps)


def _vector(build: Builder, weight: SSAValue | None) -> SSAValue | None:
    return None if weight is None else build.reshape(weight, tensor_type(weight).dims[-1:])


@rule("SkipLayerNormalization", domain=MICROSOFT)
def _skip_layer_norm(call: Call) -> tuple[Any, ...]:
    total = _skipped(call, call.optional(4))
    normed = layer_norm(call.build, total, call.optional(2), call.optional(3), call.attribute("epsilon", 1e-12))
    return normed, None, None, total


@rule("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def _skip_rms_norm(call: Call) -> tuple[Any, ...]:
    total = _skipped(call, call.optional(3))
    return rms_norm(call.build, total, call.optional(2), call.attribute("epsilon", 1e-12)), None, None, total


def _skipped(call: Call, bias: SSAValue | None) -> SSAValue:
    """input + skip + bias, in that order."""
    total = aten("add")(call.build, call.tensor(0), call.tensor(1))
    return total if bias is None else aten("add")(call.build, total, bias)
