"""quantize_products: products with quantized matrices become products of integers.

A matrix in blocks of small integers needs no float32 numbers: with the rows as integers too (`ir.products.quantized`),
a processor multiplies four numbers in the place of one, and sums of integers are exact. Matrices of other weight dtypes
keep float32 products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from forerun.errors import InvalidOptionError
from forerun.ir import BLOCK_STORAGES, INT8, Context, Linear, ModuleOp, Parameter, entries, walk, weights
from forerun.passes.base import Needs, Pass, pass_context

FLOAT32 = "float32"
"""Products of float32 numbers, whatever the matrix."""


@dataclass(frozen=True)
class QuantizeProducts(Pass):
    """Linears whose matrix is stored in quantized blocks get the arithmetic "int8"; with "float32", none do."""

    name: ClassVar[str] = "quantize-products"
    needs: ClassVar[Needs | None] = Needs("step", before_kernels=True)

    arithmetic: str = FLOAT32

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        if self.arithmetic not in (FLOAT32, INT8):
            raise InvalidOptionError(f"There is no arithmetic {self.arithmetic!r}; use {FLOAT32} or {INT8}.")
        if self.arithmetic == FLOAT32:
            return
        declared = weights(op)
        linears = [each for entry in entries(op).values() for each in walk(entry.body) if isinstance(each, Linear)]
        changed = 0
        for linear in linears:
            matrix = linear.weight.owner
            if isinstance(matrix, Parameter) and declared[matrix.symbol].storage in BLOCK_STORAGES:
                linear.arithmetic = INT8
                changed += 1
        pass_context(ctx).note(f"{self.name}: {changed} of {len(linears)} products in {INT8}")
