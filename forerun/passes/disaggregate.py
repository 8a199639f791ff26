"""disaggregate: cuts `@step` into `@attention_part` and `@ffn_part`, which send each other what the other needs.

After Step-3 (arXiv 2507.19427): attention reads the cache, feed-forward parts read weights, and they want different
hardware. What reads or writes states, and the products around it, belong to the attention part; the products of
feed-forward branches to the other. Everything in between goes where the fewest bytes pass from one part to the other: a
minimum cut of the graph, by networkx. No arithmetic changes, so neither do the bits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, ClassVar

import networkx as nx

from forerun import dims as dimensions
from forerun.errors import InvalidOptionError, UnsupportedOperationError
from forerun.ir import (
    Builder,
    Context,
    Function,
    ModuleOp,
    Parameter,
    Receive,
    Return,
    Rewriter,
    Send,
    SpecOperation,
    SSAValue,
    Symbol,
    WeightProduct,
    functions,
    states,
    tensor_type,
    torch_dtype,
    weights,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.residual import FEED_FORWARD, LAYER, Branch, Residual, residual
from forerun.signature import ENCODE, STEP

networkx: Any = nx
"""networkx's stubs leave the results of its algorithms unknown."""

ATTENTION_PART, FFN_PART = "attention_part", "ffn_part"


@dataclass(frozen=True)
class Disaggregate(Pass):
    """`@step` stays as it is; the parts have its arguments and results between them.

    With `part`, only the part of that name stays, as `@step`, with the weights and states that it reads.
    """

    name: ClassVar[str] = "disaggregate"
    needs: ClassVar[Needs | None] = Needs(
        "step", ("tokens",), adds_functions=(ATTENTION_PART, FFN_PART), before_kernels=True
    )

    part: str = ""

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        if self.part not in ("", ATTENTION_PART, FFN_PART):
            raise InvalidOptionError(f"There is no part {self.part!r}; use {ATTENTION_PART} or {FFN_PART}.")
        step = function_named(op, "step")
        found = residual(step)
        apart = [each for branch in found.branches for each in _feed_forward(branch)]
        if not apart:
            raise UnsupportedOperationError(
                "@step has no feed-forward part beside its attentions and recurrences: run the model on one process."
            )
        away = _cut(step, apart)
        attention, ffn = _Parts(step, away, found).built()
        for part in (ffn, attention):
            part.branches = tuple((each.layer, each.kind) for each in found.branches)
            op.body.block.insert_op_after(part, step)
            clean(part)
        for line in described(attention, ffn, found):
            pass_context(ctx).note(f"{self.name}: {line}")
        if self.part:
            _keep(op, {ATTENTION_PART: attention, FFN_PART: ffn}[self.part])


def _keep(module: ModuleOp, part: Function) -> None:
    """Leaves a part alone, as `@step`."""
    if ENCODE in functions(module):
        raise UnsupportedOperationError(
            f"@{ENCODE} has no parts, and steps read what it leaves behind: run a model with an encoder on one process."
        )
    for name, each in functions(module).items():
        if each is not part and name != "constants":
            Rewriter.erase_op(each)
    part.symbol = Symbol(STEP)
    bodies = [each.body for each in functions(module).values()]
    read = {each.symbol for body in bodies for each in body if isinstance(each, Parameter)}
    used = {symbol for each in part.body for symbol in (*each.reads, *each.writes)}
    for name, each in states(module).items():
        if name not in used:
            Rewriter.erase_op(each)
    for name, each in weights(module).items():
        if name not in read and each.derived is None:
            Rewriter.erase_op(each)


def _feed_forward(branch: Branch) -> list[SpecOperation]:
    """The products of a branch that nothing with a state reads or feeds."""
    if branch.kind not in (FEED_FORWARD, LAYER):
        return []
    products: list[SpecOperation] = [each for each in branch.operations if isinstance(each, WeightProduct)]
    graph: nx.DiGraph[Any] = nx.DiGraph()
    for each in branch.operations:
        graph.add_node(each)
        graph.add_edges_from((value.owner, each) for value in each.operands if value.owner in branch.operations)
    beside: set[SpecOperation] = set()
    for each in [each for each in branch.operations if each.reads or each.writes]:
        beside |= networkx.ancestors(graph, each) | networkx.descendants(graph, each)
    return [each for each in products if each not in beside]


def row_bytes(value: SSAValue) -> int:
    """The bytes of a value for each row."""
    kind = tensor_type(value)
    return prod(dim for dim in kind.dims if isinstance(dim, int)) * torch_dtype(kind.dtype).itemsize


def _is_of_rows(value: SSAValue) -> bool:
    return any(dimensions.symbol(dim) for dim in tensor_type(value).dims)


def _is_shared(operation: SpecOperation) -> bool:
    """Whether both parts may compute it: it depends on weights and numbers alone."""
    return not any(map(_is_of_rows, (*operation.operands, *operation.results))) and not operation.writes


