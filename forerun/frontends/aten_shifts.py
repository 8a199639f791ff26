"""ATen's operators that add elements at the ends of a dimension, or move all along it."""

from __future__ import annotations

from collections.abc import Sequence

from forerun import dims as dimensions
from forerun.frontends.aten_rules import Scalar, axis, rule
from forerun.frontends.aten_views import bound
from forerun.ir import Builder, SSAValue, tensor_type


@rule("pad", "constant_pad_nd")
def padded(
    build: Builder, x: SSAValue, pad: Sequence[int], mode: Scalar | str = "constant", value: Scalar | None = None
) -> SSAValue:
    """Pairs of sizes, the last dimension first; a negative size takes elements away."""
    if isinstance(mode, int | float):  # constant_pad_nd(x, pad, value)
        mode, value = "constant", mode
    if mode != "constant":
        raise ValueError(f"padding in the mode {mode}")
    for pair in range(len(pad) // 2):
        at = axis(x, -1 - pair)
        before, after = pad[2 * pair : 2 * pair + 2]
        size = tensor_type(x).dims[at]
        x = build.slice(x, at, max(0, -before), bound(min(0, after), size) if after < 0 else size)
        dims, dtype = tensor_type(x).dims, tensor_type(x).dtype
        ends = [build.full((*dims[:at], max(0, each), *dims[at + 1 :]), value or 0, dtype) for each in (before, after)]
        x = build.concat([*(ends[:1] if before > 0 else []), x, *(ends[1:] if after > 0 else [])], at)
    return x


@rule("roll")
def _roll(build: Builder, x: SSAValue, shifts: int | Sequence[int], dims: int | Sequence[int] = ()) -> SSAValue:
    """Elements that leave a dimension at its end come back at its beginning."""
    shifts = [shifts] if isinstance(shifts, int) else shifts
    along = [dims] if isinstance(dims, int) else dims
    if not along:
        raise ValueError("a roll over all dimensions")
    for shift, dim in zip(shifts, along, strict=True):
        at = axis(x, dim)
        size = tensor_type(x).dims[at]
        shift = shift % size if isinstance(size, int) else shift
        cut = dimensions.add(size, -shift) if shift >= 0 else -shift
        if shift:
            x = build.concat([build.slice(x, at, cut, size), build.slice(x, at, 0, cut)], at)
    return x
