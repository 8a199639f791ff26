"""The number of threads, and the read bandwidth of memory."""

from __future__ import annotations

import os
import time
from statistics import median
from typing import Any

import torch

from forerun.codegen.tvm.builder import Expr, each, integer, load, local, splat, store
from forerun.codegen.tvm.layout import zeros
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import IRBuilder, T, tvm
from forerun.execute.tvm.library import Module, Tensor

STREAMS = 8
"""Vectors that one turn of the read loop adds up, each to a sum of its own: a power of two."""


def pin_threads(threads: int) -> None:
    """Sets the same number for forerun, torch, OpenMP and TVM's pool, which reads it once, at its first launch."""
    os.environ["FORERUN_THREADS"] = str(threads)
    os.environ["TVM_NUM_THREADS"] = str(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


class MemoryRead:
    """Only reads one large array with all threads, in contiguous parts with vector loads, as the kernels do.

    It runs between other measurements, so that both see the machine in the same state.
    """

    def __init__(self, threads: int, size: int = 1 << 30) -> None:
        """`size` is in bytes, far above any processor cache."""
        self._array = zeros(size // 4)
        self._array[:] = 1  # a page of zeros may be one page of memory
        self._sums = zeros(threads * LANES)
        module = tvm.IRModule({"read": _read_function(size // 4, threads)})
        self._code = Module.of(tvm.compile(module, target=Machine.host().target).mod)
        self._run = self._code.entry("read")
        self._arguments = [Tensor(each) for each in (self._array, self._sums)]
        self._run(*self._arguments)
        self.seconds: list[float] = []

    def measure(self) -> None:
        start = time.perf_counter()
        self._run(*self._arguments)
        self.seconds.append(time.perf_counter() - start)

    @property
    def bandwidth(self) -> float:
        """Bytes per second, the median of all measurements."""
        return self._array.nbytes / median(self.seconds)


def _read_function(count: int, threads: int) -> Any:
    """sums[t, :] = the sum of part t of the array, per lane."""
    turn = LANES * STREAMS
    turns = count // (threads * turn)
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": "read"})
        array = T.match_buffer(T.arg("array", T.handle()), (count,), "float32")
        sums = T.match_buffer(T.arg("sums", T.handle()), (threads * LANES,), "float32")
        with T.parallel(threads) as part:
            parts = [local(LANES) for _ in range(STREAMS)]
            for vector in parts:
                store(vector, splat(0.0), 0)
            with T.serial(0, turns) as step:
                start = (part * integer(turns) + step) * integer(turn)
                for stream, vector in enumerate(parts):
                    store(vector, load(vector, 0) + load(array, start + integer(stream * LANES)), 0)
            store(sums, each([load(vector, 0) for vector in parts], _add), part * integer(LANES))
    return builder.get()


def _add(x: Expr, y: Expr) -> Expr:
    return x + y
