"""YAML files (JSON is YAML too) read strictly: a field that is unknown, missing or of another kind is refused."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from typing import Any, cast

from forerun.errors import PlanningError, first_sentence
from forerun.tool import read_bytes

LONGEST = 1 << 22
"""The most bytes of a file."""
MOST = 10**12
"""The largest count of anything; products of a few of them are still floating-point numbers."""


class Fields:
    """A mapping of a file whose fields are taken one by one; `end` refuses those that nobody took."""

    def __init__(self, given: object, place: str) -> None:
        """`place` names the mapping in messages: the file, and the way into it. Raises `PlanningError`."""
        if not isinstance(given, Mapping):
            raise PlanningError(f"{place} must be a mapping of names to values, not {_shown(given)}.")
        self.place = place
        self._given = {str(name): value for name, value in cast("Mapping[object, object]", given).items()}
        self._known: list[str] = []

    def __contains__(self, name: str) -> bool:
        self._known.append(name)
        return name in self._given

    def names(self) -> list[str]:
        return list(self._given)

    def number(self, name: str, default: float | None = None, least: float | None = None) -> float:
        """Returns a finite number above 0, or at least `least`."""
        value = self._take(name, default)
        number = as_number(value)
        if number is None or not math.isfinite(number) or (number <= 0 if least is None else number < least):
            wanted = "a number above 0" if least is None else f"a number of at least {least:g}"
            raise PlanningError(f"{self.place}: {name} must be {wanted}, not {_shown(value)}.")
        return number

    def count(self, name: str, default: int | None = None, least: int = 1) -> int:
        """Returns an integer of at least `least`."""
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            wanted = f"an integer from {least} to {MOST:.0e}"
            raise PlanningError(f"{self.place}: {name} must be {wanted}, not {_shown(value)}.")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._take(name, default)
        if not isinstance(value, str) or not value:
            raise PlanningError(f"{self.place}: {name} must be a text, not {_shown(value)}.")
        return value

    def inner(self, name: str) -> Fields:
        return Fields(self._take(name, None), f"{self.place}: {name}")

    def value(self, name: str) -> object:
        return self._take(name, None)

    def end(self) -> None:
        """Raises `PlanningError` for a field that is not part of the format."""
        unknown = [name for name in self._given if name not in self._known]
        if unknown:
            known = ", ".join(dict.fromkeys(self._known))
            raise PlanningError(f"{self.place} has no field {unknown[0]!r}: leave it out; the fields are {known}.")

    def _take(self, name: str, default: object) -> object:
        self._known.append(name)
        if name in self._given:
            return self._given[name]
        if default is None:
            raise PlanningError(f"{self.place} lacks {name}: add it (docs/planning.md describes the format).")
        return default


def read_fields(file: str) -> Fields:
    """Reads a YAML file. Raises `PlanningError` for a file that is none, and OSError."""
    import yaml

    try:
        given: Any = yaml.safe_load(read_bytes(file, LONGEST))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlanningError(f"{file} is not YAML ({first_sentence(error)}): correct it.") from error
    return Fields(given, file)


def as_number(value: object) -> float | None:
    """Returns a number, also one that YAML takes for a text (`2e12`, without a dot and a sign); None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _shown(value: object) -> str:
    text = reprlib.repr(value)  # a short one also of what refers to itself
    return text if len(text) <= 40 else text[:37] + "..."
