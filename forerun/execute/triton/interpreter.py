"""Triton's interpreter as a stand-in for a GPU: kernels run on CPU tensors, and their sums have a fixed order.

The interpreter's own `tl.dot` is numpy's matrix product, whose order of sums depends on the shape. It is replaced by
one chain over the features in order. An mma unit also has a fixed order, but a different one, so bits here are not a
GPU's bits. What can be shown here is that a row's bits depend on the row alone in everything that these kernels decide:
which numbers meet, masks, splits, tiles, where keys are read, trees of sums. Only a GPU can show that the instructions
behind `tl.dot` keep their order for every row of a tile (`forerun verify --target cuda`). Rounding to bfloat16 is to
nearest, ties to even, as on a GPU; the interpreter's own truncates.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.execute.triton.untyped import language, standard

runtime: Any = importlib.import_module("triton.runtime.interpreter")


def ordered_dot(left: NDArray[np.float32], right: NDArray[np.float32], start: NDArray[np.float32]) -> Any:
    """Returns start + left right, feature by feature, rounded after each product and each sum."""
    total = start.astype(np.float32)
    for feature in range(left.shape[1]):
        total = total + left[:, feature, None] * right[None, feature]
    return total


def widened(data: NDArray[Any], kind: Any) -> NDArray[np.float32]:
    """Returns numbers as float32; the interpreter stores bfloat16 as the upper halves."""
    if kind == language.bfloat16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    return data.astype(np.float32)


def rounded(data: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Returns the upper halves of the nearest bfloat16 numbers, ties to even."""
    words = np.ascontiguousarray(data).view(np.uint32)
    nearest = ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(data), np.uint16(0x7FC0), nearest)


def _create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    total = ordered_dot(widened(a.data, a.dtype.scalar), widened(b.data, b.dtype.scalar), d.data)
    return runtime.TensorHandle(total, d.dtype.scalar)


def _cast(self: Any, source: Any, target: Any) -> Any:
    before, after = source.dtype.scalar, target.scalar
    if before == language.bfloat16 and after == language.float32:
        return runtime.TensorHandle(widened(source.data, before), after)
    if before == language.float32 and after == language.bfloat16:
        return runtime.TensorHandle(rounded(source.data), after)
    return _original_cast(self, source, target)


_original_cast: Any = runtime.InterpreterBuilder.cast_impl


def _largest(x: Any, axis: int | None = None, keep_dims: bool = False) -> Any:
    return runtime.ReduceOps(axis, standard._elementwise_max, keep_dims).apply(x)


def _smallest(x: Any, axis: int | None = None, keep_dims: bool = False) -> Any:
    return runtime.ReduceOps(axis, standard._elementwise_min, keep_dims).apply(x)


def _sum(x: Any, axis: int | None = None, keep_dims: bool = False) -> Any:
    """Sums in x's own type; numpy would widen integers."""
    total = runtime.ReduceOps(axis, standard._sum_combine, keep_dims).apply(x)
    total.handle.data = np.asarray(total.handle.data).astype(x.handle.data.dtype)
    return total


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls a device function; while a kernel runs, Triton's names are already the interpreter's."""
    return self.rewrite()(*args, **kwargs)


@contextmanager
def replaced() -> Generator[None]:
    """Applies these replacements to the interpreter while the body runs."""
    builder, function = runtime.InterpreterBuilder, runtime.InterpretedFunction
    changes = [
        (builder, "create_dot", _create_dot),
        (builder, "cast_impl", _cast),
        (function, "__call__", _call),
        (language, "max", _largest),
        (language, "min", _smallest),
        (language, "sum", _sum),
    ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    options = runtime.interpreter_builder.options
    checked = options.sanitize_overflow
    for owner, name, value in changes:
        setattr(owner, name, value)
    object.__setattr__(options, "sanitize_overflow", False)  # integer checks take half of the time
    try:
        yield
    finally:
        object.__setattr__(options, "sanitize_overflow", checked)
        for owner, name, value in before:
            setattr(owner, name, value)


def run(function: Any, grid: Sequence[int], pointers: Sequence[Any], constants: Mapping[str, int]) -> None:
    """Runs a kernel of a module loaded for interpretation, on CPU tensors."""
    with replaced(), np.errstate(all="ignore"):  # masked lanes may hold anything
        function[tuple(grid)](*pointers, **constants)
