"""Logits hooks, for callers who write their own or give these to `generate(logits_processor=...)` (docs/hooks.md).

Names are imported on first use, as in `forerun`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forerun.runtime.hooks.base import Hook, Place
    from forerun.runtime.hooks.choices import (
        AllowedTokens,
        BadWords,
        ForcedLastToken,
        ForcedSecondToken,
        MinNewTokens,
        NoRepeatedNgrams,
        SuppressFirstTokens,
        SuppressTokens,
    )
    from forerun.runtime.hooks.contrasts import ContextAware, Contrastive, Dola, Guidance
    from forerun.runtime.hooks.foreign import AllowedByPrefix, Processed
    from forerun.runtime.hooks.grammars import JsonSchema, Lark, Regex
    from forerun.runtime.hooks.history import Counts, Following
    from forerun.runtime.hooks.penalties import (
        ExponentialLengthPenalty,
        LogitBias,
        OccurrencePenalties,
        RepetitionPenalty,
        SequenceBias,
    )

__all__ = [
    "AllowedByPrefix",
    "AllowedTokens",
    "BadWords",
    "ContextAware",
    "Contrastive",
    "Counts",
    "Dola",
    "ExponentialLengthPenalty",
    "Following",
    "ForcedLastToken",
    "ForcedSecondToken",
    "Guidance",
    "Hook",
    "JsonSchema",
    "Lark",
    "LogitBias",
    "MinNewTokens",
    "NoRepeatedNgrams",
    "OccurrencePenalties",
    "Place",
    "Processed",
    "Regex",
    "RepetitionPenalty",
    "SequenceBias",
    "SuppressFirstTokens",
    "SuppressTokens",
]

_FOLDER = "forerun.runtime.hooks"
_MODULES = {
    "base": ("Hook", "Place"),
    "choices": (
        "AllowedTokens",
        "BadWords",
        "ForcedLastToken",
        "ForcedSecondToken",
        "MinNewTokens",
        "NoRepeatedNgrams",
        "SuppressFirstTokens",
        "SuppressTokens",
    ),
    "contrasts": ("ContextAware", "Contrastive", "Dola", "Guidance"),
    "foreign": ("AllowedByPrefix", "Processed"),
    "grammars": ("JsonSchema", "Lark", "Regex"),
    "history": ("Counts", "Following"),
    "penalties": (
        "ExponentialLengthPenalty",
        "LogitBias",
        "OccurrencePenalties",
        "RepetitionPenalty",
        "SequenceBias",
    ),
}
"""The module that defines each name."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Returns the public name, importing it now (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'forerun.hooks' has no attribute {name!r}")
    value = getattr(import_module(f"{_FOLDER}.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
