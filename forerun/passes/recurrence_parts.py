"""The parts of a cached step that are recurrences: what lies between reading a state and leaving the next.

A part is grown where that makes what passes its border smaller: by operations that make an input as large as the record
from smaller values, and by those that read values larger than its inputs down to smaller ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import networkx as nx

from forerun.errors import UnsupportedOperationError
from forerun.ir import (
    AlongAxes,
    Broadcast,
    Constant,
    Elementwise,
    Function,
    MatMul,
    Reshape,
    Return,
    SpecOperation,
    SSAValue,
    Transpose,
    backward_slice,
    neighbourhood,
    tensor_type,
)
from forerun.passes.matching import is_constant

networkx: Any = nx
"""networkx's stubs leave the results of its algorithms unknown."""

Node = SpecOperation | SSAValue

INSIDE = (Elementwise, AlongAxes, Broadcast, MatMul, Reshape, Transpose)
"""Operations by which a part may grow: they read no weights."""


@dataclass(eq=False)
class Part:
    """A recurrence: the states before and after, and the operations between; `places` are those in the function."""

    places: Mapping[SpecOperation, int]
    befores: list[SSAValue]
    afters: list[SSAValue]
    operations: set[SpecOperation]

    @property
    def ordered(self) -> list[SpecOperation]:
        """The operations in the order of the function."""
        return sorted(self.operations, key=self.places.__getitem__)

    @property
    def record(self) -> int:
        """The numbers of its records."""
        return sum(map(size_of, self.befores))

    def inputs(self) -> list[SSAValue]:
        """What it reads besides its states, except numbers, which it has copies of."""
        found: dict[SSAValue, None] = {}
        for operation in self.ordered:
            for value in operation.operands:
                outside = value.owner not in self.operations and value not in self.befores
                if outside and not isinstance(value.owner, Constant):
                    found[value] = None
        found.update((each, None) for each in self.afters if each.owner not in self.operations)
        return list(found)

    def outputs(self) -> list[SSAValue]:
        """What others read of it."""
        results = (value for each in self.ordered for value in each.results)
        return [value for value in (*self.befores, *results) if self._is_read(value)]

    def _is_read(self, value: SSAValue) -> bool:
        users = [use.operation for use in value.uses]
        return any(each not in self.operations and not isinstance(each, Return) for each in users)


def joined(parts: Sequence[Part], operations: Iterable[SpecOperation] = ()) -> Part:
    """Several parts, and further operations, as one."""
    befores = [before for each in parts for before in each.befores]
    afters = [after for each in parts for after in each.afters]
    inside = {operation for each in parts for operation in each.operations}
    return Part(parts[0].places, befores, afters, inside | set(operations))


def size_of(value: SSAValue) -> int:
    return prod(dim for dim in tensor_type(value).dims if isinstance(dim, int))


def recurrence_parts(
    function: Function, states: Sequence[tuple[SSAValue, SSAValue]], apart: Iterable[SSAValue] = ()
) -> list[Part]:
    """Returns the parts of a cached step, for the states that it rewrites: each one's argument and result.

    What computes the values `apart` does not become part of one for its size.
    """
    graph = _graph(function)
    places = {operation: place for place, operation in enumerate(function.body)}
    parts: list[Part] = []
    for before, after in states:
        own = _reached(graph, [before]) & set(backward_slice(after))
        shared = [each for each in parts if each.operations & own]
        parts = [each for each in parts if each not in shared]
        parts.append(joined([*reversed(shared), Part(places, [before], [after], own)]))
    of_tokens = _reached(graph, function.block.args)
    for part in parts:
        others = {operation for each in parts if each is not part for operation in each.operations}
        others.update(each.owner for each in apart if isinstance(each.owner, SpecOperation))
        _take_makers(part, others, of_tokens)
        _take_readers(part, others, graph)
    return parts


def _graph(function: Function) -> nx.DiGraph[Node]:
    """From definitions to uses; the function's arguments are nodes as well."""
    graph: nx.DiGraph[Node] = nx.DiGraph()
    for operation in function.body:
        graph.add_node(operation)
        for value in operation.operands:
            owner = value.owner
            graph.add_edge(owner if isinstance(owner, SpecOperation) else value, operation)
    return graph


