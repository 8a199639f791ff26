"""The table from ATen names to `spec` operations, shared by every frontend that speaks ATen.

A rule is `rule(build, *arguments, **keywords)`: tensors are IR values, sizes are dimensions, the rest Python values.
It returns a value, or a tuple of values if the operator returns several. The files `aten_*.py` hold the rules.
"""

from __future__ import annotations

from forerun.frontends import (
    aten_einsum,
    aten_elementwise,
    aten_filled,
    aten_indices,
    aten_products,
    aten_reductions,
    aten_scatters,
    aten_shifts,
    aten_sorting,
    aten_views,
)
from forerun.frontends.aten_rules import RULES

VIEWS = frozenset({
    "view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "transpose", "permute", "t",
    "numpy_T", "mT", "swapaxes", "swapdims", "expand", "expand_as", "broadcast_to", "slice", "select", "narrow",
    "chunk", "split", "split_with_sizes", "unbind", "view_as", "reshape_as",
    "alias", "detach", "contiguous", "dropout", "lift_fresh", "to", "type_as",
})  # fmt: skip
"""Operators whose result may share memory with their operand."""

FILES = (
    aten_einsum,
    aten_elementwise,
    aten_filled,
    aten_indices,
    aten_products,
    aten_reductions,
    aten_scatters,
    aten_shifts,
    aten_sorting,
    aten_views,
)
"""Where the rules are: each file enters its own into `RULES`."""

__all__ = ["FILES", "RULES", "VIEWS"]
