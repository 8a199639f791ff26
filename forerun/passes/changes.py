"""What a pass changed: which operations a module has more or fewer of, and the model's source lines of the new ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from forerun.ir import FileLineColLoc, Map, ModuleOp, Reduce, SpecOperation, functions, walk

LINES = 4
"""The most source lines that a change names."""

Census = Counter[tuple[str, str]]
"""How many operations of a name come from a source line."""


@dataclass(frozen=True)
class Change:
    """How many more operations of a name there are after a pass, and the source lines of those that are new."""

    operation: str
    count: int  # negative: so many fewer
    lines: Mapping[str, int]

    def __str__(self) -> str:
        text = f"{self.count:+d} {self.operation}"
        if not self.lines:
            return text
        shown = [f"{line} x {count}" if count > 1 else line for line, count in [*self.lines.items()][:LINES]]
        more = len(self.lines) - len(shown)
        return f"{text} at {', '.join(shown)}{f' and {more} more lines' if more else ''}"


def source_line(operation: SpecOperation) -> str:
    """Returns "file.py:line" of the model's code, or "" if it is not known."""
    location = operation.location
    if not isinstance(location, FileLineColLoc):
        return ""
    return f"{location.filename.data}:{location.line.data}"


def census(module: ModuleOp) -> Census:
    """Counts the operations of all functions, kernels' bodies included, by name and source line."""
    return Counter(
        (_name(each), source_line(each)) for function in functions(module).values() for each in walk(function.body)
    )


def changes(before: Census, after: Census) -> list[Change]:
    """Returns what there is more of first, and of each name the source lines with most new operations first."""
    counts = _by_name(after)
    counts.subtract(_by_name(before))
    lines: dict[str, dict[str, int]] = {}
    for (name, line), count in (after - before).most_common():
        if line and counts[name] > 0:
            lines.setdefault(name, {})[line] = count
    changed = sorted(((name, count) for name, count in counts.items() if count), key=lambda each: (-each[1], each[0]))
    return [Change(name, count, lines.get(name, {})) for name, count in changed]


def summary(found: Sequence[Change], most: int) -> list[str]:
    """Returns the changes in words, the largest first; at most so many, and how many are left out."""
    ordered = sorted(found, key=lambda each: -abs(each.count))[:most]
    shown = [str(each) for each in found if each in ordered]
    left = len(found) - len(shown)
    return [*shown, *([f"and {left} other operations"] if left else [])]


def _by_name(counted: Census) -> Counter[str]:
    found = Counter[str]()
    for (name, _), count in counted.items():
        found[name] += count
    return found


def _name(operation: SpecOperation) -> str:
    """The operation's name, and the function that it applies to elements."""
    return f"{operation.name} {operation.function}" if isinstance(operation, Map | Reduce) else operation.name