def _reached(graph: nx.DiGraph[Node], values: Iterable[SSAValue]) -> set[SpecOperation]:
    """The operations that depend on values."""
    found: set[SpecOperation] = set()
    for value in values:
        source: Node = value.owner if isinstance(value.owner, SpecOperation) else value
        if source in graph:
            found.update(each for each in networkx.descendants(graph, source) if isinstance(each, SpecOperation))
    return {each for each in found if not isinstance(each, Return)}


def _take_makers(part: Part, others: set[SpecOperation], of_tokens: set[SpecOperation]) -> None:
    """Takes in what makes inputs as large as the record; what does not depend on the token stays outside."""
    while True:
        large = (value.owner for value in part.inputs() if size_of(value) >= part.record)
        made = [each for each in large if isinstance(each, INSIDE) and each in of_tokens and each not in others]
        if not made:
            return
        part.operations.update(made)


def _take_readers(part: Part, others: set[SpecOperation], graph: nx.DiGraph[Node]) -> None:
    """Takes in what reads values that are larger than the part's inputs, as long as it waits for nothing else of it."""
    limit = max((size_of(value) for value in part.inputs() if not is_constant(value)), default=0)
    while True:
        taken: set[SpecOperation] = set()
        results = [value for each in part.operations for value in each.results]
        outside = _reached(graph, [*part.befores, *results]) - part.operations
        for value in part.outputs():
            if size_of(value) <= limit:
                continue
            for use in value.uses:
                reader = use.operation
                if not isinstance(reader, INSIDE) or reader in part.operations or reader in others:
                    continue
                if not any(each.owner in outside for each in reader.operands):
                    taken.add(reader)
        if not taken:
            return
        part.operations.update(taken)


def in_order(
    function: Function, parts: Sequence[Part], made_of: Mapping[SSAValue, SSAValue] = MappingProxyType({})
) -> list[SpecOperation | Part]:
    """Returns the operations outside the parts, and the parts, each after what it reads.

    Parts that wait for one another, with nothing but what a part may hold in between, become one. `made_of`: states
    that are known from another value's at earlier positions. Raises UnsupportedOperationError if there is no order.
    """
    places: dict[SpecOperation | Part, int] = {operation: place for place, operation in enumerate(function.body)}
    graph = _dependencies(function, parts, made_of)
    waiting = next((each for each in networkx.strongly_connected_components(graph) if len(each) > 1), None)
    if waiting is not None:
        one = _together(waiting, parts, made_of)
        return in_order(function, [*(each for each in parts if each not in waiting), one], made_of)
    first = {part: min((places[each] for each in part.operations), default=0) for part in parts}
    return list(networkx.lexicographical_topological_sort(graph, key=(places | first).__getitem__))


def _together(
    waiting: Collection[SpecOperation | Part], parts: Sequence[Part], made_of: Mapping[SSAValue, SSAValue]
) -> Part:
    """The parts, and the operations between them, that wait for one another, as one part."""
    outside = [each for each in waiting if isinstance(each, SpecOperation)]
    large = next((each for each in outside if not isinstance(each, INSIDE)), None)
    if large is not None or made_of.keys() & {value for each in waiting for value in _reads(each)}:
        raise UnsupportedOperationError(
            "The model's recurrent states wait for one another through other layers, which cannot be one recurrence.\n"
            + ("" if large is None else neighbourhood(large))
        )
    return joined([each for each in parts if each in waiting], outside)


def _reads(node: SpecOperation | Part) -> list[SSAValue]:
    if isinstance(node, SpecOperation):
        return list(node.operands)
    return [value for each in node.operations for value in each.operands] + node.afters


def _dependencies(
    function: Function, parts: Sequence[Part], made_of: Mapping[SSAValue, SSAValue]
) -> nx.DiGraph[SpecOperation | Part]:
    """From what gives values to what reads them."""
    part_of = {operation: part for part in parts for operation in part.operations}
    state_of = {before: part for part in parts for before in part.befores}
    graph: nx.DiGraph[SpecOperation | Part] = nx.DiGraph()
    nodes: list[SpecOperation | Part] = [each for each in function.body if each not in part_of]
    for node in (*nodes, *parts):
        graph.add_node(node)
        for read in _reads(node):
            value = made_of.get(read, read)
            owner = value.owner
            source = part_of.get(owner, owner) if isinstance(owner, SpecOperation) else state_of.get(value)
            if source is not None and source is not node and not isinstance(node, Return):
                graph.add_edge(source, node)
    return graph
