"""narrow_products: products with narrow matrices become products of narrow rows.

A matrix of small integers or of bfloat16 numbers needs no float32 rows: a processor multiplies four integers, or two
bfloat16 numbers, in the place of one float32, and sums stay exact or in float32. Other matrices keep float32 products.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import InvalidOptionError
from forerun.ir import (
    BFLOAT16,
    BLOCK_STORAGES,
    INT8,
    Context,
    ModuleOp,
    Parameter,
    WeightProduct,
    entries,
    first_of,
    walk,
    weights,
)
from forerun.passes.base import Needs, Pass, pass_context

FLOAT32 = "float32"
"""Products of float32 numbers, whatever the matrix."""
ARITHMETICS: dict[str, Mapping[str, str]] = {
    FLOAT32: {},
    BFLOAT16: {"bf16": BFLOAT16},
    INT8: {"bf16": BFLOAT16, **dict.fromkeys(BLOCK_STORAGES, INT8)},
}
"""The arithmetic of a product by the storage of its matrix, for the narrowest numbers that are allowed."""


@dataclass(frozen=True)
class NarrowProducts(Pass):
    """Products get the arithmetic that suits the storage of their matrix, none narrower than `arithmetic`."""

    name: ClassVar[str] = "narrow-products"
    needs: ClassVar[Needs | None] = Needs("step", before_kernels=True)

    arithmetic: str = FLOAT32

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        if self.arithmetic not in ARITHMETICS:
            known = ", ".join(ARITHMETICS)
            raise InvalidOptionError(f"There is no arithmetic {self.arithmetic!r}; use one of {known}.")
        declared = weights(op)
        products = [
            each for entry in entries(op).values() for each in walk(entry.body) if isinstance(each, WeightProduct)
        ]
        changed: Counter[str] = Counter()
        for product in products:
            matrix = first_of(product.weight).owner
            storage = declared[matrix.symbol].storage if isinstance(matrix, Parameter) else None
            product.arithmetic = ARITHMETICS[self.arithmetic].get(storage or "")
            changed[product.arithmetic or FLOAT32] += 1
        if self.arithmetic != FLOAT32:
            found = ", ".join(f"{count} in {arithmetic}" for arithmetic, count in sorted(changed.items()))
            pass_context(ctx).note(f"{self.name}: of {len(products)} products {found}")
