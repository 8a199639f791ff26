"""A mask as a function of two positions: evaluated for a block of rows and keys, or bounded over it, never T x T.

What a mask is made of and has one sequence dimension or none (positions, running sums, slopes) is evaluated in full:
the leaves. From there on a mask is elementwise, and a block needs its rows' and keys' part of the leaves alone: for its
values, or for bounds of them, which for most blocks say that all of it is visible, or nothing. An operation that is not
elementwise over pairs becomes a leaf itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple

import torch

from forerun.errors import UnsupportedOperationError
from forerun.ir import (
    COMPARISONS,
    Broadcast,
    Builder,
    Cast,
    Environment,
    Gather,
    Map,
    Reshape,
    Slice,
    SpecOperation,
    SSAValue,
    Transpose,
    backward_slice,
    run_body,
    tensor_type,
    torch_dtype,
)
from forerun.ir import dims as dimensions
from forerun.passes.base import PassContext
from forerun.passes.bounds import Bounds, bound_cast, bound_map, known, undecided
from forerun.passes.matching import HIDDEN, SEQUENCE
from forerun.passes.sequence_axis import place, sequence_axes

BUDGET = 1 << 27
"""Values of pairs that may be evaluated one by one: seconds."""

Role = Literal["row", "key"]
Axes = tuple[tuple[int, Role, int], ...]
"""For each axis, counted from the end, that runs along the rows or the keys: which, and where position 0 lies on it."""


class Span(NamedTuple):
    """Positions from `start` below `stop`."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def part(self) -> slice:
        return slice(self.start, self.stop)

    def halves(self) -> tuple[Span, Span]:
        middle = (self.start + self.stop) // 2
        return Span(self.start, middle), Span(middle, self.stop)


POINT: Mapping[Role, Span] = {"row": Span(0, 1), "key": Span(0, 1)}
"""Bounds are one number for all rows and keys of a block."""


@dataclass(frozen=True, eq=False)
class Node:
    """A value restricted to rows and keys along `axes`; a leaf has no operation."""

    value: SSAValue
    axes: Axes
    operation: SpecOperation | None = None
    inputs: tuple[Node, ...] = ()


Chosen = Mapping[Node, int]
"""Of some choices (`where`), the operand that is taken."""


