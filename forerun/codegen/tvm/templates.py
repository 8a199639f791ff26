"""Turns nests into functions: each kind of nest has one template, a choice two."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.nest import AttentionNest, Nest, ProductNest, RecurrenceNest, RowNest, TopKNest
from forerun.codegen.tvm.attention import emit_attention
from forerun.codegen.tvm.builder import Frame, function
from forerun.codegen.tvm.code import Code
from forerun.codegen.tvm.linear import emit_products
from forerun.codegen.tvm.quantized import FORMATS
from forerun.codegen.tvm.rows import emit_recurrence, emit_rows
from forerun.codegen.tvm.target import Machine
from forerun.codegen.tvm.topk import emit_maxima, emit_topk

Template = Callable[[Code, Any, Machine], None]
"""Emits one nest, or a part of one, into the function under construction."""

TEMPLATES: dict[str, Template] = {
    "rows": emit_rows,
    "products": emit_products,
    "attention": emit_attention,
    "recurrence": emit_recurrence,
    "maxima": emit_maxima,
    "topk": emit_topk,
}

OF_NEST: dict[type[Nest], tuple[str, ...]] = {
    RowNest: ("rows",),
    ProductNest: ("products",),
    AttentionNest: ("attention",),
    RecurrenceNest: ("recurrence",),
    TopKNest: ("maxima", "topk"),
}
"""The templates of a nest; their functions run one after another."""


@dataclass(frozen=True)
class Made:
    """A template applied to a nest; the function is built when code is generated."""

    kind: str
    nest: Nest
    buffers: Sequence[Buffer]
    sizes: Sequence[str]

    def function(self, machine: Machine, templates: Mapping[str, Template]) -> Any:
        def body(frame: Frame) -> None:
            templates[self.kind](Code(frame, self.buffers, FORMATS), self.nest, machine)

        return function(self.sizes, body)
