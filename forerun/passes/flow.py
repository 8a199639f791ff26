"""How values flow through a step: by operands and results, and through the states that operations write and read.

What an operation does besides giving results decides which operations depend on which, and whether two are equal. The
table is closed: an operation that is not in it is refused by name.
"""

from __future__ import annotations

from enum import Enum, auto

from forerun import ir
from forerun.ir import each_of, refused


class Flow(Enum):
    """What the results of an operation depend on, and what it changes."""

    VALUES = auto()  # of its operands and parameters alone
    READS = auto()  # of what was written to its states as well
    WRITES = auto()  # gives no results, and changes its states
    UPDATES = auto()  # of what was written to its state as well, which it changes
    ENDS = auto()  # returns its operands


FLOWS: ir.OperationTable[Flow] = ir.OperationTable(
    "flow of values",
    {
        ir.Computation: Flow.VALUES,
        **each_of(Flow.READS, ir.TreeAttention, ir.StateRead),
        ir.Ancestors: Flow.VALUES,
        **each_of(Flow.WRITES, ir.StateWrite, ir.Send),
        ir.Receive: Flow.READS,
        ir.TreeRecurrence: Flow.UPDATES,
        ir.Return: Flow.ENDS,
        **each_of(
            refused("runs over a whole sequence, not over the rows of a step; run insert-kv-cache first"),
            ir.Attention,
            ir.Recurrence,
            ir.Window,
        ),
        **each_of(refused("hides how values flow; run this analysis before fuse-kernels"), ir.Kernel, ir.Yield),
        **each_of(refused("cannot stand in a function"), ir.Function, ir.Weight, ir.State),
    },
)
