"""Strategies as plain data: each drafter, policy and stop by the name of its class and its fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from forerun import strategies
from forerun.errors import CorruptFileError, InvalidOptionError
from forerun.runtime.drafters.growing import Always, LikeliestAbove, MarginAbove, Shape
from forerun.runtime.drafters.parts.clasp import Clasp
from forerun.runtime.drafters.parts.decayed_depth import DecayedDepth
from forerun.runtime.drafters.parts.dynamic_exit import DynamicExit
from forerun.runtime.drafters.parts.feed_forward import FeedForwardOnly
from forerun.runtime.drafters.parts.skip_decode import SkipDecode
from forerun.runtime.drafters.parts.swift import Swift
from forerun.runtime.drafters.parts.uniform import Uniform
from forerun.strategies import Strategy

KINDS: dict[str, Any] = {
    each.__name__: each
    for each in (
        *(strategies.Autoregressive, strategies.TreeSpec, strategies.Strategy),
        *(strategies.PromptLookup, strategies.TokenRecycling, strategies.SkipLayers, strategies.EarlyExit),
        *(strategies.CostAware, strategies.Fixed),
        *(Always, LikeliestAbove, MarginAbove, Shape),
        *(Clasp, DecayedDepth, DynamicExit, FeedForwardOnly, SkipDecode, Swift, Uniform),
    )
}
"""The classes that a bundle may name."""


def described(value: Any) -> Any:
    """Returns a strategy, or a part of one, as JSON takes it.

    Raises `InvalidOptionError` for what only this process has: a drafter of the user's own, another model.
    """
    if type(value) in KINDS.values():
        return {"kind": type(value).__name__} | {
            each.name: described(getattr(value, each.name)) for each in fields(value)
        }
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InvalidOptionError(
        f"{type(value).__name__} cannot be written to a bundle: export with one of forerun's own strategies without a "
        "draft model, and give the other one to forerun.load."
    )


def strategy_of(given: Mapping[str, Any]) -> Strategy:
    """Returns the strategy that `described` wrote down. Raises `CorruptFileError`."""
    try:
        found = _restored(given)
    except RecursionError as error:
        raise CorruptFileError("The bundle's strategy has no end: export the model again.") from error
    if not isinstance(found, Strategy):
        raise CorruptFileError(f"The bundle's strategy is {given!r}, which is none: export the model again.")
    return found


def _restored(given: Any) -> Any:
    if isinstance(given, list):
        return tuple(_restored(each) for each in given)
    if not isinstance(given, Mapping):
        return given
    kind = KINDS.get(str(given.get("kind")))
    if kind is None:
        raise CorruptFileError(f"The bundle names {given.get('kind')!r} in its strategy, which forerun does not have.")
    named = {str(name): _restored(each) for name, each in given.items() if name != "kind"}
    try:
        return kind(**named)
    except (TypeError, InvalidOptionError) as error:
        raise CorruptFileError(f"The bundle's {kind.__name__} does not fit forerun's ({error}).") from error
