"""Sizes that torch.export has traced, as dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import Max, Min

from forerun import dims as dimensions
from forerun.dims import Dim


def traced_dim(size: int | torch.SymInt, names: Mapping[str, str], bounds: Mapping[str, tuple[int, int]]) -> Dim:
    """Returns a traced size as a dimension. Raises ValueError unless it is affine in one name."""
    if isinstance(size, int):
        return size
    expression = _decided(sympy.sympify(size.node.expr), bounds)
    if expression.is_Integer:
        return int(expression)
    free = sorted(expression.free_symbols, key=str)
    if len(free) != 1 or str(free[0]) not in names:
        raise ValueError(f"a size {expression} that is not affine in the sequence length")
    polynomial = sympy.Poly(expression, free[0]) if expression.is_polynomial(free[0]) else None
    if polynomial is None or polynomial.degree() != 1:
        raise ValueError(f"a size {expression} that is not affine in the sequence length")
    scale, offset = (int(each) for each in polynomial.all_coeffs())
    return dimensions.Affine(scale, names[str(free[0])], offset).dim()


def _decided(expression: sympy.Basic, bounds: Mapping[str, tuple[int, int]]) -> Any:
    """Extrema of affine sizes, decided where one is the largest (smallest) for every length of the sequence."""
    for extremum in expression.atoms(Max, Min, sympy.Max, sympy.Min):
        free = sorted(extremum.free_symbols, key=str)
        if len(free) != 1 or str(free[0]) not in bounds:
            continue
        sign = 1 if isinstance(extremum, Max | sympy.Max) else -1
        ends = [[sign * int(str(each.subs(free[0], end))) for each in extremum.args] for end in bounds[str(free[0])]]
        for place, each in enumerate(extremum.args):
            if all(values[place] == max(values) for values in ends):
                return _decided(expression.xreplace({extremum: each}), bounds)
    return expression


def traced_sizes(shape: Iterable[int | torch.SymInt]) -> list[int | str]:
    """The sizes of a traced shape; a dynamic one is a text."""
    return [str(size) if isinstance(size, torch.SymInt) else size for size in shape]
