"""What all frontends give: a module with `@forward`, and its weights."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from forerun.ir import ModuleOp

Imported = tuple[ModuleOp, Mapping[str, Tensor]]
"""A verified module with `@forward(input_ids[1, T]) -> logits[1, T, V]`, or with `@cached(token[1, 1], states) ->
logits[1, 1, V], states`, and the weights of its symbols."""


class Importer(Protocol):
    """A model that has been opened and can become IR."""

    def import_(self, max_length: int) -> Imported:
        """Returns the model for every T up to `max_length`. Raises a `ForerunError` that names what has no rule."""
        ...
