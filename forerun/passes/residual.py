"""The residual stream of a step, found in its graph: v[i + 1] = v[i] + f[i](v[i]).

Every path from the tokens to the logits runs through each stream value, so the stream values dominate the logits in
the graph of definitions, uses and states (Cooper, Harvey, Kennedy, "A Simple, Fast Dominance Algorithm", 2001,
by networkx). Among those, a value that is a sum with the last stream value as an addend is the next one. The part
between two of them is a branch: it can be left out, and then v[i + 1] is v[i].
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import networkx as nx

from forerun.ir import (
    Block,
    Exchange,
    Function,
    Kernel,
    Map,
    ModuleOp,
    Operation,
    Receive,
    Reshape,
    SpecOperation,
    SSAValue,
    TreeAttention,
    WeightProduct,
    functions,
    numbers_read,
    tensor_type,
    walk,
)
from forerun.passes.flow import FLOWS, Flow

NUMBER = 4
"""Bytes of a number."""
Node = Operation | Block
Graph = dict[Node, list[Node]]
"""What depends on the tokens, each with what it depends on directly."""

ATTENTION, FEED_FORWARD, LAYER = "attention", "feed_forward", "layer"
"""What a branch holds; a parallel residual has all of a layer in one."""


@dataclass(frozen=True)
class Branch:
    """The operations that turn v[i] into v[i + 1], including the sum."""

    layer: int  # the attentions before it, its own not counted, and none of them lower
    kind: str
    operations: frozenset[SpecOperation]


@dataclass(frozen=True)
class Residual:
    """A stream of n + 1 values and the n branches between them; both empty if the graph has no stream."""

    stream: tuple[SSAValue, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Summary:
    """A branch of a step whose operations are in kernels."""

    layer: int
    kind: str
    kernels: int
    linears: int
    weights: int  # the number of elements its linears read, of experts those that one row chooses


def summary(module: ModuleOp) -> list[Summary]:
    """The branches of `@step` behind fuse-kernels; empty if it has no residual stream."""
    step = functions(module)["step"]
    found: list[Summary] = []
    for number, (layer, kind) in enumerate(step.branches):
        kernels = [each for each in step.body if isinstance(each, Kernel) and each.branch == number]
        linears = [each for each in walk(kernels) if isinstance(each, WeightProduct)]
        numbers = sum(map(numbers_read, linears))
        found.append(Summary(layer, kind, len(kernels), len(linears), numbers))
    return found


def measured(module: ModuleOp) -> tuple[list[tuple[int, str, int]], int]:
    """The branches of a `@step` without kernels: layer, kind and the bytes of the weights that its linears read, in
    float32; and the bytes that linears outside branches read."""
    step = functions(module)["step"]
    branches = residual(step).branches

    def read(operations: Iterable[SpecOperation]) -> int:
        numbers = {each.weight: numbers_read(each) for each in operations if isinstance(each, WeightProduct)}
        return sum(numbers.values()) * NUMBER

    inside = {each for branch in branches for each in branch.operations}
    found = [(each.layer, each.kind, read(each.operations)) for each in branches]
    return found, read(each for each in step.body if each not in inside)


def residual(step: Function) -> Residual:
    """The residual stream of a function of rows: of `@step`, before its operations are in kernels.

    A part of a step that has no tokens has none.
    """
    if all(each.name_hint != "tokens" for each in step.block.args):
        return Residual((), ())
    graph = _flow(step)
    logits = step.returned[0].owner if step.returned else None
    if logits is None or logits not in graph:
        return Residual((), ())
    dominators = _dominators(graph, step)
    chain: list[SSAValue] = []
    here = logits
    while here is not step:
        assert isinstance(here, SpecOperation)
        if len(here.results) == 1 and not isinstance(here, Reshape):
            chain.append(here.results[0])
        here = dominators[here]
    stream: list[SSAValue] = []
    last: SSAValue | None = None
    for value in reversed(chain):
        terms = addends(value)
        added = [each for each in terms if each is not last and each.owner in graph]
        if added and any(each is last for each in terms):
            stream.extend(each for each in (last, value) if each is not None and each not in stream[-1:])
            last = value
        elif not stream:
            last = value
    branches: list[Branch] = []
    layers = 0
    for before, after in pairwise(stream):
        operations = _between(graph, before, after)
        attends = any(isinstance(each, TreeAttention) for each in operations)
        parts = [each for each in addends(after) if each is not before and each.owner in graph]
        layers += attends
        kind = FEED_FORWARD if not attends else ATTENTION if len(parts) == 1 else LAYER
        branches.append(Branch(max(0, layers - 1), kind, operations))
    return Residual(tuple(stream), tuple(branches))


def addends(value: SSAValue) -> list[SSAValue]:
    """The terms of a sum of values of one shape; other views of a value count as the value itself.

    Partial sums that nothing else reads are taken apart.
    """
    owner = value.owner
    if not (isinstance(owner, Map) and owner.function == "add"):
        return []
    found: list[SSAValue] = []
    for operand in owner.inputs:
        if tensor_type(operand).dims != tensor_type(value).dims:
            return []
        inner = addends(operand) if len(list(operand.uses)) == 1 else []
        found.extend(inner or [viewed(operand)])
    return found


def viewed(value: SSAValue) -> SSAValue:
    """Returns the value that a value is a reshape of, or the value itself."""
    return viewed(value.owner.x) if isinstance(value.owner, Reshape) else value


def _dominators(graph: Graph, root: Node) -> dict[Node, Node]:
    """The last node that every path from the root to a node runs through, other than the node itself."""
    edges = [(source, node) for node, sources in graph.items() for source in sources]
    immediate = cast(Any, nx).immediate_dominators
    return immediate(nx.DiGraph(edges), root)


def _flow(step: Function) -> Graph:
    """The graph of what depends on the tokens: definition to use, write to read, and one message to the next, as the
    other part answers. The function is the root."""
    graph: Graph = {step: []}
    tokens = step.argument("tokens")
    writes: dict[str, SpecOperation] = {}
    messages: list[SpecOperation] = []
    for operation in step.body:
        flow = FLOWS.of(operation)
        sources: list[Node] = [step for each in operation.operands if each is tokens]
        sources += [each.owner for each in operation.operands if each.owner in graph and each not in step.block.args]
        sources += [writes[symbol] for symbol in operation.reads if symbol in writes]
        if isinstance(operation, Receive):
            sources += messages[-1:]
        if sources and flow is not Flow.ENDS:
            graph[operation] = sources
            writes.update(dict.fromkeys(operation.writes, operation))
            messages += [operation] if isinstance(operation, Exchange) else []
    return graph


def _between(graph: Graph, before: SSAValue, after: SSAValue) -> frozenset[SpecOperation]:
    """The operations that lead from one stream value to the next."""
    found: set[SpecOperation] = set()
    pending: list[Node] = [after.owner]
    while pending:
        operation = pending.pop()
        if operation is before.owner or operation in found:
            continue
        assert isinstance(operation, SpecOperation)
        found.add(operation)
        pending.extend(graph[operation])
    return frozenset(found)
