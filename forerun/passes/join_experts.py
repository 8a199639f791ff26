"""join_experts: a sum over experts, of each for the rows that chose it, becomes one computation with chosen weights.

    sum over e of where(ids == e, f(x, w[e]), 0)   ->   f(x, w[ids])

A loop over experts computes every expert for every row; the sum has only those that a row chose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from forerun import dims as dimensions
from forerun.ir import (
    AlongAxes,
    Broadcast,
    Builder,
    Cast,
    Context,
    Elementwise,
    ExpertLinear,
    InsertPoint,
    Linear,
    Map,
    ModuleOp,
    Reshape,
    Slice,
    SpecOperation,
    SSAValue,
    Transpose,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context
from forerun.passes.canonicalize import Canonicalize, clean
from forerun.passes.expert_terms import Choice, bound_of, leaves, term_of
from forerun.passes.matching import defined_by


@dataclass(frozen=True)
class JoinExperts(Pass):
    """The experts' weights must be places along the first axis of one weight."""

    name: ClassVar[str] = "join-experts"
    needs: ClassVar[Needs | None] = Needs("forward")

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        forward = function_named(op, "forward")
        changed = False
        for operation in forward.body:
            if isinstance(operation, Map) and operation.function == "add" and not _is_added(operation):
                joined = _join(operation)
                if joined:
                    pass_context(ctx).note(f"{self.name}: {joined} experts at {operation.location}")
                    changed = True
        clean(forward)
        if changed:
            Canonicalize().apply(ctx, op)  # transposes of weights and of choices meet


def _is_added(operation: Map) -> bool:
    """Whether a sum is a part of a larger one."""
    users = [use.operation for use in operation.result.uses]
    return len(users) == 1 and isinstance(users[0], Map) and users[0].function == "add"


def _join(root: Map) -> int:
    """Replaces the terms of a sum; returns how many became one."""
    found = [(leaf, term_of(leaf)) for leaf in leaves(root.result)]
    terms = sorted((each for _, each in found if each is not None), key=lambda each: each.choice.expert)
    if len({(each.choice.ids, each.choice.order, each.summed) for each in terms}) != 1:
        return 0
    if [each.choice.expert for each in terms] != list(range(len(terms))) or len(terms) < 2:
        return 0
    bound = bound_of(terms[0].choice.ids)
    build = Builder(InsertPoint.before(root))
    build.location = root.location
    for count in range(len(terms), 1, -1):
        all_known = bound is not None and bound <= count
        joining = _Joining(build, terms[0].choice, count, all_known)
        value = joining.of([each.value for each in terms[:count]])
        if not isinstance(value, SSAValue) or not joining.sees_experts:
            continue
        if not all_known:
            ids, dtype = joining.placed(), tensor_type(joining.choice.ids).dtype
            below = build.map("lt", ids, build.constant(count, dtype))
            own = build.map("and", below, build.map("ge", ids, build.constant(0, dtype)))
            dims = (*tensor_type(own).dims, *(1 for _ in range(tensor_type(value).rank - tensor_type(own).rank)))
            zero = build.constant(0.0, tensor_type(value).dtype)
            value = build.map("where", build.reshape(own, dims), value, zero)
        total = value if terms[0].summed is None else build.reduce("sum", value, *terms[0].summed)
        left = [leaf for leaf, term in found if term is None or count <= term.choice.expert < (bound or len(terms))]
        for each in left:
            total = build.map("add", total, each)
        root.result.replace_all_uses_with(total)
        return count
    return 0


@dataclass(frozen=True)
class Stack:
    """Values of all experts that no row changes: [E, *shape]."""

    value: SSAValue


