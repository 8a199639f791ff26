"""Fields of OpenAI's API that change no answer, and those that would and are not supported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forerun.server.refusals import RefusedError

HARMLESS = frozenset(
    (
        "user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "service_tier", "prediction",
    )
)  # fmt: skip
"""Who asks, what OpenAI stores, and a guess of the answer, which would change only the time."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "audio": (),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
    "parallel_tool_calls": (True,),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "moderation": (),
}
"""Others, with the values that change no answer besides null."""


def check_others(given: Mapping[str, Any], within: str = "") -> None:
    """Raises `RefusedError` for a field that would change the answer, or that is not known."""
    for name, value in given.items():
        if value is None or name in HARMLESS:
            continue
        shown = f"{within}.{name}"[:100] if within else name[:100]
        if name not in NEUTRAL:
            raise RefusedError(f"there is no field {shown}: leave it out", shown, "unknown_parameter")
        if not any(type(value) is type(each) and value == each for each in NEUTRAL[name]):
            raise RefusedError(f"{shown} is not supported: leave it out", shown, "unsupported_parameter")
