"""The memory layout of the embedded back end: weights in one packed buffer, states in one record for each block.

Plain arithmetic on a program, for both packing and running. Places are in 4-byte words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from forerun.codegen.program import NUMBER, Program, State

ALIGNMENT = 16
"""Every place is a multiple of this many numbers: one cache line."""

SPARE = 1 << 14
"""Numbers after the last weight that a prefetch may address."""

Float32 = NDArray[np.float32]

ENTRY, HELP, DISMISS = "run", "help", "dismiss"
"""The functions of the compiled code: one executes calls, one is a helper's work, and one sends helpers away."""

LINE = 16
"""int64 words of a line of a team's memory: two cache lines, as processors fetch pairs."""


@dataclass(frozen=True)
class Processor:
    """What code is compiled for, in LLVM's words."""

    triple: str
    cpu: str
    features: tuple[str, ...]  # what the processor must have, such as "avx2"


@dataclass(frozen=True)
class Compiled:
    """The kernels of a step as machine code."""

    module: Any  # TVM's runtime module
    processor: Processor


class Compile(Protocol):
    """Compiles the kernels of a step for this machine, or for another triple and processor."""

    def __call__(self, mtriple: str | None = None, mcpu: str | None = None) -> Compiled: ...


class Kernels(Protocol):
    """The kernels of a step as they can be looked at and edited, by the names of their sources."""

    def schedules(self) -> dict[str, str]:
        """Returns the schedule file of every kernel that has more than one schedule."""
        ...

    def edited(self, texts: Mapping[str, str]) -> TvmProgram:
        """Returns the program with the schedules of these files. Raises `InvalidOptionError`."""
        ...

    def candidates(self, name: str, text: str) -> list[str]:
        """Returns the schedules, as files, that differ in one field from that of a file, and make other code."""
        ...

    def versions(self, name: str, texts: Sequence[str]) -> Compiled:
        """Compiles a step that has one kernel alone, under the schedule of each file; `""` is the program's own."""
        ...

    def function(self, name: str) -> Compiled:
        """Compiles one kernel as a function that others can call, and that is therefore not part of another."""
        ...

    def changes(self, name: str, text: str) -> str:
        """Returns in words what a schedule file changes of the default."""
        ...


@dataclass(frozen=True)
class TvmProgram:
    """The output of code generation for a step; code and weights are produced on demand."""

    program: Program
    compile: Compile
    pack: Callable[[], Float32]  # the weights as the code reads them
    write: Callable[[BinaryIO], None]  # the same into a file, without a second copy in memory
    texts: Callable[[], dict[str, str]]  # the TIR script of every distinct kernel, by name
    kernels: Kernels
    keeps_code: bool = True  # whether `program.key` names the code


def aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def zeros(count: int) -> Float32:
    """Returns zeros that begin at a cache line, as the code's vector loads require.

    numpy gives large arrays huge pages. The memory is taken from the system when it is first written.
    """
    whole = np.zeros(count + ALIGNMENT, np.float32)
    first = -whole.ctypes.data // NUMBER % ALIGNMENT
    return whole[first : first + count]


def team_memory(threads: int) -> NDArray[np.int64]:
    """Returns the memory that threads share to divide a step (`codegen.tvm.team`)."""
    return zeros((threads + 2) * LINE * 2).view(np.int64).reshape(-1, LINE)


def weight_places(program: Program) -> tuple[dict[str, int], int]:
    """Returns where each weight begins in one buffer, and the buffer's size."""
    places: dict[str, int] = {}
    total = 0
    for name, weight in program.weights.items():
        places[name] = total
        total += aligned(-(-weight.bytes // NUMBER))
    return places, total + SPARE


@dataclass(frozen=True)
class StatePlaces:
    """The layout of all states: one record for each block of slots, and one for each row or request."""

    places: dict[str, int]  # offset of each state in its record
    record: int  # size of a block's record
    request: int  # size of the record of a row or a request
    words: NDArray[np.int64]  # [P, w] the places in a block's record of a slot's numbers
    row_words: NDArray[np.int64]  # [v] those of the states per row in theirs

    def size(self, state: State) -> int:
        """Returns the size of the record that a state is part of."""
        return self.record if state.per == "position" else self.request


def state_places(program: Program) -> StatePlaces:
    """Returns the layout of a program's states."""
    places: dict[str, int] = {}
    sizes = {"block": 0, "request": 0}
    words: list[NDArray[np.int64]] = []
    row_words: list[NDArray[np.int64]] = []
    for name, state in program.states.items():
        kind = "block" if state.per == "position" else "request"
        places[name] = sizes[kind]
        if kind == "block":
            words.append(places[name] + _words(state, program.block))
        elif state.per == "row":
            row_words.append(places[name] + np.arange(state.words))
        sizes[kind] += aligned(state.words)
    # An odd number of cache lines per record: blocks of one layer fall into different cache sets.
    sizes["block"] += ALIGNMENT if (sizes["block"] // ALIGNMENT) % 2 == 0 else 0
    joined = np.concatenate(words, 1) if words else np.zeros((program.block, 0), np.int64)
    rows = np.concatenate([np.zeros(0, np.int64), *row_words])
    return StatePlaces(places, sizes["block"], sizes["request"], joined, rows)


def _words(state: State, block: int) -> NDArray[np.int64]:
    """Returns [P, numbers]: where the numbers of a record lie, for each slot of a block."""
    places = np.arange(state.words).reshape(state.dims)
    lanes = np.moveaxis(places, -1 if state.side_by_side else -2, 0)
    return lanes[..., : state.last].reshape(block, -1)


def needed_bytes(program: Program) -> dict[str, int]:
    """The memory that a model needs: its weights, a cache of `max_length` and a step's rows, and a step's values."""
    blocks = -(-program.max_length // program.block) + -(-program.max_rows // program.block)
    inputs = max(each.inputs for each in program.entries)
    numbers = {
        "weights": weight_places(program)[1],
        "cache": blocks * state_places(program).record,
        "buffers": program.memory + inputs,
    }
    return {name: count * NUMBER for name, count in numbers.items()}