class Pairs:
    """A mask [..., T, T] of `@forward` that needs no tokens, at T = length.

    Raises UnsupportedOperationError where a part of it can be evaluated only T x T, and T is too large for that.
    """

    def __init__(self, mask: SSAValue, length: int, context: PassContext) -> None:
        self.length = length
        self.sizes = {SEQUENCE: length}
        self.heads = prod(int(dim) for dim in tensor_type(mask).dims[:-2])
        self.is_truth = tensor_type(mask).dtype == "i1"
        self.nodes: dict[tuple[SSAValue, Axes], Node] = {}
        assert isinstance(mask.owner, SpecOperation)
        self.origin = mask.owner
        dims = tensor_type(mask).dims
        roles: tuple[tuple[int, Role], ...] = ((-2, "row"), (-1, "key"))
        self.mask = self._node(mask, {axis: (role, 0) for axis, role in roles if dims[axis] != 1})
        self.environment = Environment(context.weights, bindings=self.sizes)
        self.leaves = self._evaluate_leaves()

    @property
    def whole(self) -> Span:
        return Span(0, self.length)

    def values(self, rows: Span, keys: Span, chosen: Chosen | None = None) -> torch.Tensor:
        """[heads or 1, rows, keys]"""
        spans: dict[Role, Span] = {"row": rows, "key": keys}
        values: dict[Node, torch.Tensor] = {}
        root, ordered = self._ordered(chosen or {})
        for node, inputs in ordered:
            given = [values[each] for each in inputs]
            values[node] = self._apply(node, given, spans) if given else self._part(node, spans)
        found = values[root]
        return found.reshape(-1, *found.shape[-2:]).expand(-1, rows.size, keys.size)

    def bounds(self, rows: Span, keys: Span, chosen: Chosen | None = None) -> Bounds | None:
        """Bounds of the values over all rows and keys, a pair of numbers a head; None where nothing is known."""
        spans: dict[Role, Span] = {"row": rows, "key": keys}
        values: dict[Node, Bounds | None] = {}
        root, ordered = self._ordered(chosen or {})
        for node, inputs in ordered:
            found = self._bound(node, [values[each] for each in inputs], spans)
            if found is None and tensor_type(node.value).dtype == "i1":
                found = undecided(self._shape(node, POINT))
            values[node] = found
        return values[root]

    @cached_property
    def shown(self) -> Chosen:
        """The choices that are none where a key is visible: the other operand would hide it, whatever is added."""
        chosen: dict[Node, int] = {}
        for node in self.nodes.values():
            if not isinstance(node.operation, Map) or node.operation.parameter("function") != "where":
                continue
            for taken, hides in ((1, 2), (2, 1)):
                bounds = self.bounds(self.whole, self.whole, {**chosen, node: hides})
                if bounds is not None and bool((bounds[1] <= HIDDEN).all()):
                    chosen[node] = taken
                    break
        return chosen

    def depends_on(self, chosen: Chosen) -> set[str]:
        """What a value is a function of: "row", "key" and, where those meet in a difference alone, "distance"."""
        found: dict[Node, set[str]] = {}
        root, ordered = self._ordered(chosen)
        for node, inputs in ordered:
            if not inputs:
                found[node] = {role for axis, role, _ in node.axes if not self._constant(node, axis)}
            elif self._is_difference(node, inputs):
                found[node] = {"distance"}
            else:
                found[node] = set[str]().union(*(found[each] for each in inputs))
        return found[root]

    def emit(self, build: Builder, clone: Callable[[SSAValue], SSAValue], rows: Span, keys: Span) -> SSAValue:
        """The shown values for some rows and keys as IR, [..., rows, keys]; `clone` gives the leaves."""
        spans: dict[Role, Span] = {"row": rows, "key": keys}
        values: dict[Node, SSAValue] = {}
        root, ordered = self._ordered(self.shown)
        for node, inputs in ordered:
            if node.operation is None:
                value = clone(node.value)
                for axis, role, offset in node.axes:
                    at = tensor_type(value).rank + axis
                    value = build.slice(value, at, spans[role].start + offset, spans[role].stop + offset)
                values[node] = value
            elif isinstance(node.operation, Slice) and _moves(node):
                values[node] = values[inputs[0]]
            elif len(inputs) < len(node.inputs):
                values[node] = build.broadcast(values[inputs[0]], self._shape(node, spans))
            else:
                parameters = node.operation.parameters
                if isinstance(node.operation, Reshape | Broadcast):
                    parameters = {"shape": tuple(self._shape(node, spans))}
                values[node] = build.add(type(node.operation), *(values[each] for each in inputs), **parameters)
        return build.broadcast(values[root], (*tensor_type(values[root]).dims[:-2], rows.size, keys.size))

    def _node(self, value: SSAValue, axes: dict[int, tuple[Role, int]]) -> Node:
        key = (value, tuple((axis, *axes[axis]) for axis in sorted(axes)))
        if key not in self.nodes:
            inputs = self._inputs(value, axes) if len(sequence_axes(value)) > 1 else None
            owner = value.owner
            if inputs is None or not isinstance(owner, SpecOperation):
                self.nodes[key] = Node(*key)
            else:
                self.nodes[key] = Node(*key, owner, tuple(inputs))
        return self.nodes[key]

    def _inputs(self, value: SSAValue, axes: dict[int, tuple[Role, int]]) -> list[Node] | None:
        """The operands restricted as the result is; None where the operation is not elementwise over pairs."""
        operation = value.owner
        if not isinstance(operation, Map | Cast | Broadcast | Reshape | Transpose | Slice | Gather):
            return None
        restricted = [self._operand_axes(operation, each, axes) for each in range(len(operation.inputs))]
        nodes: list[Node] = []
        for operand, found in zip(operation.inputs, restricted, strict=True):
            along = sequence_axes(operand)
            if found is None or (len(along) > 1 and not set(along) <= found.keys()):
                return None
            nodes.append(self._node(operand, found))
        return nodes

    def _operand_axes(
        self, operation: SpecOperation, number: int, axes: dict[int, tuple[Role, int]]
    ) -> dict[int, tuple[Role, int]] | None:
        dims, result = tensor_type(operation.inputs[number]).dims, tensor_type(operation.result).dims
        rank = len(dims)
        if isinstance(operation, Reshape):
            before, after = (
                [(at - len(shape), dim) for at, dim in enumerate(shape) if dim != 1] for shape in (dims, result)
            )
            if [dim for _, dim in before] != [dim for _, dim in after]:
                return None
            moved = {new: old for (old, _), (new, _) in zip(before, after, strict=True)}
            return {moved[axis]: each for axis, each in axes.items()}
        if isinstance(operation, Transpose):
            permutation = operation.parameter("permutation")
            return {permutation[axis] - rank: each for axis, each in axes.items()}
        if isinstance(operation, Slice):
            along, start = operation.parameter("dim") - rank, operation.parameter("start")
            if along not in axes:
                return axes
            role, offset = axes[along]
            first = offset + dimensions.evaluate(start, self.sizes)
            return None if operation.parameter("step", 1) != 1 else {**axes, along: (role, first)}
        if isinstance(operation, Gather):
            rest = tensor_type(operation.inputs[0]).rank - (len(operation.inputs) - 1)
            if any(axis >= -rest for axis in axes):
                return None
            axes = {axis + rest: each for axis, each in axes.items()} if number else {}
        return {axis: each for axis, each in axes.items() if axis >= -rank and dims[axis] != 1}

    def _evaluate_leaves(self) -> dict[SSAValue, torch.Tensor]:
        leaves = {node.value for node in self.nodes.values() if node.operation is None}
        body = list(dict.fromkeys(each for value in leaves for each in backward_slice(value)))
        for operation in body:
            pairs = [each for each in operation.results if len(sequence_axes(each)) > 1]
            if any(prod(tensor_type(each).sizes(self.sizes)) > BUDGET for each in pairs):
                raise self.too_many(operation)
        values: dict[SSAValue, torch.Tensor] = {}
        run_body(body, values, self.environment, keep=leaves)
        return {each: values[each] for each in leaves}

    def too_many(self, operation: SpecOperation | None = None) -> UnsupportedOperationError:
        """The error where what an operation, by default the last, gives would have to be evaluated for all pairs."""
        operation = operation or self.origin
        most = int((BUDGET / max(1, self.heads)) ** 0.5)
        return UnsupportedOperationError(
            f"The mask that spec.{operation.mnemonic} at {place(operation)} makes has to be evaluated for every pair "
            f"of positions, which are too many at max_length={self.length}; compile with max_length={most} or less."
        )

    def _ordered(self, chosen: Chosen) -> tuple[Node, list[tuple[Node, tuple[Node, ...]]]]:
        """The mask's node, and all that it is made of with what they are made of, operands first."""
        ordered: dict[Node, tuple[Node, ...]] = {}
        pending = [self.mask]
        while pending:
            node = pending[-1]
            inputs = (node.inputs[chosen[node]],) if node in chosen else node.inputs
            missing = [each for each in inputs if each not in ordered]
            if missing:
                pending.extend(missing)
            else:
                ordered.setdefault(node, inputs)
                pending.pop()
        return self.mask, list(ordered.items())

    def _part(self, leaf: Node, spans: Mapping[Role, Span]) -> torch.Tensor:
        value = self.leaves[leaf.value]
        for axis, role, offset in leaf.axes:
            value = value.narrow(axis, spans[role].start + offset, spans[role].size)
        return value

    def _shape(self, node: Node, spans: Mapping[Role, Span]) -> list[int]:
        shape = tensor_type(node.value).sizes(self.sizes)
        shape = list(shape)
        for axis, role, _ in node.axes:
            shape[axis] = spans[role].size
        return shape

    def _apply(self, node: Node, inputs: Sequence[torch.Tensor], spans: Mapping[Role, Span]) -> torch.Tensor:
        operation = node.operation
        assert operation is not None
        if isinstance(operation, Reshape):
            return inputs[0].reshape(self._shape(node, spans))
        if isinstance(operation, Broadcast) or len(inputs) < len(node.inputs):  # or a choice that is none
            return inputs[0].expand(self._shape(node, spans))
        if isinstance(operation, Slice) and _moves(node):
            return inputs[0]
        result = operation.evaluate(self.environment, *inputs)
        assert isinstance(result, torch.Tensor)
        return result

    def _bound(self, node: Node, inputs: list[Bounds | None], spans: Mapping[Role, Span]) -> Bounds | None:
        operation = node.operation
        if operation is None:
            part, along = self._part(node, spans), [axis for axis, _, _ in node.axes]
            return known(part.amin(along, keepdim=True), part.amax(along, keepdim=True)) if along else known(part, part)
        if isinstance(operation, Map) and len(inputs) == len(node.inputs):
            found = bound_map(operation.parameter("function"), inputs)
            shape = self._shape(node, POINT)  # one of a choice's operands may have fewer dimensions
            return None if found is None else (found[0].expand(shape), found[1].expand(shape))
        if isinstance(operation, Cast):
            return bound_cast(inputs[0], torch_dtype(operation.parameter("dtype")))
        if inputs[0] is None:
            return None
        low, high = inputs[0]
        if isinstance(operation, Gather):
            count = len(inputs) - 1
            over, shape = list(range(count)), [1] * (tensor_type(node.value).rank - low.dim() + count)
            low, high = (each(x, over) for each, x in ((torch.amin, low), (torch.amax, high)))
            return low.reshape(shape + list(low.shape)), high.reshape(shape + list(high.shape))
        return self._apply(node, [low], POINT), self._apply(node, [high], POINT)

    def _constant(self, leaf: Node, axis: int) -> bool:
        part = self._part(leaf, {"row": self.whole, "key": self.whole})
        return bool((part == part.narrow(axis, 0, 1)).all())

    def _is_difference(self, node: Node, inputs: Iterable[Node]) -> bool:
        """A difference or a comparison of a row's and a key's place, counted in equal steps."""
        functions = COMPARISONS | {"sub"}
        if not isinstance(node.operation, Map) or node.operation.parameter("function") not in functions:
            return False
        steps = [self._step(each) for each in inputs]
        return (
            None not in steps
            and {role for role, _ in filter(None, steps)} == {"row", "key"}
            and len({step for _, step in filter(None, steps)}) == 1
        )

    def _step(self, leaf: Node) -> tuple[Role, float] | None:
        """The role and the step of a leaf that counts positions in whole numbers, which no dtype rounds."""
        part = self._part(leaf, {"row": self.whole, "key": self.whole}) if leaf.operation is None else None
        if part is None or len(leaf.axes) != 1 or part.numel() != self.length or self.length < 2:
            return None
        numbers = part.flatten().double()
        steps = numbers.diff()
        exact = bool((steps == steps[0]).all()) and bool((numbers == numbers.round()).all())
        return (leaf.axes[0][1], float(steps[0])) if exact and float(numbers.abs().max()) < 2**23 else None


def _moves(node: Node) -> bool:
    """Whether a slice is along the rows or the keys: then it has moved their place in what it slices."""
    assert node.operation is not None
    along = node.operation.parameter("dim") - tensor_type(node.value).rank
    return along in [axis for axis, _, _ in node.axes]
