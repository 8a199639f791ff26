"""Values that are known when a graph is imported: numbers, and sizes as functions of the sequence's length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forerun import dims as dimensions
from forerun.ir import Dim

Array = NDArray[Any]

DTYPES = {
    "float64": "f64", "float32": "f32", "float16": "f32", "bfloat16": "f32", "int64": "i64", "int32": "i32",
    "int16": "i16", "int8": "i8", "bool": "i1",
}  # fmt: skip
"""The element type of an array's dtype; half precision is widened."""
NUMPY: dict[str, Any] = {
    "f64": np.float64, "f32": np.float32, "i64": np.int64, "i32": np.int32, "i16": np.int16, "i8": np.int8,
    "i1": np.bool_,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers of an ONNX dtype; an array of objects holds sizes, each an integer or the text of a dimension.

    `name` is that of a weight, for its symbol.
    """

    array: Array
    dtype: str
    name: str | None = None

    @staticmethod
    def of(array: Array, name: str | None = None) -> Known:
        """The numbers of an array, in float32 if it has half precision."""
        dtype = DTYPES.get(array.dtype.name, array.dtype.name)
        return Known(array.astype(np.float32) if dtype == "f32" and array.dtype != np.float32 else array, dtype, name)

    @staticmethod
    def sizes(dims: Iterable[Dim]) -> Known:
        """A shape, as int64 [rank]."""
        return Known.with_sizes(np.array([*dims, None], dtype=object)[:-1], "i64")

    @staticmethod
    def with_sizes(found: Any, dtype: str) -> Known:
        """Sizes, an array or one of them; plain numbers if none depends on the sequence."""
        array = np.asarray(found, dtype=object)
        if any(isinstance(each, str) for each in array.ravel()):
            return Known(array, dtype)
        return Known(array.astype(NUMPY[dtype]), dtype)

    def with_array(self, found: Any) -> Known:
        """Some of the same numbers or sizes, in another arrangement."""
        if self.symbolic:
            return Known.with_sizes(found, self.dtype)
        return Known(np.asarray(found), self.dtype, self.name)

    @property
    def symbolic(self) -> bool:
        return self.array.dtype == object

    @property
    def empty(self) -> bool:
        return self.array.size == 0

    def dims(self) -> list[Dim]:
        """The elements as dimensions. Raises ValueError for a fraction."""
        found = [each if isinstance(each, str) else int(each) for each in self.array.ravel()]
        if any(each != size for each, size in zip(self.array.ravel(), found, strict=True)):
            raise ValueError(f"{self} as sizes")
        return found

    def number(self) -> bool | int | float:
        """The only element. Raises ValueError for several, or for a size that depends on the sequence."""
        if self.array.size != 1 or self.symbolic:
            raise ValueError(f"{self} where one known number is needed")
        return self.array.reshape(()).item()

    def __str__(self) -> str:
        return f"{self.array.tolist() if self.array.size <= 8 else list(self.array.shape)}"


class Extent(NamedTuple):
    """The lengths for which a graph is imported, both inclusive; comparisons of sizes must hold for all of them."""

    low: int
    high: int

    def sign(self, dim: Dim, what: str) -> int:
        """-1, 0 or 1 for a size that has that sign at every length. Raises ValueError if it has several."""
        for sign in (-1, 0, 1):
            if self._always(dim, sign):
                return sign
        raise ValueError(f"{what}, which differs between sequences of {self.low} to {self.high} positions")

    def _always(self, dim: Dim, sign: int) -> bool:
        ends = [dimensions.evaluate(dim, {dimensions.symbol(dim): end}) for end in self]
        return all((each > 0) - (each < 0) == sign for each in ends)
