"""Checks of a caller's options: the right type and range, or an InvalidOptionError that says what is accepted.

An integer, a number or a flag may be Python's or numpy's, or a zero-dimensional array or tensor.
"""

import math
import numbers
import operator
from typing import Any

import numpy as np

from forerun.errors import InvalidOptionError, TooLongError


def require_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns the option as a Python int in [least, most]."""
    span = f"{least} or more" if most is None else f"from {least} to {most}"
    try:
        value = unwrapped(value)
        given = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        given = None
    if given is None:
        raise InvalidOptionError(f"{name} must be an integer, not {value!r}: give a whole number, {span}")
    if given < least or (most is not None and given > most):
        raise InvalidOptionError(f"{name} must be {span}, not {given}")
    return given


def require_tokens(name: str, value: Any, vocabulary: int) -> list[int]:
    """Returns token ids in [0, vocabulary) from one id, or a flat list, array or tensor of them, in their order."""
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise InvalidOptionError(f"{name} must be a token id or one list of them: give a flat list") from error
    if given.size and not np.issubdtype(given.dtype, np.integer):
        raise InvalidOptionError(f"{name} must be a token id or a list of them, not {value!r}")
    return [require_integer(name, each, 0, vocabulary - 1) for each in given.reshape(-1).tolist()]


def require_number(
    name: str,
    value: Any,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Returns the option as a Python float in [least, most] and (above, below), from any real number but NaN."""
    value = unwrapped(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise InvalidOptionError(f"{name} must be a number, not {value!r}")
    given = float(value)
    bounds = [
        (least, f"{least} or more", least is not None and given < least),
        (above, f"above {above}", above is not None and given <= above),
        (most, f"at most {most}", most is not None and given > most),
        (below, f"below {below}", below is not None and given >= below),
    ]
    if any(broken for _, _, broken in bounds):
        words = " and ".join(word for bound, word, _ in bounds if bound is not None)
        raise InvalidOptionError(f"{name} must be {words}, not {given}")
    return given


def require_flag(name: str, value: Any) -> bool:
    """Returns the option as a Python bool."""
    value = unwrapped(value)
    if not isinstance(value, bool):
        raise InvalidOptionError(f"{name} must be True or False, not {value!r}")
    return value


def unwrapped(value: Any) -> Any:
    """Returns the Python number in a numpy scalar or a zero-dimensional array or tensor; others are unchanged."""
    shape = getattr(value, "shape", None)
    return value.item() if isinstance(shape, tuple) and not shape and hasattr(value, "item") else value


def dtype_name(dtype: Any) -> Any:
    """Returns a dtype's name ("float32" for `torch.float32` and `numpy.float32`); anything else is unchanged."""
    if isinstance(dtype, type):
        return getattr(dtype, "__name__", dtype)  # numpy's scalar types are named like their dtypes
    if type(dtype).__name__ == "dtype" or type(dtype).__module__ == "numpy.dtypes":
        return str(dtype).removeprefix("torch.")
    return dtype


def require_room(prompt: int, new_tokens: int, max_length: int) -> None:
    """Raise `TooLongError` if a prompt of `prompt` tokens and the new ones exceed `max_length`."""
    if prompt + new_tokens > max_length:
        raise TooLongError(
            f"a prompt of {prompt} tokens and {new_tokens} new ones exceed max_length {max_length}: shorten the prompt "
            "or max_new_tokens, or compile with a larger max_length"
        )
