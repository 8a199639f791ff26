"""Indices of elements as affine sums of named lanes: views become index arithmetic that is known when compiling.

A sum keeps what it is made of: `head * 16 + 8 + within` divided by 16 is `head`. What does not simplify becomes a lane
of its own whose text is the division. Indices are not negative, but a sum may be an intermediate one that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forerun import ir
from forerun.ir import dims as dimensions


@dataclass(frozen=True)
class Lane:
    """A variable of a kernel: `text` in [0, size), in the scope of `depth`. `guards` name what must hold to use it.

    `wide` says that it runs along the last axis of a tile; `origin` is ("div" or "mod", divided index, divisor).
    """

    text: str
    size: int | None = None
    guards: frozenset[str] = frozenset()
    depth: int = 0
    wide: bool = False
    origin: tuple[str, Index, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Index:
    """`constant` plus the sum of lanes with their factors."""

    terms: tuple[tuple[Lane, int], ...] = ()
    constant: int = 0

    @staticmethod
    def of(lane: Lane) -> Index:
        return Index(((lane, 1),))

    @property
    def lanes(self) -> tuple[Lane, ...]:
        return tuple(lane for lane, _ in self.terms)

    @property
    def guards(self) -> frozenset[str]:
        return frozenset(guard for lane in self.lanes for guard in lane.guards)

    @property
    def depth(self) -> int:
        return max((lane.depth for lane in self.lanes), default=0)

    @property
    def wide(self) -> bool:
        return any(lane.wide for lane in self.lanes)

    @property
    def most(self) -> int | None:
        """The largest value; None where that is not known."""
        total = self.constant
        for lane, factor in self.terms:
            if lane.size is None:
                return None
            total += max(0, factor * (lane.size - 1))
        return total

    @property
    def least(self) -> int | None:
        """The smallest value; None where that is not known."""
        total = self.constant
        for lane, factor in self.terms:
            if factor < 0 and lane.size is None:
                return None
            total += min(0, factor * ((lane.size or 1) - 1))
        return total

    @property
    def text(self) -> str:
        parts = [lane.text if factor == 1 else f"{lane.text} * {factor}" for lane, factor in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        joined = " + ".join(parts).replace("+ -", "- ")
        return joined if len(parts) == 1 and "*" not in joined else f"({joined})"

    def plus(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.constant + other)
        factors: dict[Lane, int] = {}
        for lane, factor in (*self.terms, *other.terms):
            factors[lane] = factors.get(lane, 0) + factor
        terms = tuple((lane, factor) for lane, factor in factors.items() if factor)
        return _recombined(Index(terms, self.constant + other.constant))

    def times(self, factor: int) -> Index:
        if factor == 0:
            return Index()
        return Index(tuple((lane, each * factor) for lane, each in self.terms), self.constant * factor)

    def divided(self, divisor: int) -> tuple[Index, Index]:
        """The floor quotient and the remainder."""
        whole = tuple((lane, factor // divisor) for lane, factor in self.terms if factor % divisor == 0)
        rest = Index(tuple(each for each in self.terms if each[1] % divisor), self.constant % divisor)
        quotient = Index(whole, self.constant // divisor)
        if rest.least is not None and rest.least >= 0 and rest.most is not None and rest.most < divisor:
            return quotient, rest
        most = rest.most
        size = None if most is None else most // divisor + 1
        upper = self._made("div", rest, divisor, f"({rest.text} // {divisor})", size)
        lower = self._made("mod", rest, divisor, f"({rest.text} % {divisor})", divisor)
        return quotient.plus(Index.of(upper)), Index.of(lower)

    @staticmethod
    def _made(kind: str, of: Index, divisor: int, text: str, size: int | None) -> Lane:
        return Lane(text, size, of.guards, of.depth, of.wide, (kind, of, divisor))


def _recombined(index: Index) -> Index:
    """`x // d * d + x % d` is x."""
    for lane, factor in index.terms:
        if lane.origin is None or lane.origin[0] != "mod":
            continue
        _, divided, divisor = lane.origin
        for other, times in index.terms:
            same = other.origin is not None and other.origin[0] == "div" and other.origin[1:] == lane.origin[1:]
            if same and times == factor * divisor:
                left = tuple(each for each in index.terms if each[0] not in (lane, other))
                return Index(left, index.constant).plus(divided.times(factor))
    return index


def size_name(symbol: str) -> str:
    """The kernel's variable of a dimension's name, which may be any word for those that a model's author chose."""
    return symbol if symbol in ("N", "M") else f"{symbol}_size"


def size_of(dim: ir.Dim) -> Index:
    """A dimension: a number, or the kernel's variable of that name."""
    parts = dimensions.affine(dim)
    if not parts.symbol:
        return Index(constant=parts.offset)
    return Index(((Lane(size_name(parts.symbol)), parts.scale),), parts.offset)


def flat(dims: Sequence[ir.Dim], index: Sequence[Index]) -> Index:
    """The row-major place of an index; axes of size 1 do not count."""
    place = Index()
    for dim, at in zip(dims, index, strict=True):
        if isinstance(dim, int):
            place = place.times(dim)
        elif place.terms or place.constant:
            name = f"({place.text} * {size_of(dim).text})"
            place = Index.of(Lane(name, None, place.guards, place.depth, place.wide))
        if dim != 1:
            place = place.plus(at)
    return place


def unflat(dims: Sequence[ir.Dim], place: Index) -> list[Index]:
    """The index of a row-major place."""
    index: list[Index] = []
    for axis in range(len(dims) - 1, -1, -1):
        dim = dims[axis]
        if dim == 1:
            index.append(Index())
        elif all(each == 1 for each in dims[:axis]):
            index.append(place)
            place = Index()
        elif isinstance(dim, int):
            place, rest = place.divided(dim)
            index.append(rest)
        else:
            size = size_of(dim).text
            parts = [f"({place.text} {sign} {size})" for sign in ("%", "//")]
            rest, place = (Index.of(Lane(each, None, place.guards, place.depth, place.wide)) for each in parts)
            index.append(rest)
    return index[::-1]


def reshaped(before: Sequence[ir.Dim], after: Sequence[ir.Dim], index: Sequence[Index]) -> list[Index]:
    """The index before a reshape of an index after it, through the smallest groups of axes of one volume."""
    result: list[Index] = []
    for left, right in dimensions.groups(before, after):
        if tuple(before[left]) == tuple(after[right]):
            result.extend(index[right])
        else:
            result.extend(unflat(before[left], flat(after[right], index[right])))
    return result
