"""split-outputs: of a feed-forward part, what one of several ranks computes: some outputs of each matrix.

A rank has some rows of each weight [out, in], and so some columns of each product. What is computed element by element
from these is computed for these columns. Where all columns are needed, the ranks give each other theirs. No sum is
split, so the bits are those of one process, for any number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from forerun.errors import InvalidOptionError
from forerun.ir import (
    Builder,
    Context,
    Elementwise,
    Exchange,
    ExpertLinear,
    Function,
    InsertPoint,
    Linear,
    ModuleOp,
    Parameter,
    Receive,
    Reduce,
    Reshape,
    Rewriter,
    Send,
    SpecOperation,
    SSAValue,
    Symbol,
    Weight,
    tensor_type,
    weights,
)
from forerun.passes.base import Needs, Pass, function_named, option, pass_context
from forerun.passes.canonicalize import clean
from forerun.passes.disaggregate import payload_name
from forerun.passes.fuse_kernels import branches_of
from forerun.passes.residual import residual


def columns(size: int, ranks: int, rank: int) -> tuple[int, int]:
    """The first of a rank's columns, and the one after its last: as `numpy.array_split` divides them."""
    each, more = divmod(size, ranks)
    begin = rank * each + min(rank, more)
    return begin, begin + each + (rank < more)


@dataclass(frozen=True)
class SplitOutputs(Pass):
    """`@step`, a feed-forward part, becomes that of rank `rank` of `ranks`."""

    name: ClassVar[str] = "split-outputs"
    needs: ClassVar[Needs | None] = Needs("step", before_kernels=True)

    ranks: int = option(2, least=1, most=2**10)
    rank: int = option(0, least=0, most=2**10 - 1)

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        if self.rank >= self.ranks:
            raise InvalidOptionError(f"There is no rank {self.rank} of {self.ranks}; count from 0.")
        step = function_named(op, "step")
        if step.block.args or any(each.reads or each.writes for each in step.body if not isinstance(each, Exchange)):
            raise InvalidOptionError("@step is no feed-forward part; run disaggregate{part=ffn_part} first.")
        if any(isinstance(each, Exchange) and each.peers for each in step.body):
            raise InvalidOptionError("@step is a rank's share already; divide a feed-forward part once.")
        _Split(op, step, self.ranks, self.rank).run()
        clean(step)
        exchanged = sum(isinstance(each, Receive) and each.peers for each in step.body)
        pass_context(ctx).note(f"{self.name}: rank {self.rank} of {self.ranks}, {exchanged} exchanges with the others")


