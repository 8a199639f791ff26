"""forerun: a compiler that turns any traced decoder into a speculative one: the same bits, in fewer steps."""

from forerun.compiler import compile, with_strategy
from forerun.runtime.drafters.growing import LikeliestAbove, MarginAbove, Shape
from forerun.runtime.drafters.parts.clasp import Clasp
from forerun.runtime.drafters.parts.decayed_depth import DecayedDepth
from forerun.runtime.drafters.parts.dynamic_exit import DynamicExit
from forerun.runtime.drafters.parts.feed_forward import FeedForwardOnly
from forerun.runtime.drafters.parts.skip_decode import SkipDecode
from forerun.runtime.drafters.parts.swift import Swift
from forerun.runtime.drafters.parts.uniform import Uniform
from forerun.runtime.generation import Generation, Stats
from forerun.runtime.model import CompiledModel
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
    "Generation",
    "LikeliestAbove",
    "MarginAbove",
    "PromptLookup",
    "Shape",
    "SkipDecode",
    "SkipLayers",
    "Stats",
    "Strategy",
    "Swift",
    "TokenRecycling",
    "TreeSpec",
    "Uniform",
    "compile",
    "with_strategy",
]
