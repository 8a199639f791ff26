"""The memory of one run on the CPU, for every back end whose kernels read the host's arrays."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forerun.codegen.program import Entry, Kernel, Program, Value
from forerun.execute.arguments import require_size, sizes_of
from forerun.runtime.executable import Float32, KernelOutput, Rows


class HostMemory:
    """What the kernels of a program read and write, but for weights and states.

    arena       float32 [program.memory]: float arguments, intermediate values and results
    inputs      int32: integer arguments. It is replaced by a larger array when an entry's arguments need one
    sizes       int32: the sizes of an entry's dimensions, in the order of `Entry.sizes`
    """

    def __init__(self, program: Program, arena: Float32) -> None:
        self.arena = arena
        self.inputs = np.zeros(max(1, *(each.inputs for each in program.entries)), np.int32)
        self.sizes = np.zeros(max(1, len(program.step.sizes)), np.int32)
        self.bindings: dict[str, int] = {}
        self._program = program
        self._numbers = arena.view(np.int32)

    def load(self, rows: Rows) -> None:
        """Puts the rows of a step in place. Raises `TooLongError` if they exceed what was compiled."""
        program = self._program
        require_size(rows, program)
        step = program.step
        self.fill(step, {each.name: getattr(rows, each.name) for each in step.signature.arguments})

    def fill(self, entry: Entry, given: Mapping[str, NDArray[Any]]) -> None:
        """Puts an entry's arguments and the sizes of its dimensions where its kernels find them."""
        self.bind(entry, sizes_of(entry.signature, {name: value.shape for name, value in given.items()}))
        for argument in entry.signature.arguments:
            value, place = given[argument.name], entry.places[argument.name]
            if argument.dtype == "f32":
                self.arena[place : place + value.size] = value.reshape(-1)
                continue
            if place + value.size > len(self.inputs):
                self.inputs = np.concatenate([self.inputs, np.zeros(2 * value.size, np.int32)])
            self.inputs[place : place + value.size] = value.reshape(-1)

    def bind(self, entry: Entry, sizes: Mapping[str, int]) -> None:
        """Puts the sizes of an entry's dimensions where its kernels find them."""
        self.bindings = dict(sizes)
        self.sizes[: len(entry.sizes)] = [sizes.get(name, 0) for name in entry.sizes]

    def view(self, value: Value) -> NDArray[Any]:
        """Returns a value of the last run; it is valid until the next run."""
        sizes = value.sizes(self.bindings)
        source = self.arena if value.dtype == "f32" else self._numbers
        return source[value.place : value.place + prod(sizes)].reshape(sizes)

    def stream(self, place: int, rows: int) -> Float32:
        """Returns the residual stream at a place, [N, D], to read or to write."""
        width = self._program.width
        return self.arena[place : place + rows * width].reshape(rows, width)

    def outputs(self, kernel: Kernel) -> list[KernelOutput]:
        """Returns a copy of each result of a kernel that has just run, its rows first, but none that are places."""
        found: list[KernelOutput] = []
        for result in kernel.traced:
            axis = next((axis for axis, dim in enumerate(result.dims) if dim in ("N", "M")), None)
            along = None if axis is None else str(result.dims[axis])
            value = np.moveaxis(self.view(result), axis or 0, 0) if result.dims else self.view(result)
            found.append(KernelOutput(kernel.name, result.name, value.copy(), along))
        return found
