"""fuse_kernels: groups the operations of `@step` into `spec.kernel` regions, each computed by one launch.

    linear      a norm in front, linear layers that share their input (and their experts), and what follows them row by
                row: activation, residual, rotary embedding, writes to states
    head        a linear kernel and the choice of candidates among its results, which then need not all be in memory
    attention   one tree attention
    recurrence  one recurrence
    topk        the choice of candidates from values that no linear gives
    ancestors   the slots of the positions before each row
    row_wise    everything else (embedding lookup, first norm, ...)

Views, constants, parameters and lookups in positional tables cost nothing to repeat: each kernel has its own copy.
Messages to another part stay between kernels, in their order.
A kernel belongs to one residual branch or to none, so that a branch can be left out by leaving out its kernels: it gets
the number of its `branch`, and `stream = i` if its first result is the stream's value i. `@step` gets `branches`: the
layer and the kind of each. A kernel's `label` names it in the words of the model (`kernel_names`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import ClassVar

from forerun import ir
from forerun.ir import (
    Block,
    Builder,
    Context,
    Function,
    Gather,
    InsertPoint,
    Kernel,
    Linear,
    ModuleOp,
    Parameter,
    Region,
    Reshape,
    Return,
    Rewriter,
    SpecOperation,
    SSAValue,
    Yield,
    each_of,
    entries,
    refused,
    tensor_type,
)
from forerun.passes.base import Needs, Pass, function_named, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.kernel_names import KernelNames
from forerun.passes.residual import Residual, residual
from forerun.passes.substitute import clone_with


class Role(Enum):
    """What an operation does in a kernel."""

    VIEW = auto()  # every kernel that reads it has its own copy
    LOOKUP = auto()  # likewise in a positional table; otherwise row-wise
    LINEAR = auto()
    ATTENTION = auto()
    RECURRENCE = auto()
    CHOICE = auto()
    ANCESTORS = auto()
    NORM = auto()  # stands in front of the linears that read it, if nothing else reads it
    ROW_WISE = auto()
    MESSAGE = auto()  # stays between kernels
    END = auto()


ROLES: ir.OperationTable[Role] = ir.OperationTable(
    "roles in kernels",
    {
        **each_of(Role.VIEW, ir.Reshape, ir.Transpose, ir.Slice, ir.Broadcast, ir.Constant, ir.Parameter),
        Gather: Role.LOOKUP,
        **each_of(Role.LINEAR, Linear, ir.ExpertLinear),
        ir.TreeAttention: Role.ATTENTION,
        ir.TopK: Role.CHOICE,
        **each_of(Role.NORM, ir.RMSNorm, ir.LayerNorm, ir.Softmax),
        **each_of(Role.ROW_WISE, ir.Elementwise, ir.AlongAxes, ir.Iota, ir.MatMul, ir.StateWrite, ir.StateRead),
        ir.Ancestors: Role.ANCESTORS,
        ir.TreeRecurrence: Role.RECURRENCE,
        Return: Role.END,
        **each_of(
            refused("runs over a whole sequence; run insert-kv-cache before fuse-kernels"),
            ir.Attention,
            ir.Recurrence,
            ir.Window,
        ),
        ir.Exchange: Role.MESSAGE,
        **each_of(refused("is made by fuse-kernels, which has run already"), Kernel, Yield),
        **each_of(refused("cannot stand in a function"), Function, ir.Weight, ir.State),
    },
)


MESSAGE = "message"
"""The kind of a group that is no kernel, but one message."""


@dataclass
class Group:
    """The operations of one kernel, in program order."""

    kind: str
    branch: int | None = None
    members: list[SpecOperation] = field(default_factory=list[SpecOperation])


@dataclass(frozen=True)
class FuseKernels(Pass):
    """Every operation of `@step`, and of the module's other entries, ends up in a kernel."""

    name: ClassVar[str] = "fuse-kernels"
    needs: ClassVar[Needs | None] = Needs("step", before_kernels=True)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        step = function_named(op, "step")
        found = residual(step)
        kinds = Counter(each.kind for each in found.branches)
        counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        if found.branches:
            step.branches = tuple((each.layer, each.kind) for each in found.branches)
        pass_context(ctx).note(f"residual branches: {counted}" if counted else "no residual stream")
        names = KernelNames(op)
        for entry in entries(op).values():
            stream = found if entry is step else Residual((), ())
            groups = group(entry, stream)
            named = names.of([(each.kind, each.branch, each.members) for each in groups])
            _Emitter(entry, groups, named, stream).emit()
            clean(entry)


