"""The peaks of this machine's processor, measured with loops that only read or only multiply and add."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import reduce
from statistics import median
from typing import Any

from numpy.typing import NDArray

from forerun.codegen.backends import BFLOAT16, FLOAT32, INT8
from forerun.codegen.tvm.builder import Expr, fma, integer, load, local, splat, store
from forerun.codegen.tvm.dots import BFLOAT16_DOT, INT8_DOT, Dot
from forerun.codegen.tvm.layout import zeros
from forerun.codegen.tvm.program import build
from forerun.codegen.tvm.target import LANES, Machine
from forerun.codegen.tvm.untyped import IRBuilder, T, tvm
from forerun.execute.tvm.executable import TvmExecutable
from forerun.execute.tvm.library import Arguments, Module, Tensor
from forerun.execute.work import ATTENTION

STREAMS = 8
"""Vectors that one turn of the read loop adds up, each to a sum of its own: a power of two."""
PARTS = 8
"""Parts of the array for each thread."""
ARRAY = 1 << 29
"""Bytes that are read, far above any processor cache."""
TURNS = 1 << 19
"""Turns of the loop that multiplies and adds."""


class MemoryRead:
    """Only reads one large array with all threads, in contiguous parts with vector loads, as the kernels do.

    It runs between other measurements, so that both see the machine in the same state.
    """

    def __init__(self, threads: int, size: int = ARRAY) -> None:
        """`size` is in bytes."""
        turn, parts = LANES * STREAMS, threads * PARTS
        count = size // 4 // (parts * turn) * turn  # of each part
        self._array = zeros(parts * count)
        self._array[:] = 1  # a page of zeros may be one page of memory
        self._loop = Loop("read", _read(count), [self._array.reshape(parts, -1)], threads, parts)
        self._loop.seconds()

    def measure(self) -> None:
        self._loop.measure()

    @property
    def seconds(self) -> list[float]:
        """Of every measurement."""
        return self._loop.measured

    @property
    def bandwidth(self) -> float:
        """Bytes per second, the median of all measurements."""
        return self._array.nbytes / median(self.seconds)

    @property
    def best(self) -> float:
        """Bytes per second, the most of all measurements."""
        return self._array.nbytes / min(self.seconds)


class Loop:
    """A function of arrays and of a vector for its result, run for every row of them; threads take the rows in turn."""

    def __init__(self, name: str, function: Any, arrays: list[NDArray[Any]], threads: int, parts: int) -> None:
        self._code = Module.of(build(tvm.IRModule({name: function}), Machine.host().target))
        self._run = self._code.entry(name)
        sums = zeros(parts * LANES).reshape(parts, LANES)
        self._calls = [Arguments(*(Tensor(own[at]) for own in (*arrays, sums))) for at in range(parts)]
        self._pool = ThreadPoolExecutor(threads)
        self.measured: list[float] = []

    def seconds(self) -> float:
        """Runs all threads once, and returns how long they took."""
        start = time.perf_counter()
        list(self._pool.map(self._run.call, self._calls))
        return time.perf_counter() - start

    def measure(self) -> None:
        self.measured.append(self.seconds())


class CpuPeaks:
    """The read bandwidth of memory, and operations per second in each arithmetic of products, by all threads."""

    def __init__(self, executable: TvmExecutable) -> None:
        threads, machine = executable.runner.threads, Machine.host()
        self._memory = MemoryRead(threads)
        self._loops = {name: Loop("multiply", _multiply(name, machine), [], threads, threads) for name in ARITHMETICS}
        chains = _chains(machine)
        self._operations = {
            name: threads * TURNS * chains * LANES * 2 * products for name, (products, _) in ARITHMETICS.items()
        }
        for each in self._loops.values():
            each.seconds()

    def measure(self) -> None:
        self._memory.measure()
        for each in self._loops.values():
            each.measure()

    @property
    def bandwidth(self) -> float:
        """Bytes read per second, the most of all measurements: what else runs on a machine only makes reads slower."""
        return self._memory.best

    @property
    def flops(self) -> Mapping[str, float]:
        """Operations per second, by arithmetic: the most of all measurements, as nothing makes a loop too fast."""
        found = {name: self._operations[name] / min(loop.measured) for name, loop in self._loops.items()}
        return {**found, ATTENTION: found[FLOAT32]}


ARITHMETICS: dict[str, tuple[int, Dot | None]] = {FLOAT32: (1, None), BFLOAT16: (2, BFLOAT16_DOT), INT8: (4, INT8_DOT)}
"""Of each arithmetic, how many products a lane adds at once, and the function that does it: without one, fma."""


def _chains(machine: Machine) -> int:
    """Chains of vectors that fit in the registers: enough of them hide the latency of an addition."""
    return max(1, min(12, int(machine.registers * 0.8) // (LANES // machine.width)))


def _multiply(arithmetic: str, machine: Machine) -> Any:
    """sums[:] = what chains of multiplications and additions give."""
    dot = ARITHMETICS[arithmetic][1]
    kind = "int32" if arithmetic == INT8 else "float32"
    one = integer(1) if dot is not None else 1.0
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": "multiply"})
        sums = T.match_buffer(T.arg("sums", T.handle()), (LANES,), "float32")
        with nullcontext() if dot is None else dot.known(machine.processor.features):
            held = [local(LANES, kind) for _ in range(_chains(machine))]
            factor = local(LANES, "float32" if dot is None else "int32")
            store(factor, splat(one) + load(sums, 0).astype(f"{factor.dtype}x{LANES}"), 0)
            for vector in held:
                store(vector, splat(integer(0) if kind == "int32" else 0.0), 0)
            with T.serial(0, TURNS):
                for vector in held:
                    total, x = load(vector, 0), load(factor, 0)
                    store(
                        vector,
                        fma(x, x, total) if dot is None else dot(total, total if arithmetic == INT8 else x, x),
                        0,
                    )
            store(sums, _sum(held).astype(f"float32x{LANES}") * splat(0.0), 0)
    return builder.get()


def _read(count: int) -> Any:
    """sums[:] = the sum of an array, per lane."""
    turn = LANES * STREAMS
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"global_symbol": "read"})
        array = T.match_buffer(T.arg("array", T.handle()), (count,), "float32")
        sums = T.match_buffer(T.arg("sums", T.handle()), (LANES,), "float32")
        parts = [local(LANES) for _ in range(STREAMS)]
        for vector in parts:
            store(vector, splat(0.0), 0)
        with T.serial(0, count // turn) as step:
            for stream, vector in enumerate(parts):
                place = step * integer(turn) + integer(stream * LANES)
                store(vector, load(vector, 0) + load(array, place), 0)
        store(sums, _sum(parts), 0)
    return builder.get()


def _sum(vectors: list[Any]) -> Expr:
    return reduce(lambda x, y: x + y, [load(vector, 0) for vector in vectors])


def peaks(executable: TvmExecutable) -> CpuPeaks:
    """Returns the peaks of the threads that share an executable's steps."""
    return CpuPeaks(executable)
