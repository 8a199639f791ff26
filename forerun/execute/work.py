"""How much a kernel of a step has to do: the bytes that it moves and the operations of its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from forerun import dims as dimensions
from forerun.codegen.program import NUMBER, Kernel, Program
from forerun.execute.arguments import sizes_of
from forerun.runtime.executable import Rows


@dataclass(frozen=True)
class Work:
    """What a kernel has to do, each byte and each operation counted once."""

    weight_bytes: int  # of the matrices of its products; of experts those of the chosen, at most
    value_bytes: int  # of its inputs and results for all rows, and of the cached keys and values that it reads
    flops: Mapping[str, int]  # by arithmetic; of products and attentions, a multiplication and an addition are two

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.value_bytes


def work_of(program: Program, kernel: Kernel, rows: Rows) -> Work:
    """Returns what a kernel of a step has to do for some rows; a windowed attention counts as a whole one."""
    bindings = bindings_of(program, rows)
    flops: dict[str, int] = {}
    for each in kernel.products:
        count = math.prod(dimensions.evaluate(dim, bindings) for dim in each.rows)
        flops[each.arithmetic] = flops.get(each.arithmetic, 0) + 2 * count * each.features * each.outputs
    if kernel.attended:
        seen = int((rows.positions + 1).sum())
        flops[ATTENTION] = flops.get(ATTENTION, 0) + 2 * seen * kernel.attended
    return Work(weight_bytes(program, kernel, len(rows.tokens)), value_bytes(kernel, bindings, rows), flops)


ATTENTION = "attention"
"""What the operations of attentions are counted under: their arithmetic is a back end's own."""


def weight_bytes(program: Program, kernel: Kernel, rows: int) -> int:
    """Returns the bytes of the matrices that a kernel reads for so many rows; each row may choose other experts."""
    found = (program.weights[name] for name in kernel.matrices)
    return sum(each.bytes if each.read is None else min(each.bytes, rows * each.read) for each in found)


def bindings_of(program: Program, rows: Rows) -> dict[str, int]:
    """Returns the sizes of the dimensions of a step of some rows."""
    placed, signature = rows.placed(program.block), program.step.signature
    return sizes_of(signature, {each.name: getattr(placed, each.name).shape for each in signature.arguments})


def value_bytes(kernel: Kernel, bindings: Mapping[str, int], rows: Rows) -> int:
    """Returns the bytes of a kernel's inputs and results, and of the histories that its attention reads."""
    total = sum(math.prod(dimensions.evaluate(dim, bindings) for dim in dims) for dims in kernel.moved)
    return total * NUMBER + kernel.history * _history(rows)


def _history(rows: Rows) -> int:
    """Returns the number of records of all sequences of a step, which rows of one sequence share: one for each position
    up to the last, and one more for each further row at the same position."""
    found: dict[int, set[int]] = {}
    for sequence, position in zip(rows.sequences.tolist(), rows.positions.tolist(), strict=True):
        found.setdefault(sequence, set()).add(position)
    beside = len(rows.positions) - sum(map(len, found.values()))
    return beside + sum(max(each) + 1 for each in found.values())
