"""Logits hooks, for callers (docs/grammar.md).

Names are imported on first use, as in `forerun`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forerun.runtime.hooks.base import Hook, Place
    from forerun.runtime.hooks.grammars import JsonSchema, Lark, Regex

__all__ = ["Hook", "JsonSchema", "Lark", "Place", "Regex"]

_FOLDER = "forerun.runtime.hooks"
_MODULES = {
    "base": ("Hook", "Place"),
    "grammars": ("JsonSchema", "Lark", "Regex"),
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
