"""forerun: a compiler that turns any traced decoder into a speculative one: the same bits, in fewer steps."""

from forerun.compiler import compile, with_strategy
from forerun.runtime.generation import Generation, Stats
from forerun.runtime.model import CompiledModel
from forerun.strategies import (
    Autoregressive,
    CostAware,
    Fixed,
    PromptLookup,
    Strategy,
    TokenRecycling,
    TreeSpec,
)

__version__ = "0.1.0"

__all__ = [
    "Autoregressive",
    "CompiledModel",
    "CostAware",
    "Fixed",
    "Generation",
    "PromptLookup",
    "Stats",
    "Strategy",
    "TokenRecycling",
    "TreeSpec",
    "compile",
    "with_strategy",
]
