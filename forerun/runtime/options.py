"""Options that a caller gives: of the right type and in range, or InvalidOptionError that says what is."""

import numbers
import operator
from typing import Any

from forerun.errors import InvalidOptionError, TooLongError


def require_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The option as Python's int, from any integer (numpy's too) in [least, most]."""
    span = f"{least} or more" if most is None else f"from {least} to {most}"
    try:
        given = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        given = None
    if given is None:
        raise InvalidOptionError(f"{name} must be an integer, not {value!r}: give a whole number, {span}")
    if given < least or (most is not None and given > most):
        raise InvalidOptionError(f"{name} must be {span}, not {given}")
    return given


def require_number(name: str, value: Any) -> float:
    """The option as Python's float, from any real number (numpy's too)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidOptionError(f"{name} must be a number, not {value!r}")
    return float(value)


def require_room(prompt: int, new_tokens: int, max_length: int) -> None:
    """Raise `TooLongError` where a prompt of so many tokens and the new ones have more positions than there are."""
    if prompt + new_tokens > max_length:
        raise TooLongError(
            f"a prompt of {prompt} tokens and {new_tokens} new ones exceed max_length {max_length}: shorten the prompt "
            "or max_new_tokens, or compile with a larger max_length"
        )
