"""A mask as a function of two positions: evaluated for a block of rows and keys, or bounded over it, never T x T.

The parts of a mask with at most one sequence dimension (positions, running sums, slopes) are its leaves, evaluated in
full. From there on a mask is elementwise, and a block needs only its own rows and keys of the leaves: for its values,
or for their bounds, which for most blocks say that all of it is visible, or none of it. An operation that is not
elementwise over pairs becomes a leaf itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from math import prod

import torch

from forerun import ir
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
    backward_slice,
    each_of,
    refused,
    run_body,
    tensor_type,
    torch_dtype,
)
from forerun.passes.base import PassContext
from forerun.passes.bounds import Bounds, bound_cast, bound_map, known, undecided
from forerun.passes.matching import HIDDEN, SEQUENCE
from forerun.passes.pair_rules import (
    POINT,
    RESTRICTIONS,
    Axes,
    Chosen,
    Node,
    Placed,
    Role,
    Span,
    leaf,
)
from forerun.passes.sequence_axis import place
from forerun.passes.transfer import sequence_axes

BUDGET = 1 << 27
"""Values of pairs that may be evaluated one by one: seconds."""


class Pairs:
    """A mask [..., T, T] of `@forward` that needs no tokens, at T = length.

    Raises UnsupportedOperationError if a part of it can only be evaluated T x T, and T is too large for that.
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
        """Bounds of the values over all rows and keys, a pair of numbers per head; None if nothing is known."""
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
        """The choices with one possible operand where a key is visible: the other would hide it, whatever is added."""
        chosen: dict[Node, int] = {}
        for node in self.nodes.values():
            if not isinstance(node.operation, Map) or node.operation.function != "where":
                continue
            for taken, hides in ((1, 2), (2, 1)):
                bounds = self.bounds(self.whole, self.whole, {**chosen, node: hides})
                if bounds is not None and bool((bounds[1] <= HIDDEN).all()):
                    chosen[node] = taken
                    break
        return chosen

    def depends_on(self, chosen: Chosen) -> set[str]:
        """What a value is a function of: "row", "key" and "distance" if those meet only in a difference."""
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
                shaped = isinstance(node.operation, Reshape | Broadcast)
                changes = {"shape": tuple(self._shape(node, spans))} if shaped else {}
                made = node.operation.remade([values[each] for each in inputs], **changes)
                values[node] = build.emit(made).results[0]
        return build.broadcast(values[root], (*tensor_type(values[root]).dims[:-2], rows.size, keys.size))

    def _node(self, value: SSAValue, axes: Placed) -> Node:
        key = (value, tuple((axis, *axes[axis]) for axis in sorted(axes)))
        if key not in self.nodes:
            owner = value.owner
            inputs = None
            if len(sequence_axes(value)) > 1 and isinstance(owner, SpecOperation):
                inputs = self._inputs(owner, axes)
            if inputs is None or not isinstance(owner, SpecOperation):
                self.nodes[key] = Node(*key)
            else:
                self.nodes[key] = Node(*key, owner, tuple(inputs))
        return self.nodes[key]

    def _inputs(self, operation: SpecOperation, axes: Placed) -> list[Node] | None:
        """Returns the operands restricted as the result is, or None if the operation is not elementwise over pairs."""
        rule = RESTRICTIONS.of(operation)
        if rule is leaf:
            return None
        nodes: list[Node] = []
        for number, operand in enumerate(operation.operands):
            found = rule(operation, number, axes, self.sizes)
            along = sequence_axes(operand)
            if found is None or (len(along) > 1 and not set(along) <= found.keys()):
                return None
            nodes.append(self._node(operand, found))
        return nodes

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
        """Returns the error for an operation, by default the last, that would have to be evaluated for all pairs."""
        operation = operation or self.origin
        most = int((BUDGET / max(1, self.heads)) ** 0.5)
        return UnsupportedOperationError(
            f"The mask that spec.{operation.mnemonic} at {place(operation)} makes has to be evaluated for every pair "
            f"of positions, which are too many at max_length={self.length}; compile with max_length={most} or less."
        )

    def _ordered(self, chosen: Chosen) -> tuple[Node, list[tuple[Node, tuple[Node, ...]]]]:
        """The mask's node and all nodes below it with their inputs, operands first."""
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
        if node.operation is None:
            part, along = self._part(node, spans), [axis for axis, _, _ in node.axes]
            return known(part.amin(along, keepdim=True), part.amax(along, keepdim=True)) if along else known(part, part)
        return BOUNDS.of(node.operation)(self, node, inputs)

    def bound_map(self, node: Node, inputs: list[Bounds | None]) -> Bounds | None:
        assert isinstance(node.operation, Map)
        if len(inputs) < len(node.inputs):  # a choice that is none
            return self.bound_ends(node, inputs)
        found = bound_map(node.operation.function, inputs)
        shape = self._shape(node, POINT)  # one of a choice's operands may have fewer dimensions
        return None if found is None else (found[0].expand(shape), found[1].expand(shape))

    def bound_cast(self, node: Node, inputs: list[Bounds | None]) -> Bounds | None:
        assert isinstance(node.operation, Cast)
        return bound_cast(inputs[0], torch_dtype(node.operation.dtype))

    def bound_gather(self, node: Node, inputs: list[Bounds | None]) -> Bounds | None:
        """Any row of the table may be chosen."""
        if inputs[0] is None:
            return None
        low, high = inputs[0]
        count = len(inputs) - 1
        over, shape = list(range(count)), [1] * (tensor_type(node.value).rank - low.dim() + count)
        low, high = (each(x, over) for each, x in ((torch.amin, low), (torch.amax, high)))
        return low.reshape(shape + list(low.shape)), high.reshape(shape + list(high.shape))

    def bound_ends(self, node: Node, inputs: list[Bounds | None]) -> Bounds | None:
        """An operation that moves elements moves their bounds."""
        if inputs[0] is None:
            return None
        low, high = inputs[0]
        return self._apply(node, [low], POINT), self._apply(node, [high], POINT)

    def unbounded(self, node: Node, inputs: list[Bounds | None]) -> Bounds | None:
        """Nothing is known: a leaf has the bounds of its values."""
        return None

    def _constant(self, leaf: Node, axis: int) -> bool:
        part = self._part(leaf, {"row": self.whole, "key": self.whole})
        return bool((part == part.narrow(axis, 0, 1)).all())

    def _is_difference(self, node: Node, inputs: Iterable[Node]) -> bool:
        """A difference or a comparison of a row's and a key's place, counted in equal steps."""
        functions = COMPARISONS | {"sub"}
        if not isinstance(node.operation, Map) or node.operation.function not in functions:
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
    assert isinstance(node.operation, Slice)
    along = node.operation.dim - tensor_type(node.value).rank
    return along in [axis for axis, _, _ in node.axes]


BOUNDS: ir.OperationTable[Callable[[Pairs, Node, list[Bounds | None]], Bounds | None]] = ir.OperationTable(
    "bounds over rows and keys",
    {
        Map: Pairs.bound_map,
        Cast: Pairs.bound_cast,
        Gather: Pairs.bound_gather,
        **each_of(Pairs.bound_ends, Broadcast, Reshape, ir.Transpose, Slice),
        ir.Computation: Pairs.unbounded,
        **each_of(refused("works on the rows of a step, not on pairs of positions"), ir.StepOperation, ir.Kernel),
        **each_of(refused("does not give a value"), ir.Yield, ir.Return, ir.Function, ir.Weight, ir.State),
    },
)
