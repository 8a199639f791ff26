"""States that are windows: each step drops the oldest of a few places and puts a value of the token in the last one.

A state that becomes a value of the token, whatever it was before, is a window of one place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forerun.ir import Concat, Slice, SSAValue, Window, backward_slice, tensor_type
from forerun.passes.lifting import Lifting
from forerun.passes.matching import SEQUENCE


@dataclass(frozen=True)
class MovingWindow:
    """A state of `count` values along `axis`, those before the token's own `value`, which is of size 1 there.

    `axis` is None for the one value before.
    """

    before: SSAValue
    value: SSAValue
    axis: int | None
    count: int

    def lift(self, lifting: Lifting) -> None:
        """Defines the state over all positions, from its value over all positions."""
        build, dims = lifting.build, tensor_type(self.value).dims
        if self.axis is None:
            before = build.add(Window, lifting.row(self.value), count=1)
            lifting.define(self.before, build.reshape(before, (SEQUENCE, *dims)))
            return
        rest = (*dims[: self.axis], *dims[self.axis + 1 :])
        value = build.reshape(lifting.row(self.value), (SEQUENCE, *rest))
        window = build.add(Window, value, count=self.count)  # [T, count, *rest]
        order = (0, *range(2, self.axis + 2), 1, *range(self.axis + 2, len(dims) + 1))
        lifting.define(self.before, build.transpose(window, order))


def windows(states: Sequence[tuple[SSAValue, SSAValue]]) -> list[MovingWindow]:
    """Returns the windows among states, given as arguments and results, over values that do not read them."""
    found = (_window(before, after) for before, after in states)
    return [each for each in found if each is not None]


def _window(before: SSAValue, after: SSAValue) -> MovingWindow | None:
    if after is before:
        return None
    if not _reads(after, before):
        return MovingWindow(before, after, None, 1)
    kept = after.owner
    if isinstance(kept, Slice) and (kept.start, kept.step) == (1, 1) and isinstance(kept.x.owner, Concat):
        joined, first, dim = kept.x.owner, kept.x.owner.inputs[0], kept.dim
    elif isinstance(kept, Concat) and isinstance(kept.inputs[0].owner, Slice):
        joined, oldest, dim = kept, kept.inputs[0].owner, kept.dim
        size = tensor_type(oldest.x).dims[dim]
        if (oldest.dim, oldest.start, oldest.step, oldest.stop) != (dim, 1, 1, size):
            return None
        first = oldest.x
    else:
        return None
    if first is not before or joined.dim != dim or len(joined.inputs) != 2:
        return None
    value, count = joined.inputs[1], tensor_type(before).dims[dim]
    if after.type != before.type or tensor_type(value).dims[dim] != 1 or not isinstance(count, int):
        return None
    return None if _reads(value, before) else MovingWindow(before, value, dim, count)


def _reads(value: SSAValue, state: SSAValue) -> bool:
    return value is state or any(state in each.operands for each in backward_slice(value))
