"""Schedules as data: integers that say how a kernel walks its loops, within bounds. No choice changes a bit.

A schedule file has a line for each field, and comments that say what it is and what it may be:

    # rows of a register tile: 1 to 16
    tile_rows = 12
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

from forerun.errors import InvalidOptionError

SUFFIX = ".schedule"
"""What the name of a kernel's schedule file ends in."""
LINE = re.compile(r"(\w+)\s*=\s*(\S+)")


@dataclass(frozen=True)
class Setting:
    """A field of a schedule.

    allowed  the values that it may have, ascending
    tried    those that a search tries
    meaning  what it is, in words
    """

    allowed: Sequence[int]
    tried: tuple[int, ...]
    meaning: str

    @property
    def bounds(self) -> str:
        """The allowed values in words."""
        if isinstance(self.allowed, range):
            return f"{self.allowed[0]} to {self.allowed[-1]}"
        *most, last = map(str, self.allowed)
        return f"{', '.join(most)} or {last}" if most else last


@dataclass(frozen=True)
class Space:
    """The schedules that a kernel may have: the default, a frozen dataclass of integers, and its fields' bounds."""

    default: Any
    settings: Mapping[str, Setting]

    def text(self, kernel: str, schedule: Any = None) -> str:
        """Returns the file of a schedule, by default of the default one."""
        values = asdict(self.default if schedule is None else schedule)
        lines = [f"# {kernel}: how it walks its loops; no choice changes a bit"]
        for name, each in self.settings.items():
            lines += ["", f"# {each.meaning}: {each.bounds}", f"{name} = {values[name]}"]
        return "\n".join(lines) + "\n"

    def read(self, kernel: str, text: str) -> Any:
        """Returns the schedule of a file; a field without a line has its default.

        Raises `InvalidOptionError` for what is no field, or out of its bounds.
        """
        found: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), 1):
            stripped = line.partition("#")[0].strip()
            if not stripped:
                continue
            match = LINE.fullmatch(stripped)
            if match is None:
                raise InvalidOptionError(
                    f"Line {number} of the schedule of {kernel} is {stripped!r}: write a field and its value, such as "
                    f"{next(iter(self.settings))} = {asdict(self.default)[next(iter(self.settings))]}."
                )
            name, value = match.groups()
            if name in found:
                raise InvalidOptionError(f"The schedule of {kernel} gives {name} twice: leave out one of the lines.")
            found[name] = self._checked(kernel, name, value)
        return replace(self.default, **found)

    def _checked(self, kernel: str, name: str, value: str) -> int:
        if name not in self.settings:
            raise InvalidOptionError(
                f"The schedule of {kernel} has no field {name!r}{nearest(name, self.settings)} Its fields are "
                f"{', '.join(self.settings)}."
            )
        setting = self.settings[name]
        if not re.fullmatch(r"-?\d{1,9}", value) or int(value) not in setting.allowed:
            raise InvalidOptionError(f"{name} of the schedule of {kernel} is {value}: give {setting.bounds}.")
        return int(value)

    def neighbours(self, schedule: Any) -> Iterator[Any]:
        """Yields the schedules that a search tries which differ from this one in one field."""
        for name, each in self.settings.items():
            for value in each.tried:
                if value in each.allowed and value != getattr(schedule, name):
                    yield replace(schedule, **{name: value})

    def changes(self, schedule: Any) -> str:
        """Returns what differs from the default, in words."""
        own, given = asdict(self.default), asdict(schedule)
        changed = [f"{name} {own[name]} -> {given[name]}" for name in self.settings if own[name] != given[name]]
        return ", ".join(changed) or "the default"


def nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """Ends a sentence: by "; did you mean ...?" with the known name that is most like another, if one is."""
    found = get_close_matches(name, [*known], 1, 0.5)
    return f"; did you mean {found[0]!r}?" if found else "."
