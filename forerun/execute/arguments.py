"""The sizes of an entry's arguments: those of its named dimensions, and whether a step's rows fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from forerun import dims as dimensions
from forerun.errors import TooLongError
from forerun.runtime.executable import Rows
from forerun.signature import Signature


class Limits(Protocol):
    """How large a step may be: a program, or an executable."""

    @property
    def max_rows(self) -> int: ...

    @property
    def max_outputs(self) -> int: ...

    @property
    def max_path(self) -> int: ...


def require_size(rows: Rows, limits: Limits) -> None:
    """Raises `TooLongError` for rows that exceed what was compiled."""
    count, path = rows.paths.shape
    outputs = len(rows.outputs)
    if count > limits.max_rows or outputs > limits.max_outputs or path > limits.max_path:
        raise TooLongError(
            f"A step of {count} rows, {outputs} outputs and paths of {path} slots exceeds what was compiled: "
            f"{limits.max_rows} rows, {limits.max_outputs} outputs, {limits.max_path} slots."
        )


def sizes_of(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the sizes of the dimensions' names, from the shapes of the arguments; ValueError if they contradict."""
    bindings: dict[str, int] = {}
    for argument in signature.arguments:
        dimensions.bind(argument.dims, shapes[argument.name], bindings)
    return bindings
