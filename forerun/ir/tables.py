"""Closed tables: an analysis or a code generator has a rule for every operation, or refuses it by name.

A table is built with its rules and checked when it is built: a rule that is missing, or for something that does not
exist, is an error at import time. A lookup of what came later, or of what the table refuses, is an error that names it:
nothing unknown is taken as harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from xdsl.ir import Operation

from forerun.errors import UnsupportedOperationError
from forerun.ir.dialect import OPERATIONS
from forerun.ir.elementwise import FUNCTIONS
from forerun.ir.operation import SpecOperation
from forerun.ir.reductions import REDUCTIONS

K = TypeVar("K")
R = TypeVar("R")


@dataclass(frozen=True)
class Refusal:
    """Stands in a table for a rule that there is not, with the reason."""

    reason: str


def refused(reason: str) -> Refusal:
    """No rule, and why: what stands behind the name in the error, or a whole sentence that holds `{name}`."""
    return Refusal(reason if "{name}" in reason else f"{{name}} {reason}")


def each_of(rule: R, *keys: K) -> dict[K, R]:
    """One rule for several."""
    return dict.fromkeys(keys, rule)


class ClosedTable(Mapping[K, R], Generic[K, R]):
    """A rule for everything in `known`; `title` is what the table is called in errors."""

    def __init__(
        self, title: str, known: Collection[K], rules: Mapping[K, R | Refusal], shown: Callable[[K], str] = str
    ) -> None:
        self.title = title
        self.shown = shown
        self.rules = dict(rules)
        missing = [shown(each) for each in known if each not in self.rules]
        foreign = [shown(each) for each in self.rules if each not in known]
        if missing:
            raise TypeError(f"The table of {title} lacks {', '.join(missing)}; add a rule, or refuse it with a reason.")
        if foreign:
            raise TypeError(f"The table of {title} has a rule for {', '.join(foreign)}, which does not exist.")

    def __getitem__(self, key: K) -> R:
        """The rule; UnsupportedOperationError where there is none, or the table refuses."""
        found = self.rules.get(key)
        if isinstance(found, Refusal):
            raise UnsupportedOperationError(found.reason.replace("{name}", self.shown(key)) + ".")
        if found is None:
            raise UnsupportedOperationError(
                f"{self.shown(key)} has no rule among the {self.title}; add one to that table, or refuse it there."
            )
        return found

    def __iter__(self) -> Iterator[K]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def ruled(self) -> frozenset[K]:
        """What has a rule."""
        return frozenset(key for key, rule in self.rules.items() if not isinstance(rule, Refusal))


class OperationTable(ClosedTable[type[Operation], R]):
    """A rule for every class of operation."""

    def __init__(self, title: str, rules: Mapping[type[SpecOperation], R | Refusal]) -> None:
        super().__init__(title, OPERATIONS, {**rules}, lambda kind: kind.name)

    def of(self, operation: Operation) -> R:
        """The rule for an operation."""
        return self[type(operation)]


class FunctionTable(ClosedTable[str, R]):
    """A rule for every function of `spec.map`."""

    def __init__(self, title: str, rules: Mapping[str, R | Refusal]) -> None:
        super().__init__(title, FUNCTIONS, rules, lambda name: f"spec.map {name}")


class ReductionTable(ClosedTable[str, R]):
    """A rule for every function of `spec.reduce`."""

    def __init__(self, title: str, rules: Mapping[str, R | Refusal]) -> None:
        super().__init__(title, REDUCTIONS, rules, lambda name: f"spec.reduce {name}")
