"""ATen's `einsum`, as a product of matrices where letters are summed, elementwise where none are."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from forerun.frontends.aten_rules import rule
from forerun.ir import Builder, Dim, MatMul, SSAValue, tensor_type


@rule("einsum")
def _einsum(build: Builder, equation: str, operands: Sequence[SSAValue], **keywords: Any) -> SSAValue:
    """The operands are multiplied from left to right."""
    equation = equation.replace(" ", "")
    left, arrow, wanted = equation.partition("->")
    letters = left.split(",")
    if "." in equation or any(len({*each}) != len(each) for each in letters):
        raise ValueError(f"the equation {equation}")
    if not arrow:
        wanted = "".join(sorted(each for each in {*left} - {","} if left.count(each) == 1))
    value, known = operands[0], letters[0]
    for number in range(1, len(operands)):
        later = {*wanted, *"".join(letters[number + 1 :])}
        value, known = _product(build, value, known, operands[number], letters[number], later)
    value = (
        build.reduce("sum", value, [known.index(each) for each in known if each not in wanted])
        if ({*known} - {*wanted})
        else value
    )
    known = "".join(each for each in known if each in wanted)
    return build.transpose(value, [known.index(each) for each in wanted])


def _product(build: Builder, a: SSAValue, of_a: str, b: SSAValue, of_b: str, later: set[str]) -> tuple[SSAValue, str]:
    """Returns a product and its letters: those of both, those of `a`, those of `b`, less those that end here."""
    both = [each for each in of_a if each in of_b and each in later]
    summed = [each for each in of_a if each in of_b and each not in later]
    own_a = [each for each in of_a if each not in of_b]
    own_b = [each for each in of_b if each not in of_a]
    size = _sizes(a, of_a) | _sizes(b, of_b)
    a = build.transpose(a, [of_a.index(each) for each in (*both, *own_a, *summed)])
    b = build.transpose(b, [of_b.index(each) for each in (*both, *summed, *own_b)])
    lead = [size[each] for each in both]
    result = "".join((*both, *own_a, *own_b))
    if not summed:
        wide = build.reshape(a, (*lead, *(size[each] for each in own_a), *(1 for _ in own_b)))
        tall = build.reshape(b, (*lead, *(1 for _ in own_a), *(size[each] for each in own_b)))
        return build.map("mul", wide, tall), result
    inner, columns = (_volume(size, each) for each in (summed, own_b))
    *outer, row = own_a or [""]
    rows = size[row] if row else 1
    a = build.reshape(a, (*lead, *(size[each] for each in outer), rows, inner))
    b = build.reshape(b, (*lead, *(1 for _ in outer), inner, columns))
    product = build.add(MatMul, a, b)
    return build.reshape(product, [size[each] for each in result]), result


def _sizes(value: SSAValue, letters: str) -> dict[str, Dim]:
    return dict(zip(letters, tensor_type(value).dims, strict=True))


def _volume(sizes: dict[str, Dim], letters: Sequence[str]) -> Dim:
    """The product of sizes, of which one alone may have a name."""
    found = [sizes[each] for each in letters]
    names = [each for each in found if isinstance(each, str)]
    if names and len(found) > 1:
        raise ValueError(f"the dimension {names[0]} merged with another")
    return names[0] if names else prod(each for each in found if isinstance(each, int))