def _cut(step: Function, apart: Sequence[SpecOperation]) -> set[SpecOperation]:
    """Returns the operations of the feed-forward part: those `apart`, and what lies best beside them.

    A value that crosses the cut is sent once, whatever reads it there: it has a node for either direction, which its
    maker and its readers are tied to.
    """
    graph: nx.DiGraph[Any] = nx.DiGraph()
    source, sink = "attention", "ffn"
    for operation in step.body:
        if _is_shared(operation):
            continue
        if operation in apart:
            graph.add_edge(operation, sink, capacity=inf)
        elif operation.reads or operation.writes or isinstance(operation, Return | WeightProduct):
            graph.add_edge(source, operation, capacity=inf)
        for value in operation.operands:
            if isinstance(value.owner, SpecOperation) and _is_shared(value.owner):
                continue
            maker = value.owner if isinstance(value.owner, SpecOperation) else source
            for number, (start, end) in enumerate(((maker, operation), (operation, maker))):
                there = (value, number)
                first, last = (start, there) if number == 0 else (there, end)
                graph.add_edge(first, last, capacity=row_bytes(value))
                graph.add_edge(*((there, end) if number == 0 else (start, there)), capacity=inf)
    _, (_, other) = networkx.minimum_cut(graph, source, sink)
    return {each for each in other if isinstance(each, SpecOperation)}


@dataclass(frozen=True)
class _Message:
    """A value that one part has and the other reads in a branch: once for each, as others may be left out."""

    value: SSAValue
    branch: int | None


class _Parts:
    """Two functions, each with its operations in the order of the step.

    A value is sent as soon as it is there and received where it is first read, so that both parts work meanwhile.
    Messages of one direction have one order: that in which they are read.
    """

    def __init__(self, step: Function, away: set[SpecOperation], found: Residual) -> None:
        self.step, self.away = step, away
        self.branch_of = {each: number for number, branch in enumerate(found.branches) for each in branch.operations}
        self.branches = found.branches
        own = [(str(each.name_hint), tensor_type(each)) for each in step.block.args]
        self.functions = Function.of(ATTENTION_PART, own), Function.of(FFN_PART, [])
        self.builds = [Builder(each.block) for each in self.functions]
        self.values: list[dict[SSAValue, SSAValue]] = [
            dict(zip(step.block.args, self.functions[0].block.args, strict=True)),
            {},
        ]
        self.messages = [self._messages(to=side) for side in (0, 1)]
        self.unsent = [list(self.messages[1]), list(self.messages[0])]  # by each side
        self.names: dict[_Message, str] = {}

    def built(self) -> tuple[Function, Function]:
        self._send(0)
        for operation in self.step.body:
            for side in (0, 1) if _is_shared(operation) else (self._side(operation),):
                for message in dict.fromkeys(self._read(operation)):
                    if message in self.messages[side]:
                        self._receive(message, side)
                self._clone(operation, side)
                self._send(side)
        self.builds[1].emit(Return.make())
        return self.functions

    def _side(self, operation: SpecOperation) -> int:
        return int(operation in self.away)

    def _read(self, operation: SpecOperation) -> list[_Message]:
        return [_Message(each, self.branch_of.get(operation)) for each in operation.operands]

    def _messages(self, to: int) -> dict[_Message, None]:
        """What a side reads that the other has made, in the order in which it is first read."""
        own = {value for each in self.step.body if self._side(each) == to for value in each.results}
        own |= {value for each in self.step.body if _is_shared(each) for value in each.results}
        own |= set() if to else set(self.step.block.args)
        reads = [each for each in self.step.body if self._side(each) == to and not _is_shared(each)]
        return {each: None for operation in reads for each in self._read(operation) if each.value not in own}

    def _send(self, side: int) -> None:
        """Sends what is there, in the order of the messages."""
        waiting = self.unsent[side]
        while waiting and waiting[0].value in self.values[side]:
            message = waiting.pop(0)
            self.names[message] = self._name(message)
            value = self.values[side][message.value]
            self.builds[side].emit(Send.make(value, payload=self.names[message], branch=message.branch))

    def _receive(self, message: _Message, side: int) -> None:
        del self.messages[side][message]
        kind = tensor_type(message.value)
        given = {"payload": self.names[message], "shape": kind.dims, "dtype": kind.dtype, "branch": message.branch}
        received = self.builds[side].add(Receive, **{name: each for name, each in given.items() if each is not None})
        received.name_hint = message.value.name_hint
        self.values[side][message.value] = received

    def _name(self, message: _Message) -> str:
        branches = [(each.layer, each.kind) for each in self.branches]
        return payload_name(message.value, message.branch, branches, set(self.names.values()))

    def _clone(self, operation: SpecOperation, side: int) -> None:
        values, build = self.values[side], self.builds[side]
        build.location = operation.location
        made = build.emit(operation.clone({each: values[each] for each in operation.operands}))
        for old, new in zip(operation.results, made.results, strict=True):
            values[old] = new
            new.name_hint = old.name_hint


def payload_name(
    value: SSAValue, branch: int | None, branches: Sequence[tuple[int, str]], taken: Collection[str]
) -> str:
    """A name that no other payload has: the value's, behind the kind and the layer of its branch."""
    name = str(value.name_hint or "value")
    if branch is not None:
        layer, kind = branches[branch]
        name = f"{kind}.{layer}.{name}"
    return next(each for each in (name, *(f"{name}.{n}" for n in range(1, len(taken) + 2))) if each not in taken)


def described(attention: Function, ffn: Function, found: Residual) -> list[str]:
    """The traffic of a step, for people."""
    there, back = (
        sum(row_bytes(each.value) for each in part.body if isinstance(each, Send)) for part in (attention, ffn)
    )
    layers = len({each.layer for each in found.branches}) or 1
    messages = [sum(isinstance(each, Send) for each in part.body) for part in (attention, ffn)]
    return [
        f"{messages[0]} payloads to the feed-forward part and {messages[1]} back, {there + back} bytes a row, "
        f"{(there + back) / layers:.0f} a row and layer"
    ]
