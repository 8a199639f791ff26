"""Indices of elements as affine sums of lanes: views become index arithmetic at compile time.

A sum keeps its terms: `head * 16 + 8 + within` divided by 16 is `head`. A quotient that does not simplify becomes a new
lane. Lanes are not negative; a sum that is an intermediate result may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any, Literal

from forerun import dims as dimensions
from forerun.dims import Dim

Combining = Literal["quotient", "remainder", "product"]
"""The floor quotient or the remainder of a division by a positive number, or a product with a size known only at run
time."""


@dataclass(frozen=True)
class Combined:
    """An index made from two others."""

    function: Combining
    index: Index
    other: Index


@dataclass(frozen=True)
class Computed:
    """An integer computed from data, such as an index from a table."""

    expr: Any  # an `Expr`, which itself contains indices


@dataclass(frozen=True)
class NamedSize:
    """The size of a named dimension."""


Made = Combined | Computed | NamedSize
Substitution = Callable[["Lane"], "Index | None"]
"""The replacement of a loop variable; None if it is unchanged."""


@dataclass(frozen=True)
class Lane:
    """An integer in [0, size), or of unknown size: a loop variable, or `made` from other lanes."""

    name: str
    size: int | None = None
    made: Made | None = None

    @cached_property
    def variables(self) -> frozenset[Lane]:
        """The loop variables that it depends on."""
        match self.made:
            case Combined(_, index, other):
                return index.variables | other.variables
            case Computed(expr):
                return expr.lanes
            case NamedSize():
                return frozenset()
            case None:
                return frozenset({self})

    def substitute(self, replaced: Substitution) -> Index:
        match self.made:
            case Combined("quotient", index, divisor):
                return index.substitute(replaced).divided(divisor)[0]
            case Combined("remainder", index, divisor):
                return index.substitute(replaced).divided(divisor)[1]
            case Combined(_, index, size):
                return index.substitute(replaced).scaled(size)
            case Computed(expr):
                return Index.of(Lane(self.name, self.size, Computed(expr.substitute(replaced))))
            case NamedSize():
                return Index.of(self)
            case None:
                return replaced(self) or Index.of(self)


@dataclass(frozen=True)
class Index:
    """`constant` plus the sum of lanes times their factors."""

    terms: tuple[tuple[Lane, int], ...] = ()
    constant: int = 0

    @staticmethod
    def of(lane: Lane) -> Index:
        return Index(((lane, 1),))

    @staticmethod
    def computed(expr: Any, size: Dim | None = None) -> Index:
        """Returns an integer that is computed from data; it is in [0, size)."""
        return Index.of(Lane("computed", size if isinstance(size, int) else None, Computed(expr)))

    @property
    def lanes(self) -> Iterator[Lane]:
        return (lane for lane, _ in self.terms)

    @cached_property
    def variables(self) -> frozenset[Lane]:
        """The loop variables that it depends on."""
        return frozenset(each for lane in self.lanes for each in lane.variables)

    @property
    def known(self) -> int | None:
        """The value, if it is a constant."""
        return None if self.terms else self.constant

    @property
    def most(self) -> int | None:
        """The largest value; None if unknown."""
        total = self.constant
        for lane, factor in self.terms:
            if factor > 0:
                if lane.size is None:
                    return None
                total += factor * (lane.size - 1)
        return total

    @property
    def least(self) -> int | None:
        """The smallest value; None if unknown."""
        highest = self.times(-1).most
        return None if highest is None else -highest

    def plus(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.constant + other)
        factors: dict[Lane, int] = {}
        for lane, factor in (*self.terms, *other.terms):
            factors[lane] = factors.get(lane, 0) + factor
        terms = tuple((lane, factor) for lane, factor in factors.items() if factor)
        return _recombined(Index(terms, self.constant + other.constant))

    def minus(self, other: Index) -> Index:
        return self.plus(other.times(-1))

    def times(self, factor: int) -> Index:
        if factor == 0:
            return Index()
        return Index(tuple((lane, each * factor) for lane, each in self.terms), self.constant * factor)

    def scaled(self, size: Index) -> Index:
        """Returns the product with a size."""
        if size.known is not None:
            return self.times(size.known)
        if self.known is not None:
            return size.times(self.known)
        return self._combined("product", size)

    def divided(self, divisor: Index | int) -> tuple[Index, Index]:
        """Returns the floor quotient and the remainder."""
        by = Index(constant=divisor) if isinstance(divisor, int) else divisor
        if by.known is None:
            return self._combined("quotient", by), self._combined("remainder", by)
        number = by.known
        whole = tuple((lane, factor // number) for lane, factor in self.terms if factor % number == 0)
        rest = Index(tuple(each for each in self.terms if each[1] % number), self.constant % number)
        quotient = Index(whole, self.constant // number)
        if rest.inside(number):
            return quotient, rest
        coarse, fine = rest.split(number)
        if fine is not None:  # (coarse * common + fine) / number, fine < common
            common, high = coarse
            above, below = high.divided(number // common)
            return quotient.plus(above), below.times(common).plus(fine)
        most = rest.most
        size = None if most is None else most // number + 1
        return quotient.plus(rest._combined("quotient", by, size)), rest._combined("remainder", by, number)

    def _combined(self, function: Combining, other: Index, size: int | None = None) -> Index:
        return Index.of(Lane(function, size, Combined(function, self, other)))

    def inside(self, size: int) -> bool:
        """Whether the index is known to be in [0, size)."""
        return self.least is not None and self.least >= 0 and self.most is not None and self.most < size

    def split(self, divisor: int) -> tuple[tuple[int, Index], Index | None]:
        """Returns `(common, high), low` with self = high * common + low, low in [0, common) and `common` a divisor of
        `divisor` between 1 and it; low is None if there is no such sum."""
        for common in sorted({gcd(factor, divisor) for _, factor in self.terms}, reverse=True):
            if not 1 < common < divisor:
                continue
            high = tuple((lane, factor // common) for lane, factor in self.terms if factor % common == 0)
            low = Index(tuple(each for each in self.terms if each[1] % common), self.constant % common)
            if high and low.inside(common):
                return (common, Index(high, self.constant // common)), low
        return (1, self), None

    def substitute(self, replaced: Substitution) -> Index:
        """Returns the index with loop variables replaced."""
        total = Index(constant=self.constant)
        for lane, factor in self.terms:
            total = total.plus(lane.substitute(replaced).times(factor))
        return total


def _recombined(index: Index) -> Index:
    """Simplifies `x // d * d + x % d` to x."""
    for lane, factor in index.terms:
        low = lane.made
        if not isinstance(low, Combined) or low.function != "remainder" or low.other.known is None:
            continue
        high = Combined("quotient", low.index, low.other)
        for other, times in index.terms:
            if other.made == high and times == factor * low.other.known:
                left = tuple(each for each in index.terms if each[0] not in (lane, other))
                return Index(left, index.constant).plus(low.index.times(factor))
    return index


def size_of(dim: Dim) -> Index:
    """Returns a dimension as an index: a number, or the size of that name."""
    parts = dimensions.affine(dim)
    if not parts.symbol:
        return Index(constant=parts.offset)
    return Index(((Lane(parts.symbol, None, NamedSize()), parts.scale),), parts.offset)


def flat(dims: Sequence[Dim], index: Sequence[Index]) -> Index:
    """Returns the row-major place of an index; axes of size 1 are ignored."""
    place = Index()
    for dim, at in zip(dims, index, strict=True):
        if dim != 1:
            place = place.scaled(size_of(dim)).plus(at)
    return place


def unflat(dims: Sequence[Dim], place: Index) -> list[Index]:
    """Returns the index of a row-major place."""
    index: list[Index] = []
    for axis in range(len(dims) - 1, -1, -1):
        if dims[axis] == 1:
            index.append(Index())
        elif all(each == 1 for each in dims[:axis]):
            index.append(place)
            place = Index()
        else:
            place, rest = place.divided(size_of(dims[axis]))
            index.append(rest)
    return index[::-1]


def reshaped(before: Sequence[Dim], after: Sequence[Dim], index: Sequence[Index]) -> list[Index]:
    """Maps an index after a reshape to the index before it, through the smallest groups of axes of equal volume."""
    result: list[Index] = []
    for left, right in dimensions.groups(before, after):
        if tuple(before[left]) == tuple(after[right]):
            result.extend(index[right])
        else:
            result.extend(unflat(before[left], flat(after[right], index[right])))
    return result


def volume(dims: Sequence[Dim]) -> Index:
    """Returns the number of elements."""
    total = Index(constant=1)
    for dim in dims:
        total = total.scaled(size_of(dim))
    return total
