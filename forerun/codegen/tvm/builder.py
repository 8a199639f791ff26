"""A thin layer over TVM's IR builder: vectors, loops, local accumulators, and the signature that all kernels share.

A kernel's function is called for some of the equal pieces of its work, `first` to `last - 1` of `pieces`:

    kernel(first, last, pieces, sizes, slots, weights, tables, numbers, indices, state, requests, inputs)

`sizes` are the values of the dimension names, `slots` the offsets of the kernel's operands and results (its row of the
step's program), `weights` and `tables` the packed weights as float32 and as int32, `numbers` and `indices` the arena
likewise, `state` the records of blocks, `requests` those of rows and requests, `inputs` the int32 arguments.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import IRBuilder, T, tirx

Expr = Any
Buffer = Any

NAMED = (tirx.Var, tirx.FloatImm, type(tirx.decl_buffer((1,), "float32")[0]))
"""What needs no other name: names, constants and loads."""
UNBOUNDED = 1 << 40
MEMORIES = {
    "weights": "float32",
    "tables": "int32",
    "numbers": "float32",
    "indices": "int32",
    "state": "float32",
    "requests": "float32",
    "inputs": "int32",
}


def integer(value: int, dtype: str = "int32") -> Expr:
    return tirx.IntImm(dtype, value)


def number(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def lanes_of(value: Expr) -> int:
    text = str(value.ty.dtype)
    return int(text.rsplit("x", 1)[1]) if "x" in text else 1


def splat(value: Expr | float, lanes: int = LANES) -> Expr:
    """A number in every lane."""
    scalar = number(value) if isinstance(value, int | float) else value
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def like(value: Expr | float, other: Expr) -> Expr:
    """A number in every lane of another vector."""
    return splat(value, lanes_of(other))


def fma(x: Expr, y: Expr, z: Expr) -> Expr:
    """x * y + z, rounded once."""
    return tirx.op.fma(x, y, z)


def multiply(x: Expr, y: Expr) -> Expr:
    """x * y, rounded: the fence keeps LLVM from contracting it with an addition that uses it."""
    product = x * y
    if not str(product.ty.dtype).startswith("float"):
        return product
    return tirx.call_llvm_pure_intrin(product.ty.dtype, "llvm.arithmetic.fence", product)


def load(buffer: Buffer, index: Expr | int, lanes: int = LANES) -> Expr:
    return buffer[tirx.Ramp(_index(index), 1, lanes)] if lanes > 1 else buffer[index]


def prefetch(buffer: Buffer, place: Expr, words: int) -> None:
    """Fetches a cache line `words` after a place into the second-level cache; the first holds the rows."""
    ahead = tirx.address_of(buffer[place + integer(words)])
    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", ahead, 0, 2, 1))  # LLVM's locality: 3 is the first level


def store(buffer: Buffer, value: Expr, index: Expr | int, lanes: int = LANES) -> None:
    T.buffer_store(buffer, value, [tirx.Ramp(_index(index), 1, lanes) if lanes > 1 else index])


def _index(index: Expr | int) -> Expr:
    return integer(index) if isinstance(index, int) else index


def let(value: Expr) -> Expr:
    """Names a value, so that it is computed once.

    A computed number is kept in local memory, which LLVM makes a register: TVM's analyses put the value of a name in
    its place, so that a chain of them would grow exponentially.
    """
    if not str(value.ty.dtype).startswith("float32") or isinstance(value, NAMED):
        return T.Bind(value)
    lanes, lane = lanes_of(value), _vectorized[-1]
    memory, at = local(lanes if lane is None else LANES), integer(0) if lane is None else lane
    store(memory, value, at, lanes)
    return load(memory, at, lanes)


_vectorized: list[Expr | None] = [None]
"""The lanes of the vectorized loops that are open."""


@contextmanager
def vectorized() -> Generator[Expr]:
    """Opens a loop over the lanes of a vector."""
    with T.vectorized(LANES) as lane:
        _vectorized.append(lane)
        try:
            yield lane
        finally:
            _vectorized.pop()


@contextmanager
def when(condition: Expr) -> Generator[None]:
    with T.If(condition), T.Then():
        yield


def otherwise(condition: Expr, first: Callable[[], None], second: Callable[[], None]) -> None:
    """if condition: first, else: second."""
    with T.If(condition):
        with T.Then():
            first()
        with T.Else():
            second()


def local(size: int, dtype: str = "float32") -> Buffer:
    """Memory local to a call: registers if every index is a constant, else the stack."""
    return T.alloc_buffer((size,), dtype, scope="local")


def each(values: Sequence[Expr], combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combines a power-of-two number of values as a tree: halves first."""
    while len(values) > 1:
        half = len(values) // 2
        values = [combine(values[index], values[index + half]) for index in range(half)]
    return values[0]


def across(buffer: Buffer, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combines the lanes of a local vector into one scalar, as a fixed tree."""
    return each([let(buffer[integer(lane)]) for lane in range(LANES)], lambda x, y: let(combine(x, y)))


class Frame:
    """The arguments of the kernel under construction."""

    def __init__(self, arguments: Sequence[Expr], sizes: Sequence[str]) -> None:
        self._first, self._last, self._pieces, sizes_pointer, slots_pointer, *pointers = arguments
        values = T.decl_buffer((max(1, len(sizes)),), "int32", data=sizes_pointer)
        self._slots = T.decl_buffer((UNBOUNDED,), "int64", data=slots_pointer)
        self.memories: dict[str, Buffer] = {
            name: T.decl_buffer((UNBOUNDED,), dtype, data=pointer)
            for (name, dtype), pointer in zip(MEMORIES.items(), pointers, strict=True)
        }
        self.sizes = {name: let(values[integer(index)]) for index, name in enumerate(sizes)}

    def slot(self, index: int) -> Expr:
        return self._slots[integer(index, "int64")]

    def window(self, memory: str, offset: Expr) -> Buffer:
        """A window on a memory from an int64 element offset on, indexed by int32."""
        pointer = T.Bind(tirx.address_of(self.memories[memory][offset]))
        return T.decl_buffer((1 << 30,), MEMORIES[memory], data=pointer)

    @contextmanager
    def divided(self, count: Expr | int) -> Generator[Expr]:
        """Loops over this call's share of 0 .. count - 1: consecutive; pieces differ by at most one."""
        total = integer(count) if isinstance(count, int) else count
        start = let(tirx.truncdiv(self._first * total, self._pieces))
        stop = let(tirx.truncdiv(self._last * total, self._pieces))
        with T.serial(start, stop) as variable:
            yield variable

    @contextmanager
    def undivided(self) -> Generator[None]:
        """Work that is done once, with the first piece."""
        with when(tirx.EQ(self._first, integer(0))):
            yield


def function(sizes: Sequence[str], body: Callable[[Frame], None]) -> Any:
    """Builds a kernel's function."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True), ExitStack():
        arguments = [T.arg(name, T.int32()) for name in ("first", "last", "pieces")]
        arguments.append(T.arg("sizes", T.handle("int32")))
        arguments.append(T.arg("slots", T.handle("int64")))
        arguments.extend(T.arg(name, T.handle(dtype)) for name, dtype in MEMORIES.items())
        body(Frame(arguments, sizes))
    return builder.get()
