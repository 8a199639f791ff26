"""What lowering needs of a back end: layouts of weights and states, and the kernels of a nest."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

from forerun import ir
from forerun.codegen.backends import FLOAT32
from forerun.codegen.loops.buffer import Buffer
from forerun.codegen.loops.nest import Nest, ProductNest
from forerun.codegen.loops.placing import Traits
from forerun.codegen.loops.states import StateLayout
from forerun.codegen.program import (
    BYTES,
    Config,
    Grid,
    Weight,
)
from forerun.errors import UnsupportedOperationError


@dataclass(frozen=True)
class Emitted:
    """A kernel that a back end makes from a nest, or from a part of one.

    key      equal for kernels with equal code
    buffers  the buffers that its pointer arguments point to, in order
    source   generates its text; called once for each key
    reads_matrices  whether it is the one that reads the matrices of a nest of products
    """

    kind: str
    key: str
    buffers: Sequence[Buffer]
    source: Callable[[str], str]
    words: str = ""
    grid: Grid | None = None
    config: Config | None = None
    reads_matrices: bool = True


class Emitter(ABC):
    """The interface of a back end that lowering needs."""

    traits: ClassVar[Traits]
    storages: ClassVar[Collection[str]]
    """The storages of weights that it has kernels for."""
    alignment: ClassVar[int]
    """Every place is a multiple of this, in numbers."""
    floats_in_arena: ClassVar[bool] = True
    """Whether an entry's float arguments lie in the arena; inputs are then integers."""
    first_input: ClassVar[int] = 0
    """Where the inputs begin."""

    def widths(self) -> dict[str, int]:
        """The dimensions of inputs whose size is always that of the largest step."""
        return {}

    def sizes(self, entry: str, symbols: Sequence[str]) -> tuple[str, ...]:
        """The dimensions, among all of the module, whose sizes are passed to the kernels of an entry."""
        return tuple(symbols)

    @abstractmethod
    def state(self, state: ir.State, block: int, read_as_keys: bool) -> StateLayout:
        """Returns the layout of a state's records."""

    def weight(self, weight: ir.Weight) -> Weight:
        """Returns how a weight lies in memory."""
        if weight.storage not in (None, *self.storages):
            raise UnsupportedOperationError(
                f"the {self.traits.target} target has no kernels for weights stored as {weight.storage}; use dtype "
                "float32."
            )
        element = weight.storage or ("i32" if weight.dtype in ir.INTEGER_DTYPES else "f32")
        return self.stored(weight, tuple(int(dim) for dim in weight.type.dims), element)

    def stored(self, weight: ir.Weight, shape: tuple[int, ...], element: str) -> Weight:
        """Returns a weight in memory; a back end may have a format of its own for some."""
        return Weight(shape, element, math.prod(shape) * BYTES[element])

    def arithmetic(self, nest: ProductNest) -> str:
        """Returns the name of the arithmetic in which a nest of products multiplies."""
        return nest.arithmetic or FLOAT32

    @abstractmethod
    def kernels(self, nest: Nest, sizes: Sequence[str]) -> list[Emitted]:
        """Returns the kernels that compute a nest, in order; `sizes` are the dimensions passed to them."""
