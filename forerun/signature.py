"""What an entry takes and gives, and what it leaves behind, as plain data.

Passes build functions after it, code generators lay out inputs after it, the runtime fills it in: nothing here knows
the IR or a back end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Dim = int | str


@dataclass(frozen=True)
class Argument:
    """A tensor that an entry takes or gives. Dimensions are sizes, or names whose sizes a call decides."""

    name: str
    dims: tuple[Dim, ...]
    dtype: str = "i32"


@dataclass(frozen=True)
class Signature:
    """An entry: a function of a module that can be run."""

    name: str
    arguments: tuple[Argument, ...]
    results: tuple[Argument, ...] = ()

    def argument(self, name: str) -> Argument:
        """The argument of that name; KeyError where there is none."""
        for each in self.arguments:
            if each.name == name:
                return each
        raise KeyError(name)


STEP = "step"
"""The entry that evaluates rows."""

ENCODE = "encode"
"""The entry that a session begins with, where a model has states for each request."""

STEP_ARGUMENTS: Mapping[str, Argument] = {
    each.name: each
    for each in (
        Argument("tokens", ("N",)),
        Argument("positions", ("N",)),
        Argument("sequences", ("N",)),
        Argument("slots", ("N",)),
        Argument("bases", ("N",)),
        Argument("paths", ("N", "D")),
        Argument("outputs", ("M",)),
        Argument("order", ("N",)),
        Argument("requests", ("S",)),
        Argument("block_tables", ("S", "B")),
    )
}
"""What a step may take, in the order in which its inputs lie in memory: the fields of `runtime.executable.Rows`, which
says what each one is. The block tables, which may grow, come last."""
