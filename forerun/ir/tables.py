"""Closed tables: an analysis or a code generator has a rule for every operation, or refuses it by name.

A table is checked when it is built: a missing rule, or a rule for something that does not exist, is an error at import
time. A lookup of something added later, or of something that the table refuses, is an error that names it: nothing
unknown is assumed to be harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from xdsl.ir import Operation

from forerun.errors import UnsupportedOperationError
from forerun.ir.dialect import OPERATIONS
from forerun.ir.elementwise import FUNCTIONS
from forerun.ir.families import FAMILIES
from forerun.ir.operation import SpecOperation
from forerun.ir.reductions import REDUCTIONS

K = TypeVar("K")
R = TypeVar("R")


@dataclass(frozen=True)
class Refusal:
    """Marks an entry of a table that has no rule, with the reason."""

    reason: str


def refused(reason: str) -> Refusal:
    """No rule, and why: the text after the name in the error, or a whole sentence that contains `{name}`."""
    return Refusal(reason if "{name}" in reason else f"{{name}} {reason}")


def each_of(rule: R, *keys: K) -> dict[K, R]:
    """One rule for several keys."""
    return dict.fromkeys(keys, rule)


class ClosedTable(Mapping[K, R], Generic[K, R]):
    """A rule for everything in `known`, or a refusal; `title` names the table in errors.

    As a mapping it holds the keys with a rule; `entries` has the refusals as well.
    """

    def __init__(
        self, title: str, known: Collection[K], entries: Mapping[K, R | Refusal], shown: Callable[[K], str] = str
    ) -> None:
        self.title = title
        self.shown = shown
        self.entries = dict(entries)
        self._ruled = {key: rule for key, rule in self.entries.items() if not isinstance(rule, Refusal)}
        missing = [shown(each) for each in known if each not in self.entries]
        foreign = [shown(each) for each in self.entries if each not in known]
        if missing:
            raise TypeError(f"The table of {title} lacks {', '.join(missing)}; add a rule, or refuse it with a reason.")
        if foreign:
            raise TypeError(f"The table of {title} has an entry for {', '.join(foreign)}, which does not exist.")

    def __getitem__(self, key: K) -> R:
        """Returns the rule; UnsupportedOperationError if there is none, or the table refuses."""
        rule = self._ruled.get(key)
        if rule is not None:
            return rule
        refusal = self.entries.get(key)
        if isinstance(refusal, Refusal):
            raise UnsupportedOperationError(refusal.reason.replace("{name}", self.shown(key)) + ".")
        raise UnsupportedOperationError(
            f"{self.shown(key)} has no rule among the {self.title}; add one to that table, or refuse it there."
        )

    def __contains__(self, key: object) -> bool:
        return key in self._ruled

    def __iter__(self) -> Iterator[K]:
        return iter(self._ruled)

    def __len__(self) -> int:
        return len(self._ruled)


class OperationTable(ClosedTable[type[Operation], R]):
    """A rule for every class of operation; one for a family holds for the classes of it that have none of their own."""

    def __init__(self, title: str, entries: Mapping[type[SpecOperation], R | Refusal]) -> None:
        by_class = {kind: rule for kind, rule in entries.items() if kind not in FAMILIES}
        self.families = {kind: rule for kind, rule in entries.items() if kind in FAMILIES}
        for kind in OPERATIONS:
            for family in self._families_of(kind):
                by_class.setdefault(kind, self.families[family])
        super().__init__(title, OPERATIONS, {**by_class}, lambda kind: kind.name)

    def of(self, operation: Operation) -> R:
        """The rule for an operation."""
        return self[type(operation)]

    def _families_of(self, kind: type[Operation]) -> Iterable[type[SpecOperation]]:
        """The families with a line here that a class belongs to, the narrowest first."""
        return (each for each in kind.__mro__ if each in self.families)


class FunctionTable(ClosedTable[str, R]):
    """A rule for every function of `spec.map`."""

    def __init__(self, title: str, entries: Mapping[str, R | Refusal]) -> None:
        super().__init__(title, FUNCTIONS, entries)


class ReductionTable(ClosedTable[str, R]):
    """A rule for every function of `spec.reduce`."""

    def __init__(self, title: str, entries: Mapping[str, R | Refusal]) -> None:
        super().__init__(title, REDUCTIONS, entries)
