"""What an entry's arguments say about the sizes of its dimensions."""

from __future__ import annotations

from collections.abc import Mapping

from forerun import dims as dimensions
from forerun.signature import Signature


def sizes_of(signature: Signature, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Returns the sizes of the dimensions' names, from the shapes of the arguments; ValueError if they contradict."""
    bindings: dict[str, int] = {}
    for argument in signature.arguments:
        dimensions.bind(argument.dims, shapes[argument.name], bindings)
    return bindings
