"""How keys and values lie in the cache, and how a row's are written.

For each block of P slots and each layer the cache keeps keys as [Hkv, D, P] (P keys side by side: scores need no sum
across lanes), then values as [Hkv, P, Dv].
"""

from dataclasses import dataclass

from forerun import ir
from forerun.codegen.tvm.builder import Buffer, Expr, integer, let, number, store
from forerun.codegen.tvm.expressions import Expressions
from forerun.codegen.tvm.target import LANES
from forerun.codegen.tvm.untyped import tirx


def words_of(heads: int, key_dim: int, value_dim: int, block: int) -> int:
    """float32 numbers that one layer's keys and values of one block take."""
    return heads * block * (key_dim + padded(value_dim))


def padded(size: int) -> int:
    """Whole vectors."""
    return -(-size // LANES) * LANES


@dataclass(frozen=True)
class Layer:
    """One layer's cache: `slot` holds its offset inside a block's record, `record` the numbers of a whole record."""

    heads: int
    key_dim: int
    value_dim: int
    block: int
    slot: int
    record: int

    def key_place(self, head: Expr, dim: Expr, lane: Expr) -> Expr:
        return (head * integer(self.key_dim) + dim) * integer(self.block) + lane

    def value_place(self, head: Expr, lane: Expr, dim: Expr) -> Expr:
        keys = integer(self.heads * self.key_dim * self.block)
        return keys + (head * integer(self.block) + lane) * integer(padded(self.value_dim)) + dim


def layer_window(context: Expressions, layer: Layer, block: Expr) -> Buffer:
    """The layer's keys and values of one block."""
    frame = context.frame
    return frame.window("state", block.astype("int64") * frame.slot(layer.record) + frame.slot(layer.slot))


def emit_cache_write(context: Expressions, layer: Layer, operands: list[ir.SSAValue], row: Expr) -> None:
    """Write one row's keys and values to its slot."""
    keys, values, slots = operands
    frame = context.frame
    slot = let(context.element(slots, [row]))
    window = layer_window(context, layer, let(tirx.truncdiv(slot, integer(layer.block))))
    lane = let(tirx.truncmod(slot, integer(layer.block)))
    with frame.serial(0, layer.heads) as head:
        with frame.serial(0, layer.key_dim) as dim:
            store(window, context.element(keys, [row, head, dim]), layer.key_place(head, dim, lane), 1)
        with frame.serial(0, layer.value_dim) as dim:
            store(window, context.element(values, [row, head, dim]), layer.value_place(head, lane, dim), 1)
        for dim in range(layer.value_dim, padded(layer.value_dim)):
            store(window, number(0.0), layer.value_place(head, lane, integer(dim)), 1)
