"""Plain data as JSON: frozen dataclasses of numbers, texts, tuples and mappings, written down and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints


def restored(kind: Any, given: Any) -> Any:
    """Converts a value as JSON gives it to its declared type.

    Raises KeyError for a missing field, TypeError or ValueError for a value of another form.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        _require(isinstance(given, Mapping), given, "an object")
        return kind(**{name: restored(hint, given[name]) for name, hint in _fields(kind)})
    if origin is tuple:
        _require(isinstance(given, list | tuple), given, "a list")
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(restored(inner[0], each) for each in given)
        return tuple(restored(part, each) for part, each in zip(inner, given, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _require(isinstance(given, Mapping), given, "an object")
        return {name: restored(inner[1], each) for name, each in given.items()}
    if origin is UnionType:
        if given is None and NoneType in inner:
            return None
        classes = [each for each in inner if each is not NoneType]
        if len(classes) == 1:
            return restored(classes[0], given)
        _require(isinstance(given, tuple(classes)) and not isinstance(given, bool), given, str(kind))
        return given
    if kind is float:
        _require(isinstance(given, int | float) and not isinstance(given, bool), given, "a number")
    elif kind in (int, str, bool):
        _require(type(given) is kind, given, NAMES[kind])
    return given


NAMES = {int: "an integer", str: "a text", bool: "true or false"}


def _require(fits: bool, given: object, wanted: str) -> None:
    if not fits:
        raise TypeError(f"{str(given)[:40]!r} where {wanted} should be")


@cache
def _fields(kind: type[Any]) -> list[tuple[str, Any]]:
    """Returns a class's fields and their types; a program has thousands of records of one class."""
    hints = get_type_hints(kind)
    return [(each.name, hints[each.name]) for each in fields(kind)]
