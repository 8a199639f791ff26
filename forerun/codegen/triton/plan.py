"""What planning makes of a region: its launches, each with what lies in memory before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from forerun import ir
from forerun.codegen.regions import Region
from forerun.codegen.triton.expressions import Stored
from forerun.codegen.triton.products import Products
from forerun.codegen.triton.rowwise import RowsLaunch
from forerun.codegen.triton.topk import Choice


@dataclass(frozen=True)
class Output:
    """A value and where it goes: memory, a state, or the candidates that are chosen among it."""

    value: ir.SSAValue
    place: Stored | ir.StateWrite | Choice


@dataclass
class AttentionLaunch:
    """One tree attention; `scratch` holds the splits' sums [N, H, splits, Dv + 2]."""

    operation: ir.TreeAttention
    result: Stored


@dataclass
class RecurrenceLaunch:
    """The rows of a state, one after another."""

    operation: ir.Recurrence
    result: Stored


@dataclass
class TopKLaunch:
    """A choice among logits in memory."""

    logits: Stored
    choice: Choice


LaunchPlan = Products | RowsLaunch | AttentionLaunch | RecurrenceLaunch | TopKLaunch


@dataclass(frozen=True)
class Surroundings:
    """What planning needs to know of the module."""

    states: Mapping[str, ir.State]
    block: int
    tables: int  # the width of the block tables
    path: int  # the width of the paths
    storage: Mapping[str, str]  # element type of each weight in memory: f32, bf16, f16 or i32
    position_element: str  # element type of states per position
    candidates: ir.SSAValue | None = None  # the ids that the function returns: what they are chosen of is drawn from


@dataclass
class Plan:
    """A region's launches, and where its values lie."""

    region: Region
    launches: list[tuple[LaunchPlan, dict[ir.SSAValue, Stored]]] = field(
        default_factory=list[tuple[LaunchPlan, dict[ir.SSAValue, Stored]]]
    )
    """Each with what lies in memory before it runs."""
    asked: list[tuple[LaunchPlan, dict[ir.SSAValue, Stored]]] = field(
        default_factory=list[tuple[LaunchPlan, dict[ir.SSAValue, Stored]]]
    )
    """The launches that write the logits, which run on demand."""
    stored: dict[ir.SSAValue, Stored] = field(default_factory=dict[ir.SSAValue, Stored])
    constants: dict[ir.SSAValue, ir.Constant] = field(default_factory=dict[ir.SSAValue, ir.Constant])
