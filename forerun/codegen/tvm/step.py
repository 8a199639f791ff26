"""A compiled step as plain data: what runs it needs neither the IR nor the code generator.

Everything here can be written down: names, sizes, and places in memory. Offsets and sizes are in numbers of 4 bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forerun import dims as dimensions
from forerun.dims import Dim
from forerun.signature import STEP, Argument, Signature

ENTRY = "run"
"""The function of the compiled code that walks a program."""

NUMBER = 4
"""Bytes of a number."""

SPARE = 1 << 14
"""Numbers behind the last weight that a prefetch may name."""


@dataclass(frozen=True)
class Value:
    """A value of an entry: an argument of integers lies in the inputs, any other value in the arena."""

    name: str
    dims: tuple[Dim, ...]
    dtype: str
    offset: int

    def sizes(self, bindings: Mapping[str, int]) -> list[int]:
        return [dimensions.evaluate(dim, bindings) for dim in self.dims]


@dataclass(frozen=True)
class Kernel:
    """A kernel of the step: some consecutive calls of its program."""

    name: str
    structure: int  # kernels of one structure run the same code on other offsets
    calls: tuple[int, int]  # [first, last) rows of the program
    results: tuple[Value, ...]
    weights: tuple[str, ...]  # of its linears: read whole, whatever the rows
    moved: tuple[tuple[Dim, ...], ...]  # the shapes of its inputs and results, each once
    history: int  # cached numbers that its attention reads for each position of a history
    branch: int | None  # the residual branch that it belongs to
    streams: tuple[tuple[int, int], ...]  # columns of the program that name a value of the stream, and which one
    begins: bool  # whether the stream's first value is all that it gives


@dataclass(frozen=True)
class Entry:
    """Another entry of the module: some consecutive calls of the program."""

    name: str
    arguments: tuple[Value, ...]
    returned: tuple[Value, ...]
    calls: tuple[int, int]  # [first, last) rows of the program


@dataclass(frozen=True)
class CompiledStep:
    """A step and the module's other entries, but for their code and their weights."""

    key: str  # of the code
    symbols: tuple[str, ...]  # names of dimensions, in the order in which the code takes their sizes
    arguments: tuple[Value, ...]  # the fields of `Rows` that it takes; the last may grow beyond its place
    returned: tuple[Value, ...]  # logits, and the candidates' ids and logits where it has them
    kernels: tuple[Kernel, ...]
    program: NDArray[np.int64]  # [calls, 1 + slots] (`forerun.codegen.tvm.program`)
    weights: Mapping[str, int]  # where each weight lies in the packed ones, ascending
    packed: int  # what they take together, `SPARE` included
    arena: int
    inputs: int
    branches: tuple[tuple[int, str], ...]  # the layer and the kind of each residual branch
    stream: tuple[int, ...]  # the two buffers in which the residual stream's values take turns, or none
    width: int  # features of the stream
    entries: tuple[Entry, ...]  # beside the step
    record: int  # the states of one block
    request: int  # the states of one request
    words: NDArray[np.int64]  # [P, w] the places in a block's record of what is kept at a lane
    block: int
    max_rows: int
    max_outputs: int
    max_path: int
    max_length: int

    @property
    def signatures(self) -> dict[str, Signature]:
        """The entries, the step first."""
        others = {each.name: _signature(each.name, each.arguments, each.returned) for each in self.entries}
        return {STEP: _signature(STEP, self.arguments, self.returned), **others}

    @property
    def vocabulary(self) -> int:
        return int(self.returned[0].dims[-1]) if self.returned and self.returned[0].dims else 0

    @property
    def candidates(self) -> int:
        return int(self.returned[1].dims[-1]) if len(self.returned) > 1 else 0

    def needed_bytes(self) -> dict[str, int]:
        """What a model takes in memory: its weights, a cache of `max_length` and a step's rows, and a step's values."""
        blocks = -(-self.max_length // self.block) + -(-self.max_rows // self.block)
        numbers = {"weights": self.packed, "cache": blocks * self.record, "buffers": self.arena + self.inputs}
        return {name: count * NUMBER for name, count in numbers.items()}

    def weight_sizes(self) -> dict[str, int]:
        """What each weight takes, to the next one's offset."""
        ends = [*self.weights.values(), self.packed - SPARE]
        return {name: end - start for (name, start), end in zip(self.weights.items(), ends[1:], strict=True)}


def _signature(name: str, arguments: Sequence[Value], results: Sequence[Value]) -> Signature:
    def plain(values: Sequence[Value]) -> tuple[Argument, ...]:
        return tuple(Argument(each.name, each.dims, each.dtype) for each in values)

    return Signature(name, plain(arguments), plain(results))


@dataclass(frozen=True)
class TvmProgram:
    """The output of code generation for a step; code and weights are produced on demand."""

    step: CompiledStep
    compile: Callable[[], Any]  # the runtime module of its kernels
    pack: Callable[[], torch.Tensor]  # float32 [step.packed]: the weights as the code reads them
    texts: Callable[[], dict[str, str]]  # the TIR script of every distinct kernel phase, by name
    keeps_code: bool = True  # whether `step.key` names the code


def sizes_of(arguments: Sequence[Value], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of the dimensions' names, from the shapes of the arguments; ValueError where they contradict."""
    bindings: dict[str, int] = {}
    for argument in arguments:
        dimensions.bind(argument.dims, shapes[argument.name], bindings)
    return bindings
