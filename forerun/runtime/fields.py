"""Dataclasses that check their fields on creation: each field's default says what the field accepts."""

import os
from collections.abc import Callable
from dataclasses import MISSING, field, fields
from inspect import signature
from typing import Any, cast

from forerun.errors import InvalidOptionError
from forerun.runtime.options import dtype_name, require_flag, require_integer, require_number

Check = Callable[[str, Any], Any]
"""(name, value) -> the value to keep; raises `InvalidOptionError` with a message that begins with the name."""
CHECK = "check"
DTYPES = ("float32", "bfloat16", "float16", "native")


class Checked:
    """The base class of dataclasses with such fields. Raises `InvalidOptionError` naming the field and the class."""

    def __post_init__(self) -> None:
        for each in fields(cast(Any, self)):
            check: Check | None = each.metadata.get(CHECK)
            if check is not None and each.init:
                kept = check(f"{each.name} of {type(self).__name__}", getattr(self, each.name))
                object.__setattr__(self, each.name, kept)


def checked(check: Check, default: Any = MISSING) -> Any:
    """Returns a field that keeps what `check` returns."""
    return field(metadata={CHECK: check}) if default is MISSING else field(default=default, metadata={CHECK: check})


def integer(default: Any = MISSING, *, least: int, most: int | None = None, optional: bool = False) -> Any:
    """Returns a field for an integer in [least, most], or None if `optional`."""

    def check(name: str, value: Any) -> int | None:
        return None if optional and value is None else require_integer(name, value, least, most)

    return checked(check, default)


def number(default: Any = MISSING, **bounds: float) -> Any:
    """Returns a field for a number within bounds (`require_number`)."""
    return checked(lambda name, value: require_number(name, value, **bounds), default)


def flag(default: Any = MISSING) -> Any:
    """Returns a field for True or False."""
    return checked(require_flag, default)


def one_of(names: tuple[str, ...], default: Any = MISSING) -> Any:
    """Returns a field for one of some names; a dtype may also be torch's or numpy's."""

    def check(name: str, value: Any) -> str:
        given = dtype_name(value)
        if not isinstance(given, str) or given not in names:
            raise InvalidOptionError(f"{name} must be one of {', '.join(names)}, not {value!r}")
        return given

    return checked(check, default)


def instance(kind: type, default: Any = MISSING) -> Any:
    """Returns a field for an instance of one class."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise InvalidOptionError(f"{name} must be a {kind.__name__}, not {described(value)}")
        return value

    return checked(check, default)


def model_or_path(name: str, value: Any) -> Any:
    """The check for a model, or a path that is not empty."""
    empty = isinstance(value, str | bytes | os.PathLike) and not os.fspath(cast("str | bytes", value))
    if value is None or empty or isinstance(value, int | float | complex | bytes | list | tuple | dict | set | type):
        raise InvalidOptionError(f"{name} must be a model or the path of one, not {described(value)}")
    return value


def has(words: str, method: str, arguments: int, *attributes: str, without: tuple[str, ...] = ()) -> Check:
    """Returns the check for an instance whose `method` takes this many arguments; `words` name it, with an example."""

    def fits(value: Any) -> bool:
        found = getattr(value, method, None)
        if not callable(found) or not all(hasattr(value, each) for each in attributes):
            return False
        if isinstance(value, type) or any(hasattr(value, each) for each in without):
            return False
        try:
            signature(value if method == "__call__" else found).bind(*range(arguments))
        except (TypeError, ValueError):
            return False
        return True

    def check(name: str, value: Any) -> Any:
        if not fits(value):
            raise InvalidOptionError(f"{name} must be {words}, not {described(value)}")
        return value

    return check


def several(check: Check, words: str) -> Check:
    """Returns the check for a tuple or a list of values, kept as a tuple; `words` describe them."""

    def check_all(name: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, tuple | list):
            raise InvalidOptionError(f"{name} must be a tuple of {words}, not {described(value)}; one is (value,)")
        return tuple(check(f"entry {i} of the {name}", each) for i, each in enumerate(cast("list[Any]", value)))

    return check_all


def described(value: Any) -> str:
    """Returns the words for a value in an error message."""
    if isinstance(value, type):
        return f"the class {value.__name__}: make one, {value.__name__}(...)"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else f"a value of {type(value).__name__}"