def group(step: Function, found: Residual) -> list[Group]:
    """Greedy: an operation joins the latest kernel that its operands come from, if that kernel can take it."""
    groups: list[Group] = []
    place: dict[SpecOperation, int] = {}
    linear_on: dict[tuple[SSAValue, SSAValue | None, int | None], int] = {}
    branch_of = branches_of(step, found)
    waiting: dict[SpecOperation, None] = {}
    writers: dict[str, int] = {}

    def start(kind: str, operation: SpecOperation) -> None:
        groups.append(Group(kind, branch_of.get(operation)))
        join(len(groups) - 1, operation)

    def join(index: int, operation: SpecOperation) -> None:
        place[operation] = index
        groups[index].members.append(operation)
        writers.update(dict.fromkeys(operation.writes, index))

    def latest(operation: SpecOperation) -> int:
        return max((place[each] for each in producers(operation) if each in place), default=-1)

    sent = [each.value for each in step.body if isinstance(each, ir.Send)]
    returned = {each.owner for each in (*step.returned, *sent)}
    for operation in step.body:
        role = ROLES.of(operation)
        if role is Role.END or (inline(operation) and operation not in returned):
            continue
        if role is Role.MESSAGE:
            start(MESSAGE, operation)
        elif isinstance(operation, ir.WeightProduct):
            ids = operation.ids if isinstance(operation, ir.ExpertLinear) else None
            x = operation.x, ids, branch_of.get(operation)
            if x in linear_on:
                join(linear_on[x], operation)
                continue
            groups.append(Group("linear", branch_of.get(operation)))
            linear_on[x] = len(groups) - 1
            for producer in producers(operation):
                if producer in waiting:
                    del waiting[producer]
                    join(linear_on[x], producer)
            join(linear_on[x], operation)
        elif role is Role.ATTENTION:
            start("attention", operation)
        elif role is Role.RECURRENCE:
            start("recurrence", operation)
        elif role is Role.ANCESTORS:
            start("ancestors", operation)
        elif role is Role.CHOICE:
            index = latest(operation)
            if index >= 0 and groups[index].kind == "linear" and groups[index].branch == branch_of.get(operation):
                join(index, operation)
                groups[index].kind = "head"
            else:
                start("topk", operation)
        elif role is Role.NORM and _feeds_one_linear_input(operation):
            waiting[operation] = None
        else:
            index = latest(operation)
            # All rows write before any reads, so what reads a state comes in a later kernel than what writes it.
            written = max((writers.get(each, -1) for each in operation.reads), default=-1)
            if index > written and _takes(groups[index], branch_of.get(operation)):
                join(index, operation)
            else:
                start("row_wise", operation)
    return groups


def branches_of(step: Function, found: Residual) -> dict[SpecOperation, int]:
    """The residual branch of each operation that is in one; in a part without a stream, that of what it receives."""
    if found.branches:
        return {operation: index for index, each in enumerate(found.branches) for operation in each.operations}
    known: dict[SpecOperation, int] = {}
    for operation in step.body:
        given = [known[each] for each in producers(operation) if each in known]
        own = operation.branch if isinstance(operation, ir.Exchange) else max(given, default=None)
        if own is not None:
            known[operation] = own
    return known


def _takes(group: Group, branch: int | None) -> bool:
    return group.kind in ("linear", "row_wise") and group.branch == branch


def inline(operation: SpecOperation) -> bool:
    """Whether a kernel copies an operation instead of reading its result from memory."""
    if isinstance(operation, Gather):
        return isinstance(operation.table.owner, Parameter) and all(map(_from_positions, operation.indices))
    return ROLES.of(operation) is Role.VIEW


def _from_positions(index: SSAValue) -> bool:
    while isinstance(index.owner, Reshape):
        index = index.owner.x
    return not isinstance(index.owner, SpecOperation) and index.name_hint == "positions"


