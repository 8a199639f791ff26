"""Where a value lies in memory, as seen by a loop nest: the buffer, its shape, and its element type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from forerun import ir
from forerun.errors import UnsupportedOperationError

Kind = Literal["number", "integer", "truth"]
"""The kind of a computed value: float32, int32 for integers of any width, or booleans, stored as int32."""

Space = Literal["input", "value", "weight", "state", "request", "scratch", "product", "sampled"]
"""An input of the entry, a value of its function, a weight, the records of a state per position, those of one per
row or request, memory private to one kernel, a product that a tile has in registers, or the sampled tokens."""

MANY = 1 << 40
"""Upper bound on the records of a state: above 32 bits, so that places are computed in 64."""


def kind_of(dtype: str) -> Kind:
    """Returns the kind that a dtype is computed as; UnsupportedOperationError for floats except float32."""
    if dtype == "i1":
        return "truth"
    if dtype in ir.INTEGER_DTYPES:
        return "integer"
    if dtype == "f32":
        return "number"
    raise UnsupportedOperationError(f"kernels compute in float32, not {dtype}; load the model as float32.")


def element_of(dtype: str) -> str:
    """Returns how elements of a dtype lie in memory, unless a storage says otherwise."""
    return "f32" if kind_of(dtype) == "number" else "i32"


@dataclass(frozen=True)
class Buffer:
    """Row-major elements. `key` distinguishes the buffers of a space; `element` is the type in memory: "f32", "bf16",
    "f16", "i32", or a storage of quantized blocks."""

    space: Space
    key: Any
    dims: tuple[ir.Dim, ...]
    dtype: str
    element: str

    @property
    def kind(self) -> Kind:
        return kind_of(self.dtype)

    @property
    def of_state(self) -> bool:
        return self.space in ("state", "request")

    def __str__(self) -> str:
        name = getattr(self.key, "name_hint", None) or (self.key if isinstance(self.key, str) else "")
        return f"{self.space}{f' {name}' if name else ''}[{', '.join(map(str, self.dims))}]"
