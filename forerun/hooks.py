"""What changes a text's tokens, as values for the keywords of `generate`."""

from forerun.runtime.hooks.grammars import JsonSchema, Lark, Regex

__all__ = ["JsonSchema", "Lark", "Regex"]
