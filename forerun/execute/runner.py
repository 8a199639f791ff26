"""Running an entry by name: the half of an executable that all back ends share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from forerun.errors import InvalidOptionError, TooLongError
from forerun.runtime.executable import Draw, Float32, Inputs, Part, Rows, StepResult
from forerun.signature import STEP, Signature

S = TypeVar("S")


class EntryRunner(ABC, Generic[S]):
    """Checks an entry's inputs before a back end sees them. `S` is the back end's state."""

    entries: Mapping[str, Signature]
    max_length: int

    @overload
    def run(
        self,
        entry: Part,
        state: S,
        inputs: Rows,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult: ...
    @overload
    def run(self, entry: str, state: S, inputs: Inputs) -> tuple[NDArray[Any], ...]: ...
    def run(
        self,
        entry: Part | str,
        state: S,
        inputs: Rows | Inputs,
        hidden: Float32 | None = None,
        draws: Sequence[Draw | None] | None = None,
    ) -> StepResult | tuple[NDArray[Any], ...]:
        """Runs a part of the step, or another entry (`runtime.executable.Executable.run`).

        Raises `TooLongError` if a named dimension of another entry exceeds `max_length`.
        """
        if isinstance(entry, Part):
            assert isinstance(inputs, Rows)
            return self.run_part(entry, state, inputs, hidden, draws)
        assert not isinstance(inputs, Rows)
        given, sizes = _bound(self.entries, entry, inputs)
        if large := [f"{name} = {size}" for name, size in sizes.items() if size > self.max_length]:
            raise TooLongError(f"@{entry} with {large[0]} exceeds max_length {self.max_length}: give a shorter input.")
        return self.run_entry(entry, state, given, sizes)

    @abstractmethod
    def run_part(
        self,
        part: Part,
        state: S,
        rows: Rows,
        hidden: Float32 | None,
        draws: Sequence[Draw | None] | None,
    ) -> StepResult:
        """Runs a part of the step on rows."""

    @abstractmethod
    def run_entry(
        self, name: str, state: S, given: Sequence[NDArray[Any]], sizes: Mapping[str, int]
    ) -> tuple[NDArray[Any], ...]:
        """Runs another entry on its arguments in order, int32 and float32; `sizes` gives its dimensions' sizes."""


def _bound(entries: Mapping[str, Signature], entry: str, inputs: Inputs) -> tuple[list[NDArray[Any]], dict[str, int]]:
    """Returns an entry's arguments in order, int32 and float32, and the sizes of its named dimensions.

    Raises `InvalidOptionError` if there is no such entry, or if the inputs are not its arguments.
    """
    if entry not in entries or entry == STEP:
        others = ", ".join(name for name in entries if name != STEP) or "none"
        raise InvalidOptionError(f"there is no entry {entry!r} besides the step: this model has {others}")
    arguments = entries[entry].arguments
    names = [each.name for each in arguments]
    if sorted(names) != sorted(inputs):
        raise InvalidOptionError(
            f"@{entry} takes {', '.join(names)}, but got {', '.join(inputs) or 'none'}: give exactly what it takes"
        )
    bindings: dict[str, int] = {}
    found: list[NDArray[Any]] = []
    for each in arguments:
        value = np.ascontiguousarray(inputs[each.name])
        shape = list(value.shape)
        pairs = zip(each.dims, shape, strict=False)
        sizes = [bindings.setdefault(dim, size) if isinstance(dim, str) else dim for dim, size in pairs]
        if len(each.dims) != len(shape) or sizes != shape:
            raise InvalidOptionError(f"@{entry} takes {each.name} {list(each.dims)}, not {shape}: give that shape")
        kind = np.dtype(np.float32 if each.dtype == "f32" else np.int32)
        if not np.can_cast(value.dtype, kind, "same_kind"):
            raise InvalidOptionError(f"@{entry} takes {each.name} as {kind}, not {value.dtype}: convert it")
        found.append(value.astype(kind))
    return found, bindings
