"""Layers that share an input, side by side: the same kernel of several layers is one call of the compiled code.

Before they add to the stream, the attentions of a group of layers depend on nothing of each other, so their kernels can
run in turns: the first kernel of all layers, then the second. Kernels of layers that differ only in their weights and
states have one function, and a call of it for several layers has all of their pieces between two waits of the threads.
Each layer then needs intermediate values of its own: of each layer but the first, they lie in a further copy of the
arena.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forerun.codegen.program import Kernel
from forerun.execute.branches import StepPart


@dataclass(frozen=True)
class Batch:
    """Layers whose kernels up to the sum run side by side: of each, those kernels, all equally many."""

    layers: tuple[tuple[Kernel, ...], ...]


def batches(part: StepPart) -> list[Batch]:
    """Returns the batches of a part, in order: for each group of layers, none if its kernels must stay in theirs."""
    if any(kernel.message is not None for kernel in part.kernels):
        return []
    found = (_batch(part.kernels, branches) for branches in part.groups if len(branches) > 1)
    return [each for each in found if each is not None]


def _batch(kernels: Sequence[Kernel], branches: Sequence[int]) -> Batch | None:
    of_branch = {branch: [each for each in kernels if each.branch == branch] for branch in branches}
    places = [at for at, kernel in enumerate(kernels) if kernel.branch in of_branch]
    if any(kernel.branch is None for kernel in kernels[places[0] : places[-1]]):
        return None  # what it computes may be read by a layer that would run before it
    layers = tuple(_before_the_sum(own) for own in of_branch.values())
    states = [_states(own) for own in of_branch.values()]
    shared = len(set[str]().union(*states)) < sum(map(len, states))
    launches = {tuple(len(kernel.launches) for kernel in own) for own in layers}
    if shared or not layers[0] or len(launches) > 1:
        return None
    return Batch(layers)


def _before_the_sum(kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """The first kernels of a branch that read no value of the stream but the group's input, and leave none."""
    end = next((at for at, each in enumerate(kernels) if each.adds or _leaves(each)), len(kernels))
    return tuple(kernels[:end])


def _leaves(kernel: Kernel) -> bool:
    """Whether a kernel leaves a value of the stream."""
    return any(value.stream is not None for value in kernel.results)


def _states(kernels: Sequence[Kernel]) -> set[str]:
    operands = (each for kernel in kernels for launch in kernel.launches for each in launch.operands)
    return {str(each.key) for each in operands if each.kind == "state"}


class OwnValues:
    """Says which operands of a branch's kernels, met in order, lie in the branch's own copy of the arena."""

    def __init__(self) -> None:
        self._written: set[int] = set()

    def of(self, kernel: Kernel, batched: bool) -> set[int]:
        """Returns the places in the arena that a kernel finds in the copy; of a batched one, scratch does too."""
        self._written.update(value.place for value in kernel.results if value.stream is None)
        found = set(self._written)
        if batched:
            operands = (each for launch in kernel.launches for each in launch.operands)
            found.update(int(each.key) for each in operands if each.kind == "scratch")
        return found
