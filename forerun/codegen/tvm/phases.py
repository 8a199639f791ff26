"""What a kernel of the CPU consists of: phases, the slots of its row of the program, and where its values lie."""

from dataclasses import dataclass, field
from typing import Any

from forerun import ir
from forerun.codegen.regions import Region
from forerun.codegen.tvm.attention import Attention
from forerun.codegen.tvm.expressions import Stored
from forerun.codegen.tvm.formats import WeightFormat
from forerun.codegen.tvm.linear import Bundle
from forerun.codegen.tvm.records import Form, Records


@dataclass(frozen=True)
class Slot:
    """What a slot of a program row holds: the offset of a `value` of the function, a `weight`, a `state`, the `scratch`
    of some dims, or the size of a `record` of all states in a region."""

    kind: str
    key: Any = None


@dataclass
class RowPhase:
    """Values and writes to states, row by row; `rows` is the dimension that is divided among threads, 1 for none."""

    rows: ir.Dim
    items: list[tuple[ir.SSAValue, Stored] | tuple[ir.StateWrite, Records]]


@dataclass
class ProductPhase:
    """Linears, in bundles that share a pass over blocks of outputs."""

    bundles: list[Bundle]


@dataclass
class AttentionPhase:
    attention: Attention
    result: Stored


@dataclass
class RecurrencePhase:
    """The rows in order, one after another; `kept` are the body's values that are computed in memory."""

    operation: ir.Recurrence
    records: Records
    result: Stored
    kept: list[tuple[ir.SSAValue, Stored]]


@dataclass
class TopKPhase:
    """`stage` 0: the chunks' maxima; 1: the choice."""

    stage: int
    logits: Stored
    maxima: Stored
    values: Stored
    ids: Stored


Phase = RowPhase | ProductPhase | AttentionPhase | RecurrencePhase | TopKPhase


@dataclass
class Plan:
    """A region's phases, its slots, and where its values lie in memory while it runs."""

    region: Region
    phases: list[Phase] = field(default_factory=list[Phase])
    slots: list[Slot] = field(default_factory=list[Slot])
    stored: dict[ir.SSAValue, Stored] = field(default_factory=dict[ir.SSAValue, Stored])
    records: dict[str, Records] = field(default_factory=dict[str, Records])
    """The records of the states that the region reads or writes."""


@dataclass(frozen=True)
class Surroundings:
    """What planning needs to know of the module."""

    states: dict[str, Form]
    block: int  # positions
    formats: dict[str, WeightFormat]  # of the matrices that linears read, and of those with a storage
