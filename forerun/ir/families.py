"""Families of operations: what a class promises, so that tables need one line for all of its kind.

A line of an `OperationTable` for a family holds for every operation of it that has no line of its own. An operation
that belongs to no family needs a line in every table.
"""

from __future__ import annotations

from xdsl.irdl import traits_def
from xdsl.traits import Pure

from forerun.ir.operation import SpecOperation, ValueOperation, tensor_type
from forerun.ir.properties import FLAG, INTEGER, TEXT, default, optional, parameter


class Computation(SpecOperation):
    """A function of its operands and parameters, without effects."""

    traits = traits_def(Pure())


class Elementwise(Computation, ValueOperation):
    """An element of the result depends on one element of each operand, as numpy's broadcasting aligns them."""


class AlongAxes(Computation):
    """A computation along some axes of the first operand: each index of the other axes is computed by itself.

    The other operands are aligned with the first as numpy's broadcasting aligns them.
    """

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the first operand along which elements meet; the last one unless a class says otherwise."""
        return (tensor_type(self.operands[0]).rank - 1,)


class AlongDim(AlongAxes):
    """A computation along the axis `dim`."""

    dim: int = parameter(INTEGER)

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.dim,)


class StepOperation(SpecOperation):
    """An operation on the rows of a step, which reads or writes states; a traced function has none."""


class Exchange(StepOperation):
    """A message between two parts of a step, which both have in the same order.

    `branch` is the residual branch of the step that it belongs to: without the branch, there is no message. With
    `peers`, it is between the ranks that share a part: each gives its columns, and takes those of all.
    """

    payload: str = parameter(TEXT)
    branch: int | None = optional(INTEGER)
    peers: bool = default(FLAG, False)


FAMILIES: tuple[type[SpecOperation], ...] = (Computation, Elementwise, AlongAxes, AlongDim, StepOperation, Exchange)
