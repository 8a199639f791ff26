"""The terms of a sum over experts: what each computes of all rows, and which rows chose it.

sum over k of where(one_hot(ids)[e] != 0, value, 0)
"""

from __future__ import annotations

from dataclasses import dataclass

from forerun.ir import Cast, Iota, Reduce, Reshape, Slice, SSAValue, TopK, Transpose, tensor_type
from forerun.passes.matching import defined_by, either_order, mapped, number, used_once


@dataclass(frozen=True)
class Choice:
    """The rows that chose an expert: those of ids [..., k], transposed by `order`, that are its number."""

    ids: SSAValue  # or [..., k, 1]
    order: tuple[int, ...]
    expert: int


@dataclass(frozen=True)
class Term:
    """What one expert computes of all rows, or the sum of it over a row's choices."""

    value: SSAValue  # of all rows and choices
    choice: Choice
    summed: tuple[tuple[int, ...], bool] | None  # along which dimensions, and whether they stay, as of size one


def leaves(value: SSAValue) -> list[SSAValue]:
    """The values that a sum of values of one type is made of."""
    found: list[SSAValue] = []
    pending = [value]
    while pending:
        each = pending.pop()
        added = mapped(each, "add")
        if added is not None and (each is value or used_once(each)) and added.result.type == value.type:
            pending.extend(reversed(added.inputs))
        else:
            found.append(each)
    return found


def term_of(value: SSAValue) -> Term | None:
    """The term that one of these is, or None."""
    total = defined_by(value, Reduce)
    if total is not None and total.function != "sum":
        return None
    guarded = mapped(value if total is None else total.x, "where")
    if guarded is None or number(guarded.inputs[2]) != 0:
        return None
    condition, kept, _ = guarded.inputs
    choice = _choice(condition)
    if choice is None or kept.type != guarded.result.type:
        return None
    return Term(kept, choice, None if total is None else (tuple(total.dims), bool(total.keep)))


def _choice(condition: SSAValue) -> Choice | None:
    """What the places of a one-hot encoding of ids say, of which one is taken."""
    dims = tensor_type(condition).dims
    value = _unviewed(condition)
    if (differs := mapped(value, "ne")) is not None and number(differs.inputs[1]) == 0:
        value = _unviewed(differs.inputs[0])
    taken = defined_by(value, Slice)
    if taken is None or not isinstance(taken.start, int) or taken.stop != taken.start + 1:
        return None
    value, order = taken.x, tuple(range(tensor_type(taken.x).rank))
    while isinstance(value.owner, Cast | Transpose):
        if isinstance(value.owner, Transpose):
            order = tuple(value.owner.permutation[each] for each in order)
        value = value.owner.x
    equal = mapped(value, "eq")
    for ids, numbers in either_order(equal) if equal is not None else ():
        last = tensor_type(value).rank - 1
        counted = defined_by(_unviewed(numbers), Iota)
        view = defined_by(ids, Reshape)
        if counted is None or tensor_type(ids).rank != last + 1 or order[taken.dim] != last:
            continue
        if any(dim != 1 for dim in tensor_type(numbers).dims[:-1]) or tensor_type(ids).dtype not in ("i64", "i32"):
            continue
        *lead, one = tensor_type(ids).dims
        if one != 1:
            continue
        rest = tuple(each for at, each in enumerate(order) if at != taken.dim)
        placed = [lead[each] for each in rest]
        if [each for each in dims if each != 1] == [each for each in placed if each != 1]:
            narrow = view is not None and tensor_type(view.x).dims == (*lead,)
            return Choice(view.x if view is not None and narrow else ids, rest, taken.start)
    return None


def _unviewed(value: SSAValue) -> SSAValue:
    while isinstance(value.owner, Reshape | Cast):
        value = value.owner.x
    return value


def bound_of(ids: SSAValue) -> int | None:
    """A number that all ids are below; none is negative then."""
    value = _unviewed(ids)
    choice = defined_by(value, TopK)
    size = None if choice is None or value is not choice.indices else tensor_type(choice.x).dims[-1]
    return size if isinstance(size, int) else None
