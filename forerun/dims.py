"""Dimensions: integers, names, and affine expressions of one name (`T`, `T+1`, `2*T-1`).

A dimension is `int | str`; the text of an expression is canonical, so equal dimensions are equal strings.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

Dim = int | str

_AFFINE = re.compile(r"(?:(-?\d+)\*)?([A-Za-z_]\w*)([+-]\d+)?")


class Affine(NamedTuple):
    """scale * symbol + offset; symbol is "" for an integer (and scale 0)."""

    scale: int
    symbol: str
    offset: int

    def dim(self) -> Dim:
        if not self.symbol or self.scale == 0:
            return self.offset
        scale = "" if self.scale == 1 else f"{self.scale}*"
        offset = f"{self.offset:+d}" if self.offset else ""
        return f"{scale}{self.symbol}{offset}"


@lru_cache(maxsize=4096)
def affine(dim: Dim) -> Affine:
    """Returns the parts of a dimension. Raises ValueError if the text is not a dimension."""
    if isinstance(dim, int):
        return Affine(0, "", dim)
    match = _AFFINE.fullmatch(dim)
    if match is None:
        raise ValueError(f"{dim!r} is not a dimension")
    return Affine(int(match[1] or 1), match[2], int(match[3] or 0))


def symbol(dim: Dim) -> str:
    """Returns the name on which a dimension depends, "" for an integer."""
    return affine(dim).symbol


def add(left: Dim, right: Dim) -> Dim:
    a, b = affine(left), affine(right)
    if a.symbol and b.symbol and a.symbol != b.symbol:
        raise ValueError(f"cannot add dimensions {left} and {right}")
    return Affine(a.scale + b.scale, a.symbol or b.symbol, a.offset + b.offset).dim()


def multiply(dim: Dim, factor: int) -> Dim:
    a = affine(dim)
    return Affine(a.scale * factor, a.symbol, a.offset * factor).dim()


def ordered(low: Dim, high: Dim) -> bool:
    """Returns whether low <= high is certain without values for the names."""
    a, b = affine(low), affine(high)
    return (a.scale, a.symbol) != (b.scale, b.symbol) or a.offset <= b.offset


def evaluate(dim: Dim, bindings: Mapping[str, int]) -> int:
    a = affine(dim)
    if not a.symbol:
        return a.offset
    if a.symbol not in bindings:
        raise ValueError(f"dimension {dim} has no value")
    return a.scale * bindings[a.symbol] + a.offset


def substitute(dim: Dim, name: str, value: Dim) -> Dim:
    """Returns `dim` with `name` replaced by another dimension."""
    a = affine(dim)
    return add(multiply(value, a.scale), a.offset) if a.symbol == name else dim


def bind(dims: Iterable[Dim], sizes: Iterable[int], bindings: dict[str, int]) -> None:
    """Reads the values of names from actual sizes. Raises ValueError if they contradict each other."""
    for dim, size in zip(dims, sizes, strict=True):
        a = affine(dim)
        if a.symbol and a.symbol not in bindings:
            bindings[a.symbol] = (size - a.offset) // a.scale
        expected = evaluate(dim, bindings)
        if expected != size:
            named = f"{dim} = {expected}" if a.symbol else expected
            raise ValueError(f"size {size} where {named} is expected")


def volume(dims: Iterable[Dim]) -> tuple[int, tuple[str, ...]]:
    """Returns the number of elements as (integer factor, sorted symbolic factors)."""
    factor, symbolic = 1, list[str]()
    for dim in dims:
        a = affine(dim)
        if not a.symbol:
            factor *= a.offset
        elif a.offset == 0:
            factor *= a.scale
            symbolic.append(a.symbol)
        else:
            symbolic.append(str(dim))
    return factor, tuple(sorted(symbolic))


def groups(before: Sequence[Dim], after: Sequence[Dim]) -> Iterator[tuple[slice, slice]]:
    """Yields a reshape's smallest groups of axes of equal volume, in order: the axes before it and those after it."""
    left, right = 0, 0
    while left < len(before) or right < len(after):
        stop_left, stop_right = left + (left < len(before)), right + (right < len(after))
        while (one := volume(before[left:stop_left])) != (other := volume(after[right:stop_right])):
            smaller = (one[0], len(one[1])) < (other[0], len(other[1]))
            if stop_left < len(before) and (smaller or stop_right == len(after)):
                stop_left += 1
            elif stop_right < len(after):
                stop_right += 1
            else:
                stop_left, stop_right = len(before), len(after)
                break
        yield slice(left, stop_left), slice(right, stop_right)
        left, right = stop_left, stop_right
