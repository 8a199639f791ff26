"""Names of kernels, in the words of the model: whose weights a kernel multiplies, or the module that it is in.

    layers.3.mlp.gate_up          its products: of gate_proj and up_proj, both of layers.3.mlp
    layers.3.self_attn.attention  what has no products: the module of its residual branch, and its kind
    embed_tokens.lookup           a lookup in a table
    head                          the products and the choice of candidates among them

What stands in front of all layers' names ("model.") is left out. Kernels of one name are numbered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, count, takewhile

from forerun.ir import (
    Gather,
    ModuleOp,
    Parameter,
    SpecOperation,
    SSAValue,
    WeightProduct,
    first_of,
    functions,
    weights,
)

HEAD, ROW_WISE, LOOKUP = "head", "row_wise", "lookup"

Path = tuple[str, ...]
Described = tuple[str, int | None, Sequence[SpecOperation]]
"""A kernel's kind, its residual branch and its operations."""


class KernelNames:
    """Names the kernels of a module's entries."""

    def __init__(self, module: ModuleOp) -> None:
        self._origins = {name: _origins(module, name, each.derived) for name, each in weights(module).items()}
        numbered = [path for paths in self._origins.values() for path in paths if any(map(str.isdigit, path))]
        fronts = Counter(path[: max(0, _first_number(path) - 1)] for path in numbered)
        self._front = fronts.most_common(1)[0][0] if fronts else ()

    def of(self, kernels: Sequence[Described]) -> list[str]:
        """Returns a name for each kernel of an entry."""
        homes = self._homes(kernels)
        found: dict[str, None] = {}
        for kind, branch, members in kernels:
            name = self._name(kind, members, homes.get(branch))
            names = chain([name], (f"{name}_{number}" for number in count(2)))
            found[next(each for each in names if each not in found)] = None
        return list(found)

    def _name(self, kind: str, members: Iterable[SpecOperation], home: Path | None) -> str:
        if kind == HEAD and home is None:
            return HEAD
        if read := self._multiplied(members):
            return _joined(read)
        if kind == ROW_WISE and (read := self._looked_up(members)):
            return ".".join([*read[0], LOOKUP])
        return ".".join([*(home or ()), kind])

    def _homes(self, kernels: Iterable[Described]) -> dict[int | None, Path]:
        """The module that all products of a residual branch are in."""
        read: dict[int | None, list[Path]] = {}
        for _, branch, members in kernels:
            if branch is not None:
                read.setdefault(branch, []).extend(path[:-1] for path in self._multiplied(members))
        return {branch: _common(paths) for branch, paths in read.items()}

    def _multiplied(self, members: Iterable[SpecOperation]) -> list[Path]:
        return self._paths(first_of(each.weight).owner for each in members if isinstance(each, WeightProduct))

    def _looked_up(self, members: Iterable[SpecOperation]) -> list[Path]:
        return self._paths(each.table.owner for each in members if isinstance(each, Gather))

    def _paths(self, owners: Iterable[object]) -> list[Path]:
        """The modules of weights, each once."""
        paths = (path for each in owners if isinstance(each, Parameter) for path in self._origins[each.symbol])
        return list(dict.fromkeys(path[len(_common([path[:-1], self._front])) :] for path in paths))


def _origins(module: ModuleOp, symbol: str, derived: int | None) -> list[Path]:
    """The modules of a weight, or of the weights that a derived one is made of; if of none, its own name."""
    if derived is None:
        return [_path(symbol)]
    pending: list[SSAValue] = [functions(module)["constants"].returned[derived]]
    found: dict[Path, None] = {}
    seen: set[SSAValue] = set()
    while pending:
        value = pending.pop()
        if value in seen or not isinstance(value.owner, SpecOperation):
            continue
        seen.add(value)
        if isinstance(value.owner, Parameter):
            found[_path(value.owner.symbol)] = None
        pending.extend(value.owner.operands)
    return list(found) or [_path(symbol)]


def _path(symbol: str) -> Path:
    """The path of the module that a weight belongs to."""
    parts = tuple(symbol.split("."))
    return parts[:-1] if len(parts) > 1 and parts[-1] == "weight" else parts


def _first_number(path: Path) -> int:
    return sum(1 for _ in takewhile(lambda part: not part.isdigit(), path))


def _common(paths: Iterable[Path]) -> Path:
    """What several paths begin with."""
    found: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        found.append(parts[0])
    return tuple(found)


def _joined(paths: Sequence[Path]) -> str:
    """One name for several modules: q_proj, k_proj and v_proj are q_k_v; of those that differ in numbers, one has *."""
    parent = _common(path[:-1] for path in paths)
    rests = [path[len(parent) :] for path in paths]
    if len(rests) > 1:
        rests = list(dict.fromkeys(tuple("*" if part.isdigit() else part for part in path) for path in rests))
    leaves: dict[Path, list[str]] = {}
    for path in rests:
        leaves.setdefault(path[:-1], []).append(path[-1])
    parts = (".".join([*module, _one_word(names)]) for module, names in leaves.items())
    return ".".join([*parent, "+".join(parts)])


def _one_word(names: Sequence[str]) -> str:
    """gate_proj and up_proj are gate_up."""
    stems = [re.fullmatch(r"(.+)_([^_]+)", name) for name in names]
    ends = {None if stem is None else stem[2] for stem in stems}
    if len(names) > 1 and None not in ends and len(ends) == 1:
        names = [stem[1] for stem in stems if stem is not None]
    return "_".join(names)
