"""Parts of a step, for every back end: which kernels remain when residual branches are left out, and where these find
the stream.

The stream's values alternate between two buffers. If a branch is left out, later kernels find the stream in the other
buffer. Where branches read an earlier value than the last, as layers do that share an input, that value keeps its
buffer until the last of them is done, and the others alternate between the remaining two of three.
"""

from __future__ import annotations

from bisect import bisect_left

from forerun.codegen.program import Kernel, Program
from forerun.errors import InvalidOptionError
from forerun.runtime.executable import WHOLE, Branch, Part


def require_whole(program: Program) -> None:
    """Raises `InvalidOptionError` if a program is a part of a step, which this back end cannot run."""
    if any(each.message is not None for each in program.kernels):
        raise InvalidOptionError(
            f"the {program.target} target runs whole steps, and this is a part of one: compile it for the cpu target."
        )


class StepPart:
    """A part of a program's step: its kernels, and the places of the stream's values.

    Raises `InvalidOptionError` if the step has no such part.
    """

    def __init__(self, program: Program, part: Part = WHOLE) -> None:
        self.branches = part.branches(len(program.branches))
        self._inputs = part.inputs(program.branches)
        self._feeding = {number for number, (_, kind) in enumerate(program.branches) if kind == "feed_forward"}
        self._places = program.stream_places
        self._buffers = _buffers(self.branches, self._inputs)
        if part.enter and program.stream and not any(kernel.begins for kernel in program.kernels):
            raise InvalidOptionError(
                "the residual stream begins in a kernel that computes other values too: enter at branch 0"
            )
        self.kernels = [each for each in program.kernels if self._remains(each, part)]
        mixing = next((each for each in self.kernels if each.branch in self._inputs and each.mixes), None)
        if mixing is not None:
            raise InvalidOptionError(
                f"the kernel {mixing.name} reads the residual stream both as its branch's input and as what it adds "
                "to: evaluate its layers one after another (parallel layers: 1)"
            )

    @property
    def groups(self) -> list[list[int]]:
        """The attentions that read the same value of the stream, by group of layers; without groups, none."""
        found: dict[int, list[int]] = {}
        for branch, value in self._inputs.items():
            found.setdefault(value, [] if value in self._feeding else [value]).append(branch)
        return list(found.values())

    def _remains(self, kernel: Kernel, part: Part) -> bool:
        if kernel.branch is not None:
            return kernel.branch in self.branches
        return not (part.enter and kernel.begins)

    def place(self, kernel: Kernel, number: int) -> int:
        """Returns where a kernel finds, or leaves, the stream's value `number` in the arena."""
        if number == kernel.branch and not kernel.adds:
            number = self._inputs.get(number, number)
        return self._places[self._buffers[bisect_left(self.branches, number)]]

    @property
    def given(self) -> int | None:
        """Where the stream lies at entry."""
        return self._places[self._buffers[0]] if self._places else None

    @property
    def left(self) -> int | None:
        """Where the part leaves the stream."""
        return self._places[self._buffers[-1]] if self._places else None


def _buffers(evaluated: list[int], inputs: dict[int, int]) -> list[int]:
    """Returns the buffer of the stream before each evaluated branch, and after the last."""
    last_reader = {value: branch for branch, value in inputs.items()}  # branches ascend
    before: dict[int, int] = {}
    here = 0
    for branch in evaluated:
        before[branch] = here
        waiting = {before[value] for value, reader in last_reader.items() if value <= branch <= reader}
        here = next(buffer for buffer in range(3) if buffer != here and buffer not in waiting)
    return [*before.values(), here]


def read_bytes(program: Program) -> tuple[tuple[Branch, ...], int]:
    """Returns the branches with the weight bytes that each reads, and those that kernels outside of branches read.

    There are no branches if the stream begins in a kernel with other results: no part could be entered behind branch 0.
    """
    read: dict[int | None, int] = {}
    for kernel in program.kernels:
        read[kernel.branch] = read.get(kernel.branch, 0) + program.weight_bytes(kernel.matrices)
    if not any(kernel.begins for kernel in program.kernels):
        return (), sum(read.values())
    return tuple(Branch(*each, read.get(number, 0)) for number, each in enumerate(program.branches)), read.get(None, 0)


def check_hidden(part: Part, given: bool) -> None:
    """Raises `InvalidOptionError` unless `hidden` is given if and only if the part enters behind branch 0."""
    if given != (part.enter > 0):
        raise InvalidOptionError(
            f"a part that enters at branch {part.enter} {'needs' if part.enter else 'does not take'} hidden states"
        )
