"""The part of a step that drafts in a bundle whose graphs are fixed when it is written."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from forerun.errors import InvalidOptionError
from forerun.runtime.drafters.parts.early_exit import ExitAt
from forerun.runtime.drafters.parts.uniform import Uniform
from forerun.runtime.executable import Branch, Part
from forerun.strategies import EarlyExit, SkipLayers, Strategy


def drafting_part(strategy: Strategy, branches: Sequence[Branch]) -> Part | None:
    """Returns the part of the model with which a strategy drafts; None if it drafts otherwise.

    Raises `InvalidOptionError` for a method that chooses its part anew while decoding.
    """
    found: set[Part] = set()
    for each in strategy.drafters:
        if not isinstance(each, SkipLayers | EarlyExit):
            continue
        if not isinstance(each.method, Uniform | ExitAt):
            raise InvalidOptionError(
                f"{type(each.method).__name__} chooses the part that drafts while decoding, but a bundle of this "
                "format holds one part: use SkipLayers(Uniform()) or EarlyExit(layer), or draft otherwise."
            )
        engine: Any = SimpleNamespace(executable=SimpleNamespace(branches=tuple(branches)))  # all that these read
        found.add(each.method.build(engine, None).part(0))
    if len(found) > 1:
        raise InvalidOptionError("A bundle of this format holds one part that drafts: use one such drafter.")
    return next(iter(found), None)