@dataclass
class _Joining:
    """Computations of the first `count` experts as one, of the expert that each row chose."""

    build: Builder
    choice: Choice
    count: int
    all_known: bool  # whether every row chose some of them
    sees_experts: bool = False
    known: dict[tuple[SSAValue, ...], SSAValue | Stack | None] = field(
        default_factory=dict[tuple[SSAValue, ...], "SSAValue | Stack | None"]
    )

    def placed(self) -> SSAValue:
        """The ids in the order of the rows."""
        return self.build.transpose(self.ids(), self.choice.order)

    def ids(self) -> SSAValue:
        """The ids, one for each place."""
        given = self.choice.ids
        return self.build.reshape(given, tensor_type(given).dims[: len(self.choice.order)])

    def of(self, values: Sequence[SSAValue]) -> SSAValue | Stack | None:
        """One value for those that the experts have in the same place; None if they are computed differently."""
        key = tuple(values)
        if key not in self.known:
            self.known[key] = values[0] if len(set(values)) == 1 else self._of(values)
        return self.known[key]

    def _of(self, values: Sequence[SSAValue]) -> SSAValue | Stack | None:
        operations = [each.owner for each in values if isinstance(each.owner, SpecOperation)]
        first = operations[0] if len(operations) == len(values) else None
        if first is None or len(first.results) != 1 or first.regions:
            return None
        if isinstance(first, Slice) and (own := self._experts(operations)) is not None:
            return own
        if any(type(each) is not type(first) or each.properties != first.properties for each in operations):
            return None
        columns = zip(*(each.operands for each in operations), strict=True)
        given = [self.of(list(each)) for each in columns]
        if any(each is None for each in given) or not self._is_row_by_row(first):
            return None
        if not any(isinstance(each, Stack) for each in given):
            return self.build.emit(first.remade([each for each in given if isinstance(each, SSAValue)])).results[0]
        if isinstance(first, Linear):
            return self._linear(given)
        return _stacked(self.build, first, given[0]) if isinstance(given[0], Stack) and len(given) == 1 else None

    def _is_row_by_row(self, operation: SpecOperation) -> bool:
        """Whether each row and choice is computed by itself: all experts' results then are those of the chosen one.

        Views of weights are checked where they are stacked.
        """
        rank = len(self.choice.order) + 1
        if not any(dimensions.symbol(dim) for dim in tensor_type(operation.operands[0]).dims):
            return isinstance(operation, Reshape | Transpose | Cast | Map)
        if isinstance(operation, Elementwise | Linear):
            return tensor_type(operation.results[0]).rank == rank
        alike = all(tensor_type(each).rank == rank for each in operation.operands[:1])
        return isinstance(operation, AlongAxes) and alike and tuple(operation.axes) == (rank - 1,)

    def _experts(self, slices: Sequence[object]) -> Stack | None:
        """The weights of which each expert takes its place."""
        weights: set[SSAValue] = set()
        for expert, each in enumerate(slices):
            if not isinstance(each, Slice) or (each.dim, each.start, each.stop) != (0, expert, expert + 1):
                return None
            weights.add(each.x)
        if len(weights) != 1:
            return None
        (weight,) = weights
        dims = tensor_type(weight).dims
        if not all(isinstance(each, int) for each in dims) or int(dims[0]) < self.count:
            return None
        self.sees_experts = True
        return Stack(self.build.reshape(self.build.slice(weight, 0, 0, self.count), (self.count, 1, *dims[1:])))

    def _linear(self, given: Sequence[SSAValue | Stack | None]) -> SSAValue | None:
        x, weight, *bias = given
        order, build = self.choice.order, self.build
        if not isinstance(x, SSAValue) or not isinstance(weight, Stack) or tensor_type(x).rank != len(order) + 1:
            return None
        if any(not isinstance(each, Stack) for each in bias):
            return None
        back = tuple(order.index(each) for each in range(len(order)))
        ids = self.ids()
        if not self.all_known:
            dtype = tensor_type(ids).dtype
            ids = build.map("min", ids, build.constant(self.count - 1, dtype))
            ids = build.map("max", ids, build.constant(0, dtype))
        rows = self._same_for_choices(x, back) or build.transpose(x, (*back, len(order)))
        biases = [each.value for each in bias if isinstance(each, Stack)]
        lead = tensor_type(ids).dims
        if not isinstance(lead[-1], int):  # one choice a row
            ids = build.reshape(ids, (*lead, 1))
        if tensor_type(rows).dims[:-1] not in (tensor_type(ids).dims, tensor_type(ids).dims[:-1]):
            return None
        made = build.add(ExpertLinear, rows, weight.value, ids, *biases)
        made = build.reshape(made, (*lead, tensor_type(made).dims[-1]))
        return build.transpose(made, (*order, len(order)))

    def _same_for_choices(self, x: SSAValue, back: Sequence[int]) -> SSAValue | None:
        """[..., in] of rows [..., k, in], in the order of the ids, if x repeats one row for all choices."""
        repeated, choice, rank = defined_by(x, Broadcast), back[-1], tensor_type(x).rank
        if repeated is None:
            return None
        given = tensor_type(repeated.x).dims
        at = choice - (rank - len(given))
        if at >= 0 and given[at] != 1:
            return None
        one = repeated.x if at < 0 else self.build.reshape(repeated.x, (*given[:at], *given[at + 1 :]))
        dims = tensor_type(x).dims
        spread = self.build.broadcast(one, (*dims[:choice], *dims[choice + 1 :]))
        return self.build.transpose(spread, (*(each - (each > choice) for each in back[:-1]), rank - 2))


def _stacked(build: Builder, operation: SpecOperation, given: Stack) -> Stack | None:
    """A view or a cast of every expert's value."""
    count = tensor_type(given.value).dims[0]
    match operation:
        case Reshape():
            return Stack(build.reshape(given.value, (count, *operation.shape)))
        case Transpose():
            return Stack(build.transpose(given.value, (0, *(each + 1 for each in operation.permutation))))
        case Cast():
            return Stack(build.cast(given.value, operation.dtype))
        case _:
            return None
