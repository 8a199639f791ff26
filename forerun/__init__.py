"""forerun: a compiler that turns any traced decoder into a speculative one: the same bits, in fewer steps.

Names are imported on first use: `import forerun` takes a few milliseconds, and torch, transformers, TVM and xDSL are
imported only to compile a model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forerun import errors, hooks, search
    from forerun.compiler import compile
    from forerun.errors import ForerunError
    from forerun.loading import load
    from forerun.runtime.drafters.growing import LikeliestAbove, MarginAbove, Shape
    from forerun.runtime.drafters.parts.clasp import Clasp
    from forerun.runtime.drafters.parts.decayed_depth import DecayedDepth
    from forerun.runtime.drafters.parts.dynamic_exit import DynamicExit
    from forerun.runtime.drafters.parts.feed_forward import FeedForwardOnly
    from forerun.runtime.drafters.parts.skip_decode import SkipDecode
    from forerun.runtime.drafters.parts.swift import Swift
    from forerun.runtime.drafters.parts.uniform import Uniform
    from forerun.runtime.model import CompiledModel
    from forerun.runtime.request import Generation, Stats
    from forerun.runtime.texts import Piece, Sessions, Stream, TextSession
    from forerun.schedules import with_strategy
    from forerun.strategies import (
        Autoregressive,
        CostAware,
        DraftModel,
        EarlyExit,
        Fixed,
        PromptLookup,
        SkipLayers,
        Strategy,
        TokenRecycling,
        TreeSpec,
    )

__version__ = "0.1.0"

__all__ = [
    "Autoregressive",
    "Clasp",
    "CompiledModel",
    "CostAware",
    "DecayedDepth",
    "DraftModel",
    "DynamicExit",
    "EarlyExit",
    "FeedForwardOnly",
    "Fixed",
    "ForerunError",
    "Generation",
    "LikeliestAbove",
    "MarginAbove",
    "Piece",
    "PromptLookup",
    "Sessions",
    "Shape",
    "SkipDecode",
    "SkipLayers",
    "Stats",
    "Strategy",
    "Stream",
    "Swift",
    "TextSession",
    "TokenRecycling",
    "TreeSpec",
    "Uniform",
    "compile",
    "errors",
    "hooks",
    "load",
    "search",
    "with_strategy",
]

_PARTS = "forerun.runtime.drafters.parts"
_MODULES = {
    "forerun.compiler": ("compile",),
    "forerun.errors": ("ForerunError",),
    "forerun.loading": ("load",),
    "forerun.runtime.drafters.growing": ("LikeliestAbove", "MarginAbove", "Shape"),
    f"{_PARTS}.clasp": ("Clasp",),
    f"{_PARTS}.decayed_depth": ("DecayedDepth",),
    f"{_PARTS}.dynamic_exit": ("DynamicExit",),
    f"{_PARTS}.feed_forward": ("FeedForwardOnly",),
    f"{_PARTS}.skip_decode": ("SkipDecode",),
    f"{_PARTS}.swift": ("Swift",),
    f"{_PARTS}.uniform": ("Uniform",),
    "forerun.runtime.request": ("Generation", "Stats"),
    "forerun.runtime.texts": ("Piece", "Sessions", "Stream", "TextSession"),
    "forerun.runtime.model": ("CompiledModel",),
    "forerun.schedules": ("with_strategy",),
    "forerun.strategies": (
        "Autoregressive",
        "CostAware",
        "DraftModel",
        "EarlyExit",
        "Fixed",
        "PromptLookup",
        "SkipLayers",
        "Strategy",
        "TokenRecycling",
        "TreeSpec",
    ),
}
"""The module that defines each public name."""
_SUBMODULES = ("errors", "hooks", "search")
"""The modules that are attributes without an import of their own."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Returns the public name, importing it now (PEP 562)."""
    if name in _SUBMODULES:
        return import_module(f"forerun.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'forerun' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
