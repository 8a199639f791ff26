"""The memory of a group of rows: several groups can be in flight if each has its own."""

from __future__ import annotations

import numpy as np

from forerun.codegen.program import Program
from forerun.codegen.tvm.layout import zeros
from forerun.execute.host_memory import HostMemory
from forerun.execute.tvm.library import Arguments, Tensor

SIZES, NUMBERS, INDICES, INPUTS = 1, 4, 5, 8
"""Places among the arguments of the compiled code (`codegen.tvm.program`)."""


class Lane:
    """An arena, inputs and sizes, as compiled code takes them.

    copies      of the arena, one after another, for layers that run side by side
    """

    def __init__(self, program: Program, copies: int = 1) -> None:
        self.copies = copies
        self.arena = zeros(max(1, copies * program.memory))
        self.memory = HostMemory(program, self.arena)
        self.sizes = Tensor(self.memory.sizes)
        self.numbers, self.indices = Tensor(self.arena), Tensor(self.arena.view(np.int32))
        self.inputs = Tensor(self.memory.inputs)

    @property
    def moved(self) -> bool:
        """Whether an entry's arguments needed a larger array of inputs."""
        return self.inputs.array is not self.memory.inputs

    def put(self, arguments: Arguments) -> None:
        """Has a call use this memory."""
        if self.moved:
            self.inputs = Tensor(self.memory.inputs)
        for index, given in ((SIZES, self.sizes), (NUMBERS, self.numbers), (INDICES, self.indices)):
            arguments.set(index, given)
        arguments.set(INPUTS, self.inputs)