def producers(operation: SpecOperation) -> list[SpecOperation]:
    """The operations a kernel reads from, looking through what it copies."""
    found: list[SpecOperation] = []
    pending = [each.owner for each in operation.operands]
    while pending:
        owner = pending.pop()
        if not isinstance(owner, SpecOperation):
            continue
        if inline(owner):
            pending.extend(each.owner for each in owner.operands)
        else:
            found.append(owner)
    return found


def _feeds_one_linear_input(operation: SpecOperation) -> bool:
    users = [use.operation for use in operation.results[0].uses]
    return bool(users) and all(isinstance(each, ir.WeightProduct) and each.x is operation.results[0] for each in users)


class _Emitter:
    """Rewrites `@step` as a sequence of kernels."""

    def __init__(self, step: Function, groups: list[Group], names: list[str], found: Residual) -> None:
        self.step, self.names = step, names
        self.stream = {value: index for index, value in enumerate(found.stream)}
        self.groups = groups
        self.order = {operation: index for index, operation in enumerate(step.body)}
        self.member_of = {operation: index for index, each in enumerate(groups) for operation in each.members}
        self.outside: dict[SSAValue, SSAValue] = {each: each for each in step.block.args}

    def emit(self) -> None:
        last = self.step.block.last_op
        assert last is not None
        build = Builder(InsertPoint.before(last))
        escaping = [self.escaping(index) for index in range(len(self.groups))]
        for each, name, results in zip(self.groups, self.names, escaping, strict=True):
            kernel = self.message(each.members[0]) if each.kind == MESSAGE else self.kernel(each, name, results)
            build.location = each.members[0].location
            build.emit(kernel)
            for old, new in zip(results, kernel.results, strict=True):
                new.name_hint = old.name_hint
                self.outside[old] = new
        for index, value in enumerate(last.operands):
            last.operands[index] = self.outside[value]
        for operation in reversed([each for each in self.order if each is not last]):
            Rewriter.erase_op(operation)

    def escaping(self, index: int) -> list[SSAValue]:
        """The values of a group that are read by other groups or returned by the function."""
        members = set(self.groups[index].members)
        needed: list[SSAValue] = []
        for operation in self.groups[index].members:
            needed.extend(value for value in operation.results if _read_outside(value, members))
        return sorted(needed, key=lambda each: each not in self.stream)

    def message(self, operation: SpecOperation) -> SpecOperation:
        return operation.clone({each: self.outside[each] for each in operation.operands})

    def kernel(self, group: Group, name: str, results: list[SSAValue]) -> Kernel:
        body = self.with_inlined(group.members)
        inside = {value for each in body for value in each.results}
        inputs = list(dict.fromkeys(each for op in body for each in op.operands if each not in inside))
        block = Block(arg_types=[tensor_type(each) for each in inputs])
        values: dict[SSAValue, SSAValue] = dict(zip(inputs, block.args, strict=True))
        for argument, value in zip(block.args, inputs, strict=True):
            argument.name_hint = value.name_hint
        build = Builder(block)
        for operation in body:
            clone_with(operation, values, {}, build)
        build.emit(Yield.make(*(values[each] for each in results)))
        stream = self.stream.get(results[0]) if results else None
        outside = [self.outside[each] for each in inputs]
        return Kernel.of(outside, Region(block), label=name, kind=group.kind, branch=group.branch, stream=stream)

    def with_inlined(self, members: Iterable[SpecOperation]) -> list[SpecOperation]:
        """A group's operations and what it copies, in program order."""
        found: dict[SpecOperation, None] = dict.fromkeys(members)
        pending = list(found)
        while pending:
            for operand in pending.pop().operands:
                owner = operand.owner
                if (
                    isinstance(owner, SpecOperation)
                    and owner not in found
                    and owner not in self.member_of
                    and inline(owner)
                ):
                    found[owner] = None
                    pending.append(owner)
        return sorted(found, key=lambda each: self.order[each])


def _read_outside(value: SSAValue, members: set[SpecOperation]) -> bool:
    """Whether a value is read outside the members, looking through what kernels copy."""
    for use in value.uses:
        user = use.operation
        if not isinstance(user, SpecOperation) or user in members:
            continue
        if not inline(user) or user.ends_body:
            return True
        if any(_read_outside(each, members) for each in user.results):
            return True
    return False