class _Split:
    """Each value of the part as a whole, as this rank's columns, or as both."""

    def __init__(self, module: ModuleOp, step: Function, ranks: int, rank: int) -> None:
        self.step, self.ranks, self.rank = step, ranks, rank
        self.declared = weights(module)
        self.declarations = Builder(InsertPoint.before(step))
        self.build = Builder(step.block)
        self.own: dict[SSAValue, SSAValue] = {}
        self.apart: set[SSAValue] = set()  # values of which there are only this rank's columns
        self.branch_of = branches_of(step, residual(step))
        self.payloads = {each.payload for each in step.body if isinstance(each, Exchange)}

    def run(self) -> None:
        for operation in self.step.body:
            self.build = Builder.before(operation)
            if isinstance(operation, Send):
                value = self._own(operation.value)
                self.build.emit(operation.remade([value]))
                Rewriter.erase_op(operation)
            elif not self._split(operation):
                for place, value in enumerate(operation.operands):
                    operation.operands[place] = self._whole(value)

    def _split(self, operation: SpecOperation) -> bool:
        """Whether only this rank's columns of the result are computed."""
        if isinstance(operation, Linear | ExpertLinear):
            made = self._product(operation)
        elif any(value in self.apart for value in operation.operands):
            made = self._columnwise(operation)
        else:
            return False
        if made is None:
            return False
        result = operation.results[0]
        made.results[0].name_hint = result.name_hint
        self.own[result] = made.results[0]
        self.apart.add(result)
        return True

    def _product(self, operation: Linear | ExpertLinear) -> SpecOperation | None:
        """A product with some rows of a weight."""
        read = [each for each in (operation.weight, operation.bias) if each is not None]
        if self._width(operation.results[0]) < self.ranks or not all(
            isinstance(each.owner, Parameter) for each in read
        ):
            return None
        operands = [self._part(each) if each in read else self._whole(each) for each in operation.operands]
        return self.build.emit(operation.remade(operands))

    def _part(self, value: SSAValue) -> SSAValue:
        """This rank's outputs of a weight, or of a bias."""
        owner = value.owner
        assert isinstance(owner, Parameter)
        declared = self.declared[owner.symbol]
        axis = len(declared.shape) - (1 if self._is_bias(value) else 2)
        begin, end = columns(int(declared.shape[axis]), self.ranks, self.rank)
        name = Symbol(f"{owner.symbol}[{begin}:{end}]")
        shape = (*declared.shape[:axis], end - begin, *declared.shape[axis + 1 :])
        if name not in self.declared:
            parameters: dict[str, Any] = {"symbol": name, "shape": shape, "dtype": declared.dtype}
            made = Weight.make(**parameters, source=owner.symbol, part=(axis, begin, end))
            self.declarations.emit(made)
            self.declared[name] = made
        return self.build.add(Parameter, symbol=name, shape=shape, dtype=declared.dtype)

    @staticmethod
    def _is_bias(value: SSAValue) -> bool:
        products = [each.operation for each in value.uses if isinstance(each.operation, Linear | ExpertLinear)]
        return any(each.bias is value for each in products)

    def _columnwise(self, operation: SpecOperation) -> SpecOperation | None:
        """An operation that computes each column from the same column of its operands."""
        result = operation.results[0]
        kind = tensor_type(result)
        width = self._width(result)
        same = [value for value in operation.operands if self._width(value) == width]
        match operation:
            case Elementwise():
                operands = [self._own(each) if each in same else each for each in operation.operands]
                if any(value in self.apart and value not in same for value in operation.operands):
                    return None
                return self.build.emit(operation.remade(operands))
            case Reshape() if self._width(operation.x) == width:
                own = self._own(operation.x)
                return self.build.emit(operation.remade([own], shape=(*kind.dims[:-1], self._width(own))))
            case Reduce(x=x, dims=dims) if self._width(x) == width and tensor_type(x).rank - 1 not in dims:
                return self.build.emit(operation.remade([self._own(operation.x)]))
            case _:
                return None

    def _own(self, value: SSAValue) -> SSAValue:
        """This rank's columns of a value."""
        if value not in self.own:
            begin, end = columns(self._width(value), self.ranks, self.rank)
            self.own[value] = self.build.slice(value, tensor_type(value).rank - 1, begin, end)
        return self.own[value]

    def _whole(self, value: SSAValue) -> SSAValue:
        """All columns of a value, which the ranks give each other."""
        if value not in self.apart:
            return value
        assert isinstance(value.owner, SpecOperation)
        kind, branch = tensor_type(value), self.branch_of.get(value.owner)
        payload = payload_name(value, branch, self.step.branches, self.payloads)
        self.payloads.add(payload)
        told = {} if branch is None else {"branch": branch}
        self.build.emit(Send.make(self.own[value], payload=payload, peers=True, **told))
        given = {"shape": kind.dims, "dtype": kind.dtype, "peers": True}
        whole = self.build.add(Receive, payload=payload, **given, **told)
        whole.name_hint = value.name_hint
        value.replace_all_uses_with(whole)
        self.apart.discard(value)
        self.own[whole] = self.own.pop(value)
        return whole

    @staticmethod
    def _width(value: SSAValue) -> int:
        dims = tensor_type(value).dims
        return dims[-1] if dims and isinstance(dims[-1], int) else 0
