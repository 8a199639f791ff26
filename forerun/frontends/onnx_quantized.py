"""Quantized weights of ONNX graphs, dequantized when they are imported."""

from __future__ import annotations

import numpy as np

from forerun.frontends.onnx_rules import MICROSOFT, Call, aten, rule
from forerun.frontends.onnx_values import Array, Known
from forerun.ir import Linear, SSAValue


@rule("DequantizeLinear")
def _dequantize(call: Call) -> Known:
    """(x - zero point) * scale: one scale, one for each index of an axis, or one for each block along it."""
    x, scale = call.known(0), call.known(1)
    zero = call.known(2).array if call.operand(2) is not None else np.zeros_like(scale.array)
    axis, block = int(call.attribute("axis", 1)), int(call.attribute("block_size", 0))
    scales, zeros = (each.astype(np.float32) for each in (scale.array, zero))
    if block:
        size = x.array.shape[axis]
        scales, zeros = (np.repeat(each, block, axis).take(range(size), axis) for each in (scales, zeros))
    elif scales.size > 1:
        shape = [1] * x.array.ndim
        shape[axis] = -1
        scales, zeros = scales.reshape(shape), zeros.reshape(shape)
    return Known((x.array.astype(np.float32) - zeros) * scales, "f32", x.name)


@rule("MatMulNBits", domain=MICROSOFT)
def _matmul_nbits(call: Call) -> SSAValue:
    """a [.., in] times a matrix [out, in] of 4 or 8 bits, with a scale and a zero point for each block of a row."""
    call.require(weight_prepacked=0)
    bits, block = int(call.attribute("bits", 4)), int(call.attribute("block_size"))
    outputs, features = int(call.attribute("N")), int(call.attribute("K"))
    if bits not in (4, 8):
        raise ValueError(f"bits = {bits}")
    if call.operand(4) is not None:
        raise ValueError("g_idx, the order of the features")
    blocks = -(-features // block)
    packed = call.known(1)
    numbers = unpacked(packed.array.reshape(outputs, blocks, -1), bits).reshape(outputs, blocks, block)
    scales = call.known(2).array.astype(np.float32).reshape(outputs, blocks, 1)
    zeros = _zero_points(call, bits, outputs, blocks)
    matrix = ((numbers.astype(np.float32) - zeros) * scales).reshape(outputs, -1)[:, :features]
    product = call.build.add(Linear, call.tensor(0), call.emit(Known(matrix, "f32", packed.name)))
    bias = call.optional(5)
    return product if bias is None else aten("add")(call.build, product, bias)


def _zero_points(call: Call, bits: int, outputs: int, blocks: int) -> Array:
    """[out, blocks, 1]; half of the range if there are none."""
    if call.operand(3) is None:
        return np.full((1, 1, 1), 2.0 ** (bits - 1), np.float32)
    stored = call.known(3).array
    if stored.dtype == np.uint8:
        stored = unpacked(stored.reshape(outputs, -1), bits)[:, :blocks]
    return stored.astype(np.float32).reshape(outputs, blocks, 1)


def unpacked(packed: Array, bits: int) -> Array:
    """The numbers of bytes along the last dimension; of 4 bits, the lower half of a byte is first."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)
