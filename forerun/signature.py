"""The signature of an entry, its arguments and results, as plain data.

Passes build functions from it, code generators lay out inputs by it, and the runtime fills them in. Nothing here
depends on the IR or a back end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Dim = int | str


@dataclass(frozen=True)
class Argument:
    """A tensor that an entry takes or returns. Dimensions are sizes, or names whose sizes each call decides."""

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
        """Returns the argument of that name. Raises KeyError if there is none."""
        for each in self.arguments:
            if each.name == name:
                return each
        raise KeyError(name)


@dataclass(frozen=True)
class StateRecord:
    """A state: what a step leaves for later ones. `shape` is that of the record of one position, row or request."""

    per: str  # "position", "row" or "request"
    shape: tuple[int, ...]
    dtype: str


STEP = "step"
"""The entry that evaluates rows."""

ENCODE = "encode"
"""The entry with which a session begins, if the model has states for each request."""

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
        Argument("parents", ("N",)),
        Argument("records", ("N",)),
        Argument("order", ("N",)),
        Argument("requests", ("S",)),
        Argument("block_tables", ("S", "B")),
    )
}
"""The arguments that a step may take, in the order of its inputs in memory: the fields of `runtime.executable.Rows`,
which describes each one. The block tables, which may grow, come last."""
